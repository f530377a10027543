"""Windows of time: over midnight, whole days, and the two nights when the clock changes."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgcache.config.windows import Window, moment_of, next_time, parse_window, zone_of

OSLO = "Europe/Oslo"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "now", "opens", "closes"),
    [
        # Oslo is an hour ahead in winter.
        ("22:00-05:00", "2026-11-21T20:59:59", "2026-11-21T21:00", None),
        ("22:00-05:00", "2026-11-21T21:00:00", None, "2026-11-22T04:00"),
        ("22:00-05:00", "2026-11-22T03:59:59", None, "2026-11-22T04:00"),
        ("22:00-05:00", "2026-11-22T04:00:00", "2026-11-22T21:00", None),
        ("08:00-16:30", "2026-11-21T12:00", None, "2026-11-21T15:30"),
        ("08:00-16:30", "2026-11-21T16:00", "2026-11-22T07:00", None),
        ("08:00-16:30", "2026-11-21T00:00", "2026-11-21T07:00", None),
        ("00:00-24:00", "2026-11-21T00:00", None, None),
        ("06:00-06:00", "2026-11-21T05:00", None, None),
        ("20:00-24:00", "2026-11-21T22:30", None, "2026-11-21T23:00"),
        ("0:00-5:00", "2026-11-21T23:30", None, "2026-11-22T04:00"),
    ],
)
def test_when_it_opens_and_closes(
    text: str, now: str, opens: str | None, closes: str | None
) -> None:
    window = parse_window(text, OSLO)
    assert window.opens_at(utc(now)) == (utc(opens) if opens else None)
    assert window.closes_at(utc(now)) == (utc(closes) if closes else None)


@pytest.mark.parametrize(
    ("text", "day", "opens", "closes"),
    [
        # 2026-03-29: at 02:00 the clock jumps to 03:00, which is 01:00 UTC.
        ("22:00-05:00", "2026-03-28", "2026-03-28T21:00", "2026-03-29T03:00"),
        ("02:30-05:00", "2026-03-29", "2026-03-29T01:00", "2026-03-29T03:00"),
        ("01:00-02:30", "2026-03-29", "2026-03-29T00:00", "2026-03-29T01:00"),
        # 2026-10-25: at 03:00 the clock goes back to 02:00; 02:30 is 00:30 and 01:30 UTC.
        ("22:00-05:00", "2026-10-24", "2026-10-24T20:00", "2026-10-25T04:00"),
        ("02:30-05:00", "2026-10-25", "2026-10-25T00:30", "2026-10-25T04:00"),
        ("22:00-02:30", "2026-10-24", "2026-10-24T20:00", "2026-10-25T00:30"),
        ("02:15-02:45", "2026-10-25", "2026-10-25T00:15", "2026-10-25T00:45"),
    ],
)
def test_nights_with_a_change_of_the_clock(text: str, day: str, opens: str, closes: str) -> None:
    window = parse_window(text, OSLO)
    before = utc(opens) - timedelta(seconds=1)
    assert window.opens_at(before) == utc(opens)
    assert window.closes_at(utc(opens)) == utc(closes)
    assert window.closes_at(utc(closes) - timedelta(seconds=1)) == utc(closes)
    assert window.closes_at(utc(closes)) is None


def test_a_window_that_the_clock_skips_is_left_out() -> None:
    window = parse_window("02:10-02:50", OSLO)
    assert window.opens_at(utc("2026-03-28T12:00")) == utc("2026-03-30T00:10")


@given(
    st.integers(1_700_000_000, 1_800_000_000),
    st.integers(0, 1439),
    st.integers(0, 1439),
    st.sampled_from([OSLO, "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC"]),
)
def test_it_is_open_or_opens_within_two_days_and_the_answers_agree(
    now: int, start: int, end: int, zone: str
) -> None:
    window = Window(time(*divmod(start, 60)), time(*divmod(end, 60)), zone_of(zone))
    moment = datetime.fromtimestamp(now, UTC)
    opens, closes = window.opens_at(moment), window.closes_at(moment)
    if start == end:
        assert (opens, closes) == (None, None)
    elif closes:
        assert opens is None
        assert moment < closes <= moment + timedelta(hours=25)
    else:
        assert opens is not None
        assert moment < opens <= moment + timedelta(hours=49)
        assert window.closes_at(opens) is not None


def test_the_zone_in_the_text_wins_and_it_is_shown_again() -> None:
    window = parse_window(" 22:00 - 24:00  America/New_York ", OSLO)
    assert str(window) == "22:00-24:00 America/New_York"
    assert str(parse_window("22:00-05:00")) == "22:00-05:00"


def test_without_a_zone_it_is_the_machines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import time as clock

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    clock.tzset()
    try:
        window = parse_window("22:00-05:00")
        assert window.opens_at(utc("2026-11-21T12:00")) == utc("2026-11-21T13:00")
        assert next_time("05:00", utc("2026-11-21T12:00")) == utc("2026-11-21T20:00")
    finally:
        monkeypatch.undo()
        clock.tzset()


@pytest.mark.parametrize(
    "text",
    [
        "", "22:00", "22-05", "25:00-05:00", "22:60-05:00", "24:01-05:00", "22:00-05:00 Mars/Olympus",
        "22:00-05:00 ../../etc/passwd", "22:00-05:00 Europe", "\u0662\u0662:00-05:00", "22:00-05:00-06:00",
        "22:00-05:00 \x00", "22:00-05:00 " + "x" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is not a "):
        parse_window(text)


def test_the_next_time_of_day() -> None:
    zone = ZoneInfo(OSLO)
    assert next_time("05:00", utc("2026-11-21T04:00"), zone) == utc("2026-11-22T04:00")
    assert next_time("5:00", utc("2026-11-21T03:59"), zone) == utc("2026-11-21T04:00")
    assert next_time("02:30", utc("2026-03-28T12:00"), zone) == utc("2026-03-29T01:00")
    assert next_time("6h", utc("2026-11-21T04:00"), zone) is None


def test_a_moment_that_is_skipped_is_that_of_the_skip_to_the_second() -> None:
    skipped = moment_of(date(2026, 10, 4), time(2, 15), ZoneInfo("Australia/Lord_Howe"))
    assert skipped == utc("2026-10-03T15:30")


def test_zones_are_known_without_the_machines_database() -> None:
    code = f"from imgcache.config.windows import zone_of; print(zone_of({OSLO!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PYTHONTZPATH": ""},
    )  # fmt: skip
    assert done.stdout == f"{OSLO}\n", done.stderr
