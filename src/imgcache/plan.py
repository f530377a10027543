"""What a run would do, and how it ended: values only."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from imgcache.errors import ErrorCode, ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from imgcache.model import CacheEntry, EntryKind, Image


class OutcomeWord(StrEnum):
    """How one image ended on one host; Nova's own words where Nova has one."""

    CACHED = "cached"
    EXISTING = "existing"
    UNSUPPORTED = "unsupported"
    SKIPPED = "skipped"
    ERROR = "error"
    UNKNOWN = "unknown"
    REMOVED = "removed"
    KEPT = "kept"


FAILED_WORDS = frozenset({OutcomeWord.ERROR, OutcomeWord.UNKNOWN})


class SourceKind(StrEnum):
    """Where a host got the bytes."""

    SERVICE = "service"
    """The host downloaded from the image service."""
    PUSH = "push"
    """The controller sent them through the SSH channel."""
    RELAY = "relay"
    """Another host of its site sent them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one image ended on one host, and why."""

    host: str
    aggregate: str
    cell: str | None
    image_id: str
    image_name: str
    outcome: OutcomeWord
    code: ErrorCode | None = None
    """None for ``cached`` and ``existing`` when there is nothing more to say."""
    reason: str | None = None
    source: SourceKind | None = None
    """None when no byte was moved."""
    bytes_fetched: int = 0
    """Bytes that came over the network for this item, failed attempts included."""
    duration_s: float = 0.0


class CheckState(StrEnum):
    """How one check of a host ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One answer to "would precache work on this host?"."""

    host: str
    aggregate: str
    cell: str | None
    check: str
    """``login``, ``sudo``, ``python``, ``user``, ``cache``, ``qemu-img``, ``space``, ``glance`` …"""
    state: CheckState
    detail: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All checks of one run."""

    run_id: str
    command: str
    started_at: datetime
    finished_at: datetime
    checks: tuple[Check, ...]
    interrupted: int | None = None
    drivers: Mapping[str, str] = field(default_factory=dict)
    """Host -> its driver."""

    def totals(self) -> dict[str, int]:
        """Return state -> number of checks, every state present."""
        counts = Counter(check.state for check in self.checks)
        return {state.value: counts.get(state, 0) for state in CheckState}

    def exit_code(self) -> ExitCode:
        """Return 5 when something fails on some host: the answer is no; else 0."""
        if self.interrupted is not None:
            return _interrupted_code(self.interrupted)
        failed = any(check.state is CheckState.FAIL for check in self.checks)
        return ExitCode.ANSWER_IS_NO if failed else ExitCode.OK


@dataclass(frozen=True, slots=True)
class Report:
    """All outcomes of one run."""

    run_id: str
    command: str
    started_at: datetime
    finished_at: datetime
    images: tuple[Image, ...]
    outcomes: tuple[Outcome, ...]
    notices: tuple[str, ...] = field(default=())
    """Warnings about the run as a whole, as shown to the operator."""
    interrupted: int | None = None
    """The number of the signal that ended the run early, if one did."""

    def totals(self) -> dict[str, int]:
        """Return outcome word -> number of items, every word present, in the words' order."""
        counts = Counter(outcome.outcome for outcome in self.outcomes)
        return {word.value: counts.get(word, 0) for word in OutcomeWord}

    def exit_code(self) -> ExitCode:
        """Return 130 or 143 when interrupted, 1 when some item is ``error`` or ``unknown``, else 0."""
        if self.interrupted is not None:
            return _interrupted_code(self.interrupted)
        failed = any(outcome.outcome in FAILED_WORDS for outcome in self.outcomes)
        return ExitCode.ITEMS_FAILED if failed else ExitCode.OK


class EntryWord(StrEnum):
    """How one cache entry ended on one host, for the commands about the life of the cache."""

    REMOVED = "removed"
    KEPT = "kept"
    INTACT = "intact"
    DAMAGED = "damaged"
    REPAIRED = "repaired"
    UNMANAGED = "unmanaged"
    ADOPTED = "adopted"
    PINNED = "pinned"
    UNPINNED = "unpinned"
    RENEWED = "renewed"
    ABSENT = "absent"
    SKIPPED = "skipped"
    UNSUPPORTED = "unsupported"
    ERROR = "error"
    UNKNOWN = "unknown"


FAILED_ENTRY_WORDS = frozenset({EntryWord.ERROR, EntryWord.UNKNOWN})
#: Words that fail a command besides: what was asked for was not done.
_ALSO_FAILED = {"delete": frozenset({EntryWord.KEPT})}
#: Words with which a command that worked answers "no".
_ANSWER_IS_NO = {"verify": frozenset({EntryWord.DAMAGED})}


@dataclass(frozen=True, slots=True)
class EntryOutcome:
    """How one cache entry ended on one host, and why."""

    host: str
    aggregate: str
    cell: str | None
    entry: str
    """The file's name; empty: the host as a whole."""
    kind: EntryKind | None
    image_id: str | None
    """None when it is not known which image it is of."""
    image_name: str | None
    outcome: EntryWord
    code: ErrorCode | None = None
    reason: str | None = None
    bytes: int = 0
    """Allocated bytes of the entry."""
    bytes_freed: int = 0
    """What its removal gave back; in a dry run, what it would have."""


@dataclass(frozen=True, slots=True)
class EntryReport:
    """All outcomes of one run about cache entries."""

    run_id: str
    command: str
    """``prune``, ``delete``, ``clean``, ``verify``, ``pin``, ``unpin`` or ``refresh``."""
    started_at: datetime
    finished_at: datetime
    outcomes: tuple[EntryOutcome, ...]
    """Hosts in the order selected."""
    dry_run: bool = False
    interrupted: int | None = None
    """The number of the signal that ended the run early, if one did."""
    drivers: Mapping[str, str] = field(default_factory=dict)
    """Host -> its driver."""

    @property
    def bytes_freed(self) -> int:
        """Allocated bytes that the removals gave back; in a dry run, what they would have."""
        return sum(outcome.bytes_freed for outcome in self.outcomes)

    def totals(self) -> dict[str, int]:
        """Return outcome word -> number of entries, every word present, in the words' order."""
        counts = Counter(outcome.outcome for outcome in self.outcomes)
        return {word.value: counts.get(word, 0) for word in EntryWord}

    def exit_code(self) -> ExitCode:
        """Return 130 or 143 when interrupted; 1 for a failure; 5 when ``verify`` finds damage; else 0.

        An entry that ``delete`` was asked to remove and kept is a failure.
        """
        if self.interrupted is not None:
            return _interrupted_code(self.interrupted)
        words = {outcome.outcome for outcome in self.outcomes}
        if words & (FAILED_ENTRY_WORDS | _ALSO_FAILED.get(self.command, frozenset())):
            return ExitCode.ITEMS_FAILED
        no = words & _ANSWER_IS_NO.get(self.command, frozenset())
        return ExitCode.ANSWER_IS_NO if no else ExitCode.OK


@dataclass(frozen=True, slots=True)
class HostFailure:
    """Why there is nothing to say about a host."""

    host: str
    aggregate: str
    cell: str | None
    outcome: OutcomeWord
    """``error``, ``unknown``, ``unsupported``, or ``skipped`` when the run was interrupted before."""
    code: ErrorCode
    reason: str


@dataclass(frozen=True, slots=True)
class ListedEntry:
    """One cache entry on one host, with the image it belongs to as far as that is known."""

    host: str
    aggregate: str
    cell: str | None
    entry: CacheEntry
    image_id: str | None
    image_name: str | None
    known_by: str | None
    """``manifest``, ``hash`` (of an id that the image service lists), or None: unknown."""
    gone: bool | None
    """Whether its image is gone from the image service; None: not known."""


@dataclass(frozen=True, slots=True)
class MissingImage:
    """A host that lacks an image asked for."""

    host: str
    aggregate: str
    cell: str | None
    image_id: str
    image_name: str | None


@dataclass(frozen=True, slots=True)
class ListReport:
    """What is in the caches of the hosts."""

    run_id: str
    command: str
    started_at: datetime
    finished_at: datetime
    hosts: tuple[str, ...]
    """All hosts that answered, in the order selected, those without a matching entry too."""
    entries: tuple[ListedEntry, ...]
    missing: tuple[MissingImage, ...]
    """Filled when asked for."""
    failures: tuple[HostFailure, ...]
    notices: tuple[str, ...] = field(default=())
    interrupted: int | None = None
    drivers: Mapping[str, str] = field(default_factory=dict)
    """Host -> its driver."""

    def exit_code(self) -> ExitCode:
        """Return 130 or 143 when interrupted; 1 when a host failed; 5 when images are missing; else 0."""
        no = bool(self.missing)
        return _answer_code(self.failures, self.interrupted, no=no)


@dataclass(frozen=True, slots=True)
class HostStatus:
    """The room one host's cache takes. All sizes in bytes unless named otherwise."""

    host: str
    aggregate: str
    cell: str | None
    cache_path: str
    filesystem: str
    own_filesystem: bool
    storage_id: str | None
    """Not None: shared; totals count each storage once."""
    entries: int
    cache_bytes: int
    """Allocated blocks, as Nova counts, those on a file system of the cache's own too."""
    nova_usage_bytes: int
    """What Nova itself counts: 0 on a file system of its own."""
    in_use_bytes: int
    pinned_bytes: int
    reclaimable_bytes: int
    """What prune would free now, under the current policy: on shared storage, as all hosts together say."""
    reclaimable_entries: int
    filesystem_size_bytes: int
    filesystem_free_bytes: int
    reserved_host_disk_mb: int
    """What the host's nova.conf reserves now, MiB."""
    reserves_cache: bool
    """Whether Nova adds the cache to what it reserves by itself."""
    cache_reserve_mb: int
    """What ``reserved_host_disk_mb`` should hold for the cache alone, MiB; 0: nothing needed."""
    evidence_problems: tuple[str, ...]
    """Why nothing is reclaimable: what could not be read, or which sharers were not looked at."""

    @property
    def cache_share(self) -> float:
        """The cache's share of its file system, 0 to 1."""
        return self.cache_bytes / self.filesystem_size_bytes if self.filesystem_size_bytes else 0.0

    @property
    def used_share(self) -> float:
        """How full the cache's file system is, by whatever, 0 to 1."""
        if not self.filesystem_size_bytes:
            return 0.0
        return 1 - self.filesystem_free_bytes / self.filesystem_size_bytes


@dataclass(frozen=True, slots=True)
class StatusTotal:
    """Sums over the hosts of an aggregate, a cell or a driver; a shared storage counts once."""

    group: str
    """``aggregate``, ``cell``, or ``driver`` where there are several."""
    name: str
    hosts: int
    cache_bytes: int
    reclaimable_bytes: int
    filesystem_size_bytes: int
    filesystem_free_bytes: int


@dataclass(frozen=True, slots=True)
class StatusReport:
    """The room that the hosts' caches take."""

    run_id: str
    command: str
    started_at: datetime
    finished_at: datetime
    hosts: tuple[HostStatus, ...]
    totals: tuple[StatusTotal, ...]
    failures: tuple[HostFailure, ...]
    max_used: float | None = None
    """The threshold asked for, a share above 0 and at most 1."""
    interrupted: int | None = None
    drivers: Mapping[str, str] = field(default_factory=dict)
    """Host -> its driver."""

    def over_threshold(self) -> tuple[HostStatus, ...]:
        """Return the hosts whose file system is fuller than the threshold."""
        limit = self.max_used
        return tuple(host for host in self.hosts if limit is not None and host.used_share > limit)

    def exit_code(self) -> ExitCode:
        """Return 130 or 143 when interrupted; 1 when a host failed; 5 above the threshold; else 0."""
        return _answer_code(self.failures, self.interrupted, no=bool(self.over_threshold()))


def _answer_code(failures: Iterable[HostFailure], interrupted: int | None, *, no: bool) -> ExitCode:
    if interrupted is not None:
        return _interrupted_code(interrupted)
    if any(failure.outcome in FAILED_WORDS for failure in failures):
        return ExitCode.ITEMS_FAILED
    return ExitCode.ANSWER_IS_NO if no else ExitCode.OK


def _interrupted_code(signal_number: int) -> ExitCode:
    return ExitCode.INTERRUPTED if signal_number == signal.SIGINT else ExitCode.TERMINATED
