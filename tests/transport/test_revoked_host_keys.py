"""Revoked host keys and host certificates, beside OpenSSH's own client with the same files."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import asyncssh
import pytest

from imgcache.errors import ErrorCode, HostError
from imgcache.transport.host_keys import KeyState, KnownHosts, ShownKey
from servers import openssh
from servers.beside_ssh import Login, config_for, log_in
from servers.openssh import OpenSshServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.sshd,
    pytest.mark.skipif(not openssh.available(), reason="sshd is not installed"),
]

AUTHORITY, STRANGER = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
OTHER = asyncssh.generate_private_key("ssh-ed25519")


def public(key: asyncssh.SSHKey) -> str:
    return key.export_public_key().decode().strip()


class Server(OpenSshServer):
    """An sshd with two host keys, the first of which may have a certificate."""

    def certify(self, authority: asyncssh.SSHKey = AUTHORITY, **fields: object) -> str:
        """Give the first key a certificate, before the start; return it as text."""
        self.folder.mkdir()
        openssh.write_key(self.folder / "host_0")
        key = asyncssh.read_public_key(self.folder / "host_0.pub")
        given = {"principals": [self.addresses[0]], "serial": 7} | fields
        certificate = authority.generate_host_certificate(key, "edge-id", **given)  # type: ignore[arg-type]
        path = self.folder / "certificate.pub"
        certificate.write_certificate(path)
        self.options["HostCertificate"] = str(path)
        return certificate.export_certificate().decode().strip()

    def begin(self) -> None:
        """Start it; the fixture ends it."""
        self.__enter__()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Return a server that a test may certify and has to start."""
    server = Server(tmp_path / "sshd", host_key_types=("ssh-ed25519", "ssh-rsa"))
    yield server
    server.stop()


def with_known_hosts(server: Server, tmp_path: Path, text: str, *lines: str) -> Login:
    server.known_hosts.write_text(text)
    return log_in(config_for(server, tmp_path, *lines))


def line(server: Server, number: int = 0) -> str:
    """Return the known_hosts line of one of the server's plain keys."""
    return f"[{server.addresses[0]}]:{server.port} {server.host_public_keys()[number]}\n"


def refused(login: Login, code: ErrorCode) -> HostError:
    assert not login.ssh, "ssh logged in"
    assert login.error is not None, "imgcache logged in"
    assert login.error.code is code, login.error
    return login.error


def accepted(login: Login) -> None:
    assert login.ssh, login.said
    assert login.error is None, login.error
    assert login.output == "in\n"


# Revoked.


@pytest.mark.row("S1")
def test_a_revoked_certificate_is_refused_beside_its_authority(
    server: Server, tmp_path: Path
) -> None:
    certificate = server.certify()
    server.begin()
    authority = f"@cert-authority * {public(AUTHORITY)}\n"
    accepted(with_known_hosts(server, tmp_path, authority))
    text = f"{authority}@revoked * {certificate}\n"
    error = refused(with_known_hosts(server, tmp_path, text), ErrorCode.HOSTKEY_CHANGED)
    assert "REVOKED" in error.message


@pytest.mark.row("S1")
@pytest.mark.parametrize("what", ["key", "authority"])
def test_a_certificate_is_refused_when_its_key_or_its_authority_is_revoked(
    server: Server, tmp_path: Path, what: str
) -> None:
    server.certify()
    server.begin()
    revoked = server.host_public_keys()[0] if what == "key" else public(AUTHORITY)
    text = f"@cert-authority * {public(AUTHORITY)}\n{line(server)}@revoked * {revoked}\n"
    refused(with_known_hosts(server, tmp_path, text), ErrorCode.HOSTKEY_CHANGED)


@pytest.mark.row("S1")
@pytest.mark.parametrize("form", ["key", "certificate", "authority", "many"])
def test_revoked_host_keys_files_are_honoured(server: Server, tmp_path: Path, form: str) -> None:
    certificate = server.certify()
    server.begin()
    text = {
        "key": server.host_public_keys()[0],
        "certificate": certificate,
        "authority": public(AUTHORITY),
        "many": f"# those of spring\n\n{public(OTHER)} a comment\n{server.host_public_keys()[0]}",
    }[form]
    (tmp_path / "revoked").write_text(text + "\n")
    known = f"@cert-authority * {public(AUTHORITY)}\n"
    accepted(with_known_hosts(server, tmp_path, known))
    login = with_known_hosts(server, tmp_path, known, f"RevokedHostKeys {tmp_path}/revoked")
    refused(login, ErrorCode.HOSTKEY_CHANGED)


@pytest.mark.row("S1")
def test_a_file_of_other_revoked_keys_does_no_harm(server: Server, tmp_path: Path) -> None:
    server.begin()
    (tmp_path / "revoked").write_text(f"{public(OTHER)}\n")
    text = line(server) + f"@revoked * {public(STRANGER)}\n"
    accepted(with_known_hosts(server, tmp_path, text, f"RevokedHostKeys {tmp_path}/revoked"))


@pytest.mark.row("S1")
@pytest.mark.parametrize("content", [None, "ssh-ed25519 AAAA\n", "no key\n", "SSHKRL\n\0short"])
def test_a_file_of_revoked_keys_that_cannot_be_read_refuses_all(
    server: Server, tmp_path: Path, content: str | None
) -> None:
    server.begin()
    if content is not None:
        (tmp_path / "revoked").write_text(content)
    login = with_known_hosts(server, tmp_path, line(server), f"RevokedHostKeys {tmp_path}/revoked")
    assert login.error is not None
    assert login.error.code is ErrorCode.HOSTKEY_UNKNOWN
    assert f"{tmp_path}/revoked" in login.error.message


KRL_SPECS = {
    "key": "key: {key}", "sha1": "sha1: {key}", "sha256": "sha256: {key}", "serial": "serial: 7",
    "range": "serial: 5-9", "bitmap": "serial: 1\nserial: 3\nserial: 5\nserial: 7", "id": "id: edge-id",
}  # fmt: skip


@pytest.mark.row("S1")
@pytest.mark.parametrize("form", KRL_SPECS)
def test_key_revocation_lists_are_honoured(server: Server, tmp_path: Path, form: str) -> None:
    server.certify()
    server.begin()
    spec, krl, ca = tmp_path / "spec", tmp_path / "krl", tmp_path / "ca.pub"
    ca.write_text(public(AUTHORITY) + "\n")
    known = f"@cert-authority * {public(AUTHORITY)}\n"

    def judged_with(text: str) -> Login:
        spec.write_text(text + "\n")
        command = ["ssh-keygen", "-q", "-k", "-f", str(krl), "-s", str(ca), str(spec)]
        subprocess.run(command, check=True, capture_output=True)
        return with_known_hosts(server, tmp_path, known, f"RevokedHostKeys {krl}")

    other = KRL_SPECS[form].replace("7", "700").replace("5-9", "50-90").replace("edge", "far")
    accepted(judged_with(other.format(key=public(OTHER))))
    revoking = KRL_SPECS[form].format(key=server.host_public_keys()[0])
    refused(judged_with(revoking), ErrorCode.HOSTKEY_CHANGED)


@pytest.mark.row("S1")
@pytest.mark.parametrize(
    "revocation",
    [
        "@revoked *", "@revoked * ssh-ed25519", "@revoked * ssh-ed25519 AAAA", "@revoked * ssh-ed25519 %%%",
        "@revoked h ssh-ed25519-cert-v01@openssh.com AAAA", "@revoked |1|damaged|= ssh-ed25519 AAAA",
        "@revoked", "@REVOKED h ssh-rsa AAAA", "@revoked @cert-authority h ssh-ed25519 AAAA",
        "  @revoked\th  ecdsa-sha2-nistp256 AAAAE2VjZHNh\r",
    ],
)  # fmt: skip
def test_a_revocation_that_cannot_be_read_never_vanishes(tmp_path: Path, revocation: str) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"# mine\nh {public(OTHER)}\n{revocation}\n")
    with pytest.raises(HostError) as caught:
        KnownHosts().lookup((path,), "h", 22)
    assert caught.value.code is ErrorCode.HOSTKEY_UNKNOWN
    assert f"{path}:3" in caught.value.message


def test_a_revocation_that_cannot_be_read_concerns_only_its_hosts(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"h {public(OTHER)}\n@revoked other,*.net ssh-ed25519 AAAA\n")
    assert KnownHosts().lookup((path,), "h", 22).keys


def test_a_key_revoked_under_either_name_is_revoked(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    shown = ShownKey(OTHER.convert_to_public())
    for marked in ("h", "[h]:2222", "*", "[*]:2222"):
        path.write_text(f"[h]:2222 {public(OTHER)}\n@revoked {marked} {public(OTHER)}\n")
        trusted = KnownHosts().lookup((path,), "h", 2222)
        assert trusted.judge(shown).state is KeyState.REVOKED


def test_hashed_revocations_are_found(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"h {public(OTHER)}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(path)], check=True, capture_output=True)
    (hashed,) = path.read_text().splitlines()
    path.write_text(f"h {public(OTHER)}\n@revoked {hashed}\n")
    shown = ShownKey(OTHER.convert_to_public())
    assert KnownHosts().lookup((path,), "h", 22).judge(shown).state is KeyState.REVOKED


# Marker lines beside plain keys.


def test_a_revoked_line_for_another_key_is_not_a_changed_key(
    server: Server, tmp_path: Path
) -> None:
    server.begin()
    revoked = f"@revoked * {public(OTHER)}\n"
    accepted(with_known_hosts(server, tmp_path, revoked + line(server)))
    error = refused(with_known_hosts(server, tmp_path, revoked), ErrorCode.HOSTKEY_UNKNOWN)
    assert "not known" in error.message


@pytest.mark.parametrize("fault", ["authority", "expired", "name", "none"])
def test_a_certificate_that_does_not_count_leaves_the_plain_key(
    server: Server, tmp_path: Path, fault: str
) -> None:
    if fault == "authority":
        server.certify(STRANGER)
    elif fault == "expired":
        server.certify(valid_after=int(time.time()) - 900, valid_before=int(time.time()) - 90)
    elif fault == "name":
        server.certify(principals=["far.example.net"])
    server.begin()
    authority = f"@cert-authority * {public(AUTHORITY)}\n"
    accepted(with_known_hosts(server, tmp_path, authority + line(server)))
    login = with_known_hosts(server, tmp_path, authority)
    error = refused(login, ErrorCode.HOSTKEY_UNKNOWN)
    assert ("certificate does not count" in error.message) == (fault != "none")
    changed = authority + line(server).rsplit(" ", 1)[0].rsplit(" ", 1)[0]
    changed += f" {public(OTHER)}\n"
    refused(with_known_hosts(server, tmp_path, changed), ErrorCode.HOSTKEY_CHANGED)


def test_a_key_under_the_bare_name_counts_beside_an_authority(
    server: Server, tmp_path: Path
) -> None:
    server.begin()
    text = f"@cert-authority * {public(AUTHORITY)}\n"
    text += f"{server.addresses[0]} {server.host_public_keys()[0]}\n"
    accepted(with_known_hosts(server, tmp_path, text))


def test_an_authority_under_the_bare_name_counts_for_other_ports(
    server: Server, tmp_path: Path
) -> None:
    server.certify()
    server.begin()
    text = f"@cert-authority {server.addresses[0]} {public(AUTHORITY)}\n"
    accepted(with_known_hosts(server, tmp_path, text))
