"""Windows of time: when transfers may run, by the clock on a wall somewhere.

A window opens and closes the first time that the clock shows its times; a time that the clock skips is
passed at the moment of the skip. So ``22:00-05:00`` lasts six hours in one night of the year, and eight
in another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLOCK = r"([01]?\d|2[0-4]):([0-5]\d)"
_WINDOW = re.compile(rf"{_CLOCK}\s*-\s*{_CLOCK}(?:\s+(\S+))?", re.ASCII)
_TIME = re.compile(_CLOCK, re.ASCII)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Window:
    """A daily window; one whose start is its end is open all day."""

    start: time
    end: time
    zone: ZoneInfo | None
    """None: the controller's own."""

    @property
    def always(self) -> bool:
        """Whether it never closes."""
        return self.start == self.end

    def opens_at(self, now: datetime) -> datetime | None:
        """Return when it opens next, UTC; None when it is open."""
        if self.always or self.closes_at(now):
            return None
        return next(opens for opens, _ in self._spans(now) if opens > now)

    def closes_at(self, now: datetime) -> datetime | None:
        """Return when it closes, UTC; None when it is closed, or never closes."""
        if self.always:
            return None
        return next((end for begin, end in self._spans(now) if begin <= now < end), None)

    def _spans(self, now: datetime) -> Iterator[tuple[datetime, datetime]]:
        """Yield opening and closing times around ``now``, in order, without those that a skip leaves out."""
        today = now.astimezone(self.zone).date()
        for days in range(-2, 4):
            day = today + days * _DAY
            opens = moment_of(day, self.start, self.zone)
            closes = moment_of(day if self.end > self.start else day + _DAY, self.end, self.zone)
            if opens < closes:
                yield opens, closes

    def __str__(self) -> str:
        end = "24:00" if self.end == time.min and not self.always else f"{self.end:%H:%M}"
        return f"{self.start:%H:%M}-{end}{f' {self.zone}' if self.zone else ''}"


def parse_window(text: str, timezone: str | None = None) -> Window:
    """Return the window of ``22:00-05:00``, or ``22:00-05:00 Europe/Oslo``; that zone wins over ``timezone``.

    Raises:
        ValueError: it is none; the message begins with "is".
    """
    found = _WINDOW.fullmatch(text.strip())
    start, end = (_clock(found[1], found[2]), _clock(found[3], found[4])) if found else (None, None)
    if found is None or start is None or end is None:
        message = "is not a window such as 22:00-05:00"
        raise ValueError(message)
    if found[5]:
        try:
            return Window(start, end, zone_of(found[5]))
        except ValueError as exc:
            message = "is not a window of a known time zone, such as 22:00-05:00 Europe/Oslo"
            raise ValueError(message) from exc
    return Window(start, end, zone_of(timezone) if timezone else None)


def zone_of(name: str) -> ZoneInfo:
    """Return a time zone by its IANA name.

    Raises:
        ValueError: there is none; the message begins with "is".
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as exc:  # KeyError: not found
        message = "is not a time zone such as Europe/Oslo"
        raise ValueError(message) from exc


def next_time(text: str, now: datetime, zone: ZoneInfo | None = None) -> datetime | None:
    """Return when the clock shows ``05:00`` next, UTC; None when the text is no time of a day."""
    found = _TIME.fullmatch(text.strip())
    clock = _clock(found[1], found[2]) if found else None
    if clock is None:
        return None
    today = now.astimezone(zone).date()
    moments = (moment_of(today + days * _DAY, clock, zone) for days in range(-1, 4))
    return next(moment for moment in moments if moment > now)


def _clock(hours: str, minutes: str) -> time | None:
    if int(hours) == 24:
        return time.min if int(minutes) == 0 else None
    return time(int(hours), int(minutes))


def moment_of(day: date, clock: time, zone: ZoneInfo | None) -> datetime:
    """Return the first moment, UTC, at which the clock shows this time on this day, or has skipped it."""
    wall = datetime.combine(day, clock)
    before = _utc(wall.replace(fold=0), zone)
    if _wall(before, zone) == wall:
        return before
    # In a skipped hour, fold 0 is reckoned with the offset before the skip, fold 1 with that after it, so
    # the moment of the skip lies between them. Source: PEP 495.
    early, late = _utc(wall.replace(fold=1), zone), before
    while late - early > timedelta(seconds=1):
        middle = early + (late - early) / 2
        if _wall(middle, zone) < wall:
            early = middle
        else:
            late = middle
    return late.replace(microsecond=0)


def _utc(wall: datetime, zone: ZoneInfo | None) -> datetime:
    """Return a wall clock's time as a moment; without a zone by the rules of this machine."""
    return (wall.replace(tzinfo=zone) if zone else wall).astimezone(UTC)


def _wall(moment: datetime, zone: ZoneInfo | None) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)
