"""What we log in with: key files and the agent's keys, read once per run and never asked for."""

from __future__ import annotations

import asyncio
import copy
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh

from imgcache.errors import ErrorCode, HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgcache.transport.ssh_config import SshSettings

_DEFAULT_NAMES = ("id_ed25519", "id_ecdsa", "id_rsa")
_Profile = tuple[tuple[Path, ...], tuple[Path, ...], bool]


class KeyRing:
    """The keys of a run. Close it: it holds one connection to the agent."""

    def __init__(self) -> None:
        self._agent: asyncssh.SSHAgentClient | None = None
        self._agent_keys: list[asyncssh.SSHKeyPair] | None = None
        self._loaded: dict[_Profile, list[asyncssh.SSHKeyPair] | HostError] = {}
        self._lock = asyncio.Lock()

    async def key_pairs(self, settings: SshSettings) -> list[asyncssh.SSHKeyPair]:
        """Return the key pairs to try, best first, as copies of one connection's own.

        Raises:
            HostError: code ``login``: no key to log in with, unreadable, or encrypted and not in the agent.
        """
        profile = (settings.key_files, settings.certificate_files, settings.only_named_keys)
        if profile not in self._loaded:
            async with self._lock:
                if profile not in self._loaded:
                    self._loaded[profile] = await self._load(settings)
        found = self._loaded[profile]
        if isinstance(found, HostError):
            raise HostError(found.code, found.message, hint=found.hint)
        # A key pair remembers the signature algorithm of the server it is used with.
        return [copy.copy(pair) for pair in found]

    async def close(self) -> None:
        """End the connection to the agent."""
        if self._agent:
            self._agent.close()
            await self._agent.wait_closed()

    async def _load(self, settings: SshSettings) -> list[asyncssh.SSHKeyPair] | HostError:
        agent_keys = await self._from_agent()
        pairs: list[asyncssh.SSHKeyPair] = []
        problem: HostError | None = None
        for path in settings.key_files or _default_files():
            try:
                pairs += _from_file(path, settings.certificate_files, agent_keys)
            except HostError as error:
                problem = problem or error
        if not settings.only_named_keys:
            have = {pair.public_data for pair in pairs}
            pairs += [pair for pair in agent_keys if pair.public_data not in have]
        if pairs and not (problem and settings.only_named_keys):
            return pairs
        hint = "start an agent and ssh-add a key, or set ssh_key: in the inventory"
        return problem or HostError(
            ErrorCode.LOGIN, "there is no SSH key to log in with", hint=hint
        )

    async def _from_agent(self) -> list[asyncssh.SSHKeyPair]:
        if self._agent_keys is None:
            self._agent_keys = []
            if path := os.environ.get("SSH_AUTH_SOCK"):
                try:
                    self._agent = await asyncssh.connect_agent(path)
                    self._agent_keys = list(await self._agent.get_keys())
                except (OSError, ValueError, asyncssh.Error):
                    # No agent is an ordinary state; keys that need it name themselves.
                    self._agent_keys = []
        return self._agent_keys


def _default_files() -> list[Path]:
    folder = Path("~/.ssh").expanduser()
    return [path for name in _DEFAULT_NAMES if (path := folder / name).exists()]


def _from_file(
    path: Path, certificates: Sequence[Path], agent_keys: Sequence[asyncssh.SSHKeyPair]
) -> list[asyncssh.SSHKeyPair]:
    public = _public_half(path)
    in_agent = [pair for pair in agent_keys if public and pair.public_data == public.public_data]
    if in_agent:
        return list(in_agent)
    _check_mode(path)
    own = path.with_name(path.name + "-cert.pub")
    files = [str(name) for name in (*certificates, own) if name.exists()]
    try:
        key = asyncssh.read_private_key(path)
        return list(asyncssh.load_keypairs([key], certlist=files))
    except asyncssh.KeyImportError as exc:
        if _is_encrypted(path):
            message = f"the SSH key {path} is encrypted, and no agent holds it"
            hint = f"start an agent and run: ssh-add {path}"
            raise HostError(ErrorCode.LOGIN, message, hint=hint) from exc
        message = f"{path} is not a private SSH key that we can read"
        raise HostError(
            ErrorCode.LOGIN, message, hint="ssh_key: the path of a private key"
        ) from exc
    except OSError as exc:
        message = f"the SSH key {path} cannot be read: {exc.strerror}"
        raise HostError(
            ErrorCode.LOGIN, message, hint="check ssh_key: and the file's owner"
        ) from exc


def _is_encrypted(path: Path) -> bool:
    """Whether a passphrase would help; asyncssh tells by type only when it has been given one."""
    try:
        asyncssh.read_private_key(path, passphrase="-")  # noqa: S106 - a probe
    except asyncssh.KeyEncryptionError:
        return True
    except (asyncssh.KeyImportError, OSError):
        return False
    return True


def _public_half(path: Path) -> asyncssh.SSHKey | None:
    for candidate in (path.with_name(path.name + ".pub"), path):
        try:
            return asyncssh.read_public_key(candidate)
        except (OSError, asyncssh.KeyImportError):
            continue
    return None


def _check_mode(path: Path) -> None:
    """Refuse a key that others may read, as ssh does (``sshkey_perm_ok``)."""
    try:
        info = path.stat()
    except OSError as exc:
        message = f"the SSH key {path} cannot be read: {exc.strerror}"
        raise HostError(
            ErrorCode.LOGIN, message, hint="check ssh_key: and the file's owner"
        ) from exc
    if info.st_uid == os.getuid() and stat.S_IMODE(info.st_mode) & 0o077:
        message = (
            f"the SSH key {path} may be read by others (mode {stat.S_IMODE(info.st_mode):04o})"
        )
        raise HostError(ErrorCode.LOGIN, message, hint=f"chmod 600 {path}")
