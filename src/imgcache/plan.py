"""What a run would do, and how it ended: values only."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from imgcache.errors import ErrorCode, ExitCode

if TYPE_CHECKING:
    from datetime import datetime

    from imgcache.model import Host, Image


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
    PUSH = "push"


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
    """None for ``cached``, and for ``existing`` when all went well."""
    reason: str | None = None
    source: SourceKind | None = None
    """None when no byte was moved."""
    bytes_fetched: int = 0
    """Bytes that came over the network for this item, failed attempts included."""
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PrecachePlan:
    """Which images go to which hosts; made by reading only."""

    images: tuple[Image, ...]
    """In the order given, each once."""
    hosts: tuple[Host, ...]
    """Each once, grouped by cell."""

    @property
    def bytes_per_cold_host(self) -> int:
        """Bytes that a host with none of the images would fetch."""
        return sum(image.size_bytes for image in self.images)


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


def _interrupted_code(signal_number: int) -> ExitCode:
    return ExitCode.INTERRUPTED if signal_number == signal.SIGINT else ExitCode.TERMINATED
