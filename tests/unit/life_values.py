"""Caches as values: an ordinary one, and any that hypothesis can think of."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from imgcache.model import (
    PIN_FOREVER,
    CacheEntry,
    CachePolicy,
    Digest,
    EntryKind,
    HostCache,
    ImageId,
    Manifest,
    base_file_name,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

HOUR, DAY, GIB = 3600.0, 86400.0, 1 << 30
NOW_NS = 1_800_000_000 * 10**9
POLICY = CachePolicy(
    remove_unused=True,
    original_min_age_s=DAY,
    resized_min_age_s=HOUR,
    reserved_host_disk_mb=0,
    reserves_cache=False,
    manager_interval_s=2400,
)


def image_id(number: int) -> ImageId:
    return ImageId(f"00000000-0000-4000-8000-{number:012}")


def base(number: int) -> str:
    return base_file_name(image_id(number))


def manifest(number: int, **more: Any) -> Manifest:
    plain = Manifest(
        image_id=image_id(number),
        image_name=f"image-{number}",
        digest=Digest("sha512", "0" * 128),
        stored_digest=Digest("sha512", "0" * 128),
        stored_size_bytes=GIB,
        stored_format="raw",
        disk_format="raw",
        source="push",
        cached_at=datetime(2026, 1, 1, tzinfo=UTC),
        touched_at=None,
        verified_at=None,
        pinned_until=None,
    )
    return replace(plain, **more)


def entry(number: int, **more: Any) -> CacheEntry:
    """An original that nothing uses, last used two days ago."""
    age_s = more.get("age_s", 2 * DAY)
    plain = CacheEntry(
        name=base(number),
        kind=EntryKind.ORIGINAL,
        size_bytes=GIB,
        allocated_bytes=GIB,
        format="raw",
        age_s=age_s,
        inode=1000 + number,
        mtime_ns=NOW_NS - round(age_s * 1e9),
        links=1,
        users=0,
        used_by=(),
        live=False,
        manifest=None,
    )
    made = replace(plain, **more)
    # As the libvirt driver reports copies.
    copy = made.kind is EntryKind.RESIZED and made.base is None
    return replace(made, base=made.name[:40]) if copy else made


def cache(entries: Sequence[CacheEntry], **more: Any) -> HostCache:
    plain = HostCache(
        cache_path="/var/lib/nova/instances/_base",
        instances_path="/var/lib/nova/instances",
        entries=tuple(entries),
        policy=POLICY,
        filesystem="ext4",
        filesystem_size_bytes=100 * GIB,
        filesystem_free_bytes=50 * GIB,
        own_filesystem=False,
        nova_usage_bytes=0,
        evidence_problems=(),
        storage_id=None,
        shares_with=(),
        nodename="h1",
    )
    return replace(plain, **more)


def _name(kind: EntryKind, number: int) -> str:
    return {
        EntryKind.ORIGINAL: base(number),
        EntryKind.RESIZED: f"{base(number)}_{number + 1}",
        EntryKind.SWAP: f"swap_{number}",
        EntryKind.EPHEMERAL: f"ephemeral_{number}_default",
        EntryKind.STAGING: f"{base(number)}.part",
        EntryKind.QUEUED: image_id(number),
        EntryKind.FOREIGN: f"notes-{number}.txt",
    }[kind]


_AGES = st.sampled_from(
    [
        -1e9,
        -60.0,
        -0.001,
        0.0,
        60.0,
        HOUR - 1,
        HOUR,
        HOUR + 1,
        DAY - 1,
        DAY,
        DAY + 1,
        30 * DAY,
        1e10,
    ]
)


@st.composite
def entries_of(draw: st.DrawFn, number: int) -> CacheEntry:
    kind = draw(st.sampled_from([*EntryKind, EntryKind.ORIGINAL, EntryKind.ORIGINAL]))
    age_s = draw(_AGES)
    now = datetime.fromtimestamp(NOW_NS / 1e9, UTC)
    noted = None
    if kind is EntryKind.ORIGINAL and draw(st.booleans()):
        until = draw(
            st.sampled_from([None, PIN_FOREVER, now.replace(year=2000), now.replace(year=2100)])
        )
        noted = manifest(number, pinned_until=until)
    allocated = draw(st.sampled_from([0, 4096, GIB, 7 * GIB]))
    return entry(
        number,
        name=_name(kind, number),
        kind=kind,
        age_s=age_s,
        allocated_bytes=allocated,
        links=draw(st.sampled_from([1, 1, 1, 2, 0])),
        users=draw(st.sampled_from([0, 0, 0, 1, 40])),
        live=draw(st.sampled_from([False, False, False, True])),
        manifest=noted,
    )


@st.composite
def caches(draw: st.DrawFn) -> HostCache:
    count = draw(st.integers(0, 7))
    policy = replace(
        POLICY,
        remove_unused=draw(st.sampled_from([True, True, False])),
        original_min_age_s=draw(st.sampled_from([0.0, -1.0, DAY, 60.0])),
        resized_min_age_s=draw(st.sampled_from([0.0, HOUR, 2 * HOUR])),
    )
    entries = [draw(entries_of(number)) for number in range(count)]
    problems: tuple[str, ...] = ()
    if draw(st.integers(0, 9)) == 0:
        problems = ("/proc/12/fd: Permission denied",)
    if entries and draw(st.integers(0, 9)) == 0:
        entries[0] = replace(entries[0], users=None)
    return cache(
        entries,
        policy=policy,
        evidence_problems=problems,
        filesystem_free_bytes=draw(st.sampled_from([0, GIB, 99 * GIB])),
        nova_usage_bytes=draw(st.sampled_from([0, 0, 20 * GIB])),
    )
