"""Runs a driver over hosts: bounded parallelism, deadlines, repetition; errors become outcomes here.

A ``HostError`` ends as outcomes of that host. Any other exception is a bug: it cancels the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from imgcache.drivers.base import UnsupportedError
from imgcache.errors import ContactLostError, ErrorCode, HostError
from imgcache.events import HostEnded, HostStarted, Notice
from imgcache.operations.host_run import HostRun
from imgcache.operations.places import MOST_LENDERS, Places
from imgcache.operations.rollout import Rollout
from imgcache.plan import OutcomeWord

if TYPE_CHECKING:
    from imgcache.drivers.base import Sources
    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import Host, Image
    from imgcache.operations.interrupt import Interrupt
    from imgcache.plan import HostFailure, Outcome
    from imgcache.transport.base import Transport

#: Worth a second connection: the host was there a moment ago.
_REPEATED_CODES = frozenset({ErrorCode.LOST, ErrorCode.SESSION})


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use."""

    concurrency: int
    """Hosts at work at a time."""
    retries: int
    """Repetitions of one attempt."""
    timeout_s: float
    """For one host, all its images together."""
    lenders: int = MOST_LENDERS
    """Hosts that may wait beside those at work."""


#: What is done on each host: usually a driver's method, see ``Driver.precache``.
HostWork: TypeAlias = Callable[[HostRun, Sequence["Image"]], Awaitable[None]]


class Engine:
    """Runs one piece of work over many hosts. One object per run."""

    def __init__(
        self,
        *,
        run_id: str,
        transport: Transport,
        sources: Sources,
        limits: Limits,
        sink: EventSink,
        interrupt: Interrupt,
        dry_run: bool = False,
        wait: bool = True,
        service: ImageService | None = None,
    ) -> None:
        self.run_id = run_id
        self.transport = transport
        self.sources = sources
        self.limits = limits
        self.sink = sink
        self.interrupt = interrupt
        self.dry_run = dry_run
        self.wait = wait
        self.service = service
        """Whose nodes some hosts are; None: there is none, or it was not opened."""
        self.places = Places(limits.concurrency, limits.lenders)
        self.storages: dict[str, asyncio.Lock] = {}
        """Storage that hosts share -> held by the one at work there."""
        self.failures: dict[str, HostFailure] = {}
        """Host name -> why its work ended early; for work that reports more than images."""
        self._rollout = Rollout(())
        self._images_of: Callable[[Host], Sequence[Image]] = lambda _: ()

    async def run(
        self,
        hosts: Sequence[Host],
        images: Sequence[Image],
        work: HostWork,
        *,
        rollout: Rollout | None = None,
        images_of: Callable[[Host], Sequence[Image]] | None = None,
    ) -> list[Outcome]:
        """Return one outcome per host and image, hosts in the order given.

        Only as many tasks exist as hosts have a place or have lent it, so memory does not grow with the
        number of hosts beyond their outcomes.

        Args:
            hosts: each once.
            images: for each host.
            work: what is done on each.
            rollout: which of the hosts begins when; without, all in the order given.
            images_of: for each host by itself, instead of ``images``.
        """
        self._rollout = rollout or Rollout(hosts)
        self._images_of = images_of or (lambda _: images)
        runs: dict[str, HostRun] = {}
        tasks: set[asyncio.Task[None]] = set()
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._cancel_on_interrupt(tasks))
                while (run := await self._next_run()) is not None:
                    runs[run.host.name] = run
                    task = group.create_task(self._run_host(run, work))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                while tasks:
                    await asyncio.wait(set(tasks))
                watch.cancel()
        except BaseExceptionGroup as group_error:
            raise _first_cause(group_error) from group_error
        ended = [
            runs.get(host.name) or HostRun(host, self._images_of(host), self) for host in hosts
        ]
        for run in ended:
            if not run.begun:
                self._skip(run)
        self.failures = {run.host.name: run.failure for run in ended if run.failure}
        return [outcome for run in ended for outcome in run.outcomes()]

    async def _next_run(self) -> HostRun | None:
        """Wait for the next host and a place for it; None: no other begins, or the run is interrupted."""
        task = asyncio.ensure_future(self._next_host())
        interrupted = asyncio.ensure_future(self.interrupt.wait())
        try:
            await asyncio.wait((task, interrupted), return_when=asyncio.FIRST_COMPLETED)
            host = None if self.interrupt.is_set() else task.result()
            return HostRun(host, self._images_of(host), self) if host else None
        finally:
            task.cancel()
            interrupted.cancel()
            await asyncio.wait((task, interrupted))

    async def _next_host(self) -> Host | None:
        while (host := await self._rollout.next()) is not None:
            await self.places.begin()
            if not self._rollout.refusal(host):
                return host
            # A window has closed, or a host too many has failed, while it waited for its place.
            self.places.end()
            self._rollout.ended(host, failed=False)
        return None

    def _skip(self, run: HostRun) -> None:
        """Give a host that was not begun its outcomes."""
        error = self._rollout.refusal(run.host)
        if self.interrupt.is_set() or error is None:
            run.give_up_interrupted()
        else:
            run.give_up(OutcomeWord.SKIPPED, error.code, _reason(error))
            self.sink.emit(HostEnded(run.host.name, failed=False))

    def must_stop(self, host: Host) -> HostError | None:
        """See ``HostContext``."""
        return self._rollout.must_stop(host)

    def all_reported(self, run: HostRun) -> None:
        """Note that a host has its outcomes, though it may still serve others; told once or more."""
        if not run.told:
            run.told = True
            self._rollout.ended(run.host, failed=run.has_failed(), reached=run.was_there())

    def slow(self, host: Host) -> None:
        """Note that a host takes long to answer."""
        self._rollout.slow(host)

    def answered(self, host: Host) -> None:
        """Note that a slow host has answered."""
        self._rollout.answered(host)

    async def _cancel_on_interrupt(self, tasks: set[asyncio.Task[None]]) -> None:
        await self.interrupt.wait()
        for task in set(tasks):
            task.cancel()

    async def _run_host(self, run: HostRun, work: HostWork) -> None:
        run.has_place = run.begun = True
        self.sink.emit(HostStarted(run.host.name))
        try:
            async with asyncio.timeout(self.limits.timeout_s) as run.deadline:
                await self._repeat(run, work)
        except UnsupportedError as error:
            run.give_up(OutcomeWord.UNSUPPORTED, error.code, error.message)
            self.sink.emit(Notice(error.message, host=run.host.name, hint=error.hint))
        except HostError as error:
            self._give_up(run, error)
        except TimeoutError:
            reason = f"not done within {self.limits.timeout_s:.0f} s (--timeout)"
            run.give_up(OutcomeWord.ERROR, ErrorCode.TIMEOUT, reason)
        except asyncio.CancelledError:
            run.give_up_interrupted()
            raise
        finally:
            if not run.has_place:
                self.places.take_back_now()
            self.places.end()
            failed = run.has_failed()
            self.all_reported(run)
            self.sink.emit(HostEnded(run.host.name, failed=failed))

    async def _repeat(self, run: HostRun, work: HostWork) -> None:
        """Do the work, again when contact was lost, for the images that have no outcome yet."""
        for attempt in range(1, self.limits.retries + 2):
            try:
                await work(run, run.unreported())
            except HostError as error:
                if error.code not in _REPEATED_CODES or attempt > self.limits.retries:
                    raise
                await run.back_off(None, attempt, error.message, None)
            else:
                return

    @staticmethod
    def _give_up(run: HostRun, error: HostError) -> None:
        lost = isinstance(error, ContactLostError)
        run.give_up(OutcomeWord.UNKNOWN if lost else OutcomeWord.ERROR, error.code, _reason(error))


def _reason(error: HostError) -> str:
    return f"{error.message}: {error.hint}" if error.hint else error.message


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception that is not itself a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
