"""What happens during a run, told to whoever listens: progress displays and the log file.

Events carry facts, not sentences. Strings that came from hosts or images are raw in events; whoever
shows them passes them through the sanitizer (``errors`` and ``ui`` do).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from imgcache.distribution import SitePlan
    from imgcache.plan import EntryOutcome, HostFailure, Outcome


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run over hosts begins."""

    run_id: str
    command: str
    hosts: int
    images: int
    bytes_per_cold_host: int
    concurrency: int
    helper_digest: str = ""
    """SHA-256 in hex of the code that imgcache may send to hosts."""


@dataclass(frozen=True, slots=True)
class HostStarted:
    """A host got one of the run's places and is being contacted."""

    host: str


@dataclass(frozen=True, slots=True)
class ItemProgress:
    """One image on one host moved on."""

    host: str
    image_id: str
    image_name: str
    phase: str
    """``download``, ``inspect``, ``convert``, ``publish``, ``hash`` or ``lock``."""
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class ItemRetry:
    """An attempt failed and will be repeated."""

    host: str
    image_id: str | None
    attempt: int
    """1 for the first repetition."""
    delay_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class ItemEnded:
    """One image on one host has its outcome."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class EntryEnded:
    """One cache entry on one host, or a host as a whole, has its outcome."""

    outcome: EntryOutcome


@dataclass(frozen=True, slots=True)
class HostFailed:
    """There is nothing to say about a host that was to be looked at."""

    failure: HostFailure


@dataclass(frozen=True, slots=True)
class HostEnded:
    """No more will happen on this host in this run."""

    host: str
    failed: bool


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the operator should know; ``host`` is None when it concerns the whole run."""

    message: str
    host: str | None = None
    hint: str | None = None
    level: str = "warning"
    """``info`` or ``warning``."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A first look at the hosts has found what is to be done at each site."""

    sites: tuple[SitePlan, ...]


@dataclass(frozen=True, slots=True)
class Waiting:
    """No host begins for now, or (None) hosts begin again."""

    what: str | None
    """What is waited for, such as a window or the end of a wave."""


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run is over; nothing follows."""

    interrupted: bool


Event = (
    RunStarted
    | HostStarted
    | ItemProgress
    | ItemRetry
    | ItemEnded
    | EntryEnded
    | HostFailed
    | HostEnded
    | Notice
    | Planned
    | Waiting
    | RunEnded
)


class EventSink(Protocol):
    """Who wants to know. Called from the event loop's thread only; must not block or raise."""

    def emit(self, event: Event) -> None:
        """Take one event."""


class NullSink:
    """Nobody wants to know."""

    def emit(self, event: Event) -> None:
        """See ``EventSink``."""


class FanOut:
    """Hands every event to several sinks, in order."""

    def __init__(self, *sinks: EventSink) -> None:
        self._sinks = sinks

    def emit(self, event: Event) -> None:
        """See ``EventSink``."""
        for sink in self._sinks:
            sink.emit(event)
