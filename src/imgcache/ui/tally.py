"""Where a run stands, reckoned from its events; what both progress displays show."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcache.events import (
    HostEnded,
    HostStarted,
    ItemEnded,
    ItemProgress,
    ItemRetry,
    RunStarted,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgcache.events import Event
    from imgcache.plan import Outcome

#: The rate is the mean over this many seconds, so that it neither jumps nor lags.
_RATE_WINDOW_S = 15.0


@dataclass(slots=True)
class Activity:
    """What one active host is doing now."""

    host: str
    image_name: str = ""
    phase: str = "contact"
    done_bytes: int = 0
    total_bytes: int = 0


class Tally:
    """Counts hosts, items and bytes. Takes events in any order; not safe for several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_at = clock()
        self._items = 0
        self._mean_item_bytes = 0.0
        self._moving: dict[tuple[str, str], tuple[int, int]] = {}
        self._samples: deque[tuple[float, int]] = deque()
        self._seen_bytes = 0
        self.run_id = ""
        self.command = ""
        self.hosts = 0
        self.hosts_done = 0
        self.hosts_failed = 0
        self.fetched_bytes = 0
        """Bytes of the items that ended."""
        self.words: Counter[str] = Counter()
        """Outcome word -> items that ended so."""
        self.active: dict[str, Activity] = {}
        """Host -> what it is doing, the one longest at work first."""

    def take(self, event: Event) -> None:
        """Reckon one event in."""
        match event:
            case RunStarted():
                self._start(event)
            case HostStarted():
                self.active.setdefault(event.host, Activity(event.host))
            case ItemProgress():
                self._progress(event)
            case ItemRetry():
                self.active.setdefault(event.host, Activity(event.host)).phase = "retry"
            case ItemEnded():
                self._end_item(event.outcome)
            case HostEnded():
                self.active.pop(event.host, None)
                self.hosts_done += 1
                self.hosts_failed += event.failed
            case _:
                pass

    def _start(self, event: RunStarted) -> None:
        self.run_id, self.command, self.hosts = event.run_id, event.command, event.hosts
        self._items = event.hosts * event.images
        self._mean_item_bytes = event.bytes_per_cold_host / max(event.images, 1)
        self._began_at = self._clock()

    def _progress(self, event: ItemProgress) -> None:
        now = self.active.setdefault(event.host, Activity(event.host))
        now.image_name, now.phase = event.image_name, event.phase
        now.done_bytes, now.total_bytes = event.done_bytes, event.total_bytes
        if event.phase == "download":
            key = (event.host, event.image_id)
            before, _ = self._moving.get(key, (0, 0))
            self._moving[key] = (event.done_bytes, event.total_bytes)
            # A repetition from zero moves no bytes back.
            self._seen_bytes += max(event.done_bytes - before, 0)

    def _end_item(self, outcome: Outcome) -> None:
        self.words[outcome.outcome.value] += 1
        before, _ = self._moving.pop((outcome.host, outcome.image_id), (0, 0))
        self._seen_bytes += max(outcome.bytes_fetched - before, 0)
        self.fetched_bytes += outcome.bytes_fetched

    @property
    def done_bytes(self) -> int:
        """Bytes moved so far, unfinished items included."""
        return self.fetched_bytes + sum(done for done, _ in self._moving.values())

    @property
    def expected_bytes(self) -> int:
        """Bytes at the end, taking hosts that were not asked yet as cold."""
        waiting = max(self._items - self.words.total() - len(self._moving), 0)
        moving = sum(max(done, total) for done, total in self._moving.values())
        return self.fetched_bytes + moving + round(waiting * self._mean_item_bytes)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._began_at

    def rate(self) -> float:
        """Return the bytes per second of the last seconds; to be asked again and again."""
        now = self._clock()
        self._samples.append((now, self._seen_bytes))
        while len(self._samples) > 2 and now - self._samples[1][0] >= _RATE_WINDOW_S:
            self._samples.popleft()
        began, before = self._samples[0]
        return (self._seen_bytes - before) / (now - began) if now > began else 0.0

    def fraction(self) -> float:
        """Return the share of the run's items that is done, from 0 to 1, unfinished ones in part."""
        if not self._items:
            return 0.0
        parts = sum(done / total for done, total in self._moving.values() if total > 0)
        return min((self.words.total() + parts) / self._items, 1.0)

    def eta_s(self) -> float | None:
        """Return the seconds that are left if it goes on like this; None when too early to say."""
        fraction, elapsed = self.fraction(), self.elapsed_s
        if fraction < 0.005 or elapsed < 2.0:
            return None
        return elapsed * (1 - fraction) / fraction
