"""Check: would precache work on these hosts? Reads only."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from imgcache.errors import ErrorCode
from imgcache.operations.fleet import FleetRequest, open_fleet
from imgcache.operations.selection import select_hosts
from imgcache.plan import Check, CheckReport, CheckState, OutcomeWord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgcache.drivers.base import Driver
    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import Host, Inventory
    from imgcache.operations.host_run import HostRun
    from imgcache.plan import HostFailure

#: Which check an error of the way to the helper answers; all others answer ``helper``.
_CHECK_BY_CODE = {
    ErrorCode.CONNECT: "login",
    ErrorCode.JUMP: "login",
    ErrorCode.LOGIN: "login",
    ErrorCode.HOSTKEY_CHANGED: "login",
    ErrorCode.HOSTKEY_UNKNOWN: "login",
    ErrorCode.SESSION: "login",
    ErrorCode.SHELL: "login",
    ErrorCode.SUDO: "sudo",
    ErrorCode.PYTHON: "python",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest(FleetRequest):
    """What the operator asked for."""

    retries: int = 0
    timeout_s: float = 120.0


def run_check(
    request: CheckRequest, inventory: Inventory, service: ImageService | None, sink: EventSink
) -> CheckReport:
    """Check the selected hosts; blocks until all have answered.

    Raises:
        UsageError: the selection makes no sense.
        ImageServiceError: the image service does not say where hosts reach it.
    """
    hosts = select_hosts(inventory, request.selection)
    return asyncio.run(_execute(request, hosts, service, sink))


async def _execute(
    request: CheckRequest, hosts: Sequence[Host], service: ImageService | None, sink: EventSink
) -> CheckReport:
    access = service.access_without_token() if service else None

    async def check_host(context: HostRun, driver: Driver) -> list[tuple[str, CheckState, str]]:
        rows = await driver.check(context, access)
        context.found_wrong = any(state is CheckState.FAIL for _, state, _ in rows)
        login = [("login", CheckState.OK, "logged in, helper started")] if context.logged_in else []
        return [*login, *rows]

    async with open_fleet("check", request, hosts, sink, service=service) as fleet:
        found = await fleet.each(hosts, check_host)
    failed = {name: [_failed_check(failure)] for name, failure in fleet.failures.items()}
    return CheckReport(
        run_id=fleet.run_id,
        command=fleet.command,
        started_at=fleet.started_at,
        finished_at=datetime.now(UTC),
        checks=tuple(
            Check(host.name, host.aggregate, host.cell, *row)
            for host in hosts
            for row in found.get(host.name) or failed.get(host.name, [])
        ),
        interrupted=fleet.interrupted,
        drivers=fleet.drivers,
    )


def _failed_check(failure: HostFailure) -> tuple[str, CheckState, str]:
    """Return the one row of a host whose checks were not answered."""
    if failure.outcome is OutcomeWord.UNSUPPORTED:
        return ("driver", CheckState.WARN, failure.reason)
    return (_CHECK_BY_CODE.get(failure.code, "helper"), CheckState.FAIL, failure.reason)
