"""The contract of a transport: how a program is started on a host, and its bytes moved.

Implementations: ``ssh`` (asyncssh) and ``local`` (a child process of the controller). Tests add one
that breaks on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from imgcache.model import Host


@dataclass(frozen=True, slots=True)
class ScannedKey:
    """A host key as a server showed it, unverified."""

    algorithm: str
    """``ssh-ed25519``, ``ecdsa-sha2-nistp256``, ``ssh-rsa``, …"""
    public_key_text: str
    """Algorithm and base64, as in a known_hosts file."""
    fingerprint: str
    """``SHA256:…``, as OpenSSH prints it."""
    certificate: bytes | None = None
    """The certificate for it that the server showed, in SSH's binary form."""


@dataclass(frozen=True, slots=True)
class ResolvedAddress:
    """Where a host is reached over SSH, inventory and ssh config taken together."""

    hostname: str
    port: int
    known_hosts_files: tuple[Path, ...]
    """Where its key is looked up; a new key belongs into the first. May not exist."""
    proxy_jump: str | None = None
    revoked_files: tuple[Path, ...] = ()
    """Files of keys that must not be trusted."""

    @property
    def known_hosts_name(self) -> str:
        """The name in known_hosts: the host name, with the port when that is not 22."""
        return self.hostname if self.port == 22 else f"[{self.hostname}]:{self.port}"


class Session(Protocol):
    """One running program on a host. Not safe for use by two tasks at once, save read beside write."""

    async def write(self, data: bytes) -> None:
        """Send bytes to its standard input; waits while the peer takes no more (back-pressure).

        Raises:
            ContactLostError: the connection is gone.
        """

    def unsent(self) -> int:
        """Return how much still keeps ``write`` waiting: falls while the peer or the network takes some.

        In bytes as far as they can be counted; only whether it is lower than before has a meaning.
        """

    async def read(self, max_bytes: int) -> bytes:
        """Return 1 to ``max_bytes`` bytes of its standard output, or ``b""`` at the end.

        Raises:
            ContactLostError: the connection is gone.
        """

    def stderr_tail(self) -> str:
        """Return the last 64 KiB at most of its standard error, sanitised, possibly empty."""

    async def exit_status(self) -> int | None:
        """Wait for its end; None when it was killed by a signal or the status never came."""

    async def close_stdin(self) -> None:
        """Send end of file; the helper then cleans up and ends. Idempotent."""


class Transport(Protocol):
    """A way to reach hosts."""

    def open(self, host: Host, command: str) -> AbstractAsyncContextManager[Session]:
        """Connect to ``host`` and start ``command`` there, as its login shell reads it.

        Leaving the context closes everything that was opened, within seconds, whatever the host does;
        safe to cancel at any point.

        Raises:
            HostError: with code ``connect``, ``jump``, ``login``, ``hostkey-unknown``,
                ``hostkey-changed`` or ``session``.
        """
