"""An SSH server inside the test's own event loop: a real shell, a real python3, streams copied by hand.

For the many small tests; ``openssh`` runs the real sshd. Signals to the remote program arrive as signals.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncssh

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


#: From the end of a connection to the end of the programs that it ran.
GRACE_S = 2.0


@dataclass
class SshServer:
    """What a running server is, and what it saw."""

    folder: Path
    port: int = 0
    shell: tuple[str, ...] = ("/bin/sh", "-c")
    """The login shell, with its option for a command."""
    admitted: bool = True
    """Whether the client's key is authorized."""
    sessions: bool = True
    """Whether sessions may be opened."""
    forward: bool = False
    """Whether it serves as a jump host."""
    host_keys: tuple[str, ...] = ("ssh-ed25519",)
    window: int = 2 * 1024 * 1024
    """Bytes that a client may send to a program before it has been read."""
    reads: bool = True
    """Whether anything reads what a client sends to a program; else none is started."""
    commands: list[str] = field(default_factory=list)
    logins: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    terminals: list[str | None] = field(default_factory=list)
    connections: list[asyncssh.SSHServerConnection] = field(default_factory=list)
    running: set[asyncio.Task[Any]] = field(default_factory=set)
    """The tasks that serve programs."""

    @property
    def client_key(self) -> Path:
        """A key to log in with."""
        return self.folder / "client_key"

    @property
    def known_hosts(self) -> Path:
        """A known_hosts file with this server's keys."""
        return self.folder / "known_hosts"

    def host_settings(self, **more: Any) -> dict[str, Any]:
        """Return ``HostSettings`` fields that reach this server."""
        return {
            "address": "127.0.0.1",
            "port": self.port,
            "user": "nova",
            "ssh_key": self.client_key,
            "known_hosts": self.known_hosts,
            "connect_timeout_s": 10.0,
        } | more


class _Handler(asyncssh.SSHServer):
    def __init__(self, server: SshServer) -> None:
        self._server = server

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._server.connections.append(conn)

    def begin_auth(self, username: str) -> bool:
        del username
        self._server.logins += 1
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        del username
        own = asyncssh.read_private_key(self._server.client_key)
        return self._server.admitted and key.public_data == own.public_data

    def connection_requested(self, *_address: object) -> bool:
        return self._server.forward


@asynccontextmanager
async def ssh_server(folder: Path, **settings: Any) -> AsyncIterator[SshServer]:
    """Run a server on a free loopback port."""
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - a test, nothing waits
    server = SshServer(folder, **settings)
    client_key = asyncssh.generate_private_key("ssh-ed25519")
    client_key.write_private_key(server.client_key)
    server.client_key.chmod(0o600)
    keys = [asyncssh.generate_private_key(name) for name in server.host_keys]

    async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
        task = asyncio.current_task()
        assert task
        server.running.add(task)
        task.add_done_callback(server.running.discard)
        await _run(server, process)

    listener = await asyncssh.listen(
        "127.0.0.1",
        server.port,
        server_factory=lambda: _Handler(server),
        server_host_keys=keys,
        process_factory=run if server.sessions else None,
        encoding=None,
        window=server.window,
    )
    server.port = listener.get_port()
    lines = [
        f"[127.0.0.1]:{server.port} {key.export_public_key().decode().strip()}" for key in keys
    ]
    server.known_hosts.write_text("\n".join(lines) + "\n")
    try:
        yield server
    finally:
        listener.close()
        for connection in server.connections:
            connection.abort()
        await listener.wait_closed()
        for connection in server.connections:
            await connection.wait_closed()
        if server.running:
            await asyncio.wait(server.running)
        await asyncio.sleep(0)


async def _run(server: SshServer, process: asyncssh.SSHServerProcess[bytes]) -> None:
    command = process.command or ""
    server.commands.append(command)
    server.environment.update(process.env)
    server.terminals.append(process.term_type)
    if not server.reads:
        await process.channel.wait_closed()
        return
    child = await asyncio.create_subprocess_exec(
        *server.shell,
        command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={"PATH": os.environ["PATH"], "HOME": str(server.folder)},
    )
    assert child.stdin
    assert child.stdout
    assert child.stderr
    feeding = asyncio.create_task(_feed(process, child))
    guarding = asyncio.create_task(_guard(process, child))
    copying = [
        asyncio.create_task(_copy(child.stdout, process.stdout)),
        asyncio.create_task(_copy(child.stderr, process.stderr)),
    ]
    try:
        await asyncio.gather(*copying)
        status = await child.wait()
        if status < 0:
            process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
        else:
            process.exit(status)
    except (asyncssh.Error, OSError):
        # The client is gone; a real sshd leaves the program to notice by itself.
        await _guard(process, child)
    finally:
        _kill(child)
        await _reap(child, [feeding, guarding, *copying])


async def _reap(child: asyncio.subprocess.Process, tasks: list[asyncio.Task[None]]) -> None:
    """Let nothing of the child outlive the event loop."""
    assert child.stdout
    assert child.stderr
    for task in tasks:
        task.cancel()
    # One who still copies would make the reads below fail, and the child's pipes stay open.
    await asyncio.wait(tasks)
    # asyncio tells the end of a child only after its pipes have ended.
    await asyncio.gather(child.stdout.read(), child.stderr.read())
    await child.wait()


async def _guard(
    process: asyncssh.SSHServerProcess[bytes], child: asyncio.subprocess.Process
) -> None:
    """Leave the program a moment to end by itself once the client is gone, then kill it."""
    await process.channel.wait_closed()
    with suppress(TimeoutError):
        await asyncio.wait_for(child.wait(), GRACE_S)
    _kill(child)


def _kill(child: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


async def _feed(
    process: asyncssh.SSHServerProcess[bytes], child: asyncio.subprocess.Process
) -> None:
    assert child.stdin
    with suppress(ConnectionError, asyncssh.Error):
        while True:
            try:
                data = await process.stdin.read(65536)
            except asyncssh.SignalReceived as received:
                os.killpg(child.pid, getattr(signal, f"SIG{received.signal}"))
                continue
            except asyncssh.BreakReceived:
                os.killpg(child.pid, signal.SIGINT)
                continue
            if not data:
                break
            child.stdin.write(data)
            await child.stdin.drain()
    child.stdin.close()


async def _copy(source: asyncio.StreamReader, target: Any) -> None:
    while data := await source.read(65536):
        target.write(data)
        await target.drain()


@asynccontextmanager
async def raw_server(first: bytes = b"", *, close: bool = False) -> AsyncIterator[int]:
    """Listen on a free port; send ``first`` to whoever connects, then hang up or stay silent."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(first)
        with suppress(ConnectionError):
            await writer.drain()
            if not close:
                while await reader.read(65536):
                    pass
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for writer in writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        await listener.wait_closed()
