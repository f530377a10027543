"""Adding host keys to a known_hosts file: the only use of paramiko.

Lines are only ever appended, in one write under a lock: whatever else is in the file, comments,
hashed names, broken lines, stays byte for byte, and a crash leaves at most a last line that ssh ignores.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcache.errors import ConfigError, ErrorCode, HostError, Problem, UnsafePlanError
from imgcache.text import printable
from imgcache.transport.host_keys import KeyState, KnownHosts, ShownKey, signature_algorithms

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from imgcache.transport.base import ResolvedAddress, ScannedKey
    from imgcache.transport.host_keys import TrustedKeys


@dataclass(frozen=True, slots=True)
class KeyVerdict:
    """What is to be thought of the keys that one host showed."""

    state: KeyState
    known_fingerprints: tuple[str, ...]
    """``SHA256:…`` of the keys known so far."""


@dataclass(frozen=True, slots=True)
class NewKeys:
    """The keys to add for one host."""

    address: ResolvedAddress
    keys: tuple[ScannedKey, ...]


def judge_keys(
    known: KnownHosts, address: ResolvedAddress, scanned: Sequence[ScannedKey]
) -> KeyVerdict:
    """Judge the keys that a host showed as a connection would: by the one that it would be shown.

    That is its certificate, when an authority is on record, else the key of the kind that is asked for
    first. A revoked key is never ``new``, whichever of the keys it is.

    Raises:
        HostError: code ``hostkey-unknown``: a file, or a revoked key, cannot be read.
    """
    trusted = known.lookup(
        address.known_hosts_files,
        address.hostname,
        address.port,
        revoked_files=address.revoked_files,
    )
    fingerprints = tuple(key.get_fingerprint() for key in trusted.keys)
    return KeyVerdict(_state(trusted, scanned), fingerprints)


def _state(trusted: TrustedKeys, scanned: Sequence[ScannedKey]) -> KeyState:
    plain = [ShownKey.of_text(key.public_key_text) for key in scanned]
    order = trusted.algorithms()
    plain.sort(key=lambda shown: order.index(signature_algorithms(shown.key)[0]))
    certified = [ShownKey.decode(key.certificate) for key in scanned if key.certificate]
    states = [trusted.judge(shown).state for shown in (*certified, *plain)]
    if states[0] is KeyState.NEW and KeyState.REVOKED in states:
        return KeyState.REVOKED
    return states[0]


def known_hosts_line(name: str, key: ScannedKey) -> str:
    """Return the line for a key, with its newline; ``name`` as in ``ResolvedAddress``.

    Raises:
        HostError: code ``hostkey-unknown``: a key of a kind, or of a size, that nobody should trust.
    """
    from paramiko.hostkeys import HostKeyEntry  # noqa: PLC0415 - 150 ms, only for who writes
    from paramiko.pkey import PKey, UnknownKeyType  # noqa: PLC0415
    from paramiko.ssh_exception import SSHException  # noqa: PLC0415

    algorithm, _, encoded = key.public_key_text.partition(" ")
    try:
        blob = _decoded(encoded.split()[0] if encoded.split() else "")
        line = HostKeyEntry([name], PKey.from_type_string(algorithm, blob)).to_line()
    except (SSHException, UnknownKeyType, ValueError, OverflowError) as exc:
        message = f"its {printable(algorithm, 60)} key is not one that can be added"
        raise HostError(ErrorCode.HOSTKEY_UNKNOWN, message) from exc
    if line is None or not line.endswith("\n") or len(line.split()) != 3 or line.count("\n") != 1:
        message = f"{printable(name, 80)} gives no line of known_hosts"
        raise HostError(ErrorCode.HOSTKEY_UNKNOWN, message)
    return line


def _decoded(encoded: str) -> bytes:
    import base64  # noqa: PLC0415

    return base64.b64decode(encoded, validate=True)


def append_keys(path: Path, hosts: Sequence[NewKeys]) -> None:
    """Add the keys to the file, which is made (mode 0600, its folder 0700) when it is not there.

    The file is looked at again under the lock: what another run has added meanwhile is not added twice.

    Raises:
        UnsafePlanError: meanwhile the file holds another key for one of the hosts; nothing was written.
        ConfigError: the file cannot be written; nothing was.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY, 0o600
        )
        with os.fdopen(descriptor, "rb") as file:
            # A lock on the file itself: it ends with us, and no other program is in its way.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            text = "".join(_missing_lines(path, hosts))
            if text:
                _append(descriptor, _ends_open(file.read()), text)
    except OSError as exc:
        what = f"cannot be written: {exc.strerror or exc}"
        hint = "name a file you can write: 'known_hosts:' in the inventory"
        message = "the host keys were not added"
        raise ConfigError(message, (Problem(str(path), what, hint),)) from exc


def _ends_open(content: bytes) -> bool:
    return bool(content) and not content.endswith(b"\n")


def _append(descriptor: int, needs_newline: bool, text: str) -> None:
    data = (("\n" if needs_newline else "") + text).encode()
    size = os.fstat(descriptor).st_size
    try:
        if os.write(descriptor, data) != len(data):
            message = "only a part could be written, the disk is full"
            raise OSError(message)
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _missing_lines(path: Path, hosts: Sequence[NewKeys]) -> list[str]:
    """Return the lines that the file does not have yet; reads it afresh."""
    known = KnownHosts()
    lines: dict[str, None] = {}
    for host in hosts:
        verdict = judge_keys(known, host.address, host.keys)
        if verdict.state is KeyState.NEW:
            name = host.address.known_hosts_name
            lines.update((known_hosts_line(name, key), None) for key in host.keys)
        elif verdict.state is not KeyState.KNOWN:
            name = host.address.known_hosts_name
            message = f"{path} was changed meanwhile: it holds another key for {name}"
            raise UnsafePlanError(
                message, hint="run imgcache trust again and look at what it shows"
            )
    return list(lines)
