"""What a transfer is wished to change meanwhile."""

from __future__ import annotations

import asyncio

from imgcache.drivers.feed import Wish
from imgcache.operations.feeds import Wishes


def test_a_wish_that_was_forgotten_lifts_no_limit() -> None:
    """A new source comes in the same moment as the wish to leave the old one, which ends no rate."""

    async def run() -> None:
        wishes = Wishes()
        waiting = asyncio.create_task(wishes.next())
        await asyncio.sleep(0)
        wishes.switch()
        wishes.forget()
        await asyncio.sleep(0.01)
        assert not waiting.done()
        wishes.rate(5)
        assert await waiting == Wish(rate=5)

    asyncio.run(run())


def test_of_several_wishes_to_leave_comes_first_and_the_latest_rate_next() -> None:
    async def run() -> None:
        wishes = Wishes()
        wishes.rate(1)
        wishes.rate(2)
        wishes.switch()
        assert [await wishes.next(), await wishes.next()] == [Wish(switch=True), Wish(rate=2)]

    asyncio.run(run())
