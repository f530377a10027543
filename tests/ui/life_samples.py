"""Reports of the commands about the life of the cache, for tests of what is shown."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from imgcache.errors import ErrorCode
from imgcache.model import PIN_FOREVER, CacheEntry, Digest, EntryKind, ImageId, Manifest
from imgcache.plan import (
    EntryOutcome,
    EntryReport,
    EntryWord,
    HostFailure,
    HostStatus,
    ListedEntry,
    ListReport,
    MissingImage,
    OutcomeWord,
    StatusReport,
    StatusTotal,
)

MOMENT = datetime(2026, 11, 21, 8, tzinfo=UTC)
RUN = {
    "run_id": "20261121T080000Z-0a1b2c3d",
    "started_at": MOMENT,
    "finished_at": MOMENT,
}


def manifest(pinned_until: datetime | None = None, *, source: str = "service") -> Manifest:
    """Return what is noted about an entry."""
    digest = Digest("sha512", "ab" * 64)
    return Manifest(
        image_id=ImageId("6b8e1c3a-9f0d-4a57-8a86-0d8d4c0e9b11"),
        image_name="debian-12",
        digest=digest,
        stored_digest=digest,
        stored_size_bytes=2_000_000_000,
        stored_format="raw",
        disk_format="qcow2",
        source=source,
        cached_at=MOMENT,
        touched_at=None,
        verified_at=MOMENT,
        pinned_until=pinned_until,
    )


def entry(name: str = "a" * 40, kind: EntryKind = EntryKind.ORIGINAL, **given: Any) -> CacheEntry:
    """Return an entry, unused and managed."""
    values: dict[str, Any] = {
        "size_bytes": 2_000_000_000,
        "allocated_bytes": 1_250_000_000,
        "format": "raw",
        "age_s": 7200.0,
        "inode": 12,
        "mtime_ns": int(MOMENT.timestamp() * 1e9),
        "links": 1,
        "users": 0,
        "used_by": (),
        "live": False,
        "manifest": manifest(),
        "base": name[:40] if kind is EntryKind.RESIZED else None,
        **given,
    }
    return CacheEntry(name=name, kind=kind, **values)


def listed(host: str, name: str | None = "debian-12", **given: Any) -> ListedEntry:
    """Return an entry of an image on a host; ``given`` goes into the entry, save ids and ``gone``."""
    image_id = given.pop("image_id", f"id-of-{name}" if name else None)
    gone = given.pop("gone", False)
    base = given.pop("base", (name or "f").encode().hex().ljust(40, "0")[:40])
    return ListedEntry(
        host=host,
        aggregate="edge-1",
        cell=None,
        entry=entry(given.pop("entry_name", base), **given),
        image_id=image_id,
        image_name=name,
        known_by="manifest" if name else None,
        gone=gone,
    )


def failure(host: str, reason: str = "no route") -> HostFailure:
    """Return why a host was not looked at."""
    return HostFailure(host, "edge-1", None, OutcomeWord.ERROR, ErrorCode.CONNECT, reason)


def list_report(
    *entries: ListedEntry,
    hosts: tuple[str, ...] = (),
    missing: tuple[MissingImage, ...] = (),
    failures: tuple[HostFailure, ...] = (),
) -> ListReport:
    """Return a list of these entries."""
    all_hosts = tuple(dict.fromkeys((*hosts, *(one.host for one in entries))))
    return ListReport(
        command="list",
        hosts=all_hosts,
        entries=entries,
        missing=missing,
        failures=failures,
        **RUN,  # type: ignore[arg-type]
    )


def outcome(host: str, word: EntryWord = EntryWord.REMOVED, **given: Any) -> EntryOutcome:
    """Return an outcome of an original of debian-12."""
    values: dict[str, Any] = {
        "entry": "a" * 40,
        "kind": EntryKind.ORIGINAL,
        "image_id": "6b8e1c3a-9f0d-4a57-8a86-0d8d4c0e9b11",
        "image_name": "debian-12",
        "bytes": 1_250_000_000,
        **given,
    }
    return EntryOutcome(host=host, aggregate="edge-1", cell=None, outcome=word, **values)


def entry_report(
    *outcomes: EntryOutcome, command: str = "prune", dry_run: bool = False
) -> EntryReport:
    """Return a report of these outcomes."""
    return EntryReport(command=command, outcomes=outcomes, dry_run=dry_run, **RUN)  # type: ignore[arg-type]


def status(host: str, **given: Any) -> HostStatus:
    """Return the room of one host's cache."""
    values: dict[str, Any] = {
        "cache_path": "/var/lib/nova/instances/_base",
        "filesystem": "xfs",
        "own_filesystem": False,
        "storage_id": None,
        "entries": 12,
        "cache_bytes": 150_000_000_000,
        "nova_usage_bytes": 150_000_000_000,
        "in_use_bytes": 100_000_000_000,
        "pinned_bytes": 0,
        "reclaimable_bytes": 20_000_000_000,
        "reclaimable_entries": 3,
        "filesystem_size_bytes": 1_000_000_000_000,
        "filesystem_free_bytes": 150_000_000_000,
        "reserved_host_disk_mb": 512,
        "reserves_cache": False,
        "cache_reserve_mb": 143_052,
        "evidence_problems": (),
        **given,
    }
    return HostStatus(host=host, aggregate="edge-1", cell="cell1", **values)


def status_report(*hosts: HostStatus, max_used: float | None = None) -> StatusReport:
    """Return a report of these, with one total."""
    total = StatusTotal(
        "aggregate",
        "edge-1",
        len(hosts),
        sum(one.cache_bytes for one in hosts),
        0,
        10**12,
        10**11,
    )
    return StatusReport(
        command="status",
        hosts=hosts,
        totals=(total,),
        failures=(failure("edge1-99"),),
        max_used=max_used,
        **RUN,  # type: ignore[arg-type]
    )


FOREVER = PIN_FOREVER
