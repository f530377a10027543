"""A run's report as a listing: the same names in every format, and in ``docs/schemas``."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

from imgcache.plan import OutcomeWord
from imgcache.ui.formats import Columns, Listing
from imgcache.units import duration_text, size_text

if TYPE_CHECKING:
    from datetime import datetime

    from imgcache.distribution import PrecacheReport, SitePlan
    from imgcache.model import Image
    from imgcache.plan import Outcome
    from imgcache.ui.formats import Cell

OUTCOME_COLUMNS = Columns(
    known=(
        "host",
        "aggregate",
        "cell",
        "image_id",
        "image_name",
        "outcome",
        "code",
        "reason",
        "source",
        "bytes_fetched",
        "duration_s",
        "driver",
    ),
    shown=("host", "image_name", "outcome", "code", "reason"),
    detailed=(
        "host",
        "image_name",
        "outcome",
        "code",
        "source",
        "bytes_fetched",
        "duration_s",
        "reason",
    ),
    folded="host",
    units={"bytes_fetched": size_text, "duration_s": duration_text},
)

#: What needs the operator comes last, next to the prompt.
_ORDER = tuple(
    OutcomeWord(word)
    for word in (
        "cached",
        "existing",
        "removed",
        "kept",
        "skipped",
        "unsupported",
        "unknown",
        "error",
    )
)


def report_listing(report: PrecacheReport) -> Listing:
    """Return the report for ``ui.formats.render``."""
    place = {image.id: index for index, image in enumerate(report.images)}
    outcomes = sorted(
        report.outcomes,
        key=lambda one: (_ORDER.index(one.outcome), place.get(one.image_id, len(place))),  # type: ignore[call-overload]
    )
    rows = [_row(outcome, report.drivers.get(outcome.host, "")) for outcome in outcomes]
    document = {
        "run_id": report.run_id,
        "command": report.command,
        "started_at": time_text(report.started_at),
        "finished_at": time_text(report.finished_at),
        "images": [_image(image) for image in report.images],
        "outcomes": rows,
        "totals": report.totals(),
        "coverage": round(report.coverage, 6),
        "plan": None if report.plan is None else [_site_plan(one) for one in report.plan],
    }
    return Listing(document, "outcomes", rows, OUTCOME_COLUMNS)


def _row(outcome: Outcome, driver: str) -> dict[str, Cell]:
    return {
        "host": outcome.host,
        "aggregate": outcome.aggregate,
        "cell": outcome.cell,
        "image_id": outcome.image_id,
        "image_name": outcome.image_name,
        "outcome": outcome.outcome.value,
        "code": outcome.code.value if outcome.code else None,
        "reason": outcome.reason,
        "source": outcome.source.value if outcome.source else None,
        "bytes_fetched": outcome.bytes_fetched,
        "duration_s": round(outcome.duration_s, 3),
        "driver": driver,
    }


def _image(image: Image) -> dict[str, object]:
    return {
        "id": image.id,
        "name": image.name,
        "size_bytes": image.size_bytes,
        "disk_format": image.disk_format,
        "digest": {"algo": image.digest.algo, "value": image.digest.value},
    }


def _site_plan(plan: SitePlan) -> dict[str, object]:
    return {
        "site": plan.site,
        "hosts": plan.hosts,
        "warm": plan.warm,
        "cold": plan.cold,
        "no_room": plan.no_room,
        "not_reached": plan.not_reached,
        "other": plan.other,
        "bytes_outside": plan.bytes_outside,
        "bytes_per_s": plan.bytes_per_s,
        "expected_s": None if plan.expected_s is None else round(plan.expected_s, 3),
        "window": plan.window,
        "opens_at": time_text(plan.opens_at) if plan.opens_at else None,
        "ends_at": time_text(plan.ends_at) if plan.ends_at else None,
        "available_s": None if plan.available_s is None else round(plan.available_s, 3),
        "fits": plan.fits,
    }


def time_text(moment: datetime) -> str:
    """Return a moment as the documents hold it: UTC, milliseconds, with a Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
