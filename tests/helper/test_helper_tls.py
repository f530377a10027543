"""Trust in the image service: certificates, names, versions."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from helper.controller import Controller, base_name, from_service, image_of, pythons
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from pathlib import Path

DATA = os.urandom(1_500_000)
IMAGE = image_of(DATA)


class Authority:
    """A throw-away certificate authority."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "imgcache test CA")])
        constraint = x509.BasicConstraints(ca=True, path_length=None)
        self.certificate = self._build(self.name, self.key.public_key(), 30, (constraint, True))
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def _build(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        days: int,
        *extensions: tuple[Any, bool],
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=60))
            .not_valid_after(now + datetime.timedelta(days=days))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, hashes.SHA256())

    def server(self, folder: Path, address: str = "127.0.0.1", days: int = 30) -> ssl.SSLContext:
        """Return a server's context with a certificate for ``address``."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "glance")])
        certificate = self._build(subject, key.public_key(), days, (names, False))
        path = folder / "server.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


AUTHORITY = Authority()
OTHER = Authority()


def fetch(helper: Controller, instances: Path, url: str, **source: Any) -> int:
    helper.open(instances)
    return helper.fetch(IMAGE, from_service(url, **source))


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_known_authority_is_trusted(
    helper: Controller, instances: Path, tmp_path: Path, framing: http.Framing
) -> None:
    with http.HttpServer(tls=AUTHORITY.server(tmp_path)) as server:
        url = server.route("/i", DATA, http.serve(framing))
        assert (
            helper.result(fetch(helper, instances, url, ca_pem=AUTHORITY.pem))["state"] == "cached"
        )
        assert (instances / "_base" / base_name(IMAGE["id"])).read_bytes() == DATA
        assert server.requests[0].header("x-auth-token") == "t0ken"


@pytest.mark.row("N16")
@pytest.mark.parametrize("fault", ["authority", "system", "name", "expired", "old", "plain"])
@pytest.mark.parametrize("python", [pythons()[0], pythons()[-1]])
def test_no_trust_no_request(python: str, instances: Path, tmp_path: Path, fault: str) -> None:
    context = AUTHORITY.server(
        tmp_path, "127.0.0.2" if fault == "name" else "127.0.0.1", -1 if fault == "expired" else 30
    )
    if fault == "old":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
    trusted = {"authority": OTHER.pem, "system": None}.get(fault, AUTHORITY.pem)
    with (
        http.HttpServer(tls=None if fault == "plain" else context) as server,
        Controller(python) as helper,
    ):
        url = server.route("/i", DATA)
        if fault == "plain":
            url = url.replace("http:", "https:")
        error = helper.error(fetch(helper, instances, url, ca_pem=trusted))
        assert error["code"] == "tls"
        assert server.requests == []
    assert os.listdir(instances / "_base/.imgcache") == []


def test_insecure_is_a_choice(helper: Controller, instances: Path, tmp_path: Path) -> None:
    with http.HttpServer(tls=AUTHORITY.server(tmp_path, "127.0.0.2", -1)) as server:
        url = server.route("/i", DATA)
        assert helper.result(fetch(helper, instances, url, insecure=True))["state"] == "cached"


def test_authorities_that_are_no_certificates(helper: Controller, instances: Path) -> None:
    error = helper.error(fetch(helper, instances, "https://127.0.0.1:1/", ca_pem="nonsense"))
    assert error["code"] == "tls"


def test_stop_and_reset_over_tls(helper: Controller, instances: Path, tmp_path: Path) -> None:
    with http.HttpServer(tls=AUTHORITY.server(tmp_path)) as server:
        url = server.route("/i", DATA, http.reset_after(700_000), http.stall_after(500_000))
        number = fetch(helper, instances, url, ca_pem=AUTHORITY.pem)
        retry = helper.event(number, "retry")
        assert retry["code"] == "download"
        helper.tell("again", number, token=None)
        helper.event(number, "progress")
        helper.tell("stop", number)
        assert helper.error(number)["code"] == "interrupted"
