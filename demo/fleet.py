"""An embedded fleet: SSH hosts that live in one process, each with folders and a host key of its own.

Run as ``python fleet.py FOLDER HOST...``; every HOST has a folder ``FOLDER/HOST``. It prints one JSON
line, ``{"HOST": PORT, ...}``, when all of them answer on the loopback address, and ends when its
standard input does, so that it never outlives whoever started it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import asyncssh

BLOCK_BYTES = 64 * 1024


async def serve(folder: Path, names: list[str]) -> None:
    """Serve the hosts until standard input ends."""
    async with AsyncExitStack() as stack:
        ports = {}
        for name in names:
            listener = await stack.enter_async_context(_host(folder, name))
            ports[name] = listener.get_port()
        print(json.dumps(ports), flush=True)
        await asyncio.to_thread(sys.stdin.buffer.read)


def _host(folder: Path, name: str) -> Any:
    home = folder / name

    async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
        await _run_command(process, home)

    return asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[home / "ssh_host_ed25519_key"],
        authorized_client_keys=str(folder / "authorized_keys"),
        process_factory=run,
        encoding=None,
        password_auth=False,
        kbdint_auth=False,
    )


async def _run_command(process: asyncssh.SSHServerProcess[bytes], home: Path) -> None:
    """Run what the client asks for with a real shell, as sshd would; end it with the connection."""
    child = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        process.command or "exit 1",
        cwd=home,
        env={"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdin
    assert child.stdout
    assert child.stderr
    feeder = asyncio.create_task(_feed(process.stdin, child.stdin))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_pass_on(child.stdout, process.stdout))
            group.create_task(_pass_on(child.stderr, process.stderr))
        process.exit(await child.wait())
    finally:
        feeder.cancel()
        await asyncio.wait([feeder])
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()


async def _feed(source: asyncssh.SSHReader[bytes], target: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncssh.Error):
        while block := await source.read(BLOCK_BYTES):
            target.write(block)
            await target.drain()
    with suppress(OSError):
        target.close()


async def _pass_on(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
    with suppress(OSError, asyncssh.Error):
        while block := await source.read(BLOCK_BYTES):
            target.write(block)
            await target.drain()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2:]))
