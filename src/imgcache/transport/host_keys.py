"""Which host keys are known: known_hosts files read once per run, looked up without parsing again.

A file with 10,000 entries is indexed by name as text; a key is parsed when its host is connected to.
Hashed names (``HashKnownHosts``) cost one HMAC per entry and host, as they must.

Source: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT".
"""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncssh

from imgcache.errors import ErrorCode, HostError
from imgcache.transport.ssh_config import matches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    _Keys = Sequence[asyncssh.SSHKey]
    _Known = tuple[_Keys, _Keys, _Keys, tuple[()], tuple[()], tuple[()], tuple[()]]

#: In the order in which we like them: cheap and safe first.
HOST_KEY_ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
_CERTIFICATE_ALGORITHMS = (
    "ssh-ed25519-cert-v01@openssh.com",
    "ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "ecdsa-sha2-nistp384-cert-v01@openssh.com",
    "ecdsa-sha2-nistp521-cert-v01@openssh.com",
    "rsa-sha2-512-cert-v01@openssh.com",
    "rsa-sha2-256-cert-v01@openssh.com",
)
_MAX_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Entry:
    marker: str
    key_text: str


@dataclass(slots=True)
class _File:
    exact: dict[str, list[_Entry]] = field(default_factory=dict)
    patterns: list[tuple[tuple[str, ...], _Entry]] = field(default_factory=list)
    hashed: list[tuple[bytes, bytes, _Entry]] = field(default_factory=list)

    def find(self, name: str) -> Iterator[_Entry]:
        yield from self.exact.get(name, ())
        for patterns, entry in self.patterns:
            if matches(name, patterns):
                yield entry
        encoded = name.encode()
        for salt, digest, entry in self.hashed:
            if hmac.digest(salt, encoded, "sha1") == digest:
                yield entry


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """What is known about one host."""

    keys: tuple[asyncssh.SSHKey, ...]
    authorities: tuple[asyncssh.SSHKey, ...]
    revoked: tuple[asyncssh.SSHKey, ...]

    def as_asyncssh(self) -> _Known:
        """Return what asyncssh takes as the result of its own look-up."""
        return (self.keys, self.authorities, self.revoked, (), (), (), ())

    def algorithms(self) -> list[str]:
        """Return the host key algorithms to offer: those whose keys are known first, then the others.

        A server that has only a key of another type still gets to show it, so that the operator sees
        its fingerprint instead of a failed negotiation.
        """
        known = {algorithm for key in self.keys for algorithm in _signature_algorithms(key)}
        first = [name for name in HOST_KEY_ALGORITHMS if name in known]
        rest = [name for name in HOST_KEY_ALGORITHMS if name not in known]
        certificates = list(_CERTIFICATE_ALGORITHMS) if self.authorities else []
        return certificates + first + rest


def _signature_algorithms(key: asyncssh.SSHKey) -> tuple[str, ...]:
    name = key.get_algorithm()
    return ("rsa-sha2-512", "rsa-sha2-256") if name == "ssh-rsa" else (name,)


class KnownHosts:
    """All known_hosts files of a run."""

    def __init__(self) -> None:
        self._files: dict[Path, _File] = {}

    def lookup(self, files: Sequence[Path], hostname: str, port: int) -> TrustedKeys:
        """Return the keys known for a host in these files.

        With a port other than 22 the name is ``[host]:port``; keys under the bare name count too when
        there are none, as in OpenSSH.

        Raises:
            HostError: code ``hostkey-unknown``: a file cannot be read.
        """
        host = hostname.lower()
        names = [host] if port == 22 else [f"[{host}]:{port}", host]
        for name in names:
            entries = [entry for path in files for entry in self._load(path).find(name)]
            trusted = _trusted(entries)
            if trusted.keys or trusted.authorities or trusted.revoked or name == host:
                return trusted
        raise AssertionError

    def _load(self, path: Path) -> _File:
        loaded = self._files.get(path)
        if loaded is None:
            loaded = self._files[path] = _read(path)
        return loaded


def _trusted(entries: Sequence[_Entry]) -> TrustedKeys:
    by_marker: dict[str, dict[str, asyncssh.SSHKey]] = {
        "": {},
        "@cert-authority": {},
        "@revoked": {},
    }
    for entry in entries:
        if entry.marker in by_marker:
            try:
                by_marker[entry.marker][entry.key_text] = asyncssh.import_public_key(entry.key_text)
            except asyncssh.KeyImportError:
                continue
    return TrustedKeys(*(tuple(found.values()) for found in by_marker.values()))


def _read(path: Path) -> _File:
    result = _File()
    try:
        data = path.read_bytes()[:_MAX_FILE_BYTES]
    except (FileNotFoundError, NotADirectoryError):
        return result
    except OSError as exc:
        message = f"the known host keys in {path} cannot be read: {exc.strerror}"
        raise HostError(ErrorCode.HOSTKEY_UNKNOWN, message, hint="make the file readable") from exc
    for line in data.decode("utf-8", "replace").splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        marker = words.pop(0) if words[0].startswith("@") else ""
        if len(words) >= 3:
            _add(result, words[0], _Entry(marker, f"{words[1]} {words[2]}"))
    return result


def _add(result: _File, names: str, entry: _Entry) -> None:
    if names.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part) for part in names[3:].split("|"))
        except (ValueError, binascii.Error):
            return
        result.hashed.append((salt, digest, entry))
        return
    patterns = tuple(names.lower().split(","))
    if any(not {"*", "?", "!"}.isdisjoint(pattern) for pattern in patterns):
        result.patterns.append((patterns, entry))
        return
    for name in patterns:
        result.exact.setdefault(name, []).append(entry)
