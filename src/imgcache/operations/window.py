"""When the hosts of each site may move bytes: the windows of one run, and its deadline."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from imgcache.config.windows import parse_window, zone_of
from imgcache.errors import ErrorCode, HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from zoneinfo import ZoneInfo

    from imgcache.config.windows import Window
    from imgcache.model import Host, Site

#: The longest sleep at a time: a clock that is set, or a machine that was suspended, is noticed then.
_LONGEST_SLEEP_S = 30.0
_NEVER = datetime.max.replace(tzinfo=UTC)
_TOMORROW = "run again when it is open"


class Clock:
    """The time of day; tests have one of their own."""

    def now(self) -> datetime:
        """Return the time now, UTC."""
        return datetime.now(UTC)

    async def sleep_until(self, moment: datetime) -> None:
        """Wait until the clock shows this time or a later one."""
        while (left := (moment - self.now()).total_seconds()) > 0:  # noqa: ASYNC110 - it is the time
            await asyncio.sleep(min(left, _LONGEST_SLEEP_S))


@dataclass(frozen=True, slots=True)
class Gate:
    """One site's window during one run: it opens at most once, and once it has closed it stays so."""

    site: str | None
    """None: the hosts that are in no site."""
    window: Window | None
    zone: ZoneInfo | None
    opens_at: datetime | None
    """UTC; None: it is open as the run begins."""
    closes_at: datetime | None
    """UTC; None: never."""

    @property
    def name(self) -> str:
        """How people call it."""
        return f"site {self.site}" if self.site else "hosts without a site"

    def clock_text(self, moment: datetime, now: datetime) -> str:
        """Return a moment by the site's clock: ``22:00``, with the day when it is not today's."""
        local = moment.astimezone(self.zone)
        today = now.astimezone(self.zone).date()
        text = f"{local:%H:%M}" if local.date() == today else f"{local:%Y-%m-%d %H:%M}"
        return f"{text} ({self.zone})" if self.zone else text


class Schedule:
    """The gates of all sites of one run, and its deadline. All times are fixed as the run begins."""

    def __init__(
        self,
        hosts: Iterable[Host],
        sites: Mapping[str, Site],
        *,
        window: str | None = None,
        deadline: datetime | None = None,
        wait: bool = True,
        clock: Clock | None = None,
    ) -> None:
        """Reckon the gates.

        Args:
            hosts: of the run.
            sites: what the inventory says about sites.
            window: for all sites, instead of what the inventory says.
            deadline: nothing is moved after it.
            wait: whether to wait for windows that are closed now.
            clock: the time of day.
        """
        self.clock = clock or Clock()
        self.deadline = deadline
        self.wait = wait
        now = self.clock.now()
        names = dict.fromkeys(host.site for host in hosts)
        self.gates = {name: _gate(name, sites.get(name or ""), window, now) for name in names}

    @property
    def bounded(self) -> bool:
        """Whether there is a window or a deadline at all."""
        return self.deadline is not None or any(gate.window for gate in self.gates.values())

    def ends_at(self, gate: Gate) -> datetime | None:
        """Return when the site's transfers must be done, UTC; None: at no time."""
        ends = [moment for moment in (gate.closes_at, self.deadline) if moment]
        return min(ends, default=None)

    def waits(self, site: str | None) -> bool:
        """Return whether the site's window is still to open."""
        opens = self.gates[site].opens_at
        return opens is not None and self.clock.now() < opens

    def refusal(self, site: str | None) -> HostError | None:
        """Return why hosts of this site may move nothing, now and for the rest of the run; None: they may.

        A window that will open in this run is no reason.
        """
        gate, now = self.gates[site], self.clock.now()
        if self.deadline and now >= self.deadline:
            message = f"the deadline of {gate.clock_text(self.deadline, now)} has passed"
            return HostError(ErrorCode.DEADLINE, message, hint="run again")
        if gate.closes_at and now >= gate.closes_at:
            message = (
                f"the window of {gate.name} has closed at {gate.clock_text(gate.closes_at, now)}"
            )
            return HostError(ErrorCode.WINDOW, message, hint=_TOMORROW)
        if gate.opens_at is None or now >= gate.opens_at:
            return None
        opens = f"the window of {gate.name} opens at {gate.clock_text(gate.opens_at, now)}"
        if not self.wait:
            return HostError(ErrorCode.WINDOW, f"{opens}, and is not waited for (--no-wait)")
        if self.deadline and gate.opens_at >= self.deadline:
            return HostError(ErrorCode.DEADLINE, f"{opens}, after the deadline")
        return None

    def next_change(self, sites: Iterable[str | None]) -> datetime:
        """Return when the next of these windows opens or closes, or the deadline is; UTC."""
        now = self.clock.now()
        moments = [self.deadline]
        for site in sites:
            moments += [self.gates[site].opens_at, self.gates[site].closes_at]
        return min((one for one in moments if one and one > now), default=_NEVER)

    def longest_wait_s(self) -> float:
        """Return how long it is until the last window opens that is waited for, in seconds."""
        now = self.clock.now()
        waits = [
            (gate.opens_at - now).total_seconds()
            for gate in self.gates.values()
            if gate.opens_at and not self.refusal(gate.site)
        ]
        return max(waits, default=0.0)


def _gate(name: str | None, site: Site | None, window: str | None, now: datetime) -> Gate:
    text = window or (site.window if site else None)
    timezone = site.timezone if site else None
    if text is None:
        return Gate(name, None, zone_of(timezone) if timezone else None, None, None)
    found = parse_window(text, timezone)
    opens = found.opens_at(now)
    return Gate(name, found, found.zone, opens, found.closes_at(opens or now))
