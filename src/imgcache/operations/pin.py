"""Pin, unpin, refresh: entries that stay, and whose age begins anew before Nova's manager counts them old."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcache.drivers.base import NoteRow, NoteState
from imgcache.errors import ErrorCode, UsageError
from imgcache.guards import base_of, is_pinned
from imgcache.model import EntryKind
from imgcache.operations.catalogue import KnownImage, noted_images, resolve_images
from imgcache.operations.fleet import FleetRequest, open_fleet
from imgcache.operations.removal import report_of
from imgcache.operations.selection import select_hosts
from imgcache.plan import EntryOutcome, EntryWord

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from imgcache.drivers.base import Driver
    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import CacheEntry, Host, HostCache, Inventory
    from imgcache.operations.catalogue import KnownImages
    from imgcache.operations.host_run import HostRun
    from imgcache.plan import EntryReport


@dataclass(frozen=True, slots=True, kw_only=True)
class PinRequest(FleetRequest):
    """What the operator asked for, also with ``unpin``."""

    names: tuple[str, ...]
    """Image ids and names."""
    until: datetime | None
    """Until when, with a time zone; ``PIN_FOREVER``: for ever; None: unpin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshRequest(FleetRequest):
    """What the operator asked for: all pinned entries of the selected hosts."""


@dataclass(frozen=True, slots=True)
class PinPlan:
    """What the run works with; made without contacting any host."""

    hosts: tuple[Host, ...]
    images: KnownImages


def plan_pin(request: PinRequest, inventory: Inventory, service: ImageService | None) -> PinPlan:
    """Return which images are pinned or unpinned on which hosts; contacts no host.

    Raises:
        UsageError: the selection makes no sense, or no image is named.
        ImageProblemsError: an image cannot be told.
        ImageServiceError: the service cannot be used.
    """
    hosts = select_hosts(inventory, request.selection)
    if not request.names:
        message = "no image named"
        raise UsageError(message, hint="name the images to pin")
    return PinPlan(hosts, resolve_images(request.names, service))


def run_pin(
    request: PinRequest, inventory: Inventory, service: ImageService | None, sink: EventSink
) -> EntryReport:
    """Pin or unpin; blocks until all hosts have ended or a signal ended the run.

    Raises:
        ImgcacheError: nothing was done; see ``plan_pin``.
    """
    plan = plan_pin(request, inventory, service)
    return asyncio.run(_pin(plan, request, service, sink))


async def _pin(
    plan: PinPlan, request: PinRequest, service: ImageService | None, sink: EventSink
) -> EntryReport:
    command = "unpin" if request.until is None else "pin"

    async def note(context: HostRun, driver: Driver) -> list[EntryOutcome]:
        images = plan.images.by_entry(driver)
        if context.dry_run:
            cache = await driver.inspect(context, formats=False, use=False)
            rows = _would_note(cache, images)
        else:
            async with aclosing(driver.pin(context, list(images), request.until)) as noted:
                rows = [row async for row in noted]
        return _one_row_per_image(context.host, rows, images, pinning=request.until is not None)

    async with open_fleet(command, request, plan.hosts, sink, service=service) as fleet:
        return report_of(fleet, await fleet.each(plan.hosts, note))


def _would_note(cache: HostCache, images: Mapping[str, KnownImage]) -> list[NoteRow]:
    """Return what pinning would find."""
    managed = {
        base_of(entry): entry.manifest is not None
        for entry in cache.entries
        if entry.kind is EntryKind.ORIGINAL
    }
    return [
        NoteRow(base, NoteState.FAILED, ErrorCode.DRY_RUN, "dry run")
        if managed.get(base)
        else NoteRow(base, NoteState.UNMANAGED if base in managed else NoteState.ABSENT)
        for base in images
    ]


def _one_row_per_image(
    host: Host, rows: list[NoteRow], images: Mapping[str, KnownImage], *, pinning: bool
) -> list[EntryOutcome]:
    """Return one outcome per image; an id in capitals stands for two entries, the one found counts."""
    best: dict[str, NoteRow] = {}
    for row in rows:
        key = images[row.base_name].id.lower()
        if key not in best or best[key].state is NoteState.ABSENT:
            best[key] = row
    return [_noted(host, row, images[row.base_name], pinning=pinning) for row in best.values()]


def _noted(host: Host, row: NoteRow, image: KnownImage, *, pinning: bool) -> EntryOutcome:
    word = EntryWord.ERROR
    code, reason = row.code, row.reason
    match row.state:
        case NoteState.PINNED | NoteState.UNPINNED | NoteState.RENEWED:
            word = EntryWord(row.state.value)
        case NoteState.UNMANAGED:
            word = EntryWord.ERROR if pinning else EntryWord.UNMANAGED
            code = ErrorCode.UNMANAGED
            reason = "imgcache neither fetched nor adopted it, so there is nowhere to note a pin"
        case NoteState.ABSENT:
            word = EntryWord.ERROR if pinning else EntryWord.ABSENT
            code, reason = ErrorCode.ABSENT, "not in this host's cache"
        case NoteState.FAILED if row.code is ErrorCode.DRY_RUN:
            word = EntryWord.SKIPPED
        case NoteState.FAILED:
            pass
    return EntryOutcome(
        host=host.name,
        aggregate=host.aggregate,
        cell=host.cell,
        entry=row.base_name,
        kind=EntryKind.ORIGINAL,
        image_id=image.id,
        image_name=image.name,
        outcome=word,
        code=code,
        reason=reason,
    )


# ----------------------------------------------------------------------------------------------- refresh


def run_refresh(
    request: RefreshRequest, inventory: Inventory, service: ImageService | None, sink: EventSink
) -> EntryReport:
    """Set the times of all pinned entries to now; blocks until all hosts have ended.

    Pins that have run out stay as they are: they keep nothing, and are renewed no more.

    Raises:
        UsageError: the selection makes no sense.
    """
    hosts = select_hosts(inventory, request.selection)
    return asyncio.run(_refresh(hosts, request, service, sink))


async def _refresh(
    hosts: tuple[Host, ...],
    request: RefreshRequest,
    service: ImageService | None,
    sink: EventSink,
) -> EntryReport:
    async def renew(context: HostRun, driver: Driver) -> list[EntryOutcome]:
        cache = await driver.inspect(context, formats=False, use=False)
        pinned = {entry.name: entry for entry in cache.entries if is_pinned(entry)}
        rows: list[NoteRow] = []
        if pinned:
            sizes = [(name, _stored_size(entry)) for name, entry in pinned.items()]
            async with aclosing(driver.renew(context, sizes)) as renewed:
                rows = [row async for row in renewed]
        noted = noted_images(driver, cache.entries)

        def image_of_row(row: NoteRow) -> KnownImage | None:
            return noted.get(base_of(pinned[row.base_name]) or "")

        return [_renewed(context.host, row, image_of_row(row), dry=context.dry_run) for row in rows]

    async with open_fleet("refresh", request, hosts, sink, service=service) as fleet:
        return report_of(fleet, await fleet.each(hosts, renew))


def _stored_size(entry: CacheEntry) -> int:
    return entry.manifest.stored_size_bytes if entry.manifest else entry.size_bytes


def _renewed(host: Host, row: NoteRow, image: KnownImage | None, *, dry: bool) -> EntryOutcome:
    """Return the outcome of one renewal; a pinned entry that vanished meanwhile is no failure of ours."""
    word = {
        NoteState.RENEWED: EntryWord.SKIPPED if dry else EntryWord.RENEWED,
        NoteState.ABSENT: EntryWord.ABSENT,
    }.get(row.state, EntryWord.ERROR)
    code = ErrorCode.DRY_RUN if word is EntryWord.SKIPPED else row.code
    return EntryOutcome(
        host=host.name,
        aggregate=host.aggregate,
        cell=host.cell,
        entry=row.base_name,
        kind=EntryKind.ORIGINAL,
        image_id=image.id if image else None,
        image_name=image.name if image else None,
        outcome=word,
        code=ErrorCode.ABSENT if word is EntryWord.ABSENT else code,
        reason=row.reason,
    )
