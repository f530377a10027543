"""How the downloads of one site share what its link may carry."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.driver_suite import Context, Stock
from imgcache.distribution import PAYLOAD
from imgcache.model import Host, HostSettings
from imgcache.operations.budget import Pacer, Share, SiteBudget
from imgcache.operations.feeds import Outside
from imgcache.transport.local import LocalTransport


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Download:
    """Takes what it may, at most ``link`` bytes a second, and tells once a second."""

    def __init__(self, budget: SiteBudget, link: float) -> None:
        self.told: list[int] = []
        self.link = link
        self.took = 0.0
        self.share: Share = budget.open(self.told.append)

    def second(self) -> float:
        took = min(self.link, self.share.rate)
        self.took += took
        self.share.count(int(took))
        return took


def run(clock: Clock, budget: SiteBudget, downloads: list[Download], seconds: int) -> list[float]:
    """Return what all took in each second."""
    sums = []
    for _ in range(seconds):
        clock.now += 1
        sums.append(sum(one.second() for one in downloads))
        budget.divide()
    return sums


def test_equal_downloads_get_equal_parts_and_use_the_whole_budget() -> None:
    clock = Clock()
    budget = SiteBudget(2_500_000, clock=clock)
    downloads = [Download(budget, 1e9) for _ in range(4)]
    sums = run(clock, budget, downloads, 20)
    assert sums[-1] == pytest.approx(2_500_000 * PAYLOAD, rel=0.001)
    assert max(one.took for one in downloads) == pytest.approx(min(one.took for one in downloads))


def test_what_one_cannot_use_the_others_get() -> None:
    clock = Clock()
    budget = SiteBudget(1_000_000, clock=clock)
    slow, fast = Download(budget, 50_000), Download(budget, 1e9)
    run(clock, budget, [slow, fast], 20)
    assert slow.share.rate >= 50_000
    assert fast.share.rate > 0.85 * 1_000_000


def test_one_that_waited_gets_its_part_back_within_seconds() -> None:
    clock = Clock()
    budget = SiteBudget(1_000_000, clock=clock)
    waiting, other = Download(budget, 0), Download(budget, 1e9)
    run(clock, budget, [waiting, other], 10)
    assert waiting.share.rate < 200_000
    waiting.link = 1e9
    run(clock, budget, [waiting, other], 15)
    assert waiting.share.rate == pytest.approx(475_000, rel=0.05)


def test_the_part_of_one_that_ended_goes_to_the_others_at_once() -> None:
    budget = SiteBudget(1_000_000)
    told: list[int] = []
    budget.open(told.append)
    second = budget.open(lambda _: None)
    second.close()
    second.close()
    assert told == [960_000, 480_000, 960_000]


def test_who_gets_less_is_told_before_who_gets_more() -> None:
    clock = Clock()
    budget = SiteBudget(1_000_000, clock=clock)
    waiting, other = Download(budget, 0), Download(budget, 1e9)
    run(clock, budget, [waiting, other], 10)
    order: list[str] = []
    waiting.share._on_rate = lambda _: order.append("more")
    other.share._on_rate = lambda _: order.append("less")
    waiting.link = 1e9
    run(clock, budget, [waiting, other], 10)
    assert order[:2] == ["less", "more"]


@given(
    st.lists(
        st.tuples(st.floats(0, 5e6), st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=8
    )
)
def test_all_together_never_take_more_than_the_budget(
    plan: list[tuple[float, int, int]],
) -> None:
    clock = Clock()
    budget = SiteBudget(2_000_000, clock=clock)
    running: list[tuple[Download, int]] = []
    for second in range(45):
        clock.now += 1
        for download, end in [*running]:
            if end <= second:
                download.share.close()
                running.remove((download, end))
        running += [
            (Download(budget, link), second + length)
            for link, start, length in plan
            if start == second
        ]
        assert sum(one.second() for one, _ in running) <= 2_000_000 * PAYLOAD + 8
        budget.divide()
        assert all(one.share.rate > 0 for one, _ in running)


def test_pushed_bytes_are_paced() -> None:
    async def push() -> float:
        pacer = Pacer(1_000_000)
        began = time.monotonic()
        for _ in range(6):
            await pacer.take(50_000)
        return time.monotonic() - began

    assert asyncio.run(push()) >= 0.25


def test_who_is_given_more_does_not_wait_as_long_as_at_the_old_rate() -> None:
    async def push() -> float:
        pacer = Pacer(1000)
        await pacer.take(64_000)
        waiting = asyncio.create_task(pacer.take(1))
        await asyncio.sleep(0)
        pacer.rate = 640_000
        began = time.monotonic()
        async with asyncio.timeout(10):
            await waiting
        return time.monotonic() - began

    assert asyncio.run(push()) < 2


def test_pieces_are_so_small_that_a_slow_push_is_seen_to_move() -> None:
    assert Pacer(None).piece is None
    assert [Pacer(rate).piece for rate in (1, 20_000, 10**9)] == [4096, 10_000, 65_536]


def test_a_push_over_a_thin_link_that_waited_gets_its_part_back() -> None:
    async def push() -> tuple[int, int]:
        budget = SiteBudget(40_000)
        pacer = Pacer(None)

        def on_rate(rate: int) -> None:
            pacer.rate = rate

        other = budget.open(lambda _: None)
        share = budget.open(on_rate)
        share._since -= 10  # it has had its part for long, and did not use it
        budget.divide()
        least = share.rate
        ends = time.monotonic() + 6
        while time.monotonic() < ends:
            piece = pacer.piece or 0
            await pacer.take(piece)
            share.count(piece)
            other.count(piece)
            budget.divide()
        return least, share.rate

    least, rate = asyncio.run(push())
    assert least < 5000
    assert rate > 15_000


def test_without_a_limit_nothing_waits() -> None:
    async def push() -> None:
        async with asyncio.timeout(1):
            for _ in range(1000):
                await Pacer(None).take(1 << 30)

    asyncio.run(push())


@pytest.mark.parametrize("phases", [("lock",), ("inspect", "convert", "lock"), ("hash",)])
def test_who_waits_before_its_first_byte_keeps_its_part(phases: tuple[str, ...]) -> None:
    stock = Stock()
    image = stock.add(bytes(10_000))
    context = Context(Host("h1", "edge", None, None, HostSettings()), LocalTransport(), stock)

    async def main() -> list[int | None]:
        budget = SiteBudget(1_000_000)
        first, second = (Outside(context, image, set(), budget, None) for _ in range(2))
        await first.ticket()
        for phase in phases:
            first.progress(phase, 0)
        await second.ticket()
        rates = [first.rate, second.rate]
        first.progress("download", 5000)
        first.progress("inspect", 0)
        return [*rates, first.rate, second.rate]

    half, whole = round(500_000 * PAYLOAD), round(1_000_000 * PAYLOAD)
    assert asyncio.run(main()) == pytest.approx([half, half, None, whole], rel=0.01)
