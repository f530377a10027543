"""One SSH connection, made with as little work as possible, and one program run over it."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import asyncssh

from imgcache.transport.host_keys import KeyState, ShownKey
from imgcache.transport.output import Output
from imgcache.transport.ssh_errors import contact_lost
from imgcache.transport.stderr_tail import StderrTail
from imgcache.transport.wire import protocol_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgcache.errors import HostError
    from imgcache.transport.host_keys import Judgement, TrustedKeys

#: What a host may send before we take it.
WINDOW_BYTES = 256 * 1024
#: What one host may send over its connection in all, of whatever kind: this much at once (the longest
#: answers have 32 MiB), and this much a second.
FLOOD_BURST_BYTES, FLOOD_BYTES_PER_S = 40 * 1024 * 1024, 1024 * 1024
_CLOSE_TIMEOUT_S = 3.0
#: asyncssh's own, AES-GCM first: it costs a third of ChaCha20 per packet. Without SHA-1 and short tags.
_CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
    "aes192-ctr",
    "aes128-ctr",
)
_MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)


class Client(asyncssh.SSHClient):
    """What one connection has seen so far, for judging what went wrong with it."""

    def __init__(self) -> None:
        self.connection: asyncssh.SSHClientConnection | None = None
        self.shown: ShownKey | None = None
        self.judgement: Judgement | None = None
        loop = asyncio.get_running_loop()
        self.logged_in: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[Exception | None] = loop.create_future()

    @property
    def connected(self) -> bool:
        """Whether there is a TCP connection."""
        return self.connection is not None

    @property
    def version_seen(self) -> bool:
        """Whether the server said that it speaks SSH."""
        return bool(self.connection and self.connection.get_extra_info("server_version"))

    @property
    def key_accepted(self) -> bool:
        """Whether the host key was found good, so that the login began."""
        return bool(self.connection and self.connection.get_server_host_key())

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """See ``asyncssh.SSHClient``."""
        self.connection = conn

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncssh.SSHClient``."""
        if not self.closed.done():
            self.closed.set_result(exc)
        if not self.logged_in.done():
            self.logged_in.set_exception(exc or asyncssh.ConnectionLost("connection closed"))
            # Marks it as seen: nobody may be waiting, when connecting was cancelled.
            self.logged_in.exception()  # noqa: LOG004 - a future's, not a logger's

    def auth_completed(self) -> None:
        """See ``asyncssh.SSHClient``."""
        if not self.logged_in.done():
            self.logged_in.set_result(None)

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        """Accept the key that was found good by ``Connection.validate_server_host_key``, and no other."""
        del host, addr, port
        if self.shown is None or self.judgement is None:
            return False
        return self.judgement.state is KeyState.KNOWN and key == self.shown.key

    async def login(self) -> None:
        """Wait until logged in; raises what ended the connection before."""
        await self.logged_in


class Connection(asyncssh.SSHClientConnection):
    """An SSH connection that can wait for the network, and ends when the host floods it."""

    def __init__(
        self,
        options: asyncssh.SSHClientConnectionOptions,
        client: Client,
        trusted: TrustedKeys,
        *,
        limited: bool = True,
    ) -> None:
        self._client = client
        self._trusted = trusted
        self._now: Callable[[], float] = asyncio.get_running_loop().time
        self._limited = limited
        self._received = 0
        self._began_at = self._now()
        self.flooded = False
        #: How often the network took what it had refused before.
        self.resumed = 0
        self._wire: object = None
        self.drained = asyncio.Event()
        self.drained.set()
        super().__init__(asyncio.get_running_loop(), options)

    def validate_server_host_key(self, key_data: bytes) -> asyncssh.SSHKey:
        """Judge what the server shows; asyncssh then asks the client about the plain key in it.

        asyncssh's own judgement knows neither a plain key inside a certificate nor revoked certificates.

        Raises:
            HostKeyNotVerifiable: it is not trusted.
        """
        try:
            shown = ShownKey.decode(key_data)
        except asyncssh.KeyImportError as exc:
            raise asyncssh.HostKeyNotVerifiable(str(exc)) from None
        self._client.shown = shown
        self._client.judgement = self._trusted.judge(shown)
        return super().validate_server_host_key(shown.key.public_data)

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        """See ``asyncio.Protocol``; counts, so that no kind of SSH message can flood us."""
        if self._limited:
            self._received += len(data)
            allowed = FLOOD_BURST_BYTES + FLOOD_BYTES_PER_S * (self._now() - self._began_at)
            if self._received > allowed:
                self.flooded = True
                self.abort()
                return
        super().data_received(data, datatype)

    def pause_writing(self) -> None:
        """See ``asyncio.Protocol``: the network takes no more for now."""
        self.drained.clear()

    def resume_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        self.resumed += 1
        self.drained.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``; behind a jump host the transport is a channel of that connection."""
        self._wire = transport
        super().connection_made(transport)

    def unsent(self) -> int:
        """Return the bytes that wait here and in the kernel for the network; or here, for a jump host."""
        if isinstance(self._wire, asyncssh.SSHTCPChannel):
            return self._wire.get_write_buffer_size()
        if isinstance(self._wire, asyncio.WriteTransport):
            waiting = self._wire.get_write_buffer_size()
            return waiting + _unacknowledged(self._wire.get_extra_info("socket"))
        return 0

    def connection_lost(self, exc: Exception | None = None) -> None:
        """See ``asyncio.Protocol``."""
        self.drained.set()
        super().connection_lost(exc)


def _unacknowledged(sock: Any) -> int:
    """Return the bytes that the peer's kernel has still to take, 0 where that cannot be known.

    Source: tcp(7), ``SIOCOUTQ``, which has the number of ``TIOCOUTQ``.
    """
    if not hasattr(sock, "fileno") or sock.family == socket.AF_UNIX:
        return 0
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    except OSError:
        return 0


async def shut(connection: asyncssh.SSHClientConnection | None) -> None:
    """Close a connection, whatever the peer does: within seconds, also when cancelled."""
    if connection is None:
        return
    connection.close()
    connection.abort()
    with suppress(TimeoutError):
        await asyncio.wait_for(connection.wait_closed(), _CLOSE_TIMEOUT_S)
    # The transport closes its socket in the turn of the loop after the one that it is told in.
    await asyncio.sleep(0)


class SshSession(asyncssh.SSHClientSession[bytes]):
    """See ``Session``. One program on a host."""

    def __init__(
        self, client: Client, connection: Connection, jump: tuple[str, Client] | None
    ) -> None:
        self._client = client
        self._connection = connection
        self._jump = jump
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._output = Output()
        self._eof = False
        self._stderr = StderrTail()
        self._status: int | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._ended = asyncio.Event()
        self._lost: Exception | None = None

    # What asyncssh tells us.

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """See ``asyncssh.SSHClientSession``."""
        self._channel = chan
        self._output.pause = chan.pause_reading
        self._output.resume = chan.resume_reading

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """See ``asyncssh.SSHClientSession``."""
        if datatype is not None:
            self._stderr.add(data)
            return
        self._output.add(data)

    def eof_received(self) -> bool:
        """See ``asyncssh.SSHClientSession``."""
        self._eof = True
        self._output.wake()
        return True

    def exit_status_received(self, status: int) -> None:
        """See ``asyncssh.SSHClientSession``."""
        self._status = status

    def pause_writing(self) -> None:
        """See ``asyncssh.SSHClientSession``."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See ``asyncssh.SSHClientSession``."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncssh.SSHClientSession``."""
        self._lost = exc
        self._ended.set()
        self._output.wake()
        self._writable.set()

    # What the rest of imgcache uses.

    async def write(self, data: bytes) -> None:
        """See ``Session``."""
        if self._channel is None or self._ended.is_set():
            raise self._loss()
        try:
            self._channel.write(data)
        except (BrokenPipeError, OSError) as exc:
            raise contact_lost(exc, self._broken_jump()) from None
        await self._writable.wait()
        await self._connection.drained.wait()
        if (jump := self._jump_connection()) is not None:
            # Else all that hosts behind it are sent would wait in our memory.
            await jump.drained.wait()
        if self._ended.is_set():
            raise self._loss()

    def unsent(self) -> int:
        """See ``Session``. What others send through a jump host counts only while we wait for that."""
        waiting = self._channel.get_write_buffer_size() if self._channel else 0
        jump = self._jump_connection()
        if jump is None or not (self._writable.is_set() and self._connection.drained.is_set()):
            return waiting + self._connection.unsent()
        return waiting - jump.resumed

    def _jump_connection(self) -> Connection | None:
        connection = self._jump[1].connection if self._jump else None
        return connection if isinstance(connection, Connection) else None

    async def read(self, max_bytes: int) -> bytes:
        """See ``Session``."""
        return await self._output.take(max_bytes, self._at_end)

    def _at_end(self) -> bool:
        if self._connection.flooded:
            raise self._loss()
        cut_off = self._lost or (self._client.closed.done() and not self._eof)
        if self._ended.is_set() and cut_off:
            raise self._loss()
        return self._eof or self._ended.is_set()

    def stderr_tail(self) -> str:
        """See ``Session``."""
        return self._stderr.text()

    async def exit_status(self) -> int | None:
        """See ``Session``."""
        await self._ended.wait()
        return self._status

    async def close_stdin(self) -> None:
        """See ``Session``."""
        if self._channel and not self._ended.is_set():
            with suppress(OSError):
                self._channel.write_eof()

    def _loss(self) -> HostError:
        if self._connection.flooded:
            return protocol_error("the host floods its connection")
        return contact_lost(self._lost, self._broken_jump())

    def _broken_jump(self) -> str | None:
        if self._jump and self._jump[1].closed.done():
            return self._jump[0]
        return None


def base_options(**settings: Any) -> asyncssh.SSHClientConnectionOptions:
    """Return connection options that take nothing from the user's files or environment."""
    return asyncssh.SSHClientConnectionOptions(
        config=None,
        known_hosts=((), (), ()),
        client_keys=None,
        agent_path=None,
        username="",
        preferred_auth=("publickey",),
        password_auth=False,
        kbdint_auth=False,
        host_based_auth=False,
        gss_host=None,
        gss_kex=False,
        gss_auth=False,
        agent_forwarding=False,
        x11_forwarding=False,
        x509_trusted_certs=None,
        x509_trusted_cert_paths=(),
        send_env=None,
        env=None,
        request_pty=False,
        encoding=None,
        window=WINDOW_BYTES,
        encryption_algs=_CIPHERS,
        mac_algs=_MACS,
        compression_algs=("none",),
        login_timeout=0,
        keepalive_interval=15,
        keepalive_count_max=3,
        **settings,
    )
