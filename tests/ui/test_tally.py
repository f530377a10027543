from __future__ import annotations

from dataclasses import replace

import pytest

from imgcache.errors import ErrorCode
from imgcache.events import HostEnded, HostStarted, ItemEnded, ItemProgress, ItemRetry, RunStarted
from imgcache.plan import OutcomeWord
from imgcache.ui.tally import Tally
from ui.clock import Clock
from ui.samples import IMAGE, outcome

MB = 1_000_000


def started(hosts: int = 4, images: int = 1, size: int = 100 * MB) -> RunStarted:
    return RunStarted("run-1", "precache", hosts, images, size, 10)


def moved(host: str, done: int, total: int = 100 * MB, phase: str = "download") -> ItemProgress:
    return ItemProgress(host, IMAGE.id, IMAGE.name, phase, done, total)


def test_hosts_are_counted_and_the_longest_at_work_comes_first() -> None:
    tally = Tally(Clock())
    for event in (
        started(),
        HostStarted("h1"),
        HostStarted("h2"),
        moved("h2", MB),
        moved("h1", MB),
        ItemRetry("h1", IMAGE.id, 1, 2.0, "reset"),
        HostStarted("h3"),
        ItemEnded(outcome("h3", OutcomeWord.ERROR, code=ErrorCode.CONNECT)),
        HostEnded("h3", failed=True),
    ):
        tally.take(event)
    assert list(tally.active) == ["h1", "h2"]
    assert tally.active["h1"].phase == "retry"
    assert (tally.hosts, tally.hosts_done, tally.hosts_failed) == (4, 1, 1)
    assert tally.words == {"error": 1}


def test_expected_bytes_shrink_when_hosts_turn_out_warm() -> None:
    tally = Tally(Clock())
    tally.take(started())
    assert tally.expected_bytes == 400 * MB
    tally.take(ItemEnded(outcome("h1", OutcomeWord.EXISTING)))
    assert tally.expected_bytes == 300 * MB
    tally.take(moved("h2", 30 * MB))
    assert (tally.done_bytes, tally.expected_bytes) == (30 * MB, 300 * MB)
    tally.take(ItemEnded(outcome("h2", bytes_fetched=100 * MB)))
    assert (tally.done_bytes, tally.expected_bytes) == (100 * MB, 300 * MB)


def test_a_repetition_from_zero_neither_jumps_the_rate_nor_counts_back() -> None:
    clock = Clock()
    tally = Tally(clock)
    tally.take(started())
    assert tally.rate() == 0.0
    for done in (10, 20, 0, 10):
        clock.now += 1
        tally.take(moved("h1", done * MB))
    assert tally.rate() == pytest.approx(30 * MB / 4)


def test_the_rate_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    tally = Tally(clock)
    tally.take(started())
    done = 0
    for second in range(60):
        clock.now += 1
        done += MB if second < 30 else 3 * MB
        tally.take(moved("h1", done))
        tally.rate()
    assert tally.rate() == pytest.approx(3 * MB)


def test_time_left_without_downloads_follows_the_share_of_hosts_done() -> None:
    clock = Clock()
    tally = Tally(clock)
    tally.take(started())
    assert tally.eta_s() is None
    clock.now += 10
    tally.take(ItemEnded(outcome("h1", OutcomeWord.EXISTING)))
    assert tally.fraction() == pytest.approx(1 / 4)
    assert tally.eta_s() == pytest.approx(30)


def test_time_left_with_downloads_follows_the_bytes() -> None:
    """Of 4 hosts one was warm, and one is half way: of the other two, one is taken to be warm, too."""
    clock = Clock()
    tally = Tally(clock)
    tally.take(started())
    tally.rate()
    clock.now += 10
    tally.take(ItemEnded(outcome("h1", OutcomeWord.EXISTING)))
    tally.take(moved("h2", 50 * MB))
    tally.take(moved("h2", 2, 4, phase="convert"))
    assert tally.fraction() == pytest.approx(1.5 / 4)
    assert tally.rate() == pytest.approx(5 * MB)
    assert tally.eta_s() == pytest.approx((50 + 100) / 5)


def test_images_of_different_size_count_by_their_size() -> None:
    tally = Tally(Clock())
    tally.take(started(hosts=2, images=2, size=100 * MB))
    small, big = "small-id", "big-id"
    for host in ("h1", "h2"):
        tally.take(ItemProgress(host, small, "small", "download", MB, MB))
        tally.take(ItemEnded(replace(outcome(host, bytes_fetched=MB), image_id=small)))
    assert tally.fraction() == pytest.approx(0.01)
    assert tally.expected_bytes == 200 * MB
    tally.take(ItemProgress("h1", big, "big", "download", 33 * MB, 99 * MB))
    assert tally.fraction() == pytest.approx((2 + 33) / 200)
    assert tally.expected_bytes == 200 * MB


def test_a_run_without_items_counts_its_hosts() -> None:
    tally = Tally(Clock())
    tally.take(started(hosts=4, images=0, size=0))
    tally.take(HostEnded("h1", failed=False))
    assert tally.fraction() == pytest.approx(1 / 4)


@pytest.mark.row("M4")
def test_nonsense_numbers_break_nothing() -> None:
    tally = Tally(Clock())
    tally.take(moved("h9", 500 * MB, 0))
    assert tally.fraction() == 0.0
    tally.take(started(hosts=0, images=0, size=0))
    tally.take(HostEnded("h9", failed=False))
    tally.take(HostEnded("h9", failed=False))
    assert tally.fraction() == 0.0
    assert tally.expected_bytes >= 0
