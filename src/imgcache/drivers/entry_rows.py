"""Reads what a host says about its cache into values; for a peer that lies. Shared by several drivers.

Strings are sanitised or match a pattern in full; a manifest that cannot be read makes the entry
unmanaged, anything else that is wrong ends the conversation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from sys import intern
from typing import TYPE_CHECKING

from imgcache.drivers.base import RemovalRow, RemovalState, Verdict, VerdictState
from imgcache.errors import ErrorCode, HostError
from imgcache.model import (
    PIN_FOREVER,
    CacheEntry,
    CachePolicy,
    Digest,
    EntryKind,
    HostCache,
    ImageId,
    Manifest,
)
from imgcache.transport.wire import MAX_INT, MAX_UNSIGNED, protocol_error

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from imgcache.transport.wire import Fields

#: More entries than any cache has; beyond it the host is not believed.
MAX_ENTRIES = 50_000
_MAX_ROWS_A_FRAME = 2000
_MAX_AGE_S = 1e12

_NAMES = {
    EntryKind.ORIGINAL: re.compile(r"[0-9a-f]{40}", re.ASCII),
    EntryKind.RESIZED: re.compile(r"[0-9a-f]{40}_[0-9A-Za-z._-]{1,200}", re.ASCII),
    EntryKind.SWAP: re.compile(r"swap_[0-9]{1,30}", re.ASCII),
    EntryKind.EPHEMERAL: re.compile(r"ephemeral_[0-9]{1,30}_[0-9A-Za-z_.-]{7}", re.ASCII),
}
_ALGO = re.compile(r"[a-z0-9_]{2,20}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{8,256}", re.ASCII)
_UUID = re.compile(r"[0-9a-fA-F-]{36}", re.ASCII)
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", re.ASCII)


_VERDICTS = frozenset({"intact", "damaged", "unmanaged", "absent"})


@dataclass(frozen=True, slots=True)
class Shapes:
    """What a back end's entries are called."""

    names: Mapping[EntryKind, re.Pattern[str]]
    """Kind -> its names, in full; entries of other names are foreign."""
    base_length: int
    """How much of a resized copy's name is that of its original's entry."""


#: Source: nova ``imagecache.py``, ``get_cache_fname``.
LIBVIRT_SHAPES = Shapes(_NAMES, 40)


class EntryRows:
    """Collects the rows of one ``list``."""

    def __init__(self, shapes: Shapes = LIBVIRT_SHAPES) -> None:
        self.entries: list[CacheEntry] = []
        self._shapes = shapes

    def take(self, fields: Fields) -> None:
        """Take one ``rows`` event."""
        for row in fields.get_objects("rows", most=_MAX_ROWS_A_FRAME):
            if len(self.entries) >= MAX_ENTRIES:
                message = f"the host lists more than {MAX_ENTRIES} entries in its cache"
                raise protocol_error(message)
            self.entries.append(entry_from(row, self._shapes))


def entry_from(row: Fields, shapes: Shapes = LIBVIRT_SHAPES) -> CacheEntry:
    """Return one entry of a ``list`` row."""
    kind = row.get_enum("kind", EntryKind)
    name = row.get_str("name", limit=600)
    if kind in shapes.names and not shapes.names[kind].fullmatch(name):
        kind = EntryKind.FOREIGN
    manifest = row.opt_object("manifest") if kind is EntryKind.ORIGINAL else None
    return CacheEntry(
        # The same names on thousands of hosts are kept once.
        name=intern(name),
        kind=kind,
        size_bytes=row.get_int("size"),
        allocated_bytes=row.get_int("allocated"),
        format=row.opt_str("format", limit=20),
        age_s=row.get_float("age", low=-_MAX_AGE_S, high=_MAX_AGE_S),
        inode=row.get_int("inode", high=MAX_UNSIGNED),
        mtime_ns=row.get_int("mtime_ns", low=-MAX_INT),
        links=row.get_int("links"),
        users=row.opt_int("users"),
        used_by=tuple(row.get_strings("used_by", limit=200, most=3)),
        live=row.get_bool("live"),
        manifest=_manifest_from(manifest) if manifest else None,
        base=intern(name[: shapes.base_length]) if kind is EntryKind.RESIZED else None,
        partial=row.opt_bool("partial") or False,
        unremovable=row.opt_str("unremovable", limit=200),
    )


def _manifest_from(fields: Fields) -> Manifest | None:
    """Return a manifest, or None when somebody damaged it: the entry is unmanaged then."""
    try:
        stored = fields.get_object("stored")
        return Manifest(
            image_id=ImageId(intern(fields.get_match("image_id", _UUID))),
            image_name=intern(fields.get_str("image_name", limit=300)),
            digest=_digest_from(fields.get_object("digest")),
            stored_digest=_digest_from(stored) if stored.has("value") else None,
            stored_size_bytes=stored.get_int("size"),
            stored_format=stored.get_str("format", limit=20),
            disk_format=fields.get_str("disk_format", limit=20),
            source=fields.get_str("source", limit=20),
            cached_at=_time(fields, "cached_at") or datetime.fromtimestamp(0, UTC),
            touched_at=_time(fields, "touched_at"),
            verified_at=_time(fields, "verified_at"),
            pinned_until=_pin(fields),
        )
    except (HostError, ValueError, OverflowError):
        return None


def _digest_from(fields: Fields) -> Digest:
    return Digest(fields.get_match("algo", _ALGO), intern(fields.get_match("value", _HEX)))


def _time(fields: Fields, name: str) -> datetime | None:
    if not fields.has(name):
        return None
    return datetime.fromisoformat(fields.get_match(name, _TIME))


def _pin(fields: Fields) -> datetime | None:
    """Return until when it is pinned; what cannot be represented is for ever."""
    if not fields.has("pin"):
        return None
    try:
        return datetime.fromtimestamp(fields.get_float("pin"), UTC)
    except (HostError, ValueError, OverflowError, OSError):
        return PIN_FOREVER


def cache_from(opened: Fields, answer: Fields, entries: list[CacheEntry]) -> HostCache:
    """Return a host's cache from what ``open`` and ``list`` answered."""
    return HostCache(
        cache_path=opened.get_str("cache_path"),
        instances_path=opened.get_str("instances_path"),
        entries=tuple(sorted(entries, key=attrgetter("name"))),
        policy=_policy_from(answer.get_object("policy")),
        filesystem=answer.get_str("filesystem", limit=40),
        filesystem_size_bytes=answer.get_int("size"),
        filesystem_free_bytes=answer.get_int("free"),
        own_filesystem=answer.get_bool("own_filesystem"),
        nova_usage_bytes=answer.get_int("nova_usage"),
        evidence_problems=tuple(answer.get_strings("problems", limit=500)),
        storage_id=answer.opt_str("storage_id", limit=200),
        shares_with=tuple(answer.get_strings("shares_with", limit=255, most=10_000)),
        nodename=answer.get_str("nodename", limit=255),
    )


def _policy_from(fields: Fields) -> CachePolicy:
    return CachePolicy(
        remove_unused=fields.get_bool("remove_unused"),
        original_min_age_s=fields.get_float("original_min_age_s"),
        resized_min_age_s=fields.get_float("resized_min_age_s"),
        reserved_host_disk_mb=fields.get_int("reserved_host_disk_mb"),
        reserves_cache=fields.get_bool("reserves_cache"),
        manager_interval_s=fields.get_int("manager_interval_s", low=-MAX_INT),
    )


def removal_rows(fields: Fields, expected: Collection[str] | None) -> list[RemovalRow]:
    """Return the rows of one ``rows`` event of ``remove`` or ``clean``.

    ``expected`` holds the names that may come; None: any, sanitised.
    """
    rows = []
    for row in fields.get_objects("rows", most=_MAX_ROWS_A_FRAME):
        name = row.get_str("name", limit=600)
        if expected is not None and name not in expected:
            message = "the host answers about an entry that it was not asked about"
            raise protocol_error(message)
        rows.append(
            RemovalRow(
                name=name,
                state=row.get_enum("state", RemovalState),
                code=row.get_enum("code", ErrorCode) if row.has("code") else None,
                reason=row.opt_text("reason", limit=1000),
                bytes=row.get_int("bytes"),
            )
        )
    return rows


def verdict_from(base_name: str, fields: Fields) -> Verdict:
    """Return what ``verify`` found."""
    hashed = fields.has("value")
    return Verdict(
        base_name=base_name,
        state=VerdictState(fields.get_choice("state", _VERDICTS)),
        reason=fields.opt_text("reason", limit=1000),
        digest=_digest_from(fields) if hashed else None,
        size_bytes=fields.opt_int("size") or 0,
    )


def proof_from(base_name: str, fields: Fields) -> Verdict:
    """Return what ``prove`` found; with a digest: it is proven, and may be adopted."""
    state = fields.get_choice("state", {"proven", "other", "absent"})
    if state == "absent":
        return Verdict(base_name, VerdictState.ABSENT)
    if state == "proven":
        digest, size = _digest_from(fields), fields.get_int("size")
        return Verdict(base_name, VerdictState.UNMANAGED, digest=digest, size_bytes=size)
    what = fields.get_text("reason", limit=1000)
    reason = f"its content is not the image's: {what}"
    return Verdict(base_name, VerdictState.UNMANAGED, ErrorCode.UNPROVEN, reason)
