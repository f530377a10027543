"""Delete: removes images that are named, now, as far as nothing uses them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgcache.errors import ErrorCode, UsageError
from imgcache.guards import base_of
from imgcache.operations.catalogue import resolve_images
from imgcache.operations.fleet import FleetRequest, driver_of, open_fleet
from imgcache.operations.removal import carry_out, plan_hosts, report_of
from imgcache.operations.selection import select_hosts
from imgcache.plan import EntryOutcome, EntryWord
from imgcache.policy import HostPlan, plan_delete

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from imgcache.drivers.base import Driver
    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import Host, HostCache, Inventory
    from imgcache.operations.catalogue import KnownImage, KnownImages
    from imgcache.plan import EntryReport


NOT_CACHED = "not in this host's cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRequest(FleetRequest):
    """What the operator asked for."""

    names: tuple[str, ...] = field(default=())
    """Image ids and names; an image that is gone from the image service only by its id."""
    queued_only: bool = False
    """Take back what waits to be fetched; what is cached stays."""


@dataclass(frozen=True, slots=True)
class DeletePlan:
    """What the run works with; made without contacting any host."""

    hosts: tuple[Host, ...]
    images: KnownImages


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
    return DeletePlan(hosts, resolve_images(request.names, service))


def run_delete(
    request: DeleteRequest, inventory: Inventory, service: ImageService | None, sink: EventSink
) -> EntryReport:
    """Plan and carry out; blocks until all hosts have ended or a signal ended the run.

    Raises:
        ImgcacheError: nothing was done; see ``plan_delete_run``.
    """
    plan = plan_delete_run(request, inventory, service)
    return asyncio.run(_execute(plan, request, service, sink))


async def _execute(
    plan: DeletePlan, request: DeleteRequest, service: ImageService | None, sink: EventSink
) -> EntryReport:
    async def decide(driver: Driver, cache: HostCache, hosts: Collection[str]) -> HostPlan:
        del hosts
        images = plan.images.by_entry(driver)
        return plan_delete(cache, images.keys(), queued_only=request.queued_only)

    async with open_fleet("delete", request, plan.hosts, sink, service=service) as fleet:
        planned = await plan_hosts(fleet, plan.hosts, decide)
        found = await carry_out(fleet, planned, ours_ok=True)
        for one in planned:
            present = {base_of(decision.entry) for decision in one.plan.decisions}
            images = plan.images.by_entry(driver_of(one.host))
            reason = "not queued on this host" if request.queued_only else NOT_CACHED
            found[one.host.name] += absent_rows(one.host, images, present, reason)
        return report_of(fleet, found)


def absent_rows(
    host: Host,
    images: Mapping[str, KnownImage],
    present: Collection[str | None],
    reason: str = NOT_CACHED,
) -> list[EntryOutcome]:
    """Return a row for each image of which the host has nothing; ``images``: name of its entry -> image.

    An id given in capitals stands for two entries; one row is enough.
    """
    there = {image.id.lower() for base, image in images.items() if base in present}
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
            reason=reason,
        )
        for image_id, base in missing.items()
        if image_id not in there
    ]
