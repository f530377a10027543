"""What keeps an entry in a cache, whatever was asked: one function for each reason.

An entry that one of ``GUARDS`` holds is not removed by any command. The helper decides all of it again,
under Nova's lock, before it unlinks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcache.errors import ErrorCode
from imgcache.model import PIN_FOREVER, EntryKind

if TYPE_CHECKING:
    from imgcache.model import CacheEntry, CachePolicy

#: No entry younger than this is ever removed: a boot may be on its way to use it. See ``CachePolicy``.
HARD_FLOOR_S = 3600.0
FLOOR_TEXT = f"{HARD_FLOOR_S / 3600:.0f}h"
#: Kinds that no plan takes for its age or for room.
NEVER_TAKEN = frozenset({EntryKind.FOREIGN, EntryKind.STAGING, EntryKind.QUEUED})
#: No disk has fewer: programs read and write it by sectors.
_SECTOR_BYTES = 512
_TEMPLATES = frozenset({EntryKind.SWAP, EntryKind.EPHEMERAL})


@dataclass(frozen=True, slots=True)
class Rules:
    """What the guards go by."""

    policy: CachePolicy
    kept_bases: frozenset[str] = frozenset()
    include_templates: bool = False
    override_host: bool = False
    ours_may_be_young: bool = False
    """Leave it to the helper whether a young entry was last touched by imgcache itself."""
    queued_may_go: bool = False


Held = tuple[ErrorCode, str]


def _hold_kind(entry: CacheEntry, rules: Rules) -> Held | None:
    if entry.kind is EntryKind.FOREIGN:
        return ErrorCode.FOREIGN, "not one of Nova's names; never touched"
    if entry.kind is EntryKind.STAGING:
        return ErrorCode.TRANSFER, "a transfer's file; imgcache clean looks after these"
    if entry.kind is EntryKind.QUEUED and not rules.queued_may_go:
        return ErrorCode.TRANSFER, "waits to be fetched there; imgcache delete takes it back"
    if entry.kind in _TEMPLATES and not rules.include_templates:
        return ErrorCode.TEMPLATE, "a template of swap or ephemeral disks"
    return None


def _hold_links(entry: CacheEntry, rules: Rules) -> Held | None:
    del rules
    if entry.links != 1:
        return ErrorCode.FOREIGN, f"the file has {entry.links} names"
    return None


def _hold_used(entry: CacheEntry, rules: Rules) -> Held | None:
    del rules
    if entry.users is None:
        return ErrorCode.EVIDENCE, "whether something uses it is not known"
    if entry.users:
        few = ", ".join(entry.used_by)
        return ErrorCode.IN_USE, f"used by {entry.users}" + (f": {few}" if few else "")
    if entry.live:
        return ErrorCode.IN_USE, "someone is at work on it"
    return None


def _hold_pinned(entry: CacheEntry, rules: Rules) -> Held | None:
    del rules
    if not is_pinned(entry):
        return None
    until = entry.manifest.pinned_until if entry.manifest else None
    if until is None or until == PIN_FOREVER:
        return ErrorCode.PINNED, "pinned for ever"
    return ErrorCode.PINNED, f"pinned until {until:%Y-%m-%d %H:%M} UTC"


def _hold_named(entry: CacheEntry, rules: Rules) -> Held | None:
    if base_of(entry) in rules.kept_bases:
        return ErrorCode.KEEP, "named by --keep"
    return None


def _hold_future(entry: CacheEntry, rules: Rules) -> Held | None:
    del rules
    if not entry.age_s >= 0:
        return ErrorCode.YOUNG, f"its time lies {age_text(-entry.age_s)} in the host's future"
    return None


def _hold_young(entry: CacheEntry, rules: Rules) -> Held | None:
    ours = rules.ours_may_be_young and entry.manifest is not None
    floor_s = rules.policy.floor_s
    if not entry.age_s >= floor_s and not ours:
        return (
            ErrorCode.YOUNG,
            f"last used {age_text(entry.age_s)} ago; below {floor_s / 3600:g}h all is kept",
        )
    return None


def _hold_host_policy(entry: CacheEntry, rules: Rules) -> Held | None:
    del entry
    if not rules.policy.remove_unused and not rules.override_host:
        return ErrorCode.POLICY, "remove_unused_base_images is false in the host's nova.conf"
    return None


#: Each can hold an entry for itself; the first that does gives the reason.
GUARDS = (
    _hold_kind,
    _hold_links,
    _hold_used,
    _hold_pinned,
    _hold_named,
    _hold_future,
    _hold_young,
    _hold_host_policy,
)


def held_by(entry: CacheEntry, rules: Rules) -> Held | None:
    """Return why an entry must stay, or None when it may go."""
    for guard in GUARDS:
        if held := guard(entry, rules):
            return held
    return None


def is_pinned(entry: CacheEntry) -> bool:
    """Whether the entry is pinned now, by the clock of its host."""
    until = entry.manifest.pinned_until if entry.manifest else None
    if until is None:
        return False
    return until == PIN_FOREVER or until.timestamp() > entry.mtime_ns / 1e9 + entry.age_s


def size_fault(entry: CacheEntry) -> str | None:
    """Return why an original of this size cannot be whole, or None; the one judgement of all commands.

    Names that tell their image are those of back ends that judge sizes by themselves. The helper judges files
    by the same rules.
    """
    if entry.kind is not EntryKind.ORIGINAL:
        return None
    if entry.size_bytes == 0:
        return "it is empty"
    if entry.manifest is not None:
        wanted = entry.manifest.stored_size_bytes
        right = entry.size_bytes == wanted
        return None if right else f"it has {entry.size_bytes} bytes instead of {wanted}"
    if entry.size_bytes < _SECTOR_BYTES and entry.image_id is None:
        return f"it has {entry.size_bytes} bytes, less than a sector, as no disk has"
    return None


def base_of(entry: CacheEntry) -> str | None:
    """Return the name of the image's entry that an original is, or a resized copy was made of; else None.

    It is what ``Driver.entry_name`` returns for the image.
    """
    if entry.kind not in {EntryKind.ORIGINAL, EntryKind.RESIZED, EntryKind.QUEUED}:
        return None
    own_name = None if entry.kind is EntryKind.RESIZED else entry.name
    return entry.base or entry.image_id or own_name


def age_text(seconds: float) -> str:
    """Return an age for people: ``35 min``, ``30.5 h``, ``12 days``."""
    if seconds < HARD_FLOOR_S:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days"
