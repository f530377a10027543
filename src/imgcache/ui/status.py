"""The report of ``imgcache status`` as a listing; see ``docs/schemas/status.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgcache.ui.entries import failure_listing
from imgcache.ui.formats import Columns, Listing
from imgcache.ui.report import time_text
from imgcache.units import share_text, size_text

if TYPE_CHECKING:
    from imgcache.plan import HostStatus, StatusReport, StatusTotal
    from imgcache.ui.formats import Cell

_SIZES = dict.fromkeys(
    (
        "cache_bytes",
        "nova_usage_bytes",
        "in_use_bytes",
        "pinned_bytes",
        "reclaimable_bytes",
        "filesystem_size_bytes",
        "filesystem_free_bytes",
    ),
    size_text,
)
_TITLES = {
    "own_filesystem": "OWN FS",
    "filesystem_size_bytes": "FS SIZE",
    "filesystem_free_bytes": "FREE",
    "cache_share": "OF FS",
    "used_share": "FS USED",
    "reserved_host_disk_mb": "RESERVED MB",
    "cache_reserve_mb": "CACHE NEEDS MB",
    "evidence_problems": "PROBLEMS",
}
STATUS_COLUMNS = Columns(
    known=(
        "host",
        "aggregate",
        "cell",
        "cache_path",
        "filesystem",
        "own_filesystem",
        "storage_id",
        "entries",
        "cache_bytes",
        "cache_share",
        "nova_usage_bytes",
        "in_use_bytes",
        "pinned_bytes",
        "reclaimable_bytes",
        "reclaimable_entries",
        "filesystem_size_bytes",
        "filesystem_free_bytes",
        "used_share",
        "over_threshold",
        "reserved_host_disk_mb",
        "reserves_cache",
        "cache_reserve_mb",
        "evidence_problems",
        "driver",
    ),
    shown=(
        "host",
        "entries",
        "cache_bytes",
        "cache_share",
        "reclaimable_bytes",
        "filesystem_free_bytes",
        "used_share",
        "own_filesystem",
        "reserved_host_disk_mb",
        "cache_reserve_mb",
        "evidence_problems",
    ),
    detailed=(
        "host",
        "cache_path",
        "filesystem",
        "own_filesystem",
        "entries",
        "cache_bytes",
        "cache_share",
        "in_use_bytes",
        "pinned_bytes",
        "reclaimable_bytes",
        "reclaimable_entries",
        "filesystem_size_bytes",
        "filesystem_free_bytes",
        "used_share",
        "reserved_host_disk_mb",
        "reserves_cache",
        "cache_reserve_mb",
        "evidence_problems",
    ),
    folded="host",
    titles=_TITLES,
    units={**_SIZES, "cache_share": share_text, "used_share": share_text},
)
TOTAL_COLUMNS = Columns(
    known=(
        "group",
        "name",
        "hosts",
        "cache_bytes",
        "reclaimable_bytes",
        "filesystem_size_bytes",
        "filesystem_free_bytes",
    ),
    shown=("group", "name", "hosts", "cache_bytes", "reclaimable_bytes", "filesystem_free_bytes"),
    detailed=(
        "group",
        "name",
        "hosts",
        "cache_bytes",
        "reclaimable_bytes",
        "filesystem_size_bytes",
        "filesystem_free_bytes",
    ),
    titles=_TITLES,
    units=_SIZES,
)


def status_listing(report: StatusReport) -> Listing:
    """Return the report for ``ui.formats.render``; a table has the totals and failures below."""
    over = {status.host for status in report.over_threshold()}
    rows = [
        _status_row(
            status,
            None if report.max_used is None else status.host in over,
            report.drivers.get(status.host, ""),
        )
        for status in report.hosts
    ]
    totals = [_total_row(total) for total in report.totals]
    failures = failure_listing(report.failures, report.drivers)
    document = {
        "run_id": report.run_id,
        "command": report.command,
        "started_at": time_text(report.started_at),
        "finished_at": time_text(report.finished_at),
        "max_used": report.max_used,
        "hosts": rows,
        "totals": totals,
        "failures": failures.rows,
    }
    below = (Listing({}, "totals", totals, TOTAL_COLUMNS), failures)
    return Listing(document, "hosts", rows, STATUS_COLUMNS, below)


def _status_row(status: HostStatus, over: bool | None, driver: str) -> dict[str, Cell]:
    return {
        "host": status.host,
        "aggregate": status.aggregate,
        "cell": status.cell,
        "cache_path": status.cache_path,
        "filesystem": status.filesystem,
        "own_filesystem": status.own_filesystem,
        "storage_id": status.storage_id,
        "entries": status.entries,
        "cache_bytes": status.cache_bytes,
        "cache_share": round(status.cache_share, 6),
        "nova_usage_bytes": status.nova_usage_bytes,
        "in_use_bytes": status.in_use_bytes,
        "pinned_bytes": status.pinned_bytes,
        "reclaimable_bytes": status.reclaimable_bytes,
        "reclaimable_entries": status.reclaimable_entries,
        "filesystem_size_bytes": status.filesystem_size_bytes,
        "filesystem_free_bytes": status.filesystem_free_bytes,
        "used_share": round(status.used_share, 6),
        "over_threshold": over,
        "reserved_host_disk_mb": status.reserved_host_disk_mb,
        "reserves_cache": status.reserves_cache,
        "cache_reserve_mb": status.cache_reserve_mb,
        "evidence_problems": "; ".join(status.evidence_problems) or None,
        "driver": driver,
    }


def _total_row(total: StatusTotal) -> dict[str, Cell]:
    return {
        "group": total.group,
        "name": total.name,
        "hosts": total.hosts,
        "cache_bytes": total.cache_bytes,
        "reclaimable_bytes": total.reclaimable_bytes,
        "filesystem_size_bytes": total.filesystem_size_bytes,
        "filesystem_free_bytes": total.filesystem_free_bytes,
    }
