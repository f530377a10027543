"""Where a run stands, reckoned from its events; what both progress displays show."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcache.events import (
    EntryEnded,
    HostEnded,
    HostStarted,
    ItemEnded,
    ItemProgress,
    ItemRetry,
    RunStarted,
    Waiting,
)
from imgcache.plan import EntryWord, SourceKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgcache.events import Event
    from imgcache.plan import EntryOutcome, Outcome

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
        self._images = 0
        self._cold_bytes = 0
        self._sizes: dict[str, int] = {}
        self._ended: Counter[str] = Counter()
        self._ended_moved = 0
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
        self.relayed_bytes = 0
        """Of these, what came from hosts of the same site: of items whose last source was one."""
        self.freed_bytes = 0
        self.freeable_bytes = 0
        """What a dry run would have freed."""
        self.waiting: str | None = None
        """What is waited for before other hosts begin."""
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
            case EntryEnded():
                self._end_entry(event.outcome)
            case HostEnded():
                self.active.pop(event.host, None)
                self.hosts_done += 1
                self.hosts_failed += event.failed
            case Waiting():
                self._wait(event.what)
            case _:
                pass

    def _start(self, event: RunStarted) -> None:
        self.run_id, self.command, self.hosts = event.run_id, event.command, event.hosts
        self._images, self._cold_bytes = event.images, event.bytes_per_cold_host
        self._began_at = self._clock()
        self._samples.append((self._began_at, 0))

    def _wait(self, what: str | None) -> None:
        self.waiting = what
        if what is None and not self.active:
            # The wait says nothing about how fast bytes come.
            self._samples.clear()
            self._samples.append((self._clock(), self._seen_bytes))

    def _progress(self, event: ItemProgress) -> None:
        now = self.active.setdefault(event.host, Activity(event.host))
        now.image_name, now.phase = event.image_name, event.phase
        now.done_bytes, now.total_bytes = event.done_bytes, event.total_bytes
        if event.phase == "download":
            key = (event.host, event.image_id)
            before, _ = self._moving.get(key, (0, 0))
            self._moving[key] = (event.done_bytes, event.total_bytes)
            self._sizes.setdefault(event.image_id, event.total_bytes)
            # A repetition from zero moves no bytes back.
            self._seen_bytes += max(event.done_bytes - before, 0)

    def _end_item(self, outcome: Outcome) -> None:
        self.words[outcome.outcome.value] += 1
        self._ended[outcome.image_id] += 1
        self._ended_moved += outcome.bytes_fetched > 0
        before, _ = self._moving.pop((outcome.host, outcome.image_id), (0, 0))
        self._seen_bytes += max(outcome.bytes_fetched - before, 0)
        self.fetched_bytes += outcome.bytes_fetched
        if outcome.source is SourceKind.RELAY:
            self.relayed_bytes += outcome.bytes_fetched

    def _end_entry(self, outcome: EntryOutcome) -> None:
        self.words[outcome.outcome.value] += 1
        if outcome.outcome is EntryWord.REMOVED:
            self.freed_bytes += outcome.bytes_freed
        else:
            self.freeable_bytes += outcome.bytes_freed

    @property
    def done_bytes(self) -> int:
        """Bytes moved so far, unfinished items included."""
        return self.fetched_bytes + sum(done for done, _ in self._moving.values())

    @property
    def expected_bytes(self) -> int:
        """Bytes at the end, taking items that were not begun yet as missing."""
        return self.fetched_bytes + self._moving_total() + self._waiting_bytes()

    def _moving_total(self) -> int:
        return sum(max(done, total) for done, total in self._moving.values())

    def _waiting_bytes(self) -> int:
        moving = Counter(image_id for _, image_id in self._moving)
        known = self._ended.keys() | moving.keys()
        waiting = sum(
            max(self.hosts - self._ended[one] - moving[one], 0) * self._size(one) for one in known
        )
        return round(waiting + self.hosts * max(self._images - len(known), 0) * self._other_size())

    def _size(self, image_id: str) -> float:
        """Return an image's size: seen in a download, or a share of what is not known yet."""
        return self._sizes.get(image_id, self._other_size())

    def _other_size(self) -> float:
        others = self._images - len(self._sizes)
        return max(self._cold_bytes - sum(self._sizes.values()), 0) / others if others > 0 else 0.0

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
        """Return the share of the work that is done, from 0 to 1, unfinished items in part."""
        parts = [
            (one, done / total) for (_, one), (done, total) in self._moving.items() if total > 0
        ]
        all_bytes = self.hosts * self._cold_bytes
        if all_bytes:
            done = sum(count * self._size(one) for one, count in self._ended.items())
            return min((done + sum(part * self._size(one) for one, part in parts)) / all_bytes, 1.0)
        items = self.hosts * self._images
        if items:
            return min((self._ended.total() + sum(part for _, part in parts)) / items, 1.0)
        return min(self.hosts_done / self.hosts, 1.0) if self.hosts else 0.0

    def eta_s(self) -> float | None:
        """Return the seconds that are left if it goes on like this; None when too early to say."""
        elapsed, fraction, rate = self.elapsed_s, self.fraction(), self.rate()
        if elapsed < 2.0 or fraction < 0.005:
            return None
        if rate > 0:
            begun = self._ended.total() + len(self._moving)
            missing = (self._ended_moved + len(self._moving)) / max(begun, 1)
            rest = self._moving_total() - sum(done for done, _ in self._moving.values())
            return (rest + self._waiting_bytes() * missing) / rate
        return elapsed * (1 - fraction) / fraction
