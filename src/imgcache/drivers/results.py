"""What drivers answer about entries: removals, verdicts, notes. Values only, part of ``base``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from imgcache.errors import ErrorCode

if TYPE_CHECKING:
    from imgcache.model import Digest


class RemovalState(StrEnum):
    """What became of an entry that was to be removed."""

    REMOVED = "removed"
    KEPT = "kept"
    GONE = "gone"
    """It was not there any more."""


class VerdictState(StrEnum):
    """What a host found when it hashed an entry again."""

    INTACT = "intact"
    DAMAGED = "damaged"
    UNMANAGED = "unmanaged"
    """Nothing is noted to compare it with."""
    ADOPTED = "adopted"
    """No digest of it was noted; its content is the image's, and is noted now."""
    ABSENT = "absent"
    FAILED = "failed"
    """It could not be hashed or noted."""


class NoteState(StrEnum):
    """What a host did with a pin or an entry's time."""

    PINNED = "pinned"
    UNPINNED = "unpinned"
    RENEWED = "renewed"
    UNMANAGED = "unmanaged"
    """There is no manifest to note it in."""
    ABSENT = "absent"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RemovalItem:
    """One entry to remove, as it was when the removal was decided; the host decides again."""

    name: str
    inode: int
    mtime_ns: int
    min_age_s: float
    ours_ok: bool = False
    """It may be younger than an hour when imgcache itself set its time last."""
    pinned_ok: bool = False


#: Codes that say why an entry is to stay; any other says why it could not be removed.
_STAYS = frozenset({
    ErrorCode.IN_USE, ErrorCode.YOUNG, ErrorCode.PINNED, ErrorCode.KEEP, ErrorCode.POLICY, ErrorCode.TEMPLATE,
    ErrorCode.TRANSFER, ErrorCode.EVIDENCE, ErrorCode.SHARED, ErrorCode.FOREIGN, ErrorCode.CHANGED,
    ErrorCode.BUSY, ErrorCode.DRY_RUN, ErrorCode.QUEUED,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class RemovalRow:
    """What a host did with one entry."""

    name: str
    """Exactly as ordered; from ``clean``, sanitised."""
    state: RemovalState
    code: ErrorCode | None
    """Why it was kept."""
    reason: str | None
    bytes: int
    """Allocated bytes: freed by a removal, else of the entry."""

    @property
    def failed(self) -> bool:
        """Whether it stays though nothing says that it should."""
        return self.state is RemovalState.KEPT and self.code not in _STAYS


@dataclass(frozen=True, slots=True)
class HashProgress:
    """How far a host is with hashing one entry."""

    base_name: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a host found when it hashed one entry again."""

    base_name: str
    """The entry's, as asked for."""
    state: VerdictState
    code: ErrorCode | None = None
    reason: str | None = None
    digest: Digest | None = None
    """Of the file as it is; None when it was not hashed."""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class NoteRow:
    """What a host did with one pin or renewal, and why not more."""

    base_name: str
    state: NoteState
    code: ErrorCode | None = None
    reason: str | None = None
