"""OpenSSH's own client beside imgcache, with the same files: both must log in, or neither."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fakes.hosts import make_host
from imgcache.errors import HostError
from imgcache.transport.ssh import SshTransport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from servers.openssh import OpenSshServer


@dataclass(frozen=True)
class Login:
    """What came of both attempts."""

    ssh: bool
    """Whether ``ssh`` logged in."""
    said: str
    """What ``ssh`` wrote to standard error."""
    error: HostError | None
    """Why imgcache did not log in; None: it did."""
    output: str
    """What the command printed, run by imgcache."""


def log_in(
    config: Path,
    name: str = "edge",
    command: str = "echo in",
    env: Mapping[str, str] | None = None,
    **settings: Any,
) -> Login:
    """Run a command on a host with ``ssh -F config name`` and with imgcache."""
    ssh = subprocess.run(
        ["ssh", "-F", str(config), "-o", "BatchMode=yes", *_options(settings), name, command],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | (env or {}),
    )  # fmt: skip
    error, output = asyncio.run(_with_imgcache(config, name, command, settings))
    return Login(ssh.returncode == 0, ssh.stderr, error, output)


def _options(settings: Mapping[str, Any]) -> Sequence[str]:
    """Return what the inventory's settings are called on ssh's command line."""
    flags = {"port": "-p", "user": "-l", "ssh_key": "-i", "proxy_jump": "-J"}
    return [word for key, value in settings.items() for word in (flags[key], str(value))]


async def _with_imgcache(
    config: Path, name: str, command: str, settings: Mapping[str, Any]
) -> tuple[HostError | None, str]:
    output = b""
    try:
        async with (
            SshTransport(config_file=config) as transport,
            transport.open(make_host(name, **settings), command) as session,
        ):
            while block := await session.read(65536):
                output += block
    except HostError as error:
        return error, ""
    return None, output.decode()


def config_for(server: OpenSshServer, folder: Path, *lines: str, base: Sequence[str] = ()) -> Path:
    """Write a file whose ``Host edge`` reaches a server; ``lines`` are its last, ``base`` its first."""
    path = folder / "ssh_config"
    text = "\n".join(
        [
            *base,
            "Host edge",
            f"  HostName {server.addresses[0]}",
            f"  Port {server.port}",
            f"  User {server.user}",
            f"  IdentityFile {server.client_key}",
            "  IdentitiesOnly yes",
            f"  UserKnownHostsFile {server.known_hosts}",
            "  GlobalKnownHostsFile none",
            "  StrictHostKeyChecking yes",
            *(f"  {line}" for line in lines),
        ]
    )
    path.write_text(text + "\n")
    return path
