"""Trust: look at the hosts' keys, and add those that are new to known_hosts."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from imgcache.errors import ErrorCode, ExitCode, HostError, UnsafePlanError
from imgcache.operations.parallelism import fit_concurrency
from imgcache.operations.selection import select_hosts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from imgcache.model import Host, Inventory
    from imgcache.operations.selection import Selection
    from imgcache.transport.base import ResolvedAddress, ScannedKey
    from imgcache.transport.host_keys import KnownHosts
    from imgcache.transport.ssh import SshTransport
    from imgcache.transport.ssh_config import SshConfig


#: Changed hosts that are named in the refusal; the result lists all.
_NAMED = 10
_REVOKED = "a key marked as revoked"


class TrustState(StrEnum):
    """How it stands with a host's keys."""

    NEW = "new"
    KNOWN = "known"
    CHANGED = "changed"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class TrustRequest:
    """What the operator asked for."""

    selection: Selection
    concurrency: int = 10


@dataclass(frozen=True, slots=True)
class HostTrust:
    """One host and the keys that it showed."""

    host: Host
    state: TrustState
    keys: tuple[ScannedKey, ...] = ()
    """Those that it showed; of a known host only the known ones."""
    known_fingerprints: tuple[str, ...] = ()
    """Of the keys in known_hosts, where they differ."""
    address: ResolvedAddress | None = None
    """None when the host has no SSH address."""
    added: bool = False
    code: ErrorCode | None = None
    reason: str | None = None

    @property
    def known_hosts(self) -> Path | None:
        """The file in which a new key of this host belongs."""
        files = self.address.known_hosts_files if self.address else ()
        return files[0] if files else None


@dataclass(frozen=True, slots=True)
class TrustPlan:
    """What was seen; made by reading only."""

    started_at: datetime
    hosts: tuple[HostTrust, ...]
    """In the order of the selection."""

    def in_state(self, state: TrustState) -> tuple[HostTrust, ...]:
        """Return the hosts in this state."""
        return tuple(item for item in self.hosts if item.state is state)

    def totals(self) -> dict[str, int]:
        """Return state -> number of hosts, every state present."""
        counts = Counter(item.state for item in self.hosts)
        return {state.value: counts[state] for state in TrustState}

    def exit_code(self) -> ExitCode:
        """Return 3 when a key has changed, 1 when a host could not be asked, else 0."""
        if self.in_state(TrustState.CHANGED):
            return ExitCode.REFUSED
        return ExitCode.ITEMS_FAILED if self.in_state(TrustState.ERROR) else ExitCode.OK


def plan_trust(request: TrustRequest, inventory: Inventory) -> TrustPlan:
    """Ask the selected hosts for their keys and compare with what is known; blocks, reads only.

    Raises:
        UsageError: the selection makes no sense.
        ConfigError: ``~/.ssh/config`` cannot be understood.
    """
    hosts = select_hosts(inventory, request.selection)
    concurrency, _ = fit_concurrency(min(request.concurrency, len(hosts)))
    return asyncio.run(_look_at(hosts, concurrency))


async def _look_at(hosts: Sequence[Host], concurrency: int) -> TrustPlan:
    from imgcache.transport.host_keys import KnownHosts  # noqa: PLC0415 - loads asyncssh
    from imgcache.transport.ssh import SshTransport  # noqa: PLC0415
    from imgcache.transport.ssh_config import SshConfig  # noqa: PLC0415

    started_at = datetime.now(UTC)
    places = asyncio.Semaphore(concurrency)
    config, known = SshConfig(), KnownHosts()

    async def look(host: Host) -> HostTrust:
        if host.settings.transport != "ssh" or host.settings.endpoint:
            return HostTrust(host, TrustState.SKIPPED, reason="reached without SSH")
        try:
            async with places:
                return await _host_trust(host, ssh, config, known)
        except HostError as error:
            reason = f"{error.message} ({error.hint})" if error.hint else error.message
            return HostTrust(host, TrustState.ERROR, code=error.code, reason=reason)

    async with SshTransport() as ssh, asyncio.TaskGroup() as group:
        tasks = [group.create_task(look(host)) for host in hosts]
    return TrustPlan(started_at, tuple(task.result() for task in tasks))


async def _host_trust(
    host: Host, ssh: SshTransport, config: SshConfig, known: KnownHosts
) -> HostTrust:
    from imgcache.transport.host_keys import KeyState  # noqa: PLC0415
    from imgcache.transport.known_hosts import judge_keys, known_hosts_line  # noqa: PLC0415
    from imgcache.transport.ssh_config import resolve  # noqa: PLC0415

    address = resolve(host, config)
    if not address.known_hosts_files:
        message = "no known_hosts file is set for this host, so no key can be added"
        raise HostError(ErrorCode.HOSTKEY_UNKNOWN, message)
    keys = tuple(await ssh.fetch_host_keys(host, timeout_s=host.settings.connect_timeout_s))
    if not keys:
        message = f"{address.known_hosts_name} showed no host key"
        raise HostError(ErrorCode.CONNECT, message)
    verdict = judge_keys(known, address, keys)
    if verdict.state is KeyState.NEW:
        for key in keys:
            known_hosts_line(address.known_hosts_name, key)  # now, since it may be refused
        return HostTrust(host, TrustState.NEW, keys, address=address)
    if verdict.state is KeyState.KNOWN:
        on_record = tuple(key for key in keys if key.fingerprint in verdict.known_fingerprints)
        certified = tuple(key for key in keys if key.certificate)
        return HostTrust(host, TrustState.KNOWN, on_record or certified, address=address)
    revoked = verdict.state is KeyState.REVOKED
    reason = _REVOKED if revoked else "another key than the known one"
    return HostTrust(
        host,
        TrustState.CHANGED,
        keys,
        verdict.known_fingerprints,
        address,
        code=ErrorCode.HOSTKEY_CHANGED,
        reason=reason,
    )


def check_safe(plan: TrustPlan) -> None:
    """Refuse a plan in which a host shows another key than the known one.

    Then nothing is added for any host: somebody between us and one of them may be between us and all.

    Raises:
        UnsafePlanError: names every such host, with both fingerprints and the file.
    """
    changed = plan.in_state(TrustState.CHANGED)
    if not changed:
        return
    noun = "THE HOST KEY HAS CHANGED" if len(changed) == 1 else "HOST KEYS HAVE CHANGED"
    revoked = [item for item in changed if item.reason == _REVOKED]
    if revoked:
        noun = "A HOST SHOWS A REVOKED KEY"
    details = "; ".join(_change(item) for item in changed[:_NAMED])
    if len(changed) > _NAMED:
        details += f"; and {len(changed) - _NAMED} more"
    hint = (
        "somebody may be between you and the host: ask who runs it for its new fingerprint. "
        "Only when that is the one shown, remove the old key with ssh-keygen -R and run this again; "
        "or leave the host out with --exclude"
    )
    if revoked:
        hint = (
            "the host needs a new key, or somebody else is using the old one: ask who revoked it, "
            "and leave the host out with --exclude until then"
        )
    message = f"{noun}, no key was added for any host: {details}"
    raise UnsafePlanError(message, hint=hint)


def _change(item: HostTrust) -> str:
    name = item.address.known_hosts_name if item.address else item.host.name
    shown = ", ".join(f"{key.algorithm} {key.fingerprint}" for key in item.keys)
    known = ", ".join(item.known_fingerprints) or "no other"
    return f"{item.host.name} ({name}) shows {shown}, {item.reason}; known in {item.known_hosts}: {known}"


def execute_trust(plan: TrustPlan) -> TrustPlan:
    """Add the keys of all new hosts to their known_hosts files, and return the plan with that noted.

    Raises:
        UnsafePlanError: see ``check_safe``; or a file holds another key by now.
        ConfigError: a file cannot be written. Keys for the files before it are in place.
    """
    from imgcache.transport.known_hosts import NewKeys, append_keys  # noqa: PLC0415

    check_safe(plan)
    by_file: dict[Path, list[NewKeys]] = {}
    for item in plan.in_state(TrustState.NEW):
        if item.address and item.known_hosts:
            by_file.setdefault(item.known_hosts, []).append(NewKeys(item.address, item.keys))
    for path, hosts in by_file.items():
        append_keys(path, hosts)
    return replace(plan, hosts=tuple(_noted(item) for item in plan.hosts))


def _noted(item: HostTrust) -> HostTrust:
    return replace(item, added=True) if item.state is TrustState.NEW and item.known_hosts else item
