"""What the downloads of one site may take from outside together, and how they share it.

A site's budget is divided anew as downloads start and end, and every second by what they really use: those
that cannot use their part leave it to the others, and all parts together never exceed the budget.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

from imgcache.distribution import PAYLOAD

if TYPE_CHECKING:
    from collections.abc import Callable

#: Over how many seconds the use of a part is measured. Hosts tell theirs once a second.
WINDOW_S = 3.0
#: Who uses this much of its part could use more.
_FULL = 0.85
#: Who uses less keeps room to grow by this factor until the next division.
_ROOM = 1.3
#: Changes smaller than this part are not worth telling a host.
_WORTH = 0.02
#: What is pushed goes in pieces of so many seconds' worth, within bounds: no bursts, and a rate that one
#: piece shows to be used.
_PIECE_S = 0.5
_LEAST_PIECE_BYTES = 4 * 1024
_MOST_PIECE_BYTES = 64 * 1024
#: Who waits for its turn looks so often whether its rate has changed.
_LOOK_S = 0.25


class Share:
    """One download's part of a budget."""

    def __init__(self, budget: SiteBudget, on_rate: Callable[[int], None]) -> None:
        self.rate = 0
        """Bytes a second it may take now."""
        self._budget = budget
        self._on_rate = on_rate
        self._used: deque[tuple[float, int]] = deque()
        self._since = budget.clock()

    def count(self, received: int) -> None:
        """Note bytes that it took."""
        self._used.append((self._budget.clock(), received))

    def close(self) -> None:
        """It has ended: its part is the others'."""
        self._budget.close(self)

    def wanted(self, now: float) -> float:
        """Return the bytes a second it could use, as far as that is known; infinity: all it gets."""
        while self._used and self._used[0][0] < now - WINDOW_S:
            self._used.popleft()
        if now - self._since < WINDOW_S:
            return float("inf")
        used = sum(received for _, received in self._used) / WINDOW_S
        return float("inf") if used >= _FULL * self.rate else used * _ROOM

    def give(self, rate: int) -> None:
        """Change its part, and say so."""
        if rate < self.rate or rate > self.rate * (1 + _WORTH):
            self.rate = rate
            self._on_rate(rate)


class SiteBudget:
    """See the module. For the tasks of one event loop."""

    def __init__(self, bytes_per_s: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.payload = bytes_per_s * PAYLOAD
        """Bytes of images a second, all downloads together."""
        self._shares: list[Share] = []

    def open(self, on_rate: Callable[[int], None]) -> Share:
        """Return a new download's part; ``on_rate`` is called whenever it changes, at once the first time."""
        share = Share(self, on_rate)
        self._shares.append(share)
        self.divide()
        return share

    def close(self, share: Share) -> None:
        """Forget a download; idempotent."""
        if share in self._shares:
            self._shares.remove(share)
            self.divide()

    def divide(self) -> None:
        """Divide the budget anew; who gets less is told before those who get more."""
        if not self._shares:
            return
        now = self.clock()
        wanted = {share: share.wanted(now) for share in self._shares}
        # Nobody is left without: who starts to want more shall be able to show it.
        least = self.payload / len(wanted) / 10
        parts = fill({share: max(want, least) for share, want in wanted.items()}, self.payload)
        for share, part in sorted(parts.items(), key=lambda item: item[1] - item[0].rate):
            share.give(max(1, int(part)))


def fill(wanted: dict[Share, float], total: float) -> dict[Share, float]:
    """Divide ``total``: nobody gets more than wanted while others want more; what is over goes to all."""
    parts: dict[Share, float] = {}
    left = total
    for count, (share, want) in enumerate(sorted(wanted.items(), key=lambda item: item[1])):
        parts[share] = min(want, left / (len(wanted) - count))
        left -= parts[share]
    return {share: part + left / len(parts) for share, part in parts.items()}


class Pacer:
    """Lets bytes through at a rate that may change, without bursts."""

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._due = 0.0

    @property
    def rate(self) -> int | None:
        """Bytes a second; None: as they come."""
        return self._rate

    @rate.setter
    def rate(self, rate: int | None) -> None:
        now = time.monotonic()
        if self._rate and rate:
            # What has gone is paid for at the new rate: one that was slow for a while is not held to it.
            self._due = now + max(self._due - now, 0.0) * self._rate / rate
        self._rate = rate

    @property
    def piece(self) -> int | None:
        """How many bytes may go at a time; None: as many as come."""
        if self._rate is None:
            return None
        return min(max(int(self._rate * _PIECE_S), _LEAST_PIECE_BYTES), _MOST_PIECE_BYTES)

    async def take(self, count: int) -> None:
        """Wait until ``count`` more bytes may go."""
        self._due = max(self._due, time.monotonic())
        while self._rate is not None and (delay := self._due - time.monotonic()) > 0:  # noqa: ASYNC110 - it is the time
            await asyncio.sleep(min(delay, _LOOK_S))
        if self._rate is not None:
            self._due += count / self._rate
