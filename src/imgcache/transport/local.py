"""The controller's own machine as a host: the same command, as a child process."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from imgcache.errors import ContactLostError, ErrorCode, HostError
from imgcache.transport.stderr_tail import StderrTail

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgcache.model import Host
    from imgcache.transport.base import Session

_BUFFER_BYTES = 128 * 1024
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
            process = await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=_BUFFER_BYTES,
                start_new_session=True,
                env={name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ},
            )
        except OSError as exc:
            message = f"no process can be started here: {exc.strerror}"
            raise HostError(ErrorCode.SESSION, message, hint="lower --concurrency") from exc
        session = _LocalSession(process)
        try:
            yield session
        finally:
            await session.end()


class _LocalSession:
    """See ``Session``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._stderr = StderrTail()
        self._drain = asyncio.create_task(self._keep_stderr())

    async def write(self, data: bytes) -> None:
        """See ``Session``."""
        stdin = self._process.stdin
        if stdin is None:
            raise AssertionError
        try:
            stdin.write(data)
            await stdin.drain()
        except (ConnectionError, RuntimeError) as exc:
            message = "the helper's process takes no more input"
            raise ContactLostError(ErrorCode.LOST, message) from exc

    async def read(self, max_bytes: int) -> bytes:
        """See ``Session``."""
        if self._process.stdout is None:
            raise AssertionError
        return await self._process.stdout.read(max_bytes)

    def stderr_tail(self) -> str:
        """See ``Session``."""
        return self._stderr.text()

    async def exit_status(self) -> int | None:
        """See ``Session``."""
        status = await self._process.wait()
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._drain), 1)
        return status if status >= 0 else None

    async def close_stdin(self) -> None:
        """See ``Session``."""
        if self._process.stdin and not self._process.stdin.is_closing():
            self._process.stdin.close()

    async def end(self) -> None:
        """End the process and all that it started, within seconds."""
        try:
            await self.close_stdin()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), GRACE_S)
        finally:
            self._signal(signal.SIGKILL)
            self._drain.cancel()
            await asyncio.wait([self._drain])
            await self._process.wait()
            # The pipes are closed in the turn of the loop after the one that sees the end.
            await asyncio.sleep(0)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def _keep_stderr(self) -> None:
        if self._process.stderr is None:
            raise AssertionError
        while data := await self._process.stderr.read(65536):
            self._stderr.add(data)
