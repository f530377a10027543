"""Check: would precache work on these hosts? Reads only."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from imgcache.drivers.base import UnsupportedError
from imgcache.drivers.registry import DRIVERS
from imgcache.errors import ErrorCode, HostError
from imgcache.events import RunEnded, RunStarted
from imgcache.operations.engine import Engine, Limits
from imgcache.operations.interrupt import interrupt_on_signals
from imgcache.operations.parallelism import fit_concurrency
from imgcache.operations.selection import select_hosts
from imgcache.operations.sources import NoSources
from imgcache.plan import Check, CheckReport, CheckState
from imgcache.transport.dispatch import open_transport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import Host, Image, Inventory, ServiceAccess
    from imgcache.operations.host_run import HostRun
    from imgcache.operations.selection import Selection

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


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """What the operator asked for."""

    selection: Selection
    concurrency: int = 10
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
    access = service.access_without_token() if service else None
    concurrency, _ = fit_concurrency(min(request.concurrency, len(hosts)))
    return asyncio.run(_execute(hosts, Limits(concurrency, 0, request.timeout_s), access, sink))


async def _execute(
    hosts: Sequence[Host], limits: Limits, access: ServiceAccess | None, sink: EventSink
) -> CheckReport:
    started_at = datetime.now(UTC)
    run_id = f"{started_at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    found: dict[str, list[Check]] = {host.name: [] for host in hosts}

    async def check_host(context: HostRun, _: Sequence[Image]) -> None:
        try:
            async with asyncio.timeout(limits.timeout_s):
                found[context.host.name] = await _check_host(context, access)
        except TimeoutError:
            host = context.host
            detail = f"no answer within {limits.timeout_s:.0f} s"
            found[host.name] = [
                Check(host.name, host.aggregate, host.cell, "helper", CheckState.FAIL, detail)
            ]
        checks = found[context.host.name]
        context.found_wrong = any(check.state is CheckState.FAIL for check in checks)

    sink.emit(RunStarted(run_id, "check", len(hosts), 0, 0, limits.concurrency))
    with interrupt_on_signals() as interrupt:
        async with open_transport() as transport:
            engine = Engine(
                run_id=run_id,
                transport=transport,
                sources=NoSources(),
                # Longer than a check's own deadline, which gives a row instead of nothing.
                limits=replace(limits, timeout_s=limits.timeout_s * 2),
                sink=sink,
                interrupt=interrupt,
            )
            await engine.run(hosts, (), check_host)
    sink.emit(RunEnded(interrupted=interrupt.is_set()))
    return CheckReport(
        run_id=run_id,
        command="check",
        started_at=started_at,
        finished_at=datetime.now(UTC),
        checks=tuple(check for checks in found.values() for check in checks),
        interrupted=interrupt.signal_number,
    )


async def _check_host(context: HostRun, access: ServiceAccess | None) -> list[Check]:
    host = context.host
    try:
        rows = await DRIVERS[host.settings.driver].check(context, access)
    except UnsupportedError as error:
        rows = [("driver", CheckState.WARN, error.message)]
    except HostError as error:
        detail = f"{error.message}: {error.hint}" if error.hint else error.message
        rows = [(_CHECK_BY_CODE.get(error.code, "helper"), CheckState.FAIL, detail)]
    else:
        rows = [("login", CheckState.OK, "logged in, helper started"), *rows]
    return [Check(host.name, host.aggregate, host.cell, *row) for row in rows]
