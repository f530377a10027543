"""Clean: removes what broken transfers left behind and, when asked to, entries that are damaged."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcache.drivers.base import RemovalState
from imgcache.errors import ErrorCode, UnsafePlanError
from imgcache.guards import HARD_FLOOR_S
from imgcache.model import EntryKind
from imgcache.operations.fleet import FleetRequest, open_fleet
from imgcache.operations.invalid import ListedSizes, find_faults, plan_faults
from imgcache.operations.removal import (
    carry_out,
    refuse_too_many,
    report_of,
    with_evidence_error,
)
from imgcache.operations.selection import select_hosts
from imgcache.plan import EntryOutcome, EntryWord

if TYPE_CHECKING:
    from imgcache.drivers.base import Driver, RemovalRow
    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import Host, Inventory
    from imgcache.operations.host_run import HostRun
    from imgcache.plan import EntryReport
    from imgcache.policy import Amount

_MAX_STALL_AGE_S = 100 * 365.25 * 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanRequest(FleetRequest):
    """What the operator asked for."""

    stall_age_s: float = 86400.0
    """How long a transfer's file must have been left alone; at least an hour holds anyway."""
    invalid: bool = False
    """Also originals whose size, format or digest is wrong, under the guards of prune.

    By what was noted about them; else by their image's size in the image service, if that can be asked.
    """
    max_delete: Amount | None = None
    """For ``invalid``: the most entries that may be removed on one host."""
    bytes_per_s: int | None = None
    """For ``invalid``: the most that a host reads per second to find out."""


def plan_clean(request: CleanRequest, inventory: Inventory) -> tuple[Host, ...]:
    """Return the hosts to clean; contacts none.

    Raises:
        UsageError: the selection makes no sense.
        UnsafePlanError: the stall age makes no sense.
    """
    hosts = select_hosts(inventory, request.selection)
    if not 0 < request.stall_age_s <= _MAX_STALL_AGE_S:
        message = f"--stall-age: an age of {request.stall_age_s:g} s would take transfers at work"
        raise UnsafePlanError(message, hint="give an age such as 24h; the least is 1h")
    return hosts


def run_clean(
    request: CleanRequest, inventory: Inventory, service: ImageService | None, sink: EventSink
) -> EntryReport:
    """Clean; blocks until all hosts have ended or a signal ended the run.

    Raises:
        ImgcacheError: nothing was done; see ``plan_clean``.
        PlanRefusedError: more would be removed than ``max_delete`` allows; nothing was done.
    """
    hosts = plan_clean(request, inventory)
    listed = ListedSizes(service, sink) if request.invalid else None
    return asyncio.run(_execute(hosts, request, service, listed, sink))


async def _execute(
    hosts: tuple[Host, ...],
    request: CleanRequest,
    service: ImageService | None,
    listed: ListedSizes | None,
    sink: EventSink,
) -> EntryReport:
    stall_age_s = max(request.stall_age_s, HARD_FLOOR_S)
    seen: dict[str, dict[str, RemovalRow]] = {host.name: {} for host in hosts}

    async def clean(context: HostRun, driver: Driver) -> None:
        rows = seen[context.host.name]
        async with aclosing(driver.clean(context, stall_age_s)) as cleaned:
            async for row in cleaned:
                _note(rows, row)

    async with open_fleet("clean", request, hosts, sink, service=service) as fleet:
        planned, blind = [], {}
        if listed:
            # First of all, so that a refusal comes before anything is removed.
            faults = await find_faults(fleet, hosts, listed, bytes_per_s=request.bytes_per_s)
            planned, blind = await plan_faults(fleet, hosts, faults), faults.blind
            refuse_too_many(fleet, planned, request.max_delete)
        reachable = [host for host in hosts if host.name not in fleet.failures]
        await fleet.each(reachable, clean)
        found = {
            host.name: [_cleaned(host, row) for row in seen[host.name].values()]
            for host in reachable
        }
        for name, rows in (await carry_out(fleet, planned)).items():
            found.setdefault(name, []).extend(rows)
        for host in reachable:
            rows = found[host.name]
            found[host.name] = with_evidence_error(host, rows, blind.get(host.name))
        return report_of(fleet, found)


def _note(rows: dict[str, RemovalRow], row: RemovalRow) -> None:
    """Keep a removal that was told before the connection broke and the order was repeated."""
    before = rows.get(row.name)
    if before is None or before.state is not RemovalState.REMOVED:
        rows[row.name] = row


def _cleaned(host: Host, row: RemovalRow) -> EntryOutcome:
    word = {
        RemovalState.REMOVED: EntryWord.REMOVED,
        RemovalState.GONE: EntryWord.ABSENT,
        RemovalState.KEPT: EntryWord.ERROR if row.failed else EntryWord.KEPT,
    }[row.state]
    would_go = row.state is RemovalState.KEPT and row.code is ErrorCode.DRY_RUN
    return EntryOutcome(
        host=host.name,
        aggregate=host.aggregate,
        cell=host.cell,
        entry=row.name,
        kind=EntryKind.STAGING,
        image_id=None,
        image_name=None,
        outcome=EntryWord.SKIPPED if would_go else word,
        code=row.code,
        reason=row.reason,
        bytes=row.bytes,
        bytes_freed=row.bytes if would_go or row.state is RemovalState.REMOVED else 0,
    )
