"""Host keys that must not be trusted: ``@revoked`` lines, and files named by ``RevokedHostKeys``.

A revocation that cannot be read is an error for the hosts that it may concern. It never vanishes.

Source: sshd(8) "SSH_KNOWN_HOSTS FILE FORMAT", ssh_config(5) "RevokedHostKeys", PROTOCOL.krl of OpenSSH.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncssh

from imgcache.errors import ErrorCode, HostError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from asyncssh.public_key import SSHOpenSSHCertificate

MAX_FILE_BYTES = 64 * 1024 * 1024
_KRL_MAGIC = b"SSHKRL\n\0"
_CERTIFICATES, _KEYS, _SHA1, _SHA256 = 1, 2, 3, 5
_SERIALS, _SERIAL_RANGE, _SERIAL_BITMAP, _KEY_IDS = 0x20, 0x21, 0x22, 0x23


@dataclass(slots=True)
class _RevokedCertificates:
    """The certificates of one authority that a KRL revokes."""

    authority: bytes
    """Its public key; empty: every authority."""
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """First and last serial number."""
    key_ids: set[bytes] = field(default_factory=set)

    def covers(self, certificate: SSHOpenSSHCertificate) -> bool:
        if self.authority not in (b"", certificate.signing_key.public_data):
            return False
        serial, key_id = _serial_and_id(certificate)
        # Serial number 0 means that the authority does not number its certificates.
        numbered = serial != 0 and any(first <= serial <= last for first, last in self.ranges)
        return numbered or key_id in self.key_ids


@dataclass(slots=True)
class RevokedKeys:
    """A set of keys and certificates."""

    keys: set[bytes] = field(default_factory=set)
    """Public keys in SSH's binary form, without certificates."""
    sha1: set[bytes] = field(default_factory=set)
    sha256: set[bytes] = field(default_factory=set)
    certificates: list[_RevokedCertificates] = field(default_factory=list)

    def covers(self, key: asyncssh.SSHKey) -> bool:
        """Return whether a key is revoked."""
        data = key.public_data
        return (
            data in self.keys
            or (bool(self.sha256) and hashlib.sha256(data).digest() in self.sha256)
            or (bool(self.sha1) and hashlib.sha1(data).digest() in self.sha1)  # noqa: S324 - the format's
        )

    def covers_certificate(self, certificate: SSHOpenSSHCertificate) -> bool:
        """Return whether a certificate, its key or its authority is revoked."""
        return (
            self.covers(certificate.key)
            or self.covers(certificate.signing_key)
            or any(rule.covers(certificate) for rule in self.certificates)
        )


def read_revoked_keys(path: Path) -> RevokedKeys:
    """Read a file of revoked keys: public keys, one a line, or a key revocation list (KRL).

    Raises:
        HostError: code ``hostkey-unknown``: the file, or something in it, cannot be read.
    """
    data = read_key_file(path)
    if data is None:
        raise unreadable(str(path), "there is no such file")
    if data.startswith(_KRL_MAGIC):
        try:
            return _read_krl(data)
        except (ValueError, struct.error) as exc:
            raise unreadable(str(path), str(exc)) from None
    revoked = RevokedKeys()
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            key = plain_key(words)
            if key is None:
                where = f"{path}:{number}"
                raise unreadable(where, "it is not a public key")
            revoked.keys.add(key)
    return revoked


def read_key_file(path: Path) -> bytes | None:
    """Return what a file of keys holds; None when there is no such file.

    Raises:
        HostError: code ``hostkey-unknown``: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        message = f"the host keys in {path} cannot be read: {exc.strerror}"
        raise HostError(ErrorCode.HOSTKEY_UNKNOWN, message, hint="make the file readable") from exc
    if len(data) > MAX_FILE_BYTES:
        message = f"the host keys in {path} cannot be read: more than {MAX_FILE_BYTES} bytes"
        raise HostError(ErrorCode.HOSTKEY_UNKNOWN, message, hint="make the file smaller")
    return data


def unreadable(where: str, reason: str) -> HostError:
    """Return the error for a revocation that cannot be understood."""
    message = f"the revoked host keys in {where} cannot be read: {reason}"
    hint = "correct or remove it: no host that it may concern is trusted until then"
    return HostError(ErrorCode.HOSTKEY_UNKNOWN, message, hint=hint)


def plain_key(words: list[str]) -> bytes | None:
    """Return the public key in SSH's binary form that ``[algorithm, base64, …]`` names.

    For a certificate that is the certified key. None when it cannot be read.
    """
    if len(words) < 2:
        return None
    text = f"{words[0]} {words[1]}"
    try:
        return asyncssh.import_public_key(text).public_data
    except asyncssh.KeyImportError:
        pass
    try:
        certificate = asyncssh.import_certificate(text)
        return None if certificate.is_x509 else certificate.key.public_data
    except asyncssh.KeyImportError:
        return _unknown_kind(words[0], words[1])


def _unknown_kind(algorithm: str, encoded: str) -> bytes | None:
    """Return a well-formed key of a kind that asyncssh does not know, so that no server can use it."""
    from asyncssh.public_key import get_certificate_algs, get_public_key_algs  # noqa: PLC0415

    try:
        data = base64.b64decode(encoded, validate=True)
        name = _Reader(data).string()
    except (ValueError, binascii.Error, struct.error):
        return None
    known = {*get_public_key_algs(), *get_certificate_algs(), b"ssh-rsa"}
    return data if name == algorithm.encode() and name not in known else None


class _Reader:
    """Reads SSH's binary fields; struct.error or ValueError at a premature end."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def number(self, layout: str) -> int:
        (value,) = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return int(value)

    def string(self) -> bytes:
        size = self.number(">I")
        if size > len(self._data) - self._at:
            message = "it ends in the middle"
            raise ValueError(message)
        self._at += size
        return bytes(self._data[self._at - size : self._at])

    def strings(self) -> Iterator[bytes]:
        while self:
            yield self.string()


def _read_krl(data: bytes) -> RevokedKeys:
    reader = _Reader(data[len(_KRL_MAGIC) :])
    if (version := reader.number(">I")) != 1:
        message = f"the version of this key revocation list, {version}, is unknown"
        raise ValueError(message)
    for _ in ("version of the list", "date", "flags"):
        reader.number(">Q")
    for _ in ("reserved", "comment"):
        reader.string()
    revoked = RevokedKeys()
    into = {_KEYS: revoked.keys, _SHA1: revoked.sha1, _SHA256: revoked.sha256}
    while reader:
        kind, section = reader.number(">B"), _Reader(reader.string())
        if kind == _CERTIFICATES:
            revoked.certificates.append(_read_certificates(section))
        elif kind in into:
            into[kind].update(section.strings())
        else:
            message = f"a part of kind {kind} is unknown"
            raise ValueError(message)
    return revoked


def _read_certificates(reader: _Reader) -> _RevokedCertificates:
    rule = _RevokedCertificates(reader.string())
    reader.string()  # reserved
    while reader:
        kind, part = reader.number(">B"), _Reader(reader.string())
        if kind == _SERIALS:
            while part:
                rule.ranges.append((serial := part.number(">Q"), serial))
        elif kind == _SERIAL_RANGE:
            rule.ranges.append((part.number(">Q"), part.number(">Q")))
        elif kind == _SERIAL_BITMAP:
            first, bits = part.number(">Q"), int.from_bytes(part.string(), "big")
            rule.ranges += [
                (first + bit, first + bit) for bit in range(bits.bit_length()) if bits >> bit & 1
            ]
        elif kind == _KEY_IDS:
            rule.key_ids.update(part.strings())
        else:
            message = f"revoked certificates of kind {kind} are unknown"
            raise ValueError(message)
    return rule


def _serial_and_id(certificate: SSHOpenSSHCertificate) -> tuple[int, bytes]:
    """Return a certificate's serial number and key id. Source: PROTOCOL.certkeys of OpenSSH."""
    parts = len(list(_Reader(certificate.key.public_data).strings())) - 1
    reader = _Reader(certificate.public_data)
    for _ in range(2 + parts):  # algorithm, nonce, the key
        reader.string()
    serial = reader.number(">Q")
    reader.number(">I")  # the type of the certificate
    return serial, reader.string()
