"""Which host begins when: waves, canaries, failures, and windows by a clock of the test's own."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from imgcache.errors import ErrorCode, HostError
from imgcache.events import Notice, Waiting
from imgcache.model import Digest, Host, HostSettings, Image, ImageId, Site
from imgcache.operations.engine import Engine, Limits
from imgcache.operations.interrupt import Interrupt
from imgcache.operations.rollout import Rollout, Waves
from imgcache.operations.sources import NoSources
from imgcache.operations.window import Clock, Schedule
from imgcache.plan import OutcomeWord
from imgcache.policy import Amount
from imgcache.transport.local import LocalTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgcache.events import Event
    from imgcache.operations.host_run import HostRun
    from imgcache.plan import Outcome

IMAGE = Image(ImageId("1" * 36), "debian-12", 10, "raw", "bare", Digest("sha512", "0" * 128))
NIGHT = Site("oslo", None, "22:00-05:00", "Europe/Oslo")
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
TEN = datetime(2026, 11, 21, 21, tzinfo=UTC)
FIVE = datetime(2026, 11, 22, 4, tzinfo=UTC)


class FakeClock(Clock):
    """A clock that jumps to whatever is waited for."""

    def __init__(self, now: datetime = NOON) -> None:
        self.time = now
        self.slept_until: list[datetime] = []

    def now(self) -> datetime:
        return self.time

    async def sleep_until(self, moment: datetime) -> None:
        self.slept_until.append(moment)
        await asyncio.sleep(0)
        self.time = max(self.time, moment)


class StoppedClock(FakeClock):
    """A clock that nobody lives to see strike."""

    async def sleep_until(self, moment: datetime) -> None:
        self.slept_until.append(moment)
        await asyncio.Event().wait()


class Events:
    def __init__(self) -> None:
        self.seen: list[Event] = []

    def emit(self, event: Event) -> None:
        self.seen.append(event)

    def notices(self) -> list[str]:
        return [event.message for event in self.seen if isinstance(event, Notice)]


def hosts(count: int, site: str | None = None, prefix: str = "h") -> list[Host]:
    return [Host(f"{prefix}{n}", "edge", None, site, HostSettings()) for n in range(count)]


class Fleet:
    """Runs work over hosts with a rollout; notes who was at work when."""

    def __init__(self, fleet: Sequence[Host], concurrency: int = 100) -> None:
        self.hosts = fleet
        self.events = Events()
        self.interrupt = Interrupt()
        self.concurrency = concurrency
        self.begun: list[str] = []
        self.fails: set[str] = set()
        self.dead: set[str] = set()
        self.during: Callable[[HostRun], object] = lambda context: None

    async def work(self, context: HostRun, images: Sequence[Image]) -> None:
        name = context.host.name
        self.begun.append(name)
        self.during(context)
        # Turns of the loop, not seconds: enough for all others of a wave to begin meanwhile.
        for _ in range(10 if name in self.dead else 400):
            await asyncio.sleep(0)
        if name in self.dead:
            raise HostError(ErrorCode.CONNECT, "no route")
        context.reached = True
        if name in self.fails:
            raise HostError(ErrorCode.NOPATH, "no such folder")
        for image in images:
            context.report(image, OutcomeWord.CACHED)
        self.begun.append(f"-{name}")

    def run(
        self, waves: Waves | None = None, schedule: Schedule | None = None
    ) -> dict[str, Outcome]:
        async def main() -> list[Outcome]:
            engine = Engine(
                run_id="test",
                transport=LocalTransport(),
                sources=NoSources(),
                limits=Limits(concurrency=self.concurrency, retries=0, timeout_s=30),
                sink=self.events,
                interrupt=self.interrupt,
            )
            rollout = Rollout(self.hosts, sink=self.events, schedule=schedule, waves=waves)
            return await engine.run(self.hosts, [IMAGE], self.work, rollout=rollout)

        outcomes = asyncio.run(main())
        assert [one.host for one in outcomes] == [host.name for host in self.hosts]
        return {one.host: one for one in outcomes}

    def batches(self) -> list[int]:
        """Return how many hosts began between ends."""
        found, ended = [0], False
        for name in self.begun:
            if name.startswith("-"):
                ended = True
            elif ended:
                found.append(1)
                ended = False
            else:
                found[-1] += 1
        return found


def words(outcomes: dict[str, Outcome]) -> list[str]:
    return [
        f"{one.outcome.value}/{one.code.value if one.code else ''}" for one in outcomes.values()
    ]


# ------------------------------------------------------------------------------------------------ waves


def test_canaries_first_then_waves() -> None:
    fleet = Fleet(hosts(11))
    fleet.run(Waves(canary=2, wave=Amount(count=4)))
    assert fleet.batches() == [2, 4, 4, 1]
    said = [event.what for event in fleet.events.seen if isinstance(event, Waiting) and event.what]
    assert said[0] == "the canary is waited for: 2 hosts"
    assert "wave 1 is waited for: 4 hosts" in said


def test_without_waves_all_follow_the_canary_at_once() -> None:
    fleet = Fleet(hosts(9))
    fleet.run(Waves(canary=1))
    assert fleet.batches() == [1, 8]


@pytest.mark.parametrize(
    ("share", "count", "wave", "failures"),
    [
        (0.10, 3, 1, 0), (0.10, 25, 3, 2), (0.05, 20, 1, 1),
        (0.07, 100, 7, 7), (1.0, 5, 5, 5), (0.001, 9, 1, 0),
    ],
)  # fmt: skip
def test_shares_of_few_hosts(share: float, count: int, wave: int, failures: int) -> None:
    waves = Waves(wave=Amount(share=share), max_failures=Amount(share=share))
    assert (waves.wave_size(count), waves.most_failures(count)) == (wave, failures)


def test_too_many_failures_begin_no_other_host() -> None:
    fleet = Fleet(hosts(10), concurrency=2)
    fleet.fails = {"h1", "h3"}
    outcomes = fleet.run(Waves(max_failures=Amount(count=1)))
    assert words(outcomes)[:4] == ["cached/", "error/nopath", "cached/", "error/nopath"]
    rest = [one for one in outcomes.values() if one.code is ErrorCode.HALTED]
    assert len(rest) >= 5
    assert {one.outcome for one in rest} == {OutcomeWord.SKIPPED}
    assert rest[0].reason == "not begun: 2 hosts have failed, --max-failures allows 1"
    assert any("no further hosts are begun" in text for text in fleet.events.notices())


def test_no_failure_is_allowed_when_none_is() -> None:
    fleet = Fleet(hosts(3), concurrency=1)
    fleet.fails = {"h0"}
    assert words(fleet.run(Waves(max_failures=Amount(count=0)))) == [
        "error/nopath", "skipped/halted", "skipped/halted",
    ]  # fmt: skip


def test_a_canary_that_fails_ends_it() -> None:
    fleet = Fleet(hosts(5))
    fleet.fails = {"h1"}
    assert words(fleet.run(Waves(canary=2))) == ["cached/", "error/nopath"] + ["skipped/halted"] * 3


@pytest.mark.row("S8")
def test_dead_hosts_leave_their_wave_at_once() -> None:
    fleet = Fleet(hosts(8))
    fleet.dead = {"h0", "h2"}
    outcomes = fleet.run(Waves(canary=1, wave=Amount(count=3)))
    assert words(outcomes) == ["error/connect", "cached/", "error/connect"] + ["cached/"] * 5
    # h0 is no canary: h1 is. h2 is no member of the first wave: h5 is.
    assert fleet.begun.index("-h1") < fleet.begun.index("h2")
    assert fleet.begun.index("h5") < fleet.begun.index("-h3") < fleet.begun.index("h6")


@pytest.mark.row("S8")
def test_a_wave_does_not_wait_for_a_host_that_is_slow_to_answer() -> None:
    fleet = Fleet(hosts(4))
    rollout = Rollout(fleet.hosts, waves=Waves(wave=Amount(count=2)))

    async def main() -> list[str]:
        first, second = await rollout.next(), await rollout.next()
        assert first
        assert second
        rollout.slow(first)
        third = await asyncio.wait_for(rollout.next(), 5)
        rollout.ended(second, failed=False)
        assert third
        rollout.ended(third, failed=False)
        fourth = await asyncio.wait_for(rollout.next(), 5)
        assert fourth
        rollout.answered(first)
        rollout.ended(first, failed=False)
        rollout.ended(fourth, failed=False)
        assert await rollout.next() is None
        return [host.name for host in (first, second, third, fourth)]

    assert asyncio.run(main()) == ["h0", "h1", "h2", "h3"]


@pytest.mark.row("C1")
def test_waiting_for_a_wave_can_be_interrupted() -> None:
    fleet = Fleet(hosts(4))

    def interrupt(context: HostRun) -> None:
        fleet.interrupt.ask(2)

    fleet.during = interrupt
    codes = {one.code for one in fleet.run(Waves(wave=Amount(count=1))).values()}
    assert codes == {ErrorCode.INTERRUPTED}
    assert fleet.begun == ["h0"]


# ----------------------------------------------------------------------------------------------- windows


def schedule_of(fleet: Sequence[Host], clock: Clock | None = None, **more: object) -> Schedule:
    return Schedule(fleet, {"oslo": NIGHT}, clock=clock or FakeClock(), **more)  # type: ignore[arg-type]


def test_a_closed_window_is_waited_for_and_other_sites_go_on() -> None:
    mixed = [*hosts(2, "oslo", "o"), *hosts(2, None, "n")]
    clock = FakeClock()
    fleet = Fleet(mixed, concurrency=1)
    outcomes = fleet.run(schedule=schedule_of(mixed, clock))
    assert set(words(outcomes)) == {"cached/"}
    assert [name for name in fleet.begun if not name.startswith("-")] == ["n0", "n1", "o0", "o1"]
    assert clock.slept_until == [TEN]
    assert fleet.events.notices() == [
        "site oslo waits for its window, which opens at 22:00 (Europe/Oslo)"
    ]


def test_without_waiting_a_closed_site_is_skipped() -> None:
    mixed = [*hosts(2, "oslo", "o"), *hosts(1, None, "n")]
    clock = FakeClock()
    outcomes = Fleet(mixed).run(schedule=schedule_of(mixed, clock, wait=False))
    assert words(outcomes) == ["skipped/window", "skipped/window", "cached/"]
    assert clock.slept_until == []
    assert "opens at 22:00 (Europe/Oslo), and is not waited for" in (outcomes["o0"].reason or "")


def test_hosts_that_are_not_begun_when_it_closes_are_skipped_and_transfers_stop() -> None:
    fleet = Fleet(hosts(4, "oslo"), concurrency=1)
    clock = FakeClock(TEN + timedelta(hours=1))
    stops: list[HostError | None] = []

    def close_in_second(context: HostRun) -> None:
        if context.host.name == "h1":
            stops.append(context.must_stop())
            clock.time = FIVE
            stops.append(context.must_stop())
            error = context.must_stop()
            assert error
            raise error

    fleet.during = close_in_second
    outcomes = fleet.run(schedule=schedule_of(fleet.hosts, clock))
    assert words(outcomes) == ["cached/"] + ["skipped/window"] * 3
    assert stops[0] is None
    assert stops[1]
    assert stops[1].code is ErrorCode.WINDOW
    assert "has closed at 05:00 (Europe/Oslo)" in (outcomes["h3"].reason or "")


def test_it_closes_while_a_host_waits_for_its_place() -> None:
    fleet = Fleet(hosts(2, "oslo"), concurrency=1)
    clock = FakeClock(TEN)
    fleet.during = lambda context: setattr(clock, "time", FIVE)
    assert words(fleet.run(schedule=schedule_of(fleet.hosts, clock))) == [
        "cached/",
        "skipped/window",
    ]


@pytest.mark.parametrize(
    ("deadline", "expected"),
    [
        (NOON + timedelta(hours=6), "skipped/deadline"),
        (FIVE, "cached/"),
        (NOON, "skipped/deadline"),
    ],
)
def test_a_deadline_before_the_window_opens(deadline: datetime, expected: str) -> None:
    fleet = Fleet(hosts(1, "oslo"))
    assert words(fleet.run(schedule=schedule_of(fleet.hosts, deadline=deadline))) == [expected]


def test_the_deadline_ends_all_sites() -> None:
    fleet = Fleet(hosts(3), concurrency=1)
    clock = FakeClock()
    fleet.during = lambda context: setattr(clock, "time", clock.time + timedelta(hours=1))
    deadline = NOON + timedelta(hours=1, minutes=30)
    outcomes = fleet.run(schedule=schedule_of(fleet.hosts, clock, deadline=deadline))
    assert words(outcomes) == ["cached/", "cached/", "skipped/deadline"]


def test_one_window_for_all_by_each_sites_clock() -> None:
    mixed = [*hosts(1, "oslo", "o"), *hosts(1, "ny", "n")]
    sites = {"oslo": NIGHT, "ny": Site("ny", timezone="America/New_York")}
    schedule = Schedule(mixed, sites, window="06:00-07:00", clock=FakeClock())
    assert schedule.gates["oslo"].opens_at == datetime(2026, 11, 22, 5, tzinfo=UTC)
    assert schedule.gates["ny"].opens_at == datetime(2026, 11, 22, 11, tzinfo=UTC)
    assert schedule.longest_wait_s() == 23 * 3600
    assert not Schedule(mixed, {}, clock=FakeClock()).bounded


@pytest.mark.row("C1")
def test_waiting_for_a_window_can_be_interrupted() -> None:
    fleet = Fleet(hosts(2, "oslo"))
    clock = StoppedClock()

    class Asking(Events):
        def emit(self, event: Event) -> None:
            super().emit(event)
            if isinstance(event, Waiting) and event.what:
                fleet.interrupt.ask(2)

    fleet.events = Asking()
    outcomes = fleet.run(schedule=schedule_of(fleet.hosts, clock))
    assert words(outcomes) == ["skipped/interrupted"] * 2
    assert clock.slept_until == [TEN]


def test_ten_thousand_hosts_of_many_sites_are_ordered_quickly() -> None:
    many = [Host(f"h{n}", "edge", None, f"s{n % 500}", HostSettings()) for n in range(10_000)]
    sites = {f"s{n}": Site(f"s{n}", None, "00:00-24:00", "Europe/Oslo") for n in range(500)}
    schedule = Schedule(many, sites, clock=FakeClock())
    rollout = Rollout(many, schedule=schedule)

    async def main() -> list[str]:
        begun = []
        while (host := await rollout.next()) is not None:
            begun.append(host.name)
        return begun

    assert asyncio.run(asyncio.wait_for(main(), 60)) == [host.name for host in many]
