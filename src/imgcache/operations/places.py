"""The places of one run: how many hosts are at work at a time; one that only waits lends its own."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Hosts that may have lent their place without need: those that are slow to answer, or told to come back.
MOST_LENDERS = 256
#: So often it is looked whether others need a host that waits for its place.
_LOOK_S = 0.5


class Places:
    """A number of places for hosts at work. For the tasks of one event loop.

    A host that has begun is alive until it ends. Meanwhile it holds a place, or has lent it to another. Those
    that want their place back come before those that have not begun.
    """

    def __init__(self, count: int, lenders: int = MOST_LENDERS) -> None:
        self._free = count
        self._alive = 0
        self._holding = 0
        self._lenders = lenders
        self._most_alive = count + lenders
        self._returning: deque[asyncio.Future[None]] = deque()
        self._beginning: deque[asyncio.Future[None]] = deque()

    @property
    def may_lend(self) -> bool:
        """Whether a host may lend its place that could as well keep it."""
        return self._alive - self._holding < self._lenders

    async def begin(self) -> None:
        """Wait for a place for a host that begins, and until few enough others are alive."""
        granted = self._queue(self._beginning)
        try:
            await granted
        except asyncio.CancelledError:
            self._withdraw(granted, beginning=True)
            raise

    async def take_back(self, is_needed: Callable[[], bool] = lambda: False) -> None:
        """Wait until a place is free again for a host that has lent its own.

        One that others need (``is_needed``) gets it at once, though it be one too many: those who hold the
        places may be the very ones that wait for it.
        """
        granted = self._queue(self._returning)
        try:
            while not granted.done():
                if is_needed():
                    granted.cancel()
                    self.take_back_now()
                    return
                await asyncio.wait((granted,), timeout=_LOOK_S)
        except asyncio.CancelledError:
            self._withdraw(granted, beginning=False)
            raise

    def take_back_now(self) -> None:
        """Take a place whether one is free or not: for a host that is about to end anyway."""
        self._free -= 1
        self._holding += 1

    def lend(self) -> None:
        """Let another host have this one's place."""
        self._free += 1
        self._holding -= 1
        self._grant()

    def end(self) -> None:
        """Free the place of a host that holds one and is done."""
        self._alive -= 1
        self.lend()

    def _queue(self, queue: deque[asyncio.Future[None]]) -> asyncio.Future[None]:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(granted)
        self._grant()
        return granted

    def _withdraw(self, granted: asyncio.Future[None], *, beginning: bool) -> None:
        """Undo what was granted to one who no longer waits."""
        if granted.cancel() or granted.cancelled():
            return
        self._alive -= beginning
        self.lend()

    def _grant(self) -> None:
        """Give free places to those who wait for them."""
        for queue in (self._returning, self._beginning):
            beginning = queue is self._beginning
            while queue and self._free > 0:
                if beginning and self._alive >= self._most_alive:
                    return
                waiting = queue.popleft()
                if waiting.cancelled():
                    continue
                self._free -= 1
                self._holding += 1
                self._alive += beginning
                waiting.set_result(None)
