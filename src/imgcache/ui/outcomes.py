"""The report of a command that changes cache entries, or judges them, as a listing.

See ``docs/schemas``; all these commands have the same rows.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from imgcache.plan import EntryWord
from imgcache.ui.formats import Columns, Listing
from imgcache.ui.report import time_text
from imgcache.units import size_text

if TYPE_CHECKING:
    from imgcache.plan import EntryOutcome, EntryReport
    from imgcache.ui.formats import Cell, Row


def _size_if_any(size_bytes: float) -> str:
    return size_text(size_bytes) if size_bytes else ""


_UNITS = {"bytes": _size_if_any, "bytes_freed": _size_if_any}
ENTRY_OUTCOME_COLUMNS = Columns(
    known=(
        "host",
        "aggregate",
        "cell",
        "entry",
        "kind",
        "image_id",
        "image_name",
        "outcome",
        "code",
        "reason",
        "bytes",
        "bytes_freed",
        "driver",
    ),
    shown=("host", "image_name", "kind", "bytes", "outcome", "code", "reason"),
    detailed=(
        "host",
        "image_name",
        "entry",
        "kind",
        "bytes",
        "bytes_freed",
        "outcome",
        "code",
        "reason",
    ),
    folded="host",
    units=_UNITS,
    stand_ins={"image_name": ("image_id", "entry")},
)
_SUM_COLUMNS = Columns(
    known=("outcome", "entries", "bytes", "bytes_freed"),
    shown=("outcome", "entries", "bytes", "bytes_freed"),
    detailed=("outcome", "entries", "bytes", "bytes_freed"),
    units=_UNITS,
)

#: What needs the operator comes last, next to the prompt.
_ORDER = tuple(
    EntryWord(word)
    for word in (
        "intact",
        "pinned",
        "unpinned",
        "renewed",
        "adopted",
        "kept",
        "skipped",
        "removed",
        "repaired",
        "absent",
        "unmanaged",
        "unsupported",
        "damaged",
        "unknown",
        "error",
    )
)


def outcome_listing(report: EntryReport) -> Listing:
    """Return the report for ``ui.formats.render``; a table has the sums below."""
    # A stable sort: within a word and an image, hosts stay in the order selected.
    outcomes = sorted(
        report.outcomes,
        key=lambda one: (_ORDER.index(one.outcome), one.image_name or "", one.entry),
    )
    rows = [_row(outcome, report.drivers.get(outcome.host, "")) for outcome in outcomes]
    document = {
        "run_id": report.run_id,
        "command": report.command,
        "started_at": time_text(report.started_at),
        "finished_at": time_text(report.finished_at),
        "dry_run": report.dry_run,
        "outcomes": rows,
        "totals": report.totals(),
        "bytes_freed": report.bytes_freed,
    }
    sums = Listing({}, "totals", _sums(report), _SUM_COLUMNS)
    return Listing(document, "outcomes", rows, ENTRY_OUTCOME_COLUMNS, (sums,))


def _row(outcome: EntryOutcome, driver: str) -> dict[str, Cell]:
    return {
        "host": outcome.host,
        "aggregate": outcome.aggregate,
        "cell": outcome.cell,
        "entry": outcome.entry,
        "kind": outcome.kind.value if outcome.kind else None,
        "image_id": outcome.image_id,
        "image_name": outcome.image_name,
        "outcome": outcome.outcome.value,
        "code": outcome.code.value if outcome.code else None,
        "reason": outcome.reason,
        "bytes": outcome.bytes,
        "bytes_freed": outcome.bytes_freed,
        "driver": driver,
    }


def _sums(report: EntryReport) -> list[Row]:
    entries: Counter[EntryWord] = Counter()
    sizes: Counter[EntryWord] = Counter()
    freed: Counter[EntryWord] = Counter()
    for outcome in report.outcomes:
        entries[outcome.outcome] += 1
        sizes[outcome.outcome] += outcome.bytes
        freed[outcome.outcome] += outcome.bytes_freed
    return [
        {
            "outcome": word.value,
            "entries": entries[word],
            "bytes": sizes[word],
            "bytes_freed": freed[word],
        }
        for word in _ORDER
        if entries[word]
    ]
