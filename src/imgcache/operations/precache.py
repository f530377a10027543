"""Precache: puts images into the caches of hosts, or renews those that are there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from imgcache.distribution import PrecachePlan, PrecacheReport
from imgcache.errors import UnsafePlanError, UsageError
from imgcache.events import Notice, Planned, Waiting
from imgcache.operations.fleet import FleetRequest, driver_of, open_fleet
from imgcache.operations.keep import PrecacheAndPin, pin_end
from imgcache.operations.rollout import Rollout, Waves
from imgcache.operations.selection import (
    Selection,
    check_known,
    excluded_names,
    select_hosts,
)
from imgcache.operations.sites import Sites
from imgcache.operations.sources import RunSources, source_kinds
from imgcache.operations.suitable import refuse_unsuitable
from imgcache.operations.survey import (
    UNREACHED,
    by_host,
    is_needed,
    plan_sites,
    refuse_what_does_not_fit,
    too_short_timeouts,
)
from imgcache.operations.window import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from imgcache.distribution import SitePlan
    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import Host, Image, Inventory
    from imgcache.operations.engine import HostWork
    from imgcache.operations.fleet import Fleet
    from imgcache.operations.host_run import HostRun
    from imgcache.operations.sources import SourcePolicy
    from imgcache.operations.window import Clock
    from imgcache.plan import Outcome


#: Access for hosts never outlives a day, however long a run may take.
_MAX_ACCESS_LIFETIME_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecacheRequest(FleetRequest):
    """What the operator asked for."""

    names: tuple[str, ...]
    """Image ids and names, as given; none: those of ``only``."""
    source: SourcePolicy = "auto"
    seeds: int = 1
    """With relay: hosts per site that get an image's bytes from outside."""
    rate_limit: int | None = None
    """Bytes per second that one host may take, from wherever it reads."""
    keep_for_s: float | None = None
    """Pin what is cached, or was there already, for so long; None: do not pin."""
    window: str | None = None
    """When bytes may be moved, at all sites, instead of what the inventory says."""
    deadline: datetime | None = None
    """No bytes are moved after it."""
    partial: bool = False
    """Begin even if not everything can be done in time."""
    waves: Waves = field(default_factory=Waves)
    min_coverage: float | None = None
    """The share of items that must be there in the end, for the exit code."""
    only: Mapping[str, frozenset[str]] | None = None
    """Host name -> ids of images: only these; None: all images on all hosts."""


def plan_precache(
    request: PrecacheRequest, inventory: Inventory, service: ImageService
) -> PrecachePlan:
    """Return which images go to which hosts; reads only, and contacts no host.

    Raises:
        UsageError: the selection or ``keep_for_s`` makes no sense; found before the image service is asked.
        ImageServiceError: an image cannot be cached, or the service cannot be used.
    """
    hosts = _hosts(request, inventory)
    if request.keep_for_s is not None:
        pin_end(request.keep_for_s)
    source_kinds(request.source, service)
    left_alone = excluded_names(request.selection)
    others = {
        host.name: host
        for group in inventory.aggregates.values()
        for host in group.hosts
        if host.name not in left_alone
    }
    plan = PrecachePlan(
        images=service.find_images(request.names or _image_ids(request.only, hosts)),
        hosts=hosts,
        only=request.only,
        sites=inventory.sites,
        neighbours=tuple(others.values()),
    )
    refuse_unsuitable(plan.images, plan.hosts)
    return replace(plan, hosts=_with_work(plan))


def _with_work(plan: PrecachePlan) -> tuple[Host, ...]:
    """Return the hosts that any of the images goes to."""
    left = tuple(host for host in plan.hosts if plan.only is None or plan.images_of(host))
    if not left:
        message = "--limit-failed: none of these images has failed on the selected hosts"
        raise UsageError(message, hint="name others, or none: then it is all that have failed")
    return left


def _hosts(request: PrecacheRequest, inventory: Inventory) -> tuple[Host, ...]:
    if request.only is None:
        return select_hosts(inventory, request.selection)
    selection = request.selection
    if not (selection.aggregates or selection.hosts or selection.all):
        everywhere = select_hosts(inventory, Selection(all=True))
        check_known(request.only.keys() - {host.name for host in everywhere})
        selection = replace(selection, all=True)
    hosts = select_hosts(inventory, selection)
    left = tuple(host for host in hosts if host.name in request.only)
    if not left:
        message = "--limit-failed: none of the selected hosts has failed there"
        raise UsageError(message, hint="select others, or none: then it is all that have failed")
    return left


def _image_ids(only: Mapping[str, frozenset[str]] | None, hosts: Iterable[Host]) -> tuple[str, ...]:
    ids = {one for host in hosts for one in (only or {}).get(host.name, ())}
    return tuple(sorted(ids))


def run_precache(
    request: PrecacheRequest, inventory: Inventory, service: ImageService, sink: EventSink
) -> PrecacheReport:
    """Plan and execute; blocks until all hosts have ended or a signal ended the run.

    Raises:
        ImgcacheError: nothing was done; see ``plan_precache`` and ``execute_precache``.
    """
    plan = plan_precache(request, inventory, service)
    return asyncio.run(execute_precache(plan, request, service, sink))


async def execute_precache(
    plan: PrecachePlan,
    request: PrecacheRequest,
    service: ImageService,
    sink: EventSink,
    clock: Clock | None = None,
) -> PrecacheReport:
    """Carry out a plan: the only part that writes, and only unless ``dry_run``.

    Raises:
        UnsafePlanError: it cannot be done in time; nothing was done.
    """
    schedule = Schedule(
        plan.hosts,
        plan.sites,
        window=request.window,
        deadline=request.deadline,
        wait=request.wait,
        clock=clock,
    )
    async with open_fleet(
        "precache", request, plan.hosts, sink, images=plan.images, service=service
    ) as fleet:
        run = _Run(plan, request, schedule, fleet, service)
        outcomes, plans = await (run.dry() if request.dry_run else run.wet())
    return PrecacheReport(
        run_id=fleet.run_id,
        command=fleet.command,
        started_at=fleet.started_at,
        finished_at=datetime.now(UTC),
        images=plan.images,
        outcomes=tuple(outcomes),
        interrupted=fleet.interrupted,
        plan=plans,
        min_coverage=request.min_coverage,
        would_be_refused=request.dry_run
        and not request.partial
        and any(one.fits is False for one in plans or ()),
        drivers=fleet.drivers,
    )


_Ended = tuple[Sequence["Outcome"], tuple["SitePlan", ...] | None]


class _Run:
    """One run over a plan's hosts."""

    def __init__(
        self,
        plan: PrecachePlan,
        request: PrecacheRequest,
        schedule: Schedule,
        fleet: Fleet,
        service: ImageService,
    ) -> None:
        self._plan = plan
        self._request = request
        self._schedule = schedule
        self._fleet = fleet
        self._service = service

    async def dry(self) -> _Ended:
        """Look at all hosts."""
        async with self._sources() as sources:
            outcomes = await self._pass(self._plan.hosts, _precache_host, sources, None)
        plans = self._site_plans(self._plan, outcomes)
        try:
            self._refuse(plans)
        except UnsafePlanError as error:
            self._fleet.sink.emit(Notice(f"would be refused: {error.message}", hint=error.hint))
        return outcomes, plans

    async def wet(self) -> _Ended:
        """Look at the hosts first, if there are limits; then do it."""
        plans: tuple[SitePlan, ...] | None = None
        dead: dict[str, list[Outcome]] = {}
        if is_needed(self._plan, self._request, self._schedule):
            plans, dead = await self._survey()
        hosts = [host for host in self._plan.hosts if host.name not in dead]
        rollout = Rollout(
            hosts,
            sink=self._fleet.sink,
            schedule=self._schedule,
            waves=self._request.waves,
            failed=len(dead),
        )
        work: HostWork = _precache_host
        if self._request.keep_for_s is not None:
            work = PrecacheAndPin(pin_end(self._request.keep_for_s))
        async with self._sources() as sources:
            done = await self._pass(hosts, work, sources, rollout)
        found = by_host((*done, *(one for outcomes in dead.values() for one in outcomes)))
        return [one for host in self._plan.hosts for one in found.get(host.name, ())], plans

    async def _survey(self) -> tuple[tuple[SitePlan, ...], dict[str, list[Outcome]]]:
        """Return the plan of each site, and the outcomes of hosts that are not worth a second try."""
        hosts = [host for host in self._plan.hosts if not self._schedule.refusal(host.site)]
        if not hosts or self._fleet.interrupted is not None:
            return (), {}
        # Nothing else is told of it: the display would seem to hang on hosts that are far away.
        hosts_text = f"{len(hosts)} host{'' if len(hosts) == 1 else 's'}"
        self._fleet.sink.emit(Waiting(f"a first look at {hosts_text}"))
        async with self._sources() as sources:
            outcomes = await self._fleet.look(hosts, _precache_host, sources, self._plan.images_of)
        self._fleet.sink.emit(Waiting(None))
        plans = self._site_plans(replace(self._plan, hosts=tuple(hosts)), outcomes)
        self._refuse(plans)
        waiting = {host.name for host in hosts if self._schedule.waits(host.site)}
        dead = {
            name: found
            for name, found in by_host(outcomes).items()
            if name not in waiting and found[0].code in UNREACHED
        }
        self._fleet.report_dead(dead)
        return plans, dead

    def _refuse(self, plans: tuple[SitePlan, ...]) -> None:
        if self._fleet.interrupted is None and not self._request.partial:
            refuse_what_does_not_fit(plans, self._schedule)

    def _site_plans(self, plan: PrecachePlan, outcomes: Sequence[Outcome]) -> tuple[SitePlan, ...]:
        """Return, and tell, what is before the run; ``plan``: with the hosts that were looked at."""
        limits = self._fleet.limits
        plans = plan_sites(plan, outcomes, self._request, self._schedule, limits.concurrency)
        self._fleet.sink.emit(Planned(plans))
        for text in too_short_timeouts(plans, limits.timeout_s):
            hint = "raise it; else a transfer ends there, and goes on in the next run where the driver can"
            self._fleet.sink.emit(Notice(text, hint=hint))
        return plans

    async def _pass(
        self, hosts: Sequence[Host], work: HostWork, sources: RunSources, rollout: Rollout | None
    ) -> list[Outcome]:
        return await self._fleet.run(
            hosts,
            self._plan.images,
            sources.telling(work),
            sources,
            rollout=rollout,
            images_of=self._plan.images_of,
        )

    def _sources(self) -> RunSources:
        sites = Sites(
            policy=self._request.source,
            hosts=self._plan.hosts,
            neighbours=self._plan.neighbours,
            sites=self._plan.sites,
            seeds=self._request.seeds,
            rate_limit=self._request.rate_limit,
        )
        return RunSources(
            self._service,
            self._plan.images,
            kinds=source_kinds(self._request.source, self._service),
            run_id=self._fleet.run_id,
            lifetime_s=self._access_lifetime_s(),
            sink=self._fleet.sink,
            sites=sites,
        )

    def _access_lifetime_s(self) -> float:
        """Return how long the hosts' access must last at worst: every round of hosts at its deadline."""
        limits = self._fleet.limits
        rounds = -(-len(self._plan.hosts) // limits.concurrency)
        at_worst = rounds * limits.timeout_s + self._schedule.longest_wait_s()
        return min(at_worst, _MAX_ACCESS_LIFETIME_S)


async def _precache_host(context: HostRun, images: Sequence[Image]) -> None:
    await driver_of(context.host).precache(context, images)
