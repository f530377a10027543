"""The report of ``imgcache list`` as a listing; see ``docs/schemas/list.json``."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from imgcache.guards import is_pinned
from imgcache.model import PIN_FOREVER
from imgcache.ui.formats import Columns, Listing
from imgcache.ui.report import time_text
from imgcache.units import age_text, size_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from imgcache.model import CacheEntry
    from imgcache.plan import HostFailure, ListedEntry, ListReport, MissingImage
    from imgcache.ui.formats import Cell, Row

ENTRY_COLUMNS = Columns(
    known=(
        "host",
        "aggregate",
        "cell",
        "entry",
        "kind",
        "image_id",
        "image_name",
        "known_by",
        "gone",
        "managed",
        "format",
        "size_bytes",
        "allocated_bytes",
        "age_s",
        "users",
        "used_by",
        "live",
        "hits",
        "pinned_until",
        "cached_at",
        "verified_at",
        "source",
        "driver",
    ),
    shown=(
        "host",
        "image_name",
        "kind",
        "format",
        "allocated_bytes",
        "age_s",
        "users",
        "pinned_until",
        "managed",
        "gone",
    ),
    detailed=(
        "host",
        "image_name",
        "entry",
        "kind",
        "format",
        "size_bytes",
        "allocated_bytes",
        "age_s",
        "users",
        "used_by",
        "hits",
        "pinned_until",
        "verified_at",
        "managed",
        "gone",
    ),
    folded="host",
    units={"size_bytes": size_text, "allocated_bytes": size_text, "age_s": age_text},
    stand_ins={"image_name": ("image_id", "entry")},
)
MISSING_COLUMNS = Columns(
    known=("host", "aggregate", "cell", "image_id", "image_name", "driver"),
    shown=("host", "image_id", "image_name"),
    detailed=("host", "aggregate", "cell", "image_id", "image_name"),
    folded="host",
)
FAILURE_COLUMNS = Columns(
    known=("host", "aggregate", "cell", "outcome", "code", "reason", "driver"),
    shown=("host", "outcome", "code", "reason"),
    detailed=("host", "outcome", "code", "reason"),
    folded="host",
)


def entry_listing(report: ListReport, *, missing_only: bool = False) -> Listing:
    """Return the report for ``ui.formats.render``; with ``missing_only`` its rows are what hosts lack."""
    # A stable sort: within an image, hosts stay in the order selected.
    drivers = report.drivers
    entries = [
        _entry_row(listed, drivers.get(listed.host, ""))
        for listed in sorted(report.entries, key=_place)
    ]
    missing = [_missing_row(one, drivers.get(one.host, "")) for one in report.missing]
    failures = failure_listing(report.failures, drivers)
    document = {
        "run_id": report.run_id,
        "command": report.command,
        "started_at": time_text(report.started_at),
        "finished_at": time_text(report.finished_at),
        "hosts": list(report.hosts),
        "entries": entries,
        "missing": missing,
        "failures": failures.rows,
        "notices": list(report.notices),
    }
    if missing_only:
        return Listing(document, "missing", missing, MISSING_COLUMNS, (failures,))
    return Listing(document, "entries", entries, ENTRY_COLUMNS, (failures,))


def failure_listing(failures: Iterable[HostFailure], drivers: Mapping[str, str]) -> Listing:
    """Return the hosts that there is nothing to say about, to be shown below a table."""
    rows: list[Row] = [
        {
            "host": failure.host,
            "aggregate": failure.aggregate,
            "cell": failure.cell,
            "outcome": failure.outcome.value,
            "code": failure.code.value,
            "reason": failure.reason,
            "driver": drivers.get(failure.host, ""),
        }
        for failure in failures
    ]
    return Listing({}, "failures", rows, FAILURE_COLUMNS)


def _place(listed: ListedEntry) -> tuple[bool, str, str, str]:
    """Return where an entry belongs: images by name, then what has none; copies behind their image."""
    name, entry = listed.image_name, listed.entry
    return name is None, name or "", entry.kind.value, entry.name


def _entry_row(listed: ListedEntry, driver: str) -> dict[str, Cell]:
    entry, manifest = listed.entry, listed.entry.manifest
    return {
        "host": listed.host,
        "aggregate": listed.aggregate,
        "cell": listed.cell,
        "entry": entry.name,
        "kind": entry.kind.value,
        "image_id": listed.image_id,
        "image_name": listed.image_name,
        "known_by": listed.known_by,
        "gone": listed.gone,
        "managed": manifest is not None,
        "format": entry.format,
        "size_bytes": entry.size_bytes,
        "allocated_bytes": entry.allocated_bytes,
        "age_s": round(entry.age_s, 3),
        "users": entry.users,
        "used_by": ", ".join(entry.used_by) or None,
        "live": entry.live,
        "hits": entry.hits,
        "pinned_until": _pin_text(entry),
        "cached_at": _moment_text(manifest.cached_at) if manifest else None,
        "verified_at": _moment_text(manifest.verified_at) if manifest else None,
        "source": manifest.source if manifest else None,
        "driver": driver,
    }


def _missing_row(one: MissingImage, driver: str) -> dict[str, Cell]:
    return {
        "host": one.host,
        "aggregate": one.aggregate,
        "cell": one.cell,
        "image_id": one.image_id,
        "image_name": one.image_name,
        "driver": driver,
    }


def _pin_text(entry: CacheEntry) -> str | None:
    """Return until when an entry is pinned; None: it is not, or not any more."""
    until = entry.manifest.pinned_until if entry.manifest and is_pinned(entry) else None
    if until is None:
        return None
    if until == PIN_FOREVER:
        return "forever"
    # The end was told by the host's clock, which is known to within milliseconds.
    return _moment_text(until + timedelta(seconds=0.5))


def _moment_text(moment: datetime | None) -> str | None:
    """Return a moment of a host's clock, which has seconds only."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None
