"""The engine: limits, repetition, deadlines, interrupts; what becomes an outcome and what a bug."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest

from imgcache.drivers.base import UnsupportedError
from imgcache.errors import ContactLostError, ErrorCode, HostError
from imgcache.events import ItemRetry, Notice
from imgcache.model import Digest, Host, HostSettings, Image, ImageId
from imgcache.operations import host_run
from imgcache.operations.engine import Engine, Limits
from imgcache.operations.host_run import back_off_delay
from imgcache.operations.interrupt import Interrupt
from imgcache.operations.sources import NoSources
from imgcache.plan import OutcomeWord
from imgcache.transport.local import LocalTransport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgcache.events import Event
    from imgcache.operations.engine import HostWork
    from imgcache.operations.host_run import HostRun
    from imgcache.plan import Outcome


class Events:
    def __init__(self) -> None:
        self.seen: list[Event] = []

    def emit(self, event: Event) -> None:
        self.seen.append(event)


def host(number: int) -> Host:
    return Host(f"h{number}", "edge", None, None, HostSettings())


def image(number: int = 1) -> Image:
    image_id = ImageId(f"00000000-0000-4000-8000-{number:012}")
    return Image(image_id, f"image-{number}", 10, "raw", "bare", Digest("sha512", "0" * 128))


@pytest.fixture
def fast_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_run, "FIRST_BACK_OFF_S", 0.01)


def engine(events: Events, **limits: float) -> Engine:
    return Engine(
        run_id="test",
        transport=LocalTransport(),
        sources=NoSources(),
        limits=Limits(
            concurrency=int(limits.get("concurrency", 2)),
            retries=int(limits.get("retries", 0)),
            timeout_s=limits.get("timeout_s", 30),
        ),
        sink=events,
        interrupt=Interrupt(),
    )


def run(
    work: HostWork,
    *,
    hosts: int = 1,
    images: Sequence[Image] = (),
    events: Events | None = None,
    **limits: float,
) -> list[Outcome]:
    async def main() -> list[Outcome]:
        the_engine = engine(events or Events(), **limits)
        return await the_engine.run([host(n) for n in range(hosts)], images or [image()], work)

    return asyncio.run(main())


async def cache_all(context: HostRun, images: Sequence[Image]) -> None:
    for one in images:
        context.begin(one)
        context.report(one, OutcomeWord.CACHED)


def test_never_more_hosts_at_work_than_asked_for_and_all_get_their_turn() -> None:
    at_work, most = 0, 0

    async def work(context: HostRun, images: Sequence[Image]) -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.01)
        at_work -= 1
        await cache_all(context, images)

    outcomes = run(work, hosts=17, concurrency=4)
    assert most == 4
    assert [one.host for one in outcomes] == [f"h{n}" for n in range(17)]


@pytest.mark.row("S8")
def test_a_host_that_hangs_does_not_hold_up_the_others() -> None:
    async def work(context: HostRun, images: Sequence[Image]) -> None:
        if context.host.name == "h0":
            await asyncio.sleep(60)
        await cache_all(context, images)

    outcomes = run(work, hosts=6, concurrency=2, timeout_s=0.3)
    assert [one.outcome for one in outcomes] == [OutcomeWord.ERROR] + [OutcomeWord.CACHED] * 5
    assert outcomes[0].code is ErrorCode.TIMEOUT


def test_an_unexpected_exception_is_a_bug_that_ends_the_run() -> None:
    async def work(context: HostRun, images: Sequence[Image]) -> None:
        if context.host.name == "h1":
            raise ZeroDivisionError
        await asyncio.sleep(5)

    with pytest.raises(ZeroDivisionError):
        run(work, hosts=2)


def test_one_hosts_error_leaves_the_others_alone() -> None:
    async def work(context: HostRun, images: Sequence[Image]) -> None:
        if context.host.name == "h0":
            raise HostError(ErrorCode.LOGIN, "no key fits", hint="add one")
        await cache_all(context, images)

    first, second = run(work, hosts=2)
    assert (first.outcome, first.code, first.reason) == (
        OutcomeWord.ERROR,
        ErrorCode.LOGIN,
        "no key fits: add one",
    )
    assert second.outcome is OutcomeWord.CACHED


@pytest.mark.row("T14")
def test_lost_contact_is_unknown_only_for_images_about_which_an_order_was_on_its_way() -> None:
    async def work(context: HostRun, images: Sequence[Image]) -> None:
        context.begin(images[0])
        context.report(images[0], OutcomeWord.CACHED)
        context.begin(images[1])
        raise ContactLostError(ErrorCode.LOST, "gone")

    outcomes = run(work, images=[image(1), image(2), image(3)])
    assert [one.outcome for one in outcomes] == [
        OutcomeWord.CACHED,
        OutcomeWord.UNKNOWN,
        OutcomeWord.ERROR,
    ]


@pytest.mark.usefixtures("fast_back_off")
def test_after_lost_contact_only_the_images_without_an_outcome_are_tried_again() -> None:
    tried: list[list[str]] = []

    async def work(context: HostRun, images: Sequence[Image]) -> None:
        tried.append([one.name for one in images])
        context.begin(images[0])
        if len(tried) == 1:
            context.report(images[0], OutcomeWord.CACHED)
            raise ContactLostError(ErrorCode.LOST, "gone")
        await cache_all(context, images)

    events = Events()
    outcomes = run(work, images=[image(1), image(2)], retries=3, events=events)
    assert tried == [["image-1", "image-2"], ["image-2"]]
    assert [one.outcome for one in outcomes] == [OutcomeWord.CACHED, OutcomeWord.CACHED]
    assert [event.attempt for event in events.seen if isinstance(event, ItemRetry)] == [1]


@pytest.mark.row("S8")
def test_a_host_that_cannot_be_reached_costs_its_place_once() -> None:
    tries = 0

    async def work(context: HostRun, images: Sequence[Image]) -> None:
        nonlocal tries
        tries += 1
        raise HostError(ErrorCode.CONNECT, "no route")

    run(work, retries=3)
    assert tries == 1


@pytest.mark.row("N13")
@pytest.mark.usefixtures("fast_back_off")
def test_a_host_that_waits_lends_its_place_to_another() -> None:
    order: list[str] = []

    async def work(context: HostRun, images: Sequence[Image]) -> None:
        if context.host.name == "h0":
            await context.back_off(images[0], 1, "busy", 0.2)
        order.append(context.host.name)
        await cache_all(context, images)

    run(work, hosts=3, concurrency=1)
    assert order == ["h1", "h2", "h0"]


@pytest.mark.row("S8")
def test_waiting_for_a_place_again_is_not_the_hosts_own_time() -> None:
    async def work(context: HostRun, images: Sequence[Image]) -> None:
        if context.host.name == "h0":
            for _ in range(3):
                async with context.lend_place():
                    await asyncio.sleep(0)
        else:
            # Three times this is more than one host's time.
            await asyncio.sleep(0.4)
        await cache_all(context, images)

    outcomes = run(work, hosts=4, concurrency=1, timeout_s=0.9)
    assert [one.outcome for one in outcomes] == [OutcomeWord.CACHED] * 4


def test_a_host_that_has_left_its_place_ends_without_one() -> None:
    at_work, most = 0, 0

    async def work(context: HostRun, images: Sequence[Image]) -> None:
        nonlocal at_work, most
        context.leave_place()
        if context.host.name == "h0":
            await asyncio.sleep(0.1)
            await context.take_place()
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.2)
        at_work -= 1
        await cache_all(context, images)

    outcomes = run(work, hosts=6, concurrency=1)
    assert [one.outcome for one in outcomes] == [OutcomeWord.CACHED] * 6
    assert most == 6


def test_places_that_were_left_do_not_become_more() -> None:
    at_work, most = 0, 0

    async def work(context: HostRun, images: Sequence[Image]) -> None:
        nonlocal at_work, most
        for _ in range(3):
            context.leave_place()
            context.leave_place()
            await asyncio.sleep(0.01)
            await context.take_place()
            at_work += 1
            most = max(most, at_work)
            await asyncio.sleep(0.01)
            at_work -= 1
        if int(context.host.name[1:]) % 2:
            context.leave_place()
        await cache_all(context, images)

    outcomes = run(work, hosts=12, concurrency=2)
    assert [one.outcome for one in outcomes] == [OutcomeWord.CACHED] * 12
    assert most == 2


@pytest.mark.row("N13")
@pytest.mark.parametrize(
    ("after_s", "low", "high"),
    [(None, 1.0, 2.0), (5.0, 5.0, 6.25), (1e9, 60.0, 75.0), (-3.0, 1.0, 2.0), (0.0, 0.0, 1.0)],
)
def test_retry_after_is_honoured_capped_and_jittered(
    after_s: float | None, low: float, high: float
) -> None:
    delays = {back_off_delay(2, after_s) for _ in range(200)}
    assert len(delays) > 100
    assert all(low <= delay <= high for delay in delays)


def test_unsupported_is_a_warning_and_no_failure() -> None:
    async def work(context: HostRun, images: Sequence[Image]) -> None:
        raise UnsupportedError(ErrorCode.BACKEND, "images_type is rbd")

    events = Events()
    (outcome,) = run(work, events=events)
    assert (outcome.outcome, outcome.reason) == (OutcomeWord.UNSUPPORTED, "images_type is rbd")
    assert [event.host for event in events.seen if isinstance(event, Notice)] == ["h0"]


@pytest.mark.row("C1")
def test_an_interrupt_starts_nothing_new_and_winds_up_what_runs() -> None:
    wound_up: list[str] = []

    async def main() -> list[Outcome]:
        the_engine = engine(Events(), concurrency=2)

        async def work(context: HostRun, images: Sequence[Image]) -> None:
            context.begin(images[0])
            if context.host.name == "h1":
                the_engine.interrupt.ask(signal.SIGINT)
            try:
                await asyncio.sleep(60)
            finally:
                wound_up.append(context.host.name)

        return await the_engine.run([host(n) for n in range(5)], [image(1), image(2)], work)

    outcomes = asyncio.run(main())
    assert sorted(wound_up) == ["h0", "h1"]
    words = [one.outcome for one in outcomes]
    begun = [OutcomeWord.UNKNOWN, OutcomeWord.SKIPPED]
    assert words == begun * 2 + [OutcomeWord.SKIPPED] * 6
    assert {one.code for one in outcomes} == {ErrorCode.INTERRUPTED}


def test_two_outcomes_for_one_image_are_a_bug() -> None:
    async def work(context: HostRun, images: Sequence[Image]) -> None:
        await cache_all(context, images)
        await cache_all(context, images)

    with pytest.raises(AssertionError, match="two outcomes"):
        run(work)
