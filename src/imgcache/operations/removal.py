"""Removing entries from the caches of hosts: look at all, plan, show, then remove what the plan says.

The first pass only reads. Hosts that share a storage are planned together, and once. The second pass goes
to hosts on which something is to be removed; there the helper decides again, under Nova's lock.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

from imgcache.drivers.base import RemovalItem, RemovalRow, RemovalState
from imgcache.errors import ErrorCode, UnsafePlanError
from imgcache.events import EntryEnded, Notice
from imgcache.operations.catalogue import Catalogue, image_of, noted_images
from imgcache.operations.fleet import driver_of
from imgcache.plan import EntryOutcome, EntryReport, EntryWord, HostFailure, OutcomeWord
from imgcache.policy import hold_all, too_many_removals
from imgcache.shared_storage import HostView, group_by_storage, unite, why_held

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

    from imgcache.drivers.base import Driver
    from imgcache.model import CacheEntry, Host, HostCache
    from imgcache.operations.catalogue import KnownImage
    from imgcache.operations.fleet import Fleet
    from imgcache.operations.host_run import HostRun
    from imgcache.policy import Amount, Decision, HostPlan

#: Returns what is to become of a host's cache, or of one that the hosts of these names share.
Planner: TypeAlias = "Callable[[Driver, HostCache, Collection[str]], Awaitable[HostPlan]]"


class PlanRefusedError(UnsafePlanError):
    """The plan removes more than is allowed; nothing was done. ``report`` shows the plan."""

    def __init__(self, message: str, report: EntryReport, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.report = report


@dataclass(slots=True)
class PlannedHost:
    """What is to become of one cache; ``host`` does it, also for those it shares the cache with."""

    host: Host
    plan: HostPlan
    images: Mapping[str, KnownImage]
    """Name of the image's entry -> image, as noted on the host."""
    sharers: tuple[Host, ...] = ()
    rows: dict[str, RemovalRow] = field(default_factory=dict)
    """Name -> what the host did with it."""
    begun: bool = False
    lost_before: bool = False


async def plan_hosts(
    fleet: Fleet,
    hosts: Sequence[Host],
    planner: Planner,
) -> list[PlannedHost]:
    """Look at all hosts and plan each cache once, in the order of the hosts."""

    async def look(context: HostRun, driver: Driver) -> PlannedHost | HostCache:
        cache = await driver.inspect(context, formats=False, use=True)
        if cache.storage_id or cache.shares_with:
            return cache
        name, images = context.host.name, noted_images(driver, cache.entries)
        # Planned at once, so that a cache of its own need not stay in memory.
        return PlannedHost(context.host, _slim(await planner(driver, cache, (name,))), images)

    found = await fleet.each(hosts, look)
    by_name = {host.name: host for host in hosts}
    planned = {name: one for name, one in found.items() if isinstance(one, PlannedHost)}
    views = [HostView(name, one) for name, one in found.items() if not isinstance(one, PlannedHost)]
    for group in group_by_storage(views):
        planned[group[0].host] = await _plan_group(group, by_name, planner)
    return [planned[host.name] for host in hosts if host.name in planned]


def _slim(plan: HostPlan) -> HostPlan:
    """Return the plan without what only planning needs: of a fleet, it would fill the memory."""
    decisions = tuple(
        replace(decision, entry=replace(decision.entry, manifest=None, used_by=()))
        for decision in plan.decisions
    )
    return replace(plan, decisions=decisions)


async def _plan_group(
    group: Sequence[HostView],
    hosts: Mapping[str, Host],
    planner: Planner,
) -> PlannedHost:
    """Plan a cache that several hosts use; all of them must have been looked at."""
    cache = unite(group)
    driver = driver_of(hosts[group[0].host])
    plan = await planner(driver, cache, [view.host for view in group])
    if reason := why_held(group):
        plan = hold_all(plan, ErrorCode.SHARED, reason)
    sharers = tuple(hosts[view.host] for view in group[1:])
    return PlannedHost(hosts[group[0].host], plan, noted_images(driver, cache.entries), sharers)


def refuse_too_many(fleet: Fleet, planned: Sequence[PlannedHost], ceiling: Amount | None) -> None:
    """Refuse the whole run when one host would lose more than ``--max-delete`` allows.

    Raises:
        PlanRefusedError: with the plan.
    """
    over = [
        (one.host.name, excess)
        for one in planned
        if (excess := too_many_removals(one.plan, ceiling)) is not None
    ]
    if over:
        first = "; ".join(f"{host}: {excess}" for host, excess in over[:3])
        more = f"; and {len(over) - 3} more hosts" if over[3:] else ""
        held = {one.host.name: _as_shown(one, ErrorCode.MAX_DELETE) for one in planned}
        report = report_of(fleet, held)
        message = f"the plan removes too much, so nothing was removed anywhere: {first}{more}"
        raise PlanRefusedError(message, report, hint="see the plan; raise --max-delete if right")


async def carry_out(
    fleet: Fleet, planned: Sequence[PlannedHost], *, ours_ok: bool = False
) -> dict[str, list[EntryOutcome]]:
    """Remove what the plans say, unless in a dry run; return host name -> outcomes of its entries."""
    for one in planned:
        if one.plan.unmet:
            fleet.sink.emit(Notice(one.plan.unmet, host=one.host.name))
    if fleet.dry_run:
        return {one.host.name: _as_shown(one, ErrorCode.DRY_RUN) for one in planned}
    by_name = {one.host.name: one for one in planned if one.plan.removals}

    async def remove(context: HostRun, driver: Driver) -> None:
        one = by_name[context.host.name]
        items = [
            _item(decision, ours_ok=ours_ok)
            for decision in one.plan.removals
            if decision.entry.name not in one.rows
        ]
        one.lost_before, one.begun = one.begun, True
        async with aclosing(driver.remove(context, items)) as rows:
            async for row in rows:
                one.rows[row.name] = row

    await fleet.each([one.host for one in by_name.values()], remove)
    return {one.host.name: _as_done(one, fleet.failures.get(one.host.name)) for one in planned}


def _item(decision: Decision, *, ours_ok: bool) -> RemovalItem:
    entry = decision.entry
    return RemovalItem(
        name=entry.name,
        inode=entry.inode,
        mtime_ns=entry.mtime_ns,
        min_age_s=decision.min_age_s,
        ours_ok=ours_ok,
    )


# ---------------------------------------------------------------------------------------------- outcomes

Ending = tuple[EntryWord, ErrorCode | None, str | None]
"""How something ended: the word, the code, the reason."""


def entry_outcome(
    host: Host,
    entry: CacheEntry,
    image: KnownImage | None,
    ending: Ending,
    *,
    bytes_freed: int = 0,
) -> EntryOutcome:
    """Return the outcome of one entry."""
    word, code, reason = ending
    return EntryOutcome(
        host=host.name,
        aggregate=host.aggregate,
        cell=host.cell,
        entry=entry.name,
        kind=entry.kind,
        image_id=image.id if image else None,
        image_name=image.name if image else None,
        outcome=word,
        code=code,
        reason=reason,
        bytes=entry.allocated_bytes,
        bytes_freed=bytes_freed,
    )


def host_outcome(
    host: Host, word: EntryWord, code: ErrorCode | None, reason: str | None
) -> EntryOutcome:
    """Return the outcome of a host as a whole."""
    return EntryOutcome(
        host.name, host.aggregate, host.cell, "", None, None, None, word, code, reason
    )


def _label(one: PlannedHost, entry: CacheEntry) -> KnownImage | None:
    return image_of(driver_of(one.host), entry, one.images, _NONE_LISTED)


_NONE_LISTED = Catalogue()


def _host_rows(one: PlannedHost) -> list[EntryOutcome]:
    rows = []
    if one.plan.code:
        rows.append(host_outcome(one.host, EntryWord.ERROR, one.plan.code, one.plan.reason))
    for sharer in one.sharers:
        reason = f"shares its cache with {one.host.name}, where the entries are shown"
        rows.append(host_outcome(sharer, EntryWord.SKIPPED, ErrorCode.SHARED, reason))
    return rows


def _as_shown(one: PlannedHost, code: ErrorCode) -> list[EntryOutcome]:
    """Return the plan as outcomes; what would be removed is skipped for the reason that ``code`` names."""
    dry = code is ErrorCode.DRY_RUN
    why = "dry run: would be removed" if dry else "not removed, see --max-delete"
    rows = _host_rows(one)
    for decision in one.plan.decisions:
        entry, image = decision.entry, _label(one, decision.entry)
        if decision.remove and dry and entry.unremovable:
            reason = f"dry run: could not be removed: {entry.unremovable}"
            ending = EntryWord.ERROR, ErrorCode.PERMISSION, reason
            rows.append(entry_outcome(one.host, entry, image, ending))
        elif decision.remove:
            reason = f"{why}: {decision.reason}"
            freed = entry.allocated_bytes if dry else 0
            ending = EntryWord.SKIPPED, code, reason
            rows.append(entry_outcome(one.host, entry, image, ending, bytes_freed=freed))
        else:
            rows.append(_kept(one, decision))
    return rows


def _kept(one: PlannedHost, decision: Decision) -> EntryOutcome:
    ending = EntryWord.KEPT, decision.code, decision.reason
    return entry_outcome(one.host, decision.entry, _label(one, decision.entry), ending)


def _as_done(one: PlannedHost, failure: HostFailure | None) -> list[EntryOutcome]:
    rows = _host_rows(one)
    for decision in one.plan.decisions:
        if not decision.remove:
            rows.append(_kept(one, decision))
            continue
        row = one.rows.get(decision.entry.name)
        if row:
            ending = _result(row, decision, lost_before=one.lost_before)
        else:
            ending = _unanswered(failure, begun=one.begun)
        freed = row.bytes if row and ending[0] is EntryWord.REMOVED else 0
        entry = decision.entry
        rows.append(entry_outcome(one.host, entry, _label(one, entry), ending, bytes_freed=freed))
    return with_evidence_error(one.host, rows)


def with_evidence_error(
    host: Host, rows: list[EntryOutcome], reason: str | None = None
) -> list[EntryOutcome]:
    """Return a host's outcomes with its error when it could not tell what is in use, unless that is there.

    ``reason``: what could not be read; None: what the host says of an entry that it kept for it.
    """
    blind = [row for row in rows if row.code is ErrorCode.EVIDENCE]
    if any(not row.entry for row in blind) or not (blind or reason):
        return rows
    why = reason or f"use could not be found out completely: {blind[0].reason}"
    return [host_outcome(host, EntryWord.ERROR, ErrorCode.EVIDENCE, why), *rows]


def _result(row: RemovalRow, decision: Decision, *, lost_before: bool) -> Ending:
    match row.state:
        case RemovalState.REMOVED:
            return EntryWord.REMOVED, None, decision.reason
        case RemovalState.KEPT:
            return EntryWord.ERROR if row.failed else EntryWord.KEPT, row.code, row.reason
        case RemovalState.GONE if lost_before:
            return EntryWord.REMOVED, None, f"{decision.reason}; contact was lost meanwhile"
        case RemovalState.GONE:
            return EntryWord.ABSENT, ErrorCode.ABSENT, "something else removed it meanwhile"


def _unanswered(failure: HostFailure | None, *, begun: bool) -> Ending:
    if failure is None:
        return EntryWord.ERROR, ErrorCode.PROTOCOL, "the host gave no answer about it"
    if failure.outcome is OutcomeWord.SKIPPED and begun:
        return EntryWord.UNKNOWN, failure.code, f"{failure.reason} meanwhile"
    return EntryWord(failure.outcome.value), failure.code, failure.reason


def report_of(fleet: Fleet, found: Mapping[str, Iterable[EntryOutcome]]) -> EntryReport:
    """Return the report of a run: host name -> outcomes, and what went wrong with hosts as a whole."""
    outcomes: list[EntryOutcome] = []
    for host in fleet.hosts:
        rows = list(found.get(host.name, ()))
        failure = fleet.failures.get(host.name)
        if failure and all(row.reason != failure.reason for row in rows):
            word = EntryWord(failure.outcome.value)
            rows.insert(0, host_outcome(host, word, failure.code, failure.reason))
        outcomes += rows
    for outcome in outcomes:
        fleet.sink.emit(EntryEnded(outcome))
    return EntryReport(
        run_id=fleet.run_id,
        command=fleet.command,
        started_at=fleet.started_at,
        finished_at=datetime.now(UTC),
        outcomes=tuple(outcomes),
        dry_run=fleet.dry_run,
        interrupted=fleet.interrupted,
        drivers=fleet.drivers,
    )
