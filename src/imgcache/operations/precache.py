"""Precache: puts images into the caches of hosts, or renews those that are there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from imgcache.operations.fleet import FleetRequest, driver_of, open_fleet
from imgcache.operations.keep import PrecacheAndPin, pin_end
from imgcache.operations.selection import select_hosts
from imgcache.operations.sources import RunSources, source_kinds
from imgcache.plan import PrecachePlan, Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import Image, Inventory
    from imgcache.operations.engine import HostWork, Limits
    from imgcache.operations.host_run import HostRun
    from imgcache.operations.sources import SourcePolicy


#: Access for hosts never outlives a day, however long a run may take.
_MAX_ACCESS_LIFETIME_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecacheRequest(FleetRequest):
    """What the operator asked for."""

    names: tuple[str, ...]
    """Image ids and names, as given."""
    source: SourcePolicy = "auto"
    seeds: int = 1
    """With relay: hosts per site that get an image's bytes from outside."""
    rate_limit: int | None = None
    """Bytes per second that one host may take from outside its site."""
    keep_for_s: float | None = None
    """Pin what is cached, or was there already, for so long; None: do not pin."""


def plan_precache(
    request: PrecacheRequest, inventory: Inventory, service: ImageService
) -> PrecachePlan:
    """Return which images go to which hosts; reads only, and contacts no host.

    Raises:
        UsageError: the selection or ``keep_for_s`` makes no sense; found before the image service is asked.
        ImageServiceError: an image cannot be cached, or the service cannot be used.
    """
    hosts = select_hosts(inventory, request.selection)
    if request.keep_for_s is not None:
        pin_end(request.keep_for_s)
    source_kinds(request.source, service)
    images = service.find_images(request.names)
    return PrecachePlan(images=images, hosts=hosts)


def run_precache(
    request: PrecacheRequest, inventory: Inventory, service: ImageService, sink: EventSink
) -> Report:
    """Plan and execute; blocks until all hosts have ended or a signal ended the run.

    Raises:
        ImgcacheError: nothing was done; see ``plan_precache``.
    """
    plan = plan_precache(request, inventory, service)
    return asyncio.run(execute_precache(plan, request, service, sink))


async def execute_precache(
    plan: PrecachePlan, request: PrecacheRequest, service: ImageService, sink: EventSink
) -> Report:
    """Carry out a plan: the only part that writes, and only unless ``dry_run``."""
    async with open_fleet("precache", request, plan.hosts, sink, images=plan.images) as fleet:
        sources = RunSources(
            service,
            plan.images,
            kinds=source_kinds(request.source, service),
            run_id=fleet.run_id,
            lifetime_s=_access_lifetime_s(plan, fleet.limits),
            sink=sink,
        )
        work: HostWork = _precache_host
        if request.keep_for_s is not None and not request.dry_run:
            work = PrecacheAndPin(pin_end(request.keep_for_s))
        async with sources:
            outcomes = await fleet.run(plan.hosts, plan.images, work, sources)
    return Report(
        run_id=fleet.run_id,
        command=fleet.command,
        started_at=fleet.started_at,
        finished_at=datetime.now(UTC),
        images=plan.images,
        outcomes=tuple(outcomes),
        interrupted=fleet.interrupted,
    )


def _access_lifetime_s(plan: PrecachePlan, limits: Limits) -> float:
    """Return how long the hosts' access must last at worst: every round of hosts at its deadline."""
    rounds = -(-len(plan.hosts) // limits.concurrency)
    return min(rounds * limits.timeout_s, _MAX_ACCESS_LIFETIME_S)


async def _precache_host(context: HostRun, images: Sequence[Image]) -> None:
    await driver_of(context.host).precache(context, images)
