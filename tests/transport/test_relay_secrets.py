"""The certificate and the secrets with which hosts read from each other."""

from __future__ import annotations

import hashlib
import hmac
import re
import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

from imgcache.transport.relay_certificate import make_certificate
from imgcache.transport.relay_secret import RelayKey

if TYPE_CHECKING:
    from pathlib import Path


def test_a_ticket_is_good_for_one_file_and_one_reader() -> None:
    key = RelayKey()
    tickets = [key.ticket(name).reveal() for name in ("one", "one", "two")]
    for name, ticket in zip(("one", "one", "two"), tickets, strict=True):
        assert re.fullmatch(r"[0-9a-f]{32}\.[0-9a-f]{64}", ticket)
        nonce, _, proof = ticket.partition(".")
        secret = bytes.fromhex(key.hex.reveal())
        assert len(secret) == 32
        assert hmac.digest(secret, f"{name}/{nonce}".encode(), hashlib.sha256).hex() == proof
    assert len({ticket.partition(".")[0] for ticket in tickets}) == 3
    assert RelayKey().hex.reveal() != key.hex.reveal()


@pytest.mark.row("T4")
def test_secrets_do_not_show_themselves() -> None:
    key = RelayKey()
    _, key_pem = make_certificate()
    shown = f"{key!r} {key} {key.hex!r} {key.ticket('x')!r} {key_pem!r} {key_pem}"
    assert shown == "<relay key> <relay key> <secret> <secret> <secret> <secret>"
    assert not hasattr(key, "__dict__")


def test_each_certificate_is_its_own() -> None:
    made = [make_certificate() for _ in range(2)]
    assert len({cert_pem for cert_pem, _ in made} | {key.reveal() for _, key in made}) == 4
    assert "PRIVATE" not in made[0][0]
    for cert_pem, key_pem in made:
        assert len(cert_pem) + len(key_pem.reveal()) < 4096  # an order's frame has room, a pipe too


def test_openssl_accepts_it_as_its_own_authority_at_any_time(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    path = tmp_path / "cert.pem"
    path.write_text(make_certificate()[0])
    for time in ("0", "4102444800", "100000000000"):
        done = subprocess.run(
            [openssl, "verify", "-x509_strict", "-purpose", "sslserver", "-attime", time,
             "-CAfile", path, path],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_python_takes_it_as_an_authority() -> None:
    context = ssl.create_default_context(cadata=make_certificate()[0])
    assert context.cert_store_stats()["x509_ca"] == 1
