"""OpenSSH's own sshd, with its own host keys, configuration, free port and authorized keys.

Works as root (users: root) and as an ordinary user (who can then log in only as themselves). Several
instances are several hosts; one instance can listen on many loopback addresses, each its own host.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

SSHD = "/usr/sbin/sshd"
PR_SET_PDEATHSIG = 1


def available() -> bool:
    """Whether sshd is installed."""
    return os.access(SSHD, os.X_OK)


def free_port(address: str = "127.0.0.1") -> int:
    """Return a port that is free now on ``address``."""
    with socket.create_server((address, 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def write_key(path: Path, algorithm: str = "ssh-ed25519", passphrase: str | None = None) -> str:
    """Write a private key (0600) and its ``.pub``; return the public key's line."""
    key = asyncssh.generate_private_key(algorithm)
    path.write_bytes(key.export_private_key(passphrase=passphrase))
    path.chmod(0o600)
    public = key.export_public_key().decode().strip()
    path.with_name(path.name + ".pub").write_text(public + "\n")
    return public


@dataclass
class OpenSshServer:
    """One running sshd. Use as a context manager."""

    folder: Path
    addresses: tuple[str, ...] = ("127.0.0.1",)
    listen: tuple[str, ...] | None = None
    """Where to listen when that is not ``addresses``; sshd takes 16 addresses at most."""
    host_key_types: tuple[str, ...] = ("ssh-ed25519",)
    options: dict[str, str] = field(default_factory=dict)
    """More lines for sshd_config, keyword -> value; they win."""
    authorized_prefix: str = ""
    """Options before the key in authorized_keys, such as ``command="…"``."""
    client_key: Path | None = None
    """A key to admit; None: one is made as ``folder/client_key``."""
    within: tuple[str, ...] = ()
    """Words before sshd's own, which run it somewhere else: in namespaces, say."""
    port: int = 0
    user: str = field(default_factory=getpass.getuser)
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> OpenSshServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port(self.addresses[0])
        if self.client_key is None:
            self.client_key = self.folder / "client_key"
            write_key(self.client_key)
        self._write_files()
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def known_hosts(self) -> Path:
        """A known_hosts file with this server's keys under all of its addresses."""
        return self.folder / "known_hosts"

    @property
    def log(self) -> str:
        """What sshd wrote so far."""
        return (self.folder / "sshd.log").read_text(errors="replace")

    def host_public_keys(self) -> list[str]:
        """Return the lines of the host's public keys."""
        return [path.read_text().strip() for path in sorted(self.folder.glob("host_*.pub"))]

    def _write_files(self) -> None:
        for number, algorithm in enumerate(self.host_key_types):
            if not (path := self.folder / f"host_{number}").exists():
                write_key(path, algorithm)
        assert self.client_key is not None
        public = self.client_key.with_name(self.client_key.name + ".pub").read_text()
        keys = self.folder / "authorized_keys"
        keys.write_text(f"{self.authorized_prefix} {public}".lstrip())
        keys.chmod(0o600)
        names = [f"[{address}]:{self.port}" for address in self.addresses]
        lines = [f"{','.join(names)} {key}" for key in self.host_public_keys()]
        self.known_hosts.write_text("\n".join(lines) + "\n")
        (self.folder / "sshd_config").write_text(self._config())

    def _config(self) -> str:
        settings = {
            "Port": str(self.port),
            "PidFile": str(self.folder / "sshd.pid"),
            "AuthorizedKeysFile": str(self.folder / "authorized_keys"),
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "UsePAM": "no",
            "StrictModes": "no",
            "PermitRootLogin": "prohibit-password",
            "MaxStartups": "200",
            "LogLevel": "VERBOSE",
            "PrintMotd": "no",
        } | self.options
        lines = [f"ListenAddress {address}" for address in self.listen or self.addresses]
        lines += [
            f"HostKey {path.with_suffix('')}" for path in sorted(self.folder.glob("host_*.pub"))
        ]
        lines += [f"{key} {value}" for key, value in settings.items()]
        return "\n".join(lines) + "\n"

    def start(self) -> None:
        """Start it (again) and wait until it listens."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with (self.folder / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self.within, SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads yet
                env={"PATH": os.environ["PATH"]},
            )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with socket.socket() as probe:
                if probe.connect_ex((self.addresses[0], self.port)) == 0:
                    return
            time.sleep(0.02)
        self.stop()
        raise RuntimeError(f"sshd did not start: {self.log[-2000:]}")

    def stop(self) -> None:
        """End the listener and what it started, by the process that we started."""
        if self._process is None:
            return
        children = _descendants(self._process.pid)
        self._process.terminate()
        self._process.wait(timeout=10)
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        self._process = None

    def host_settings(self, **more: Any) -> dict[str, Any]:
        """Return ``HostSettings`` fields that reach this server at its first address."""
        return {
            "address": self.addresses[0],
            "port": self.port,
            "user": self.user,
            "ssh_key": self.client_key,
            "known_hosts": self.known_hosts,
            "python": (shutil.which("python3") or "python3",),
        } | more


def _die_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _descendants(pid: int) -> list[int]:
    """Return the ids of all processes below ``pid``, from /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
    found: list[int] = []
    known = {pid}
    while new := {child for child, parent in parents.items() if parent in known} - known:
        found += sorted(new)
        known |= new
    return found
