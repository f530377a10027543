"""Precache with ``--keep-for``: what is cached is pinned before it is reported."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from imgcache.drivers.base import NoteRow, NoteState
from imgcache.drivers.capabilities import why_not
from imgcache.errors import ErrorCode, UsageError
from imgcache.operations.fleet import driver_of
from imgcache.plan import OutcomeWord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from imgcache.drivers.base import HostContext, Sources
    from imgcache.drivers.node_api import NodeApi
    from imgcache.errors import HostError
    from imgcache.model import Host, Image
    from imgcache.operations.host_run import HostRun
    from imgcache.plan import SourceKind
    from imgcache.transport.base import Session
    from imgcache.transport.conversation import Conversation

_THERE = frozenset({OutcomeWord.CACHED, OutcomeWord.EXISTING})


def pin_end(keep_for_s: float) -> datetime:
    """Return when a pin of so many seconds, made now, ends.

    Raises:
        UsageError: no such time lies ahead.
    """
    try:
        end = datetime.now(UTC) + timedelta(seconds=keep_for_s)
    except (OverflowError, ValueError):
        end = None
    if end is None or not keep_for_s > 0:
        message = f"--keep-for: {keep_for_s:g} s makes no sense"
        raise UsageError(message, hint="give a time such as 72h; to keep for ever, pin it")
    return end


@dataclass(frozen=True, slots=True)
class _Held:
    """An outcome that waits for its pin."""

    image: Image
    outcome: OutcomeWord
    code: ErrorCode | None
    reason: str | None
    source: SourceKind | None
    bytes_fetched: int


class PrecacheAndPin:
    """Work for ``Engine.run``: precaches on a host, then pins there what the host has."""

    def __init__(self, until: datetime) -> None:
        self._until = until
        self._held: dict[str, dict[str, _Held]] = {}

    async def __call__(self, context: HostRun, images: Sequence[Image]) -> None:
        """Do the work; called again, for the images without an outcome, when contact was lost."""
        held = self._held.setdefault(context.host.name, {})
        driver = driver_of(context.host)
        left = [image for image in images if image.id not in held]
        if left:
            await driver.precache(_Holding(context, held), left)
        if reason := why_not(driver, "precache --keep-for"):
            _report_unpinned(context, held, reason)
            return
        rows: dict[str, NoteRow] = {}
        if held:
            names = [driver.entry_name(one.image.id) for one in held.values()]
            async with aclosing(driver.pin(context, names, self._until, extend=True)) as pinned:
                rows = {row.base_name: row async for row in pinned}
        for one in list(held.values()):
            del held[one.image.id]
            _report(context, one, rows[driver.entry_name(one.image.id)])


def _report_unpinned(context: HostRun, held: dict[str, _Held], reason: str) -> None:
    """Report what is there on a back end that has no pins: done as far as it can be, with a warning."""
    if held:
        context.notice(f"not pinned: {reason}")
    for one in list(held.values()):
        del held[one.image.id]
        context.report(
            one.image,
            one.outcome,
            code=one.code or ErrorCode.DRIVER,
            reason=f"{one.reason}; not pinned: {reason}" if one.reason else f"not pinned: {reason}",
            source=one.source,
            bytes_fetched=one.bytes_fetched,
        )


def _report(context: HostRun, one: _Held, row: NoteRow) -> None:
    if row.state is NoteState.PINNED:
        context.report(
            one.image,
            one.outcome,
            code=one.code,
            reason=one.reason,
            source=one.source,
            bytes_fetched=one.bytes_fetched,
        )
        return
    code = row.code or (
        ErrorCode.UNMANAGED if row.state is NoteState.UNMANAGED else ErrorCode.ABSENT
    )
    why = row.reason or f"the entry is {row.state}"
    context.report(
        one.image,
        OutcomeWord.ERROR,
        code=code,
        reason=f"{one.outcome}, but not pinned: {why}",
        source=one.source,
        bytes_fetched=one.bytes_fetched,
    )


class _Holding:
    """A ``HostContext`` that keeps back the outcomes of images that are there."""

    def __init__(self, inner: HostRun, held: dict[str, _Held]) -> None:
        self._inner = inner
        self._held = held
        self.host: Host = inner.host
        self.sources: Sources = inner.sources
        self.dry_run = inner.dry_run
        self.retries = inner.retries
        self.run_id = inner.run_id
        self.wait = inner.wait

    def converse(self, modules: Sequence[str]) -> AbstractAsyncContextManager[Conversation]:
        """See ``HostContext``."""
        return self._inner.converse(modules)

    def session(self, command: str) -> AbstractAsyncContextManager[Session]:
        """See ``HostContext``."""
        return self._inner.session(command)

    def api(self, endpoint: str) -> NodeApi:
        """See ``HostContext``."""
        return self._inner.api(endpoint)

    def beside(self, host: Host) -> HostContext:
        """See ``HostContext``."""
        return self._inner.beside(host)

    def alone_on(self, storage_id: str) -> AbstractAsyncContextManager[None]:
        """See ``HostContext``."""
        return self._inner.alone_on(storage_id)

    def lend_place(self) -> AbstractAsyncContextManager[None]:
        """See ``HostContext``."""
        return self._inner.lend_place()

    def leave_place(self) -> None:
        """See ``HostContext``."""
        self._inner.leave_place()

    async def take_place(self) -> bool:
        """See ``HostContext``."""
        return await self._inner.take_place()

    def needed_when(self, is_needed: Callable[[], bool]) -> None:
        """See ``HostContext``."""
        self._inner.needed_when(is_needed)

    def must_stop(self) -> HostError | None:
        """See ``HostContext``."""
        return self._inner.must_stop()

    def begin(self, image: Image) -> None:
        """See ``HostContext``."""
        self._inner.begin(image)

    def report(
        self,
        image: Image,
        outcome: OutcomeWord,
        *,
        code: ErrorCode | None = None,
        reason: str | None = None,
        source: SourceKind | None = None,
        bytes_fetched: int = 0,
    ) -> None:
        """See ``HostContext``."""
        if outcome in _THERE:
            self._held[image.id] = _Held(image, outcome, code, reason, source, bytes_fetched)
        else:
            self._inner.report(
                image,
                outcome,
                code=code,
                reason=reason,
                source=source,
                bytes_fetched=bytes_fetched,
            )

    def progress(self, image: Image, phase: str, done_bytes: int, total_bytes: int) -> None:
        """See ``HostContext``."""
        self._inner.progress(image, phase, done_bytes, total_bytes)

    def notice(self, message: str, *, hint: str | None = None) -> None:
        """See ``HostContext``."""
        self._inner.notice(message, hint=hint)

    async def back_off(
        self, image: Image | None, attempt: int, reason: str, after_s: float | None
    ) -> None:
        """See ``HostContext``."""
        await self._inner.back_off(image, attempt, reason, after_s)
