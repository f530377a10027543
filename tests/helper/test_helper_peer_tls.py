"""Trust between hosts: one certificate, whatever its name and dates, and nothing that it vouches for."""

from __future__ import annotations

import datetime
import os
import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from helper.controller import Controller, base_name, from_peer, from_service, image_of, pythons
from imgcache.transport.relay_certificate import make_certificate
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from pathlib import Path

    from helper.controller import Frame

DATA = os.urandom(1_500_000)
IMAGE = image_of(DATA)
HALF = 700_000


class Identity:
    """A certificate and its key."""

    def __init__(self, issuer: Identity | None = None, days: int = 30, name: str = "any") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(issuer.name if issuer else self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=60))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(issuer.key if issuer else self.key, hashes.SHA256())
        )
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()


def context_of(folder: Path, pem: str, key_pem: str) -> ssl.SSLContext:
    path = folder / "server.pem"
    path.write_text(key_pem + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


PINNED = Identity()
PINNED_TWIN = Identity()  # the same name, another key
EXPIRED = Identity(days=-1)
SIGNED = Identity(PINNED, name="other")


def fetched(helper: Controller, instances: Path, source: Frame, fallback: str) -> Frame | None:
    """Fetch; return the retry about the peer, if there is one; the image comes in any case."""
    helper.open(instances)
    number = helper.fetch(IMAGE, source)
    frame = helper.event(number, "retry", "result")
    retry = None
    if frame["event"] == "retry":
        retry = frame
        helper.tell("again", number, token=None, source=from_service(fallback))
        frame = helper.result(number)
    assert frame["state"] == "cached"
    assert (instances / "_base" / base_name(IMAGE["id"])).read_bytes() == DATA
    return retry


@pytest.mark.row("T4")
@pytest.mark.parametrize("python", [pythons()[0], pythons()[-1]])
@pytest.mark.parametrize("own", ["made for a run", "expired"])
def test_the_pinned_certificate_is_enough(
    python: str, instances: Path, tmp_path: Path, own: str
) -> None:
    if own == "expired":
        pem, key = EXPIRED.pem, EXPIRED.key_pem
    else:
        pem, secret = make_certificate()
        key = secret.reveal()
    context = context_of(tmp_path, pem, key)
    with http.HttpServer(tls=context) as server, Controller(python) as helper:
        source = from_peer(server.route("/i", DATA, http.serve()), pem)
        assert fetched(helper, instances, source, "") is None
        assert server.requests[0].header("x-auth-token") == source["token"]


@pytest.mark.row("M9")
@pytest.mark.row("T4")
@pytest.mark.parametrize("python", [pythons()[0], pythons()[-1]])
@pytest.mark.parametrize("fault", ["twin", "signed", "old", "plain", "nonsense", "nothing pinned"])
def test_no_other_peer_is_asked(python: str, instances: Path, tmp_path: Path, fault: str) -> None:
    shown = {"twin": PINNED_TWIN, "signed": SIGNED}.get(fault, PINNED)
    context = context_of(tmp_path, shown.pem, shown.key_pem)
    if fault == "old":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    pinned = {"nonsense": "nonsense", "nothing pinned": None}.get(fault, PINNED.pem)
    with (
        http.HttpServer(tls=None if fault == "plain" else context) as server,
        http.HttpServer() as service,
        Controller(python) as helper,
    ):
        url = server.route("/i", DATA).replace("http:", "https:")
        fallback = service.route("/i", DATA)
        retry = fetched(helper, instances, from_peer(url, pinned), fallback)
        assert retry is not None
        assert (retry["code"], retry["offset"]) == ("peer", 0)
        assert server.requests == []


def test_switch_stall_and_resume_over_tls(
    helper: Controller, instances: Path, tmp_path: Path
) -> None:
    context = context_of(tmp_path, PINNED.pem, PINNED.key_pem)
    with http.HttpServer(tls=context) as server:
        url = server.route("/i", DATA, http.stall_after(HALF), http.raw(b""), http.serve())
        helper.open(instances)
        number = helper.fetch(IMAGE, from_peer(url, PINNED.pem), stall_s=60)
        while helper.event(number, "progress")["done"] < HALF:
            pass
        helper.tell("switch", number)
        retry = helper.event(number, "retry")
        assert (retry["code"], retry["offset"]) == ("switched", HALF)
        helper.tell("again", number, token=None)
        retry = helper.event(number, "retry")
        assert (retry["code"], retry["offset"]) == ("download", HALF)
        helper.tell("again", number, token=None)
        assert helper.result(number)["bytes_fetched"] == len(DATA)
        assert [one.offset for one in server.requests] == [None, HALF, HALF]
