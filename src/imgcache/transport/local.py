"""The controller's own machine as a host: the same command, as a child process."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, cast

from imgcache.errors import ContactLostError, ErrorCode, HostError
from imgcache.transport.output import Output
from imgcache.transport.stderr_tail import StderrTail

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgcache.model import Host
    from imgcache.transport.base import Session

#: From end of file on its standard input to the signals.
GRACE_S = 2.0
#: What a login would set; nothing else of our environment reaches the child, above all no OS_PASSWORD.
_KEPT_ENVIRONMENT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ")


class LocalTransport:
    """See ``Transport``."""

    @asynccontextmanager
    async def open(self, host: Host, command: str) -> AsyncIterator[Session]:
        """See ``Transport``; the settings for SSH mean nothing here."""
        del host
        try:
            _, session = await asyncio.get_running_loop().subprocess_exec(
                _LocalSession,
                "/bin/sh",
                "-c",
                command,
                start_new_session=True,
                env={name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ},
            )
        except OSError as exc:
            message = f"no process can be started here: {exc.strerror}"
            raise HostError(ErrorCode.SESSION, message, hint="lower --concurrency") from exc
        try:
            yield session
        finally:
            await session.end()


class _LocalSession(asyncio.SubprocessProtocol):
    """See ``Session``."""

    def __init__(self) -> None:
        self._output = Output()
        self._stderr = StderrTail()
        self._eof = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._exited = asyncio.Event()
        self._gone = asyncio.Event()

    # What asyncio tells us.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.SubprocessProtocol``."""
        self._process = cast("asyncio.SubprocessTransport", transport)
        stdout = self._process.get_pipe_transport(1)
        if isinstance(stdout, asyncio.ReadTransport):
            self._output.pause = stdout.pause_reading
            self._output.resume = stdout.resume_reading

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        """See ``asyncio.SubprocessProtocol``."""
        if isinstance(data, bytes):
            (self._output if fd == 1 else self._stderr).add(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """See ``asyncio.SubprocessProtocol``."""
        del exc
        if fd == 1:
            self._eof = True
            self._output.wake()
        elif fd == 0:
            self._writable.set()

    def process_exited(self) -> None:
        """See ``asyncio.SubprocessProtocol``."""
        self._exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.SubprocessProtocol``."""
        del exc
        self._gone.set()

    def pause_writing(self) -> None:
        """See ``asyncio.SubprocessProtocol``."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See ``asyncio.SubprocessProtocol``."""
        self._writable.set()

    # What the rest of imgcache uses.

    async def write(self, data: bytes) -> None:
        """See ``Session``."""
        stdin = self._stdin()
        if not stdin.is_closing():
            stdin.write(data)
            await self._writable.wait()
        if stdin.is_closing():
            message = "the helper's process takes no more input"
            raise ContactLostError(ErrorCode.LOST, message)

    def unsent(self) -> int:
        """See ``Session``."""
        return self._stdin().get_write_buffer_size()

    async def read(self, max_bytes: int) -> bytes:
        """See ``Session``."""
        return await self._output.take(max_bytes, lambda: self._eof)

    def stderr_tail(self) -> str:
        """See ``Session``."""
        return self._stderr.text()

    async def exit_status(self) -> int | None:
        """See ``Session``."""
        await self._exited.wait()
        with suppress(TimeoutError):
            # For the rest of standard error, which a child of the helper may hold open.
            await asyncio.wait_for(self._gone.wait(), 0.5)
        status = self._process.get_returncode()
        return status if status is not None and status >= 0 else None

    async def close_stdin(self) -> None:
        """See ``Session``."""
        self._stdin().close()

    async def end(self) -> None:
        """End the process and all that it started, within seconds."""
        try:
            self._stdin().close()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._exited.wait(), GRACE_S)
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.get_pid(), signal.SIGKILL)
            self._process.close()
            await self._gone.wait()

    def _stdin(self) -> asyncio.WriteTransport:
        return cast("asyncio.WriteTransport", self._process.get_pipe_transport(0))
