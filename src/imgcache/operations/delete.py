"""Delete: removes images that are named, now, as far as nothing uses them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgcache.errors import ErrorCode, UsageError
from imgcache.operations.catalogue import resolve_bases
from imgcache.operations.fleet import FleetRequest, open_fleet
from imgcache.operations.removal import carry_out, plan_hosts, report_of
from imgcache.operations.selection import select_hosts
from imgcache.plan import EntryOutcome, EntryWord
from imgcache.policy import HostPlan, plan_delete

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import Host, HostCache, Inventory
    from imgcache.operations.catalogue import KnownImage
    from imgcache.plan import EntryReport


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRequest(FleetRequest):
    """What the operator asked for."""

    names: tuple[str, ...] = field(default=())
    """Image ids and names; an image that is gone from the image service only by its id."""


@dataclass(frozen=True, slots=True)
class DeletePlan:
    """What the run works with; made without contacting any host."""

    hosts: tuple[Host, ...]
    images: Mapping[str, KnownImage]
    """Base file name -> image."""


def plan_delete_run(
    request: DeleteRequest, inventory: Inventory, service: ImageService | None
) -> DeletePlan:
    """Return which images go from which hosts; contacts no host.

    Raises:
        UsageError: the selection makes no sense, or no image is named.
        ImageProblemsError: an image cannot be told.
        ImageServiceError: the service cannot be used.
    """
    hosts = select_hosts(inventory, request.selection)
    if not request.names:
        message = "no image named"
        raise UsageError(message, hint="name the images to delete")
    return DeletePlan(hosts, resolve_bases(request.names, service))


def run_delete(
    request: DeleteRequest, inventory: Inventory, service: ImageService | None, sink: EventSink
) -> EntryReport:
    """Plan and carry out; blocks until all hosts have ended or a signal ended the run.

    Raises:
        ImgcacheError: nothing was done; see ``plan_delete_run``.
    """
    return asyncio.run(_execute(plan_delete_run(request, inventory, service), request, sink))


async def _execute(plan: DeletePlan, request: DeleteRequest, sink: EventSink) -> EntryReport:
    async def decide(cache: HostCache, hosts: Collection[str]) -> HostPlan:
        del hosts
        return plan_delete(cache, plan.images.keys())

    async with open_fleet("delete", request, plan.hosts, sink) as fleet:
        planned = await plan_hosts(fleet, plan.hosts, decide)
        found = await carry_out(fleet, planned, ours_ok=True)
        for one in planned:
            rows = found[one.host.name]
            rows += absent_rows(one.host, plan.images, {row.entry[:40] for row in rows})
        return report_of(fleet, found)


def absent_rows(
    host: Host, images: Mapping[str, KnownImage], present: Iterable[str]
) -> list[EntryOutcome]:
    """Return a row for each image of which the host has nothing.

    An id given in capitals stands for two base files; one row is enough.
    """
    there = {images[base].id.lower() for base in present if base in images}
    missing = {image.id.lower(): base for base, image in images.items()}
    return [
        EntryOutcome(
            host=host.name,
            aggregate=host.aggregate,
            cell=host.cell,
            entry=base,
            kind=None,
            image_id=images[base].id,
            image_name=images[base].name,
            outcome=EntryWord.ABSENT,
            code=ErrorCode.ABSENT,
            reason="not in this host's cache",
        )
        for image_id, base in missing.items()
        if image_id not in there
    ]
