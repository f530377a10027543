"""In which order hosts begin: open sites, canaries first, wave by wave, until too many have failed."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import heapify, heappop, heappush
from math import ceil
from typing import TYPE_CHECKING, Any

from imgcache.errors import ErrorCode, HostError
from imgcache.events import Notice, Waiting

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from imgcache.events import EventSink
    from imgcache.model import Host
    from imgcache.operations.window import Schedule
    from imgcache.policy import Amount


@dataclass(frozen=True, slots=True)
class Waves:
    """How carefully a run goes on."""

    canary: int = 0
    """So many hosts first; when one of them fails, none follows."""
    wave: Amount | None = None
    """Then so many at a time, each wave when the one before has ended; None: all."""
    max_failures: Amount | None = None
    """When more hosts than this have failed, none follows; None: however many."""

    def wave_size(self, hosts: int) -> int:
        """Return the hosts of one wave: a share is rounded up, so a wave has at least one."""
        if self.wave is None:
            return hosts
        return max(_count(self.wave, hosts, up=True), 1)

    def most_failures(self, hosts: int) -> int:
        """Return how many hosts may fail: a share is rounded down, so 5 % of 10 hosts is none."""
        return hosts if self.max_failures is None else _count(self.max_failures, hosts, up=False)


def _hosts(count: int) -> str:
    return "1 host" if count == 1 else f"{count} hosts"


def _count(amount: Amount, whole: int, *, up: bool) -> int:
    if amount.share is None:
        return amount.count or 0
    # Shares come from decimal percents: 0.07 * 100 must be 7, not a little more.
    exact = round(amount.share * whole, 9)
    return ceil(exact) if up else int(exact)


class Rollout:
    """Says which host begins next. For the one task that begins hosts; others tell it how hosts fare.

    A wave is over when all its hosts have ended. A host that cannot be reached, or takes long to answer,
    leaves its wave: another begins in its stead, and the wave does not wait for it.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        *,
        sink: EventSink | None = None,
        schedule: Schedule | None = None,
        waves: Waves | None = None,
        failed: int = 0,
    ) -> None:
        """Begin with all hosts waiting, in the order given; ``failed``: hosts that have failed already."""
        self._sink = sink
        self._schedule = schedule
        self._waves = waves or Waves()
        self._count = len(hosts) + failed
        self._most_failures = self._waves.most_failures(self._count)
        self._by_site: dict[str | None, deque[tuple[int, Host]]] = {}
        for index, host in enumerate(hosts):
            self._by_site.setdefault(host.site, deque()).append((index, host))
        self._ready: list[tuple[int, str | None]] = []
        """A heap of the open sites: the place of their first host in the order given, site."""
        self._refused: dict[str | None, HostError] = {}
        """Sites that are out of the run, and why."""
        self._looked = False
        self._look_again_at = datetime.max.replace(tzinfo=UTC)
        self._wave = 0 if self._waves.canary else 1
        self._room = self._waves.canary or self._waves.wave_size(self._count)
        self._open: set[str] = set()
        """Hosts that the wave waits for."""
        self._slow: set[str] = set()
        """Hosts that left their wave, and may answer yet."""
        self._changed = asyncio.Event()
        self._failed = failed
        self.halted: str | None = None
        """Why no further host begins."""
        self._check_failures()

    async def next(self) -> Host | None:
        """Return the host that begins next, as soon as it may; None when no other will."""
        while self.halted is None:
            self._look_at_sites()
            if not self._by_site:
                return None
            self._changed.clear()
            if self._room <= 0 and not self._next_wave():
                await self._wait(f"{self._wave_text()} is waited for: {_hosts(len(self._open))}")
            elif self._ready:
                return self._begin()
            else:
                await self._wait_for_window()
        return None

    def refusal(self, host: Host) -> HostError | None:
        """Return why a host may not begin, even if ``next`` has just returned it; else None."""
        if self.halted is not None:
            return HostError(ErrorCode.HALTED, self.halted)
        return self.must_stop(host)

    def must_stop(self, host: Host) -> HostError | None:
        """Return why a host may move no more bytes; else None."""
        return self._refused.get(host.site) or (
            self._schedule.refusal(host.site) if self._schedule else None
        )

    def slow(self, host: Host) -> None:
        """Note that a host takes long to answer."""
        if host.name in self._open:
            self._open.discard(host.name)
            self._slow.add(host.name)
            self._room += 1
            self._changed.set()

    def answered(self, host: Host) -> None:
        """Note that a slow host has answered."""
        if host.name in self._slow:
            self._slow.discard(host.name)
            self._open.add(host.name)
            self._room -= 1

    def ended(self, host: Host, *, failed: bool, reached: bool = True) -> None:
        """Note that a host has ended; ``reached``: whether it was there at all."""
        if not reached:
            self.slow(host)
        self._open.discard(host.name)
        self._slow.discard(host.name)
        self._failed += failed
        if failed and reached and self._wave == 0:
            self._halt(f"not begun: {host.name}, a canary, has failed")
        self._check_failures()
        self._changed.set()

    def _check_failures(self) -> None:
        if self._failed > self._most_failures:
            have = "has" if self._failed == 1 else "have"
            self._halt(
                f"not begun: {_hosts(self._failed)} {have} failed, "
                f"--max-failures allows {self._most_failures}"
            )

    def _halt(self, why: str) -> None:
        if self.halted is None:
            self.halted = why
            if self._sink:
                text = f"no further hosts are begun: {why.removeprefix('not begun: ')}"
                self._sink.emit(Notice(text, hint="those at work go on to their end"))

    def _begin(self) -> Host:
        """Take the host that comes first among those of open sites."""
        _, site = heappop(self._ready)
        queue = self._by_site[site]
        _, host = queue.popleft()
        if queue:
            heappush(self._ready, (queue[0][0], site))
        else:
            del self._by_site[site]
        self._open.add(host.name)
        self._room -= 1
        return host

    def _next_wave(self) -> bool:
        """Begin the next wave, if the one before has ended."""
        if self._open:
            return False
        self._wave += 1
        self._room = self._waves.wave_size(self._count)
        return True

    def _look_at_sites(self) -> None:
        """Sort the sites anew when a window has opened or closed since: open, waiting, or out of the run."""
        schedule = self._schedule
        if schedule is None:
            if not self._looked:
                self._ready = [(queue[0][0], site) for site, queue in self._by_site.items()]
                heapify(self._ready)
        elif not self._looked or schedule.clock.now() >= self._look_again_at:
            for site in list(self._by_site):
                if error := schedule.refusal(site):
                    self._refused[site] = error
                    del self._by_site[site]
            open_sites = [site for site in self._by_site if not schedule.waits(site)]
            self._ready = [(self._by_site[site][0][0], site) for site in open_sites]
            heapify(self._ready)
            self._look_again_at = schedule.next_change(self._by_site)
            if not self._looked:
                self._tell_of_windows(schedule)
        self._looked = True

    def _tell_of_windows(self, schedule: Schedule) -> None:
        now = schedule.clock.now()
        for site in self._by_site:
            gate = schedule.gates[site]
            if self._sink and gate.opens_at and schedule.waits(site):
                opens = gate.clock_text(gate.opens_at, now)
                text = f"{gate.name} waits for its window, which opens at {opens}"
                self._sink.emit(Notice(text, level="info"))

    async def _wait_for_window(self) -> None:
        if self._schedule is None:
            raise AssertionError
        gates = self._schedule.gates
        opening = {opens: site for site in self._by_site if (opens := gates[site].opens_at)}
        first = min(opening)
        gate = gates[opening[first]]
        shown = gate.clock_text(first, self._schedule.clock.now())
        text = f"the window of {gate.name} opens at {shown}"
        await self._wait(text, self._schedule.clock.sleep_until(first))

    async def _wait(self, text: str, until: Coroutine[Any, Any, None] | None = None) -> None:
        """Wait until something has changed, or ``until`` has ended; displays show ``text`` meanwhile."""
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._changed.wait())]
        if until is not None:
            waits.append(asyncio.ensure_future(until))
        self._tell(text)
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._tell(None)
            for one in waits:
                one.cancel()
            await asyncio.wait(waits)

    def _tell(self, text: str | None) -> None:
        if self._sink:
            self._sink.emit(Waiting(text))

    def _wave_text(self) -> str:
        return "the canary" if self._wave == 0 else f"wave {self._wave}"
