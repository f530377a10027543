"""Precache: puts images into the caches of hosts, or renews those that are there."""

from __future__ import annotations

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from imgcache.drivers.registry import DRIVERS
from imgcache.events import Notice, RunEnded, RunStarted
from imgcache.operations.engine import Engine, Limits
from imgcache.operations.interrupt import interrupt_on_signals
from imgcache.operations.keep import PrecacheAndPin, pin_end
from imgcache.operations.parallelism import fit_concurrency
from imgcache.operations.selection import select_hosts
from imgcache.operations.sources import RunSources, source_kinds
from imgcache.plan import PrecachePlan, Report
from imgcache.transport.dispatch import open_transport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import Image, Inventory
    from imgcache.operations.host_run import HostRun
    from imgcache.operations.selection import Selection
    from imgcache.operations.sources import SourcePolicy


#: Access for hosts never outlives a day, however long a run may take.
_MAX_ACCESS_LIFETIME_S = 86400.0


@dataclass(frozen=True, slots=True)
class PrecacheRequest:
    """What the operator asked for."""

    selection: Selection
    names: tuple[str, ...]
    """Image ids and names, as given."""
    concurrency: int = 10
    retries: int = 3
    timeout_s: float = 1800.0
    source: SourcePolicy = "auto"
    dry_run: bool = False
    keep_for_s: float | None = None
    """Pin what is cached, or was there already, for so long; None: do not pin."""


def plan_precache(
    request: PrecacheRequest, inventory: Inventory, service: ImageService
) -> PrecachePlan:
    """Return which images go to which hosts; reads only, and contacts no host.

    Raises:
        UsageError: the selection or ``keep_for_s`` makes no sense; found before the image service is asked.
        ImageServiceError: an image cannot be cached, or the service cannot be used.
    """
    hosts = select_hosts(inventory, request.selection)
    if request.keep_for_s is not None:
        pin_end(request.keep_for_s)
    source_kinds(request.source, service)
    images = service.find_images(request.names)
    return PrecachePlan(images=images, hosts=hosts)


def run_precache(
    request: PrecacheRequest, inventory: Inventory, service: ImageService, sink: EventSink
) -> Report:
    """Plan and execute; blocks until all hosts have ended or a signal ended the run.

    Raises:
        ImgcacheError: nothing was done; see ``plan_precache``.
    """
    plan = plan_precache(request, inventory, service)
    concurrency, notice = fit_concurrency(min(request.concurrency, len(plan.hosts)))
    if notice:
        sink.emit(Notice(notice))
    return asyncio.run(
        execute_precache(plan, replace(request, concurrency=concurrency), service, sink)
    )


async def execute_precache(
    plan: PrecachePlan, request: PrecacheRequest, service: ImageService, sink: EventSink
) -> Report:
    """Carry out a plan: the only part that writes, and only unless ``dry_run``."""
    # A push reads its image in a thread; each host at work may need one.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(request.concurrency + 4))
    started_at = datetime.now(UTC)
    run_id = f"{started_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    sink.emit(
        RunStarted(
            run_id=run_id,
            command="precache",
            hosts=len(plan.hosts),
            images=len(plan.images),
            bytes_per_cold_host=plan.bytes_per_cold_host,
            concurrency=request.concurrency,
        )
    )
    with interrupt_on_signals() as interrupt:
        sources = RunSources(
            service,
            plan.images,
            kinds=source_kinds(request.source, service),
            run_id=run_id,
            lifetime_s=_access_lifetime_s(plan, request),
            sink=sink,
        )
        async with sources, open_transport() as transport:
            engine = Engine(
                run_id=run_id,
                transport=transport,
                sources=sources,
                limits=Limits(request.concurrency, request.retries, request.timeout_s),
                sink=sink,
                interrupt=interrupt,
                dry_run=request.dry_run,
            )
            work = _precache_host
            if request.keep_for_s is not None and not request.dry_run:
                work = PrecacheAndPin(pin_end(request.keep_for_s))
            outcomes = await engine.run(plan.hosts, plan.images, work)
    sink.emit(RunEnded(interrupted=interrupt.is_set()))
    return Report(
        run_id=run_id,
        command="precache",
        started_at=started_at,
        finished_at=datetime.now(UTC),
        images=plan.images,
        outcomes=tuple(outcomes),
        interrupted=interrupt.signal_number,
    )


def _access_lifetime_s(plan: PrecachePlan, request: PrecacheRequest) -> float:
    """Return how long the hosts' access must last at worst: every round of hosts at its deadline."""
    rounds = -(-len(plan.hosts) // request.concurrency)
    return min(rounds * request.timeout_s, _MAX_ACCESS_LIFETIME_S)


async def _precache_host(context: HostRun, images: Sequence[Image]) -> None:
    await DRIVERS[context.host.settings.driver].precache(context, images)
