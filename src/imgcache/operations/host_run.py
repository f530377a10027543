"""One host's part in one run: what a driver gets as its ``HostContext``."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from imgcache.errors import ErrorCode
from imgcache.events import ItemEnded, ItemProgress, ItemRetry, Notice
from imgcache.operations.node_access import NodeAccess
from imgcache.plan import FAILED_WORDS, HostFailure, Outcome, OutcomeWord, SourceKind
from imgcache.transport.conversation import start_conversation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from imgcache.errors import HostError
    from imgcache.model import Host, Image
    from imgcache.operations.engine import Engine
    from imgcache.transport.base import Session
    from imgcache.transport.conversation import Conversation

#: Waits before repetitions: 1 s, 2 s, 4 s … at most this, times a random factor.
MAX_BACK_OFF_S = 60.0
FIRST_BACK_OFF_S = 1.0
#: A host that has not answered for so long lends its place.
PATIENCE_S = 1.0
_DEAD_CODES = frozenset(
    {
        ErrorCode.CONNECT,
        ErrorCode.JUMP,
        ErrorCode.SESSION,
        ErrorCode.HANG,
        ErrorCode.LOST,
        ErrorCode.TIMEOUT,
    }
)
#: The operator's own limits ended the work: no failure.
STOPPED_CODES = frozenset({ErrorCode.WINDOW, ErrorCode.DEADLINE, ErrorCode.HALTED})


def back_off_delay(attempt: int, after_s: float | None) -> float:
    """Return seconds to wait before repetition ``attempt``: exponential, jittered, capped.

    A server's own wish is honoured up to the cap; the jitter on top keeps a thousand hosts that got
    the same wish from coming back together. Absurd wishes (negative, not a number) count as none.
    """
    if after_s is not None and after_s >= 0:
        base = min(after_s, MAX_BACK_OFF_S)
        return base + random.uniform(0, max(1.0, base / 4))  # noqa: S311 - spreading load, not a secret
    base = min(FIRST_BACK_OFF_S * 2.0 ** (attempt - 1), MAX_BACK_OFF_S)
    return base * random.uniform(0.5, 1.0)  # noqa: S311


class HostRun:
    """See ``HostContext``; also keeps what was reported."""

    def __init__(self, host: Host, images: Sequence[Image], engine: Engine) -> None:
        self.host = host
        self.sources = engine.sources
        self.dry_run = engine.dry_run
        self.retries = engine.limits.retries
        self.run_id = engine.run_id
        self.wait = engine.wait
        self.has_place = False
        #: Whether it has ever had a place.
        self.begun = False
        #: When its time is over; while it has a place, or waits for one again.
        self.deadline: asyncio.Timeout | None = None
        #: Whether the rollout knows that all is reported.
        self.told = False
        self._is_needed: Callable[[], bool] = lambda: False
        #: Whether the host has ever answered.
        self.reached = False
        #: Whether the helper was to be started; when that fails, there is an error besides.
        self.logged_in = False
        #: Whether work that reports no outcomes (a check) found something wrong.
        self.found_wrong = False
        self._engine = engine
        self._images = images
        self._begun: dict[str, float] = {}
        self._reported: dict[str, Outcome] = {}
        #: Why the work on this host ended early, if it did.
        self.failure: HostFailure | None = None

    @asynccontextmanager
    async def converse(self, modules: Sequence[str]) -> AsyncIterator[Conversation]:
        """See ``HostContext``. A host lends its place while it does not answer or takes nothing."""
        self.logged_in = True
        patience = _Patience(self, self._engine)
        transport = self._engine.transport
        try:
            async with start_conversation(transport, self.host, modules, patience) as talk:
                yield talk
        finally:
            patience.end()

    def session(self, command: str) -> AbstractAsyncContextManager[Session]:
        """See ``HostContext``."""
        return self._engine.transport.open(self.host, command)

    def api(self, endpoint: str) -> NodeAccess:
        """See ``HostContext``."""
        return NodeAccess(self._engine.service, endpoint)

    def beside(self, host: Host) -> HostRun:
        """See ``HostContext``."""
        return HostRun(host, (), self._engine)

    @asynccontextmanager
    async def alone_on(self, storage_id: str) -> AsyncIterator[None]:
        """See ``HostContext``."""
        lock = self._engine.storages.setdefault(storage_id, asyncio.Lock())
        if lock.locked():
            await self._acquire_elsewhere(lock)
        else:
            await lock.acquire()
        try:
            yield
        finally:
            lock.release()

    async def _acquire_elsewhere(self, lock: asyncio.Lock) -> None:
        """Wait for a lock without this host's place; get the place back."""
        acquired = False
        try:
            async with self.lend_place():
                acquired = await lock.acquire()
        except BaseException:
            if acquired:
                lock.release()
            raise

    @asynccontextmanager
    async def lend_place(self) -> AsyncIterator[None]:
        """See ``HostContext``; may be nested. Whatever happens, the host has its place again afterwards."""
        places = self._engine.places
        if not self.has_place:
            yield
            return
        places.lend()
        self.has_place = False
        try:
            yield
            await self.take_back()
        except BaseException:
            # It is about to end, or to try something else: neither is worth another wait.
            places.take_back_now()
            raise
        finally:
            self.has_place = True

    def leave_place(self) -> None:
        """See ``HostContext``. A host may end without a place."""
        if self.has_place:
            self._engine.places.lend()
            self.has_place = False

    async def take_place(self) -> bool:
        """See ``HostContext``."""
        if self.has_place or not self.begun:
            return False
        await self.take_back()
        self.has_place = True
        return True

    def needed_when(self, is_needed: Callable[[], bool]) -> None:
        """See ``HostContext``."""
        self._is_needed = is_needed

    async def take_back(self) -> None:
        """Wait for a place; that takes as long as others need, so it does not count as this host's time."""
        deadline, loop = self.deadline, asyncio.get_running_loop()
        when, began = (deadline.when() if deadline else None), loop.time()
        if deadline is None or when is None or deadline.expired():
            await self._engine.places.take_back(self._is_needed)
            return
        deadline.reschedule(None)
        try:
            await self._engine.places.take_back(self._is_needed)
        finally:
            deadline.reschedule(when + loop.time() - began)

    def must_stop(self) -> HostError | None:
        """See ``HostContext``."""
        return self._engine.must_stop(self.host)

    def begin(self, image: Image) -> None:
        """See ``HostContext``."""
        self._begun.setdefault(image.id, time.monotonic())

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
        if image.id in self._reported:
            message = f"two outcomes for image {image.id} on {self.host.name}"
            raise AssertionError(message)
        if outcome is OutcomeWord.ERROR and code in STOPPED_CODES:
            outcome = OutcomeWord.SKIPPED
        now = time.monotonic()
        result = Outcome(
            host=self.host.name,
            aggregate=self.host.aggregate,
            cell=self.host.cell,
            image_id=image.id,
            image_name=image.name,
            outcome=outcome,
            code=code,
            reason=reason,
            source=source,
            bytes_fetched=bytes_fetched,
            duration_s=round(now - self._begun.get(image.id, now), 3),
        )
        self._reported[image.id] = result
        self._engine.sink.emit(ItemEnded(result))
        if self.begun and len(self._reported) == len(self._images):
            self._engine.all_reported(self)

    def progress(self, image: Image, phase: str, done_bytes: int, total_bytes: int) -> None:
        """See ``HostContext``."""
        self._engine.sink.emit(
            ItemProgress(self.host.name, image.id, image.name, phase, done_bytes, total_bytes)
        )

    def notice(self, message: str, *, hint: str | None = None) -> None:
        """See ``HostContext``."""
        self._engine.sink.emit(Notice(message, host=self.host.name, hint=hint))

    async def back_off(
        self, image: Image | None, attempt: int, reason: str, after_s: float | None
    ) -> None:
        """See ``HostContext``."""
        delay = back_off_delay(attempt, after_s)
        image_id = image.id if image else None
        self._engine.sink.emit(ItemRetry(self.host.name, image_id, attempt, delay, reason))
        async with self.lend_place():
            await asyncio.sleep(delay)

    def unreported(self) -> list[Image]:
        """Return the images without an outcome, in the order given."""
        return [image for image in self._images if image.id not in self._reported]

    def give_up(self, word: OutcomeWord, code: ErrorCode, reason: str) -> None:
        """Give all images without an outcome this one.

        ``unknown`` is only for those about which an order was on its way; the others were not tried,
        which is known, and an ``error``.
        """
        self._fail(word, code, reason)
        for image in self.unreported():
            untried = word is OutcomeWord.UNKNOWN and image.id not in self._begun
            self.report(image, OutcomeWord.ERROR if untried else word, code=code, reason=reason)

    def give_up_interrupted(self) -> None:
        """Give the images without an outcome the one they have when the run is interrupted."""
        self._fail(OutcomeWord.SKIPPED, ErrorCode.INTERRUPTED, "the run was interrupted")
        for image in self.unreported():
            if image.id in self._begun:
                reason = "the run was interrupted meanwhile; the host cleans up by itself"
                self.report(image, OutcomeWord.UNKNOWN, code=ErrorCode.INTERRUPTED, reason=reason)
            else:
                reason = "the run was interrupted"
                self.report(image, OutcomeWord.SKIPPED, code=ErrorCode.INTERRUPTED, reason=reason)

    def _fail(self, word: OutcomeWord, code: ErrorCode, reason: str) -> None:
        if word is OutcomeWord.ERROR and code in STOPPED_CODES:
            word = OutcomeWord.SKIPPED
        host = self.host
        self.failure = HostFailure(host.name, host.aggregate, host.cell, word, code, reason)

    def was_there(self) -> bool:
        """Return False for a host that was not reached at all: dead, or hanging before it answers."""
        dead = self.failure is not None and self.failure.code in _DEAD_CODES
        return self.reached or not dead

    def has_failed(self) -> bool:
        """Return whether an image failed here or, in a run without images, the host itself."""
        if self.found_wrong:
            return True
        if not self._images and self.failure is not None:
            return self.failure.outcome in FAILED_WORDS
        return any(outcome.outcome in FAILED_WORDS for outcome in self.outcomes())

    def outcomes(self) -> list[Outcome]:
        """Return what was reported, in the images' order."""
        return [self._reported[image.id] for image in self._images if image.id in self._reported]


class _Patience:
    """Lends the place of a host until the helper's hello, and while a write stands still.

    See ``conversation.Patience``.
    """

    def __init__(self, run: HostRun, engine: Engine) -> None:
        self._run = run
        self._engine = engine
        self._lent = False
        self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self.stands_still)

    def stands_still(self) -> None:
        """Lend the place, if enough others may still do so."""
        if self._run.has_place and self._engine.places.may_lend:
            self._engine.places.lend()
            self._run.has_place = False
            self._lent = True
            self._engine.slow(self._run.host)

    async def answered(self) -> None:
        """Wait for a place again, if it was lent."""
        self._timer.cancel()
        self._run.reached = True
        await self.moves_again()

    async def moves_again(self) -> None:
        """Wait for a place again, if it was lent."""
        if not self._lent:
            return
        if not self._run.has_place:
            await self._run.take_back()
        self._run.has_place, self._lent = True, False
        self._engine.answered(self._run.host)

    def end(self) -> None:
        """Give the host its place back at once: it is about to end or to wait."""
        self._timer.cancel()
        if self._lent and not self._run.has_place:
            self._engine.places.take_back_now()
            self._run.has_place = True
        self._lent = False
