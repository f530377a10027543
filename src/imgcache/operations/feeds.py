"""Sources outside of a host's site: the image service, and pushes from here, within the site's budget."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from imgcache.drivers.feed import MIN_RATE, Ticket, Wish
from imgcache.errors import ErrorCode
from imgcache.operations.budget import Pacer
from imgcache.plan import SourceKind

if TYPE_CHECKING:
    from imgcache.drivers.base import HostContext
    from imgcache.drivers.feed import Listener, Offer
    from imgcache.errors import HostError
    from imgcache.model import Image
    from imgcache.operations.budget import Share, SiteBudget

#: Another source is tried only when the host cannot reach this one; other failures would repeat.
_NEXT_SOURCE_CODES = frozenset({ErrorCode.UNREACHABLE})


class Wishes:
    """What a transfer shall change; of several rates only the latest counts."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self._switch = False
        self._rate: int | None = None
        self._has_rate = False

    def switch(self) -> None:
        """Wish that it leaves its source."""
        self._switch = True
        self._news.set()

    def rate(self, bytes_per_s: int | None) -> None:
        """Wish that it takes at most so much."""
        self._rate, self._has_rate = bytes_per_s, True
        self._news.set()

    def forget(self) -> None:
        """It has a new source: what was wished of the last one means nothing any more."""
        self._switch = self._has_rate = False
        self._news.clear()

    async def next(self) -> Wish:
        """Wait for the next wish."""
        while not (self._switch or self._has_rate):  # it may be forgotten before anybody wakes
            await self._news.wait()
        if self._switch:
            self._switch = False
            wish = Wish(switch=True)
        else:
            self._has_rate = False
            wish = Wish(rate=self._rate)
        if not (self._switch or self._has_rate):
            self._news.clear()
        return wish


class Outside:
    """One transfer's tickets for sources outside of the site."""

    def __init__(
        self,
        context: HostContext,
        image: Image,
        given_up: set[SourceKind],
        budget: SiteBudget | None,
        rate_limit: int | None,
    ) -> None:
        self.pacer = Pacer(None)
        self.wishes = Wishes()
        self._context = context
        self._image = image
        self._given_up = given_up
        self._budget = budget
        self._rate_limit = rate_limit
        self._share: Share | None = None
        self._done = 0
        offered = context.sources.kinds(image)
        self._kinds = [kind for kind in offered if kind not in given_up] or list(offered)

    @property
    def rate(self) -> int | None:
        """Bytes a second that the present source may give."""
        rates = [self._share.rate if self._share else None, self._rate_limit]
        return min((rate for rate in rates if rate is not None), default=None)

    async def ticket(self) -> Ticket:
        """Return the best source that was not given up; waits for a place, if the host has left its own.

        Raises:
            HostError: code ``auth``.
        """
        await self._context.take_place()
        access = None
        if self._kinds[0] is SourceKind.SERVICE:
            access = await self._context.sources.access(self._image, None)
        if self._budget and self._share is None:
            self._share = self._budget.open(self._on_rate)
        self.pacer.rate = self.rate
        self.wishes.forget()
        return Ticket(self._kinds[0], access, self.rate)

    async def after(self, failure: HostError) -> Ticket | None:
        """Return the next source when the host cannot reach this one; None: there is none.

        Raises:
            HostError: see ``ticket``.
        """
        if failure.code not in _NEXT_SOURCE_CODES or len(self._kinds) < 2:
            return None
        self._given_up.add(self._kinds.pop(0))
        self._context.notice(f"{self._image.name}: {failure.message}; pushing it from here instead")
        return await self.ticket()

    def progress(self, phase: str, done: int) -> None:
        """Count what came; from a source outside or another."""
        if phase == "download":
            if self._share:
                self._share.count(max(0, done - self._done))
            self._done = done
        elif (
            phase != "hash" and self._done
        ):  # before the first byte a host may wait for a lock, or prepare
            self.close()

    def close(self) -> None:
        """Give its part of the budget back, while it reads from elsewhere or not at all."""
        if self._share:
            self._share.close()
            self._share = None

    def _on_rate(self, rate: int) -> None:
        if self._share is not None:  # else the ticket tells it
            self.pacer.rate = self.rate
            self.wishes.rate(self.rate)
        del rate


class DirectFeed:
    """See ``Feed``: the image service, then a push; no other hosts."""

    def __init__(self, outside: Outside, min_rate: int = MIN_RATE) -> None:
        self._outside = outside
        self._min_rate = min_rate

    @property
    def listener(self) -> Listener | None:
        """See ``Feed``."""
        return None

    @property
    def offer(self) -> Offer | None:
        """See ``Feed``."""
        return None

    @property
    def min_rate(self) -> int:
        """See ``Feed``."""
        return self._min_rate

    @property
    def piece(self) -> int | None:
        """See ``Feed``."""
        return self._outside.pacer.piece

    def listening(self, port: int) -> None:
        """See ``Feed``."""
        raise NotImplementedError

    def cannot_listen(self, error: HostError) -> None:
        """See ``Feed``."""
        raise NotImplementedError

    async def first(self) -> Ticket:
        """See ``Feed``."""
        return await self._outside.ticket()

    async def instead(self, failure: HostError, offset: int) -> Ticket | None:
        """See ``Feed``."""
        return await self._outside.after(failure)

    def progress(self, phase: str, done_bytes: int) -> None:
        """See ``Feed``."""
        self._outside.progress(phase, done_bytes)

    def paused(self) -> None:
        """See ``Feed``."""

    def anew(self) -> None:
        """See ``Feed``."""

    async def wish(self) -> Wish:
        """See ``Feed``."""
        return await self._outside.wishes.next()

    async def pace(self, count: int) -> None:
        """See ``Feed``."""
        await self._outside.pacer.take(count)

    def ended(self, failure: HostError | None, *, whole: bool = False) -> str | None:
        """See ``Feed``."""
        self._outside.close()
        return None
