"""Status: the room that the caches of hosts take, and what of it could be had back."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from imgcache.errors import ErrorCode, UsageError
from imgcache.events import HostFailed, Notice
from imgcache.guards import is_pinned
from imgcache.operations.fleet import FleetRequest, open_fleet
from imgcache.operations.inspect import inspect_hosts
from imgcache.operations.selection import select_hosts
from imgcache.plan import HostStatus, StatusReport, StatusTotal
from imgcache.policy import PrunePolicy, cache_bytes, check_policy, hold_all, plan_prune
from imgcache.shared_storage import HostView, group_by_storage, unite, why_held

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import Host, HostCache, Inventory
    from imgcache.policy import HostPlan

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRequest(FleetRequest):
    """What the operator asked for."""

    policy: PrunePolicy = field(default_factory=PrunePolicy)
    """By which reclaimable is reckoned; the default is what prune does without options."""
    max_used: float | None = None
    """Exit code 5 when some cache's file system is fuller than this share, above 0 and at most 1."""
    dry_run: bool = True
    """Looking writes nothing."""


def run_status(
    request: StatusRequest, inventory: Inventory, service: ImageService | None, sink: EventSink
) -> StatusReport:
    """Look into the caches; blocks until all hosts have ended or a signal ended the run.

    Raises:
        UsageError: the selection or the threshold makes no sense.
        UnsafePlanError: the policy makes no sense.
    """
    hosts = select_hosts(inventory, request.selection)
    check_policy(request.policy)
    if request.max_used is not None and not 0 < request.max_used <= 1:
        message = f"--max-used: a share of {request.max_used * 100:g} % makes no sense"
        raise UsageError(message, hint="give a share above 0 % and at most 100 %")
    return asyncio.run(_execute(hosts, request, service, sink))


async def _execute(
    hosts: tuple[Host, ...],
    request: StatusRequest,
    service: ImageService | None,
    sink: EventSink,
) -> StatusReport:
    def reckon(host: Host, cache: HostCache) -> HostStatus | HostCache:
        if cache.storage_id or cache.shares_with:
            return cache  # the others that share it have their say
        return status_of(host, cache, request.policy)

    async with open_fleet("status", request, hosts, sink, service=service) as fleet:
        found = await inspect_hosts(fleet, hosts, formats=False, use=True, reduce=reckon)
        for failure in fleet.failures.values():
            sink.emit(HostFailed(failure))
        statuses = _statuses(hosts, found, request.policy)
        report = StatusReport(
            run_id=fleet.run_id,
            command="status",
            started_at=fleet.started_at,
            finished_at=datetime.now(UTC),
            hosts=statuses,
            totals=totals_of(statuses, fleet.drivers),
            failures=tuple(fleet.failures.values()),
            max_used=request.max_used,
            interrupted=fleet.interrupted,
            drivers=fleet.drivers,
        )
        for one in report.over_threshold():
            said = f"the file system is {one.used_share:.0%} full, above {request.max_used:.0%}"
            sink.emit(Notice(said, host=one.host))
        return report


def _statuses(
    hosts: Iterable[Host], found: Mapping[str, HostStatus | HostCache], policy: PrunePolicy
) -> tuple[HostStatus, ...]:
    """Return the statuses, in the order of the hosts; caches that are shared are reckoned together."""
    by_name = {host.name: host for host in hosts}
    statuses = {name: one for name, one in found.items() if isinstance(one, HostStatus)}
    views = [HostView(name, one) for name, one in found.items() if not isinstance(one, HostStatus)]
    for group in group_by_storage(views):
        united = unite(group)
        plan = plan_prune(united, policy)
        if reason := why_held(group):
            plan = hold_all(plan, ErrorCode.SHARED, reason)
        for view in group:
            statuses[view.host] = _status(by_name[view.host], view.cache, united, plan)
    return tuple(statuses[name] for name in by_name if name in statuses)


def status_of(host: Host, cache: HostCache, policy: PrunePolicy) -> HostStatus:
    """Return the room that the cache of one host takes, which nobody shares."""
    return _status(host, cache, cache, plan_prune(cache, policy))


def _status(host: Host, cache: HostCache, united: HostCache, plan: HostPlan) -> HostStatus:
    """Return the status of a host; what is in use and reclaimable is as all that share its cache say."""
    problems = cache.evidence_problems
    if plan.reason and not problems:
        problems = (plan.reason,)
    taken = cache_bytes(cache)
    return HostStatus(
        host=host.name,
        aggregate=host.aggregate,
        cell=host.cell,
        cache_path=cache.cache_path,
        filesystem=cache.filesystem,
        own_filesystem=cache.own_filesystem,
        storage_id=cache.storage_id,
        entries=len(cache.entries),
        cache_bytes=taken,
        nova_usage_bytes=cache.nova_usage_bytes,
        in_use_bytes=sum(entry.allocated_bytes for entry in united.entries if entry.users),
        pinned_bytes=sum(entry.allocated_bytes for entry in united.entries if is_pinned(entry)),
        reclaimable_bytes=plan.bytes_to_free,
        reclaimable_entries=len(plan.removals),
        filesystem_size_bytes=cache.filesystem_size_bytes,
        filesystem_free_bytes=cache.filesystem_free_bytes,
        reserved_host_disk_mb=cache.policy.reserved_host_disk_mb,
        reserves_cache=cache.policy.reserves_cache,
        cache_reserve_mb=_reserve_mb(cache, taken),
        evidence_problems=problems,
    )


def _reserve_mb(cache: HostCache, taken: int) -> int:
    """Return what ``reserved_host_disk_mb`` must hold for the cache, MiB.

    Nothing where Nova adds the cache by itself, or where it takes no room from instances.
    Source: nova ``virt/libvirt/driver.py``, ``update_provider_tree``: reserved DISK_GB.
    """
    if cache.own_filesystem or cache.policy.reserves_cache:
        return 0
    return math.ceil(taken / _MIB)


def totals_of(
    statuses: Iterable[HostStatus], drivers: Mapping[str, str]
) -> tuple[StatusTotal, ...]:
    """Return sums per aggregate, then per cell, then per driver (host -> driver) if there are several.

    A shared storage counts once in each.
    """
    groups: dict[tuple[str, str], list[HostStatus]] = {}
    all_statuses = tuple(statuses)
    for status in all_statuses:
        groups.setdefault(("aggregate", status.aggregate), []).append(status)
    for status in all_statuses:
        if status.cell is not None:
            groups.setdefault(("cell", status.cell), []).append(status)
    if len(set(drivers.values())) > 1:
        for status in all_statuses:
            groups.setdefault(("driver", drivers[status.host]), []).append(status)
    return tuple(_total(group, name, members) for (group, name), members in groups.items())


def _total(group: str, name: str, members: list[HostStatus]) -> StatusTotal:
    caches = {status.storage_id or f"host {status.host}": status for status in members}.values()
    return StatusTotal(
        group=group,
        name=name,
        hosts=len(members),
        cache_bytes=sum(status.cache_bytes for status in caches),
        reclaimable_bytes=sum(status.reclaimable_bytes for status in caches),
        filesystem_size_bytes=sum(status.filesystem_size_bytes for status in caches),
        filesystem_free_bytes=sum(status.filesystem_free_bytes for status in caches),
    )
