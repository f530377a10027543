"""The report of ``imgcache check`` as a listing; see ``docs/schemas/check.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgcache.plan import CheckState
from imgcache.ui.formats import Columns, Listing
from imgcache.ui.report import time_text

if TYPE_CHECKING:
    from imgcache.plan import CheckReport

CHECK_COLUMNS = Columns(
    known=("host", "aggregate", "cell", "check", "state", "detail", "driver"),
    shown=("host", "check", "state", "detail"),
    detailed=("host", "check", "state", "detail"),
    folded="host",
)


def check_listing(report: CheckReport) -> Listing:
    """Return the report for ``ui.formats.render``; rows in the order of the checks, host by host.

    In a table what warns and what fails comes last, where it is seen.
    """
    rows = [
        {
            "host": check.host,
            "aggregate": check.aggregate,
            "cell": check.cell,
            "check": check.check,
            "state": check.state.value,
            "detail": check.detail,
            "driver": report.drivers.get(check.host, ""),
        }
        for check in report.checks
    ]
    document = {
        "run_id": report.run_id,
        "command": report.command,
        "started_at": time_text(report.started_at),
        "finished_at": time_text(report.finished_at),
        "checks": rows,
        "totals": report.totals(),
    }
    states = [state.value for state in CheckState]
    shown = sorted(rows, key=lambda row: states.index(str(row["state"])))
    return Listing(document, "checks", shown, CHECK_COLUMNS)
