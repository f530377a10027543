"""Which host keys are trusted: known_hosts files read once per run, looked up without parsing again.

A file with 10,000 entries is indexed by name as text; a key is parsed when its host is connected to.
Hashed names (``HashKnownHosts``) cost one HMAC per entry and host, as they must.

``TrustedKeys.judge`` is the only judgement of a key that a server shows; connecting, ``imgcache check``
and ``imgcache trust`` all use it.

Source: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"; ``check_host_key`` in sshconnect.c of OpenSSH 9.2.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import asyncssh
from asyncssh.public_key import (
    CERT_TYPE_HOST,
    SSHOpenSSHCertificate,
    decode_ssh_certificate,
    decode_ssh_public_key,
)

from imgcache.transport.patterns import matches
from imgcache.transport.revoked_keys import (
    RevokedKeys,
    plain_key,
    read_key_file,
    read_revoked_keys,
    unreadable,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

#: In the order in which we like them: cheap and safe first.
HOST_KEY_ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
CERTIFICATE_ALGORITHMS = (
    "ssh-ed25519-cert-v01@openssh.com",
    "ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "ecdsa-sha2-nistp384-cert-v01@openssh.com",
    "ecdsa-sha2-nistp521-cert-v01@openssh.com",
    "rsa-sha2-512-cert-v01@openssh.com",
    "rsa-sha2-256-cert-v01@openssh.com",
)
_AUTHORITY, _REVOKED = "@cert-authority", "@revoked"


class KeyState(StrEnum):
    """How a key that a host showed relates to what is known about the host."""

    NEW = "new"
    KNOWN = "known"
    CHANGED = "changed"
    REVOKED = "revoked"


class Judgement(NamedTuple):
    """What is to be thought of a key that a server showed."""

    state: KeyState
    certificate_refused: str | None = None
    """Why its certificate does not count; None when it counts, or there is none."""


@dataclass(frozen=True, slots=True)
class ShownKey:
    """A key that a server showed, unverified."""

    key: asyncssh.SSHKey
    certificate: SSHOpenSSHCertificate | None = None

    @classmethod
    def decode(cls, data: bytes) -> ShownKey:
        """Decode what a server sent.

        Raises:
            KeyImportError: it is neither a key nor an OpenSSH certificate.
        """
        try:
            certificate = decode_ssh_certificate(data)
        except asyncssh.KeyImportError:
            return cls(decode_ssh_public_key(data))
        if not isinstance(certificate, SSHOpenSSHCertificate):
            message = "X.509 certificates are not supported"
            raise asyncssh.KeyImportError(message)
        return cls(certificate.key, certificate)

    @classmethod
    def of_text(cls, text: str) -> ShownKey:
        """Return a plain key, given as in a known_hosts file."""
        return cls(asyncssh.import_public_key(text))


class _Entry(NamedTuple):
    marker: str
    key_text: str


class _Revocation(NamedTuple):
    names: tuple[str, ...]
    """Patterns; a hashed name alone."""
    key: bytes | None
    """None: it cannot be read."""
    where: str

    def concerns(self, name: str) -> bool:
        return _is_hash_of(self.names[0], name) or matches(name, self.names)


@dataclass(slots=True)
class _File:
    exact: dict[str, list[_Entry]] = field(default_factory=dict)
    patterns: list[tuple[tuple[str, ...], _Entry]] = field(default_factory=list)
    hashed: list[tuple[bytes, bytes, _Entry]] = field(default_factory=list)
    revoked: list[_Revocation] = field(default_factory=list)

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

    name: str = ""
    """The name that a certificate must be for."""
    keys: tuple[asyncssh.SSHKey, ...] = ()
    authorities: tuple[asyncssh.SSHKey, ...] = ()
    revoked: tuple[RevokedKeys, ...] = ()

    def judge(self, shown: ShownKey) -> Judgement:
        """Judge a key as OpenSSH does: its certificate first, then the plain key inside.

        A host with keys on record that shows another one counts as changed, also when that one is of a
        type of which none is on record: an attacker could choose that type.
        """
        refused = None
        if shown.certificate:
            if any(revoked.covers_certificate(shown.certificate) for revoked in self.revoked):
                return Judgement(KeyState.REVOKED)
            refused = self._why_not(shown.certificate)
            if refused is None:
                return Judgement(KeyState.KNOWN)
        if any(revoked.covers(shown.key) for revoked in self.revoked):
            return Judgement(KeyState.REVOKED)
        if shown.key in self.keys:
            return Judgement(KeyState.KNOWN, refused)
        return Judgement(KeyState.CHANGED if self.keys else KeyState.NEW, refused)

    def _why_not(self, certificate: SSHOpenSSHCertificate) -> str | None:
        if certificate.signing_key not in self.authorities:
            return "it is signed by an authority that is not on record"
        try:
            certificate.validate(CERT_TYPE_HOST, self.name)
        except ValueError as exc:
            return str(exc)
        return None

    def algorithms(self) -> list[str]:
        """Return the host key algorithms to offer: those whose keys are known first, then the others.

        A server that has only a key of another type still gets to show it, so that the operator sees
        its fingerprint instead of a failed negotiation.
        """
        known = {algorithm for key in self.keys for algorithm in signature_algorithms(key)}
        first = [name for name in HOST_KEY_ALGORITHMS if name in known]
        rest = [name for name in HOST_KEY_ALGORITHMS if name not in known]
        certificates = list(CERTIFICATE_ALGORITHMS) if self.authorities else []
        return certificates + first + rest


def signature_algorithms(key: asyncssh.SSHKey) -> tuple[str, ...]:
    """Return the names under which a server can offer a key."""
    name = key.get_algorithm()
    return ("rsa-sha2-512", "rsa-sha2-256") if name == "ssh-rsa" else (name,)


class KnownHosts:
    """All known_hosts files, and files of revoked keys, of a run."""

    def __init__(self) -> None:
        self._files: dict[Path, _File] = {}
        self._revoked: dict[Path, RevokedKeys] = {}

    def lookup(
        self,
        files: Sequence[Path],
        hostname: str,
        port: int,
        *,
        alias: str | None = None,
        revoked_files: Sequence[Path] = (),
    ) -> TrustedKeys:
        """Return what is known of a host in these files.

        With a port other than 22 the name is ``[host]:port``; keys under the bare name count too when
        there are none, as in OpenSSH. Revoked keys count under both names. ``alias`` is looked up alone.

        Raises:
            HostError: code ``hostkey-unknown``: a file, or a revoked key, cannot be read.
        """
        host = (alias or hostname).lower()
        names = [host] if alias or port == 22 else [f"[{host}]:{port}", host]
        loaded = [self._load(path) for path in files]
        keys: dict[str, asyncssh.SSHKey] = {}
        authorities: dict[str, asyncssh.SSHKey] = {}
        for name in names:
            entries = [entry for file in loaded for entry in file.find(name)]
            authorities |= _keys(entries, _AUTHORITY)
            keys = keys or _keys(entries, "")
        return TrustedKeys(
            host,
            tuple(keys.values()),
            tuple(authorities.values()),
            (*_revoked(loaded, names), *(self._load_revoked(path) for path in revoked_files)),
        )

    def _load(self, path: Path) -> _File:
        loaded = self._files.get(path)
        if loaded is None:
            loaded = self._files[path] = _read(path)
        return loaded

    def _load_revoked(self, path: Path) -> RevokedKeys:
        loaded = self._revoked.get(path)
        if loaded is None:
            loaded = self._revoked[path] = read_revoked_keys(path)
        return loaded


def _keys(entries: Iterable[_Entry], marker: str) -> dict[str, asyncssh.SSHKey]:
    """Return text -> key of the entries with a marker; those that cannot be read are passed over."""
    found = {}
    for entry in entries:
        if entry.marker == marker and (key := _imported(entry.key_text)):
            found[entry.key_text] = key
    return found


@lru_cache(maxsize=256)
def _imported(text: str) -> asyncssh.SSHKey | None:
    try:
        return asyncssh.import_public_key(text)
    except asyncssh.KeyImportError:
        return None


def _revoked(files: Iterable[_File], names: Sequence[str]) -> tuple[RevokedKeys, ...]:
    keys = set()
    for revocation in (item for file in files for item in file.revoked):
        if any(revocation.concerns(name) for name in names):
            if revocation.key is None:
                raise unreadable(revocation.where, "it is not a name and a public key")
            keys.add(revocation.key)
    return (RevokedKeys(keys),) if keys else ()


def _read(path: Path) -> _File:
    result = _File()
    data = read_key_file(path) or b""
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        marker = words.pop(0) if words[0].startswith("@") else ""
        if marker.lower() == _REVOKED:
            result.revoked.append(_revocation(words, f"{path}:{number}"))
        elif len(words) >= 3 and marker in ("", _AUTHORITY):
            _add(result, words[0], _Entry(marker, f"{words[1]} {words[2]}"))
    return result


def _revocation(words: list[str], where: str) -> _Revocation:
    names = words[0] if words else ""
    if names.startswith("|"):
        # What is hashed cannot be told when the hash is damaged: then it may be any host.
        readable = _hashed_name(names) is not None
        patterns: tuple[str, ...] = (names,)
    else:
        readable = names != "" and names[0] != "@" and "\ufffd" not in names
        patterns = tuple(names.lower().split(","))
    if not readable:
        return _Revocation(("*",), None, where)
    return _Revocation(patterns, plain_key(words[1:]), where)


def _add(result: _File, names: str, entry: _Entry) -> None:
    if names.startswith("|"):
        if found := _hashed_name(names):
            result.hashed.append((*found, entry))
        return
    patterns = tuple(names.lower().split(","))
    if any(not {"*", "?", "!"}.isdisjoint(pattern) for pattern in patterns):
        result.patterns.append((patterns, entry))
        return
    for name in patterns:
        result.exact.setdefault(name, []).append(entry)


def _hashed_name(text: str) -> tuple[bytes, bytes] | None:
    """Return the salt and the HMAC of a hashed name; None when it is damaged."""
    if not text.startswith("|1|"):
        return None
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in text[3:].split("|"))
    except (ValueError, binascii.Error):
        return None
    return (salt, digest) if len(digest) == 20 else None


def _is_hash_of(text: str, name: str) -> bool:
    found = _hashed_name(text)
    return found is not None and hmac.digest(found[0], name.encode(), "sha1") == found[1]
