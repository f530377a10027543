"""Hosts reached over SSH, with asyncssh; the contract is ``base.Transport``.

- Host keys are always checked against known_hosts; there is no way around it.
- Login by public key only, from the agent and from key files; nothing is ever asked for.
- No terminal, no environment, no forwarding of agent, X11 or ports; nothing is sent but the command.
- Of ``~/.ssh/config`` a documented subset is honoured, see ``ssh_config``.
- Connection and login have one deadline, ``connect_timeout_s``. At most ``HANDSHAKES`` are under way at a
  time, apart from the run's concurrency, so that no sshd's MaxStartups is hit; one that takes long
  (a dead host) no longer counts after ``SLOT_S``. A server that hangs up at once is tried again.
- Hosts behind the same jump host share one connection to it.

asyncssh's own ``connect`` reads configuration and keys anew in a thread for each connection; here they are
read once per run and each connection gets a copy of the options, which is what makes a thousand hosts cheap.
"""

from __future__ import annotations

import asyncio
import copy
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncssh

from imgcache.errors import ErrorCode, HostError
from imgcache.transport import ssh_errors
from imgcache.transport.base import ScannedKey
from imgcache.transport.host_keys import (
    CERTIFICATE_ALGORITHMS,
    HOST_KEY_ALGORITHMS,
    KnownHosts,
    ShownKey,
    TrustedKeys,
)
from imgcache.transport.ssh_config import SshConfig
from imgcache.transport.ssh_connection import Client, Connection, SshSession, base_options, shut
from imgcache.transport.ssh_keys import KeyRing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from imgcache.model import Host
    from imgcache.transport.base import Session
    from imgcache.transport.ssh_config import SshSettings

#: Connections on their way through TCP, key exchange and login at the same time.
HANDSHAKES = 10
#: After this long, a handshake counts as waiting for a slow peer and lends its place.
SLOT_S = 2.0
FIRST_RETRY_S, LAST_RETRY_S = 0.25, 4.0
#: Channel open and command start, after login.
SESSION_TIMEOUT_S = 15.0
#: A jump host that could not be reached is not tried again for this long.
JUMP_PENALTY_S = 60.0

_NOTHING_KNOWN = TrustedKeys()
_SCANNED = (("ssh-ed25519",), HOST_KEY_ALGORITHMS[1:4], HOST_KEY_ALGORITHMS[4:])
_JumpKey = tuple[tuple[str, ...], tuple["Path", ...], tuple["Path", ...]]


@dataclass(slots=True)
class _Link:
    """A connection that is logged in."""

    client: Client
    connection: Connection


@dataclass(slots=True)
class _Jump:
    """One jump host's shared state."""

    name: str
    slots: asyncio.Semaphore
    """Handshakes with hosts behind it."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    link: _Link | None = None
    error: HostError | None = None
    failed_at: float = 0.0

    @property
    def alive(self) -> bool:
        return self.link is not None and not self.link.client.closed.done()


@dataclass(frozen=True, slots=True)
class _Target:
    """One server to connect to."""

    name: str
    settings: SshSettings
    trusted: TrustedKeys
    keys: list[asyncssh.SSHKeyPair]
    deadline_s: float
    jump: _Jump | None
    algorithms: Sequence[str]
    shared: bool = False


class SshTransport:
    """See ``Transport``. An async context manager; leaving it closes the jump hosts' connections."""

    def __init__(self, *, config_file: Path | None = None) -> None:
        self._config = SshConfig(config_file)
        self._known = KnownHosts()
        self._keys = KeyRing()
        self._options = base_options()
        self._slots = asyncio.Semaphore(HANDSHAKES)
        self._jumps: dict[_JumpKey, _Jump] = {}
        #: One for each jump host, however many keys hosts behind it are reached with.
        self._jump_slots: dict[tuple[str, ...], asyncio.Semaphore] = {}

    async def __aenter__(self) -> SshTransport:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for jump in self._jumps.values():
            if jump.link:
                await shut(jump.link.connection)
        await self._keys.close()

    @asynccontextmanager
    async def open(self, host: Host, command: str) -> AsyncIterator[Session]:
        """See ``Transport``."""
        settings = self._config.settings_for(host)
        deadline_s = host.settings.connect_timeout_s
        jump = await self._jump_for(settings, deadline_s)
        target = await self._target(host.name, settings, deadline_s, jump)
        link = await self._connect(target, Client)
        try:
            yield await _start(link, target, command)
        finally:
            await shut(link.connection)

    async def fetch_host_keys(self, host: Host, *, timeout_s: float) -> list[ScannedKey]:
        """Return the keys that the server offers, unverified, one per type; nobody is logged in.

        Raises:
            HostError: code ``connect`` or ``jump``.
        """
        settings = self._config.settings_for(host)
        jump = await self._jump_for(settings, timeout_s)
        groups = [CERTIFICATE_ALGORITHMS] if self._trusted(settings).authorities else []
        found: dict[str, ScannedKey] = {}
        refused: HostError | None = None
        for algorithms in (*groups, *_SCANNED):
            target = _Target(host.name, settings, _NOTHING_KNOWN, [], timeout_s, jump, algorithms)
            clients: list[Client] = []
            try:
                link = await self._connect(target, lambda seen=clients: _noted(seen))  # type: ignore[misc]
            except HostError as error:
                refused = error
            else:
                await shut(link.connection)
            if clients and clients[-1].shown:
                key = _scanned(clients[-1].shown)
                found.setdefault(key.public_key_text, key)
            elif refused and not (clients and clients[-1].version_seen):
                raise refused
        if not found:
            message = f"{settings.hostname} port {settings.port} offers no host key that we can use"
            raise HostError(ErrorCode.CONNECT, message)
        return list(found.values())

    def _trusted(self, settings: SshSettings) -> TrustedKeys:
        return self._known.lookup(
            settings.known_hosts,
            settings.hostname,
            settings.port,
            revoked_files=settings.revoked_host_keys,
        )

    async def _target(
        self,
        name: str,
        settings: SshSettings,
        deadline_s: float,
        jump: _Jump | None,
        *,
        shared: bool = False,
    ) -> _Target:
        keys = await self._keys.key_pairs(settings)
        trusted = self._trusted(settings)
        return _Target(
            name, settings, trusted, keys, deadline_s, jump, trusted.algorithms(), shared
        )

    async def _jump_for(self, settings: SshSettings, deadline_s: float) -> _Jump | None:
        if settings.proxy_jump is None:
            return None
        hops = tuple(hop.strip() for hop in settings.proxy_jump.split(","))
        return await self._jump(hops, settings, deadline_s)

    async def _jump(self, hops: tuple[str, ...], like: SshSettings, deadline_s: float) -> _Jump:
        """Return the last of these jump hosts, connected through those before it.

        Raises:
            HostError: code ``jump``; the same for all hosts behind it while it cannot be reached.
        """
        before = await self._jump(hops[:-1], like, deadline_s) if len(hops) > 1 else None
        slots = self._jump_slots.setdefault(hops, asyncio.Semaphore(HANDSHAKES))
        key = (hops, like.key_files, like.known_hosts)
        jump = self._jumps.setdefault(key, _Jump(hops[-1], slots))
        loop = asyncio.get_running_loop()
        async with jump.lock:
            if jump.alive:
                return jump
            if jump.error and loop.time() - jump.failed_at < JUMP_PENALTY_S:
                raise HostError(jump.error.code, jump.error.message, hint=jump.error.hint)
            try:
                settings = self._config.settings_for_jump(hops[-1], like)
                target = await self._target(
                    settings.hostname, settings, deadline_s, before, shared=True
                )
                jump.link = await self._connect(target, Client)
            except HostError as error:
                jump.error = ssh_errors.through_jump(hops[-1], error)
                jump.failed_at = loop.time()
                raise jump.error from error
        return jump

    async def _connect(self, target: _Target, make_client: Callable[[], Client]) -> _Link:
        """Connect and log in, again and again while the server hangs up at once."""
        slots = target.jump.slots if target.jump else self._slots
        loop = asyncio.get_running_loop()
        deadline: float | None = None
        for attempt in range(1, 1000):
            async with _slot(slots):
                # Waiting for a slot is not the host's fault: its time begins now.
                deadline = deadline or loop.time() + target.deadline_s
                client = make_client()
                try:
                    with ssh_errors.translated(
                        target.name, target.settings, client, target.trusted
                    ):
                        return await self._attempt(target, client, deadline)
                except ssh_errors.EarlyDropError:
                    delay = min(LAST_RETRY_S, FIRST_RETRY_S * 2 ** (attempt - 1))
                except HostError as error:
                    if target.jump and not target.jump.alive:
                        raise ssh_errors.through_jump(target.jump.name, error) from error
                    raise
            delay *= random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, no secret
            if loop.time() + delay >= deadline:
                raise ssh_errors.early_drop(target.settings, attempt)
            await asyncio.sleep(delay)
        raise AssertionError

    async def _attempt(self, target: _Target, client: Client, deadline: float) -> _Link:
        options = self._prepared(target, client)
        host, port = target.settings.hostname, target.settings.port

        def factory() -> Connection:
            return Connection(options, client, target.trusted, limited=not target.shared)

        try:
            async with asyncio.timeout_at(deadline):
                if target.jump and target.jump.link:
                    through = target.jump.link.connection
                    await through.create_connection(factory, host, port)  # type: ignore[arg-type]
                else:
                    await asyncio.get_running_loop().create_connection(factory, host, port)
                await client.login()
        except BaseException:
            await shut(client.connection)
            raise
        if not isinstance(client.connection, Connection):
            raise AssertionError
        return _Link(client, client.connection)

    def _prepared(self, target: _Target, client: Client) -> asyncssh.SSHClientConnectionOptions:
        options = copy.copy(self._options)
        options.host = target.settings.hostname
        options.port = target.settings.port
        options.username = target.settings.user
        options.client_keys = target.keys
        options.server_host_key_algs = target.algorithms
        options.protocol_factory = lambda: client
        return options


async def fetch_host_keys(host: Host, *, timeout_s: float) -> list[ScannedKey]:
    """See ``SshTransport.fetch_host_keys``; for a single host."""
    async with SshTransport() as transport:
        return await transport.fetch_host_keys(host, timeout_s=timeout_s)


def _noted(seen: list[Client]) -> Client:
    seen.append(Client())
    return seen[-1]


def _scanned(shown: ShownKey) -> ScannedKey:
    words = shown.key.export_public_key().decode().split()
    certificate = shown.certificate.public_data if shown.certificate else None
    return ScannedKey(words[0], " ".join(words[:2]), shown.key.get_fingerprint(), certificate)


@asynccontextmanager
async def _slot(slots: asyncio.Semaphore) -> AsyncIterator[None]:
    """Hold a handshake's place, for ``SLOT_S`` at most."""
    await slots.acquire()
    held = True

    def give_back() -> None:
        nonlocal held
        if held:
            held = False
            slots.release()

    timer = asyncio.get_running_loop().call_later(SLOT_S, give_back)
    try:
        yield
    finally:
        timer.cancel()
        give_back()


async def _start(link: _Link, target: _Target, command: str) -> SshSession:
    """Start ``command`` on a connection.

    Raises:
        HostError: code ``session``, ``hang``, ``jump`` or ``lost``.
    """
    jump = (target.jump.name, target.jump.link.client) if target.jump and target.jump.link else None
    session = SshSession(link.client, link.connection, jump)
    try:
        async with asyncio.timeout(SESSION_TIMEOUT_S):
            await link.connection.create_session(lambda: session, command)
    except TimeoutError:
        message = f"logged in, but no session was opened within {SESSION_TIMEOUT_S:.0f} s"
        raise HostError(ErrorCode.HANG, message, hint="log in by hand and see what hangs") from None
    except (asyncssh.Error, OSError, ValueError) as exc:
        if jump and jump[1].closed.done():
            raise ssh_errors.contact_lost(exc, jump[0]) from None
        raise ssh_errors.session_refused(target.settings, str(exc)) from None
    return session
