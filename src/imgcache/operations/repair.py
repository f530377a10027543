"""Repair: damaged entries that nothing uses are removed, under all guards, and fetched again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from imgcache.errors import ErrorCode, ImageProblemsError, ImageServiceError
from imgcache.model import ImageId
from imgcache.operations.catalogue import Catalogue, Lookup
from imgcache.operations.fleet import driver_of
from imgcache.operations.invalid import plan_faults
from imgcache.operations.removal import carry_out
from imgcache.operations.sites import Sites
from imgcache.operations.sources import RunSources, source_kinds
from imgcache.plan import EntryWord, OutcomeWord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imgcache.images.base import ImageService
    from imgcache.model import Host, Image, Site
    from imgcache.operations.fleet import Fleet
    from imgcache.operations.host_run import HostRun
    from imgcache.operations.invalid import Faults
    from imgcache.operations.sources import SourcePolicy
    from imgcache.plan import EntryOutcome, Outcome

#: Access for hosts never outlives a day.
_MAX_ACCESS_LIFETIME_S = 86400.0


async def repair(
    fleet: Fleet,
    faults: Faults,
    found: Mapping[str, list[EntryOutcome]],
    service: ImageService,
    source: SourcePolicy,
    *,
    sites: Mapping[str, Site],
) -> None:
    """Remove and fetch again what ``faults`` names; changes the outcomes in ``found`` in place.

    An image is asked for before its entry is removed: what cannot be had again stays, damaged as it is.
    """
    images = await _images_of(found, service)
    for host, rows in found.items():
        for index, row in enumerate(rows):
            if row.outcome is EntryWord.DAMAGED and isinstance(images.get(row.entry), str):
                reason = f"{row.reason}; cannot be fetched again: {images[row.entry]}"
                rows[index] = replace(row, reason=reason)
                faults.by_host.get(host, {}).pop(row.entry, None)
    planned = await plan_faults(fleet, fleet.hosts, faults)
    removed = await carry_out(fleet, planned, ours_ok=True)
    hosts = {host.name: host for host in fleet.hosts}
    for base, image in images.items():
        targets = [
            hosts[name]
            for name, rows in removed.items()
            if any(row.entry == base and _is_gone(row) for row in rows)
        ]
        if targets and not isinstance(image, str):
            outcomes = await _fetch(fleet, targets, image, service, source, sites=sites)
            for outcome in outcomes:
                _note_fetched(found[outcome.host], base, outcome)
    for name, rows in removed.items():
        for row in rows:
            if not _is_gone(row):
                _note_kept(found[name], row)


def _is_gone(row: EntryOutcome) -> bool:
    return row.outcome in {EntryWord.REMOVED, EntryWord.ABSENT}


async def _images_of(
    found: Mapping[str, list[EntryOutcome]], service: ImageService
) -> dict[str, Image | str]:
    """Return name of the entry -> the image to fetch, or why it cannot be had, for all damaged entries."""
    lookup = Lookup(service, Catalogue())
    images: dict[str, Image | str] = {}
    for row in (row for rows in found.values() for row in rows):
        if row.outcome is not EntryWord.DAMAGED or row.entry in images:
            continue
        if row.image_id is None:
            images[row.entry] = "its image is not known"
            continue
        try:
            images[row.entry] = await lookup.image(ImageId(row.image_id))
        except ImageProblemsError as error:
            images[row.entry] = "; ".join(problem.what for problem in error.problems)
        except ImageServiceError as error:
            images[row.entry] = error.message
    return images


async def _fetch(
    fleet: Fleet,
    hosts: Sequence[Host],
    image: Image,
    service: ImageService,
    source: SourcePolicy,
    *,
    sites: Mapping[str, Site],
) -> list[Outcome]:
    async def precache(context: HostRun, images: Sequence[Image]) -> None:
        await driver_of(context.host).precache(context, images)

    rounds = -(-len(hosts) // fleet.limits.concurrency)
    sources = RunSources(
        service,
        (image,),
        kinds=source_kinds(source, service),
        run_id=fleet.run_id,
        lifetime_s=min(rounds * fleet.limits.timeout_s, _MAX_ACCESS_LIFETIME_S),
        sink=fleet.sink,
        sites=Sites(hosts=hosts, sites=sites),
    )
    async with sources:
        return await fleet.run(hosts, (image,), precache, sources)


def _note_fetched(rows: list[EntryOutcome], base: str, outcome: Outcome) -> None:
    for index, row in enumerate(rows):
        if row.entry != base or row.outcome is not EntryWord.DAMAGED:
            continue
        if outcome.outcome in {OutcomeWord.CACHED, OutcomeWord.EXISTING}:
            reason = f"{row.reason}; fetched again"
            told = outcome.code if outcome.code is ErrorCode.UNCONFIRMED else None
            rows[index] = replace(row, outcome=EntryWord.REPAIRED, code=told, reason=reason)
        else:
            reason = f"{row.reason}; removed, and not fetched again: {outcome.reason}"
            code = outcome.code or ErrorCode.DAMAGED
            rows[index] = replace(row, outcome=EntryWord.ERROR, code=code, reason=reason)


def _note_kept(rows: list[EntryOutcome], kept: EntryOutcome) -> None:
    """Say why a damaged entry stays; the host's own rows (shared storage, evidence) are added."""
    for index, row in enumerate(rows):
        if row.entry == kept.entry and row.outcome is EntryWord.DAMAGED:
            # The plan's reason is that of the damage and, behind "but", what stands against its removal.
            why = (kept.reason or "").removeprefix(f"{row.reason}, but ")
            reason = f"{row.reason}; not repaired: {why}"
            word = EntryWord.ERROR if kept.outcome is EntryWord.ERROR else row.outcome
            rows[index] = replace(row, outcome=word, code=kept.code, reason=reason)
            return
    if not kept.entry and kept.outcome is EntryWord.ERROR:
        rows.append(kept)
