"""Prune: removes what is unused and old, or needed for room; made for cron."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgcache.errors import UsageError
from imgcache.guards import base_of
from imgcache.operations.catalogue import (
    Catalogue,
    KnownImages,
    Lookup,
    noted_images,
    read_catalogue,
    resolve_images,
    with_names,
)
from imgcache.operations.fleet import FleetRequest, open_fleet
from imgcache.operations.removal import carry_out, plan_hosts, refuse_too_many, report_of
from imgcache.operations.selection import select_hosts
from imgcache.policy import HostPlan, PrunePolicy, check_policy, plan_prune

if TYPE_CHECKING:
    from collections.abc import Collection

    from imgcache.drivers.base import Driver
    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import Host, HostCache, Inventory
    from imgcache.plan import EntryReport


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRequest(FleetRequest):
    """What the operator asked for."""

    policy: PrunePolicy = field(default_factory=PrunePolicy)
    keep: tuple[str, ...] = ()
    """Ids and names of images whose entries stay."""
    gone: bool = False
    """Remove unused entries of images that are gone from the image service, whatever their age."""


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What the run works with; made without contacting any host."""

    hosts: tuple[Host, ...]
    kept: KnownImages
    catalogue: Catalogue | None
    """Read when ``gone`` is asked for."""


def plan_prune_run(
    request: PruneRequest, inventory: Inventory, service: ImageService | None
) -> PrunePlan:
    """Check what was asked for; contacts no host.

    Raises:
        UsageError: the selection makes no sense, or ``gone`` without an image service.
        UnsafePlanError: the policy would remove everything.
        ImageProblemsError: an image to keep cannot be told.
        ImageServiceError: the service cannot be used.
    """
    hosts = select_hosts(inventory, request.selection)
    check_policy(request.policy)
    if request.gone and service is None:
        message = "--gone needs the image service"
        raise UsageError(message, hint="leave --gone out, or see image_service in the inventory")
    kept = resolve_images(request.keep, service) if request.keep else KnownImages()
    return PrunePlan(hosts, kept, read_catalogue(service) if request.gone else None)


def run_prune(
    request: PruneRequest, inventory: Inventory, service: ImageService | None, sink: EventSink
) -> EntryReport:
    """Plan and carry out; blocks until all hosts have ended or a signal ended the run.

    Raises:
        ImgcacheError: nothing was done; see ``plan_prune_run``.
        PlanRefusedError: more would be removed than ``max_delete`` allows; carries the plan.
    """
    plan = plan_prune_run(request, inventory, service)
    return asyncio.run(_execute(plan, request, service, sink))


async def _execute(
    plan: PrunePlan, request: PruneRequest, service: ImageService | None, sink: EventSink
) -> EntryReport:
    lookup = Lookup(service, plan.catalogue) if service and plan.catalogue is not None else None

    async def decide(driver: Driver, cache: HostCache, hosts: Collection[str]) -> HostPlan:
        del hosts
        gone = await gone_bases(driver, cache, lookup) if lookup else frozenset()
        kept = plan.kept.by_entry(driver)
        return plan_prune(cache, request.policy, gone_bases=gone, kept_bases=kept)

    async with open_fleet("prune", request, plan.hosts, sink, service=service) as fleet:
        planned = await plan_hosts(fleet, plan.hosts, decide)
        refuse_too_many(fleet, planned, request.policy.max_delete)
        found = await carry_out(fleet, planned)
        return report_of(fleet, await with_names(plan.hosts, found, service))


async def gone_bases(driver: Driver, cache: HostCache, lookup: Lookup) -> frozenset[str]:
    """Return the names of images' entries in a cache whose images are gone from the image service.

    Only entries whose image is noted can be known to be gone.
    """
    noted = noted_images(driver, cache.entries)
    bases = {base_of(entry) for entry in cache.entries} & noted.keys()
    return frozenset([base for base in bases if base and await lookup.is_gone(noted[base].id)])
