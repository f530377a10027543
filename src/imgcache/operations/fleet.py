"""The hosts of one run about cache entries: one or more passes over them, and what went wrong with some."""

from __future__ import annotations

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from imgcache.drivers.capabilities import require
from imgcache.drivers.registry import DRIVERS
from imgcache.events import (
    HostEnded,
    HostStarted,
    ItemEnded,
    Notice,
    NullSink,
    RunEnded,
    RunStarted,
)
from imgcache.operations.engine import Engine, Limits
from imgcache.operations.interrupt import interrupt_on_signals
from imgcache.operations.parallelism import fit_concurrency, fit_lenders
from imgcache.operations.places import MOST_LENDERS
from imgcache.operations.sources import NoSources
from imgcache.operations.strangers import fenced
from imgcache.transport.dispatch import open_transport
from imgcache.transport.launch import helper_digest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from imgcache.drivers.base import Driver, Sources
    from imgcache.events import Event, EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import Host, Image
    from imgcache.operations.engine import HostWork
    from imgcache.operations.host_run import HostRun
    from imgcache.operations.interrupt import Interrupt
    from imgcache.operations.rollout import Rollout
    from imgcache.operations.selection import Selection
    from imgcache.plan import HostFailure, Outcome
    from imgcache.transport.base import Transport

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRequest:
    """What every command about cache entries is asked with."""

    selection: Selection
    concurrency: int = 10
    retries: int = 3
    timeout_s: float = 1800.0
    """For one host, in one pass over the hosts."""
    dry_run: bool = False
    wait: bool = True
    """False: hand work to back ends that do it by themselves, and do not wait for its end."""


class Fleet:
    """See ``open_fleet``."""

    def __init__(
        self,
        command: str,
        hosts: Sequence[Host],
        limits: Limits,
        *,
        transport: Transport,
        interrupt: Interrupt,
        sink: EventSink,
        dry_run: bool,
        wait: bool = True,
        service: ImageService | None = None,
    ) -> None:
        self.command = command
        self.hosts = tuple(hosts)
        self.limits = limits
        self.sink = sink
        self.dry_run = dry_run
        self.started_at = datetime.now(UTC)
        self.run_id = f"{self.started_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        self.failures: dict[str, HostFailure] = {}
        """Host name -> why the last pass over it ended early."""
        self._wait = wait
        self._service = service
        self._transport = transport
        self._interrupt = interrupt
        self._passes = 0

    @property
    def interrupted(self) -> int | None:
        """The number of the signal that ended the run early, if one did."""
        return self._interrupt.signal_number

    @property
    def drivers(self) -> dict[str, str]:
        """Host name -> its driver's name, of all hosts of the run."""
        return {host.name: host.settings.driver for host in self.hosts}

    async def each(
        self, hosts: Sequence[Host], work: Callable[[HostRun, Driver], Awaitable[T]]
    ) -> dict[str, T]:
        """Return host name -> what ``work`` returned, hosts in the order given.

        Hosts whose work failed, or was not begun, are in ``failures`` instead; those whose driver cannot
        serve the command are not contacted.
        """
        found: dict[str, T] = {}

        async def work_on(context: HostRun, _: Sequence[Image]) -> None:
            driver = driver_of(context.host)
            require(driver, self.command)
            found[context.host.name] = await work(context, driver)

        await self.run(hosts, (), work_on, NoSources())
        return {host.name: found[host.name] for host in hosts if host.name in found}

    async def run(
        self,
        hosts: Sequence[Host],
        images: Sequence[Image],
        work: HostWork,
        sources: Sources,
        *,
        rollout: Rollout | None = None,
        images_of: Callable[[Host], Sequence[Image]] | None = None,
    ) -> list[Outcome]:
        """Pass over these hosts once; see ``Engine.run``."""
        self._passes += 1
        sink = self.sink if self._passes == 1 else _LaterPass(self.sink)
        engine = self._engine(sources, sink, dry_run=self.dry_run)
        fenced_work = fenced(work)
        outcomes = await engine.run(
            hosts, images, fenced_work, rollout=rollout, images_of=images_of
        )
        self.failures.update(engine.failures)
        return outcomes

    async def look(
        self,
        hosts: Sequence[Host],
        work: HostWork,
        sources: Sources,
        images_of: Callable[[Host], Sequence[Image]],
    ) -> list[Outcome]:
        """Pass over these hosts in a dry run that nobody is told of; it comes before the others."""
        engine = self._engine(sources, NullSink(), dry_run=True)
        return await engine.run(hosts, (), fenced(work), images_of=images_of)

    def report_dead(self, dead: Mapping[str, Sequence[Outcome]]) -> None:
        """Tell displays of hosts, by name, that have ended before any pass that they are told of."""
        for name, outcomes in dead.items():
            for outcome in outcomes:
                self.sink.emit(ItemEnded(outcome))
            self.sink.emit(HostEnded(name, failed=True))

    def _engine(self, sources: Sources, sink: EventSink, *, dry_run: bool) -> Engine:
        return Engine(
            run_id=self.run_id,
            transport=self._transport,
            sources=sources,
            limits=self.limits,
            sink=sink,
            interrupt=self._interrupt,
            dry_run=dry_run,
            wait=self._wait,
            service=self._service,
        )


class _LaterPass:
    """Hides that hosts start and end again: displays count each host once."""

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink

    def emit(self, event: Event) -> None:
        """See ``EventSink``."""
        if not isinstance(event, HostStarted | HostEnded):
            self._sink.emit(event)


def driver_of(host: Host) -> Driver:
    """Return the driver of a host."""
    return DRIVERS[host.settings.driver]


@asynccontextmanager
async def open_fleet(
    command: str,
    request: FleetRequest,
    hosts: Sequence[Host],
    sink: EventSink,
    *,
    images: Sequence[Image] = (),
    service: ImageService | None = None,
) -> AsyncIterator[Fleet]:
    """Begin a run over hosts; leaving ends it. Signals end it early, within seconds.

    ``images`` are those that each host is to have afterwards, for displays; ``service`` is for hosts that
    are nodes of it.
    """
    concurrency, notice = fit_concurrency(min(request.concurrency, len(hosts)))
    if notice:
        sink.emit(Notice(notice))
    # Image services block; each host at work may wait for one.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(concurrency + 4))
    lenders = fit_lenders(concurrency, min(MOST_LENDERS, len(hosts) - concurrency))
    limits = Limits(concurrency, request.retries, request.timeout_s, lenders)
    with interrupt_on_signals() as interrupt:
        async with open_transport() as transport:
            fleet = Fleet(
                command,
                hosts,
                limits,
                transport=transport,
                interrupt=interrupt,
                sink=sink,
                dry_run=request.dry_run,
                wait=request.wait,
                service=service,
            )
            sink.emit(
                RunStarted(
                    run_id=fleet.run_id,
                    command=command,
                    hosts=len(hosts),
                    images=len(images),
                    bytes_per_cold_host=sum(image.size_bytes for image in images),
                    concurrency=concurrency,
                    helper_digest=helper_digest(),
                )
            )
            yield fleet
    sink.emit(RunEnded(interrupted=interrupt.is_set()))
