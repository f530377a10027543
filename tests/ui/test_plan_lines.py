"""What is said before a run with limits, and while no host begins."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from imgcache.distribution import SitePlan
from imgcache.events import (
    HostEnded,
    HostStarted,
    ItemEnded,
    ItemProgress,
    Planned,
    RunEnded,
    RunStarted,
    Waiting,
)
from imgcache.ui.messages import Messages, site_line, status_line
from imgcache.ui.plain import PlainDisplay
from imgcache.ui.tally import Tally
from ui.samples import FORBIDDEN, HOSTILE, outcome

FIVE = datetime(2026, 11, 22, 4, tzinfo=UTC)
PLAN = SitePlan(
    site="oslo",
    hosts=20,
    warm=3,
    cold=14,
    no_room=1,
    not_reached=2,
    other=0,
    bytes_outside=1_250_000_000,
    bytes_per_s=12_500_000,
    window="22:00-05:00 Europe/Oslo",
    opens_at=None,
    ends_at=FIVE,
    available_s=21_600.0,
)


def test_a_site_is_one_line() -> None:
    assert site_line(PLAN) == (
        "site oslo: 20 hosts: 3 have all, 14 lack images, 1 lacks the room, 2 not reached; 1.25 GB from "
        "outside, about 1m 44s at 12.5 MB/s; 6h 0m to do it"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"available_s": 60.0}, "; 1m 0s to do it: too little"),
        (
            {"opens_at": FIVE},
            "; 6h 0m to do it once its window opens (22:00-05:00 Europe/Oslo)",
        ),
        ({"bytes_per_s": None}, "1.25 GB from outside; 6h 0m to do it"),
        ({"available_s": None, "ends_at": None}, "about 1m 44s at 12.5 MB/s"),
        ({"bytes_outside": 0}, "; 0 B from outside; 6h 0m to do it"),
        ({"site": None}, "hosts without a site: 20 hosts"),
    ],
)
def test_what_is_not_known_is_left_out(changes: dict[str, object], said: str) -> None:
    assert said in site_line(replace(PLAN, **changes))  # type: ignore[arg-type]


def test_whether_it_fits() -> None:
    assert PLAN.fits is True
    assert replace(PLAN, available_s=99.0).fits is False
    assert replace(PLAN, bytes_per_s=None).fits is None
    assert replace(PLAN, bytes_per_s=None, bytes_outside=0).fits is True
    assert replace(PLAN, available_s=None).fits is True


def test_the_lines_are_shown_whatever_the_verbosity_and_safely() -> None:
    lines = Messages(0).lines(Planned((PLAN, replace(PLAN, site=HOSTILE))))
    assert len(lines) == 2
    assert not set("".join(lines)) & set(FORBIDDEN)


def test_what_is_waited_for_is_in_the_state_line_as_long_as_it_is() -> None:
    tally = Tally()
    tally.take(RunStarted("run-1", "precache", 4, 1, 10, 2))
    tally.take(Waiting("wave 1 is waited for: 2 hosts"))
    assert status_line(tally).endswith("; wave 1 is waited for: 2 hosts")
    tally.take(Waiting(None))
    assert "waited for" not in status_line(tally)


def test_no_time_is_promised_while_all_wait_for_a_window() -> None:
    now = [0.0]
    tally = Tally(lambda: now[0])
    tally.take(RunStarted("run-1", "precache", 2, 1, 10, 2))
    tally.take(ItemEnded(outcome("edge-1")))
    tally.take(HostEnded("edge-1", failed=False))
    now[0] = 60.0
    assert " left" in status_line(tally)
    tally.take(Waiting("the window of site oslo opens at 22:00"))
    assert " left" not in status_line(tally)


def test_after_a_wait_the_rate_is_that_of_what_has_come_since() -> None:
    now = [0.0]
    tally = Tally(lambda: now[0])
    tally.take(RunStarted("run-1", "precache", 2, 1, 1000, 2))
    tally.take(Waiting("the window of site oslo opens at 22:00"))
    now[0] = 10.0
    assert tally.rate() == 0
    tally.take(Waiting(None))
    tally.take(HostStarted("edge-1"))
    now[0] = 11.0
    tally.take(ItemProgress("edge-1", "1" * 36, "debian-12", "download", 500, 1000))
    assert tally.rate() == 500


def test_a_plain_display_of_a_run_with_a_plan() -> None:
    stream, now = io.StringIO(), [0.0]
    display = PlainDisplay(0, stream, clock=lambda: now[0])
    display.emit(RunStarted("run-1", "precache", 1, 1, 10, 1))
    display.emit(Planned((PLAN,)))
    display.emit(Waiting("the window of site oslo opens at 22:00"))
    now[0] = 6.0
    display.tick()
    display.emit(Waiting(None))
    display.emit(ItemEnded(outcome("edge-1")))
    display.emit(HostEnded("edge-1", failed=False))
    display.emit(RunEnded(interrupted=False))
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("imgcache: site oslo: ")
    assert "; the window of site oslo opens at 22:00" in lines[1]
    assert lines[2].startswith("imgcache: done in 6.0s: 1 cached")
