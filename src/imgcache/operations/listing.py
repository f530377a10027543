"""List: what is in the caches of hosts, of which image, since when, and used by how many."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from imgcache.errors import ImageServiceError
from imgcache.events import HostFailed, Notice
from imgcache.guards import base_of, size_fault
from imgcache.images.records import is_image_id
from imgcache.model import EntryKind
from imgcache.operations.catalogue import (
    Catalogue,
    Lookup,
    image_of,
    noted_images,
    read_catalogue,
    resolve_images,
)
from imgcache.operations.fleet import FleetRequest, driver_of, open_fleet
from imgcache.operations.selection import select_hosts
from imgcache.plan import ListedEntry, ListReport, MissingImage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from imgcache.drivers.base import Driver
    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import CacheEntry, Host, HostCache, Inventory
    from imgcache.operations.catalogue import KnownImage, KnownImages
    from imgcache.operations.fleet import Fleet
    from imgcache.operations.host_run import HostRun


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRequest(FleetRequest):
    """What the operator asked for. Filters add up: an entry must pass all that are given."""

    names: tuple[str, ...] = ()
    """Ids and names of images; empty: all entries."""
    unused: bool = False
    """Only entries that nothing uses."""
    older_than_s: float | None = None
    """Only entries whose last known use is so long ago."""
    gone: bool = False
    """Only entries whose image is gone from the image service."""
    missing: tuple[str, ...] = ()
    """Ids and names of images: tell the hosts that lack one. Exit code 5 when there are any."""
    dry_run: bool = True
    """Looking writes nothing."""


@dataclass(frozen=True, slots=True)
class ListPlan:
    """What the run works with; made without contacting any host."""

    hosts: tuple[Host, ...]
    wanted: KnownImages
    """Of ``names``."""
    required: KnownImages
    """Of ``missing``."""
    catalogue: Catalogue
    service: ImageService | None
    """None: there is none, or it cannot be used."""
    notices: tuple[str, ...]


def plan_list(request: ListRequest, inventory: Inventory, service: ImageService | None) -> ListPlan:
    """Return what to look for; contacts no host.

    The image service gives entries without a manifest their names. When it cannot be used, they go without,
    unless the request cannot be answered so.

    Raises:
        UsageError: the selection makes no sense.
        ImageServiceError: an image cannot be told, or ``gone`` or a name is asked for and the service
            cannot be used.
    """
    hosts = select_hosts(inventory, request.selection)
    notices: tuple[str, ...] = ()
    try:
        catalogue = read_catalogue(service)
    except ImageServiceError as error:
        # Without it, a name would be taken for one of no image at all.
        if request.gone or not all(is_image_id(name) for name in request.names + request.missing):
            raise
        notices = (f"names of images only as far as hosts noted them: {error.message}",)
        catalogue, service = Catalogue(), None
        wanted = resolve_images(request.names, service)
        required = resolve_images(request.missing, service)
    else:
        wanted = catalogue.resolve(request.names)
        required = catalogue.resolve(request.missing)
    return ListPlan(hosts, wanted, required, catalogue, service, notices)


def run_list(
    request: ListRequest, inventory: Inventory, service: ImageService | None, sink: EventSink
) -> ListReport:
    """Look into the caches; blocks until all hosts have ended or a signal ended the run.

    Raises:
        ImgcacheError: no host was contacted; see ``plan_list``.
    """
    plan = plan_list(request, inventory, service)
    for notice in plan.notices:
        sink.emit(Notice(notice))
    return asyncio.run(_execute(plan, request, service, sink))


async def _execute(
    plan: ListPlan, request: ListRequest, service: ImageService | None, sink: EventSink
) -> ListReport:
    lookup = Lookup(plan.service, plan.catalogue) if plan.service else None

    async def look(context: HostRun, driver: Driver) -> _HostList:
        cache = await driver.inspect(context, formats=True, use=True)
        labels = await _labels(driver, cache, plan.catalogue, lookup)
        return _list_host(context.host, cache, labels, plan, request)

    async with open_fleet("list", request, plan.hosts, sink, service=service) as fleet:
        found = await fleet.each(plan.hosts, look)
        return _report(fleet, found, plan)


@dataclass(frozen=True, slots=True)
class _HostList:
    entries: tuple[ListedEntry, ...]
    missing: tuple[MissingImage, ...]


_Labels = dict[str, tuple["KnownImage", bool | None]]


async def _labels(
    driver: Driver, cache: HostCache, catalogue: Catalogue, lookup: Lookup | None
) -> _Labels:
    """Return name of the image's entry -> image, and whether it is gone from the image service."""
    noted = noted_images(driver, cache.entries)
    labels: _Labels = {}
    for entry in cache.entries:
        base = base_of(entry)
        image = image_of(driver, entry, noted, catalogue)
        if base is not None and image is not None and base not in labels:
            labels[base] = image, await lookup.is_gone(image.id) if lookup else None
    return labels


def _list_host(
    host: Host, cache: HostCache, labels: _Labels, plan: ListPlan, request: ListRequest
) -> _HostList:
    rows = []
    driver = driver_of(host)
    filters = _filters(plan.wanted.by_entry(driver), request)
    for entry in cache.entries:
        image, gone = labels.get(base_of(entry) or "", (None, None))
        row = ListedEntry(
            host=host.name,
            aggregate=host.aggregate,
            cell=host.cell,
            entry=entry,
            image_id=image.id if image else None,
            image_name=image.name if image else None,
            known_by=image.known_by if image else None,
            gone=gone,
        )
        if all(passes(row) for passes in filters):
            rows.append(row)
    return _HostList(tuple(rows), _missing(host, cache.entries, plan.required.by_entry(driver)))


def _filters(
    wanted: Mapping[str, KnownImage], request: ListRequest
) -> list[Callable[[ListedEntry], bool]]:
    filters: list[Callable[[ListedEntry], bool]] = []
    if request.names:
        filters.append(lambda row: base_of(row.entry) in wanted)
    if request.unused:
        filters.append(lambda row: row.entry.users == 0 and not row.entry.live)
    if (oldest := request.older_than_s) is not None:
        filters.append(lambda row: row.entry.age_s > oldest)
    if request.gone:
        filters.append(lambda row: row.gone is True)
    return filters


def _missing(
    host: Host, entries: Iterable[CacheEntry], required: Mapping[str, KnownImage]
) -> tuple[MissingImage, ...]:
    """Return the images of which the host has no whole original.

    An id given in capitals stands for two entries, of which one is enough.
    """
    there = {
        base_of(entry) for entry in entries if entry.kind is EntryKind.ORIGINAL and _is_whole(entry)
    }
    found = {image.id.lower() for base, image in required.items() if base in there}
    lacking = {
        image.id.lower(): image for image in required.values() if image.id.lower() not in found
    }
    return tuple(
        MissingImage(host.name, host.aggregate, host.cell, image.id, image.name)
        for image in lacking.values()
    )


def _is_whole(entry: CacheEntry) -> bool:
    return size_fault(entry) is None and not entry.partial


def _report(fleet: Fleet, found: Mapping[str, _HostList], plan: ListPlan) -> ListReport:
    for failure in fleet.failures.values():
        fleet.sink.emit(HostFailed(failure))
    return ListReport(
        run_id=fleet.run_id,
        command=fleet.command,
        started_at=fleet.started_at,
        finished_at=datetime.now(UTC),
        hosts=tuple(host.name for host in fleet.hosts if host.name in found),
        entries=tuple(row for one in found.values() for row in one.entries),
        missing=tuple(row for one in found.values() for row in one.missing),
        failures=tuple(fleet.failures.values()),
        notices=plan.notices,
        interrupted=fleet.interrupted,
        drivers=fleet.drivers,
    )
