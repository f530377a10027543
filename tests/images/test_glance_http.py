"""How the Glance service behaves on answers that no healthy Glance gives."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from imgcache.errors import (
    AuthenticationError,
    ExitCode,
    ImageProblemsError,
    ImageServiceError,
    ImageServiceUnreachableError,
    ImgcacheError,
)
from imgcache.images.glance import GlanceImageService
from imgcache.images.keystone import open_cloud
from imgcache.images.options import CloudOptions
from imgcache.model import ImageServiceSettings
from servers.openstack import free_port
from servers.scripted_http import Answer, Request, ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ID = "b9a1a2f0-6f39-4f0d-9b0c-0d2f0e6d5c11"
DATA = b"x" * 5000
RECORD: dict[str, Any] = {
    "id": ID,
    "name": "name",
    "status": "active",
    "size": len(DATA),
    "disk_format": "raw",
    "container_format": "bare",
    "os_hash_algo": "sha512",
    "os_hash_value": hashlib.sha512(DATA).hexdigest(),
}
REQUEST_ID = {"x-openstack-request-id": "req-canary"}


def as_json(content: object, status: int = 200) -> Answer:
    return Answer(
        status, json.dumps(content).encode(), {"Content-Type": "application/json", **REQUEST_ID}
    )


def service_at(
    url: str, sleeps: list[float] | None = None, *, page_size: int = 500, **values: str | bool
) -> GlanceImageService:
    cloud = open_cloud(ImageServiceSettings(endpoint=url), CloudOptions(values=values))
    slept = sleeps if sleeps is not None else []
    return GlanceImageService(cloud, page_size=page_size, sleep=slept.append)


def find(
    answer: Callable[[Request], Answer], name: str = ID, sleeps: list[float] | None = None
) -> tuple[ImgcacheError, list[Request]]:
    """Find an image, which must fail; return the error and what was asked."""
    with ScriptedServer(answer) as server, service_at(server.url, sleeps) as service:
        with pytest.raises((ImageServiceError, ImageProblemsError)) as caught:
            service.find_images([name])
        assert caught.value.exit_code == ExitCode.IMAGE_SERVICE
        return caught.value, server.requests


@pytest.mark.row("N15")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    with ScriptedServer(lambda _: as_json(RECORD)) as other:
        target = f"{other.url}/\x1b[31mred"
        error, asked = find(lambda _: Answer(status, headers={"Location": target}))
        assert other.requests == []
    assert len(asked) == 1
    assert "redirects to" in error.message
    assert "\x1b" not in error.message


@pytest.mark.row("N14")
@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_error_is_repeated_a_few_times(status: int) -> None:
    sleeps: list[float] = []
    error, asked = find(lambda _: Answer(status, b"down", REQUEST_ID), sleeps=sleeps)
    assert isinstance(error, ImageServiceUnreachableError)
    assert f"answered {status}: down (request req-canary)" in error.message
    assert len(asked) == 4
    assert len(sleeps) == 3
    assert sleeps[0] < sleeps[2] < 10


@pytest.mark.row("N14")
def test_a_server_error_that_passes_does_no_harm() -> None:
    seen: list[str] = []

    def answer(request: Request) -> Answer:
        seen.append(request.path)
        if len(seen) % 2:
            return Answer(503)
        return Answer(206, b"x") if request.path.endswith("/file") else as_json(RECORD)

    with ScriptedServer(answer) as server, service_at(server.url) as service:
        assert [image.id for image in service.find_images([ID])] == [ID]


@pytest.mark.row("N13")
@pytest.mark.parametrize(
    ("asked", "at_least"),
    [
        ("3", 3),
        ("0", 0),
        ("999999999999", 10),
        ("-5", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("x", 0),
    ],
)
def test_retry_after_is_honoured_within_reason(asked: str, at_least: float) -> None:
    sleeps: list[float] = []
    find(lambda _: Answer(429, headers={"Retry-After": asked}), sleeps=sleeps)
    assert len(sleeps) == 3
    assert all(at_least <= pause <= 10 for pause in sleeps)


def test_401_is_about_who_we_are() -> None:
    error, asked = find(lambda _: Answer(401, b"<h1>401</h1> bad token", REQUEST_ID))
    assert isinstance(error, AuthenticationError)
    assert "bad token (request req-canary)" in error.message
    assert len(asked) == 1


@pytest.mark.row("M6")
def test_what_an_error_says_is_made_safe_and_short() -> None:
    body = (
        b"<html><title>418 x</title><h1>418 x</h1>evil\x1b]0;title\x07"
        + b"A" * 100_000
        + b"</html>"
    )
    error, _ = find(lambda _: Answer(418, body))
    assert "evil\\x1b]0;title\\x07" in error.message
    assert len(error.message) < 500
    assert "<" not in error.message


@pytest.mark.parametrize("body", [b"", b"<html>welcome</html>", b"[]", b"7", b"[" * 10_000])
def test_something_else_than_glance_is_told(body: bytes) -> None:
    error, _ = find(lambda _: Answer(200, body))
    assert "JSON" in error.message or "object" in error.message


@pytest.mark.row("N17")
def test_nobody_there() -> None:
    sleeps: list[float] = []
    with (
        service_at(f"http://127.0.0.1:{free_port()}", sleeps) as service,
        pytest.raises(ImageServiceUnreachableError) as caught,
    ):
        service.find_images([ID])
    assert "127.0.0.1" in caught.value.message
    assert len(sleeps) == 3


@pytest.mark.row("N15")
@pytest.mark.parametrize(
    "url",
    [
        "ftp://glance/",
        "file:///etc/passwd",
        "http://glance/?x=1",
        "glance",
    ],
)
def test_only_plain_http_endpoints(url: str) -> None:
    with service_at(url) as service, pytest.raises(ImageServiceError) as caught:
        service.find_images([ID])
    assert "endpoint" in caught.value.message
    assert "secret" not in caught.value.message


class TestLists:
    """Pages, markers, and what the list hides."""

    def pages(self, *rows: dict[str, Any], lose_marker: int = 0) -> Callable[[Request], Answer]:
        lost: list[str] = []

        def answer(request: Request) -> Answer:
            path, _, query = request.path.partition("?")
            if path.endswith("/file"):
                return Answer(206, b"x")
            if path != "/v2/images":
                return Answer(404)
            index = int(query.partition("marker=")[2] or 0)
            if index and len(lost) < lose_marker:
                lost.append(query)
                return Answer(400, b"No image found with ID")
            page: dict[str, Any] = {"images": rows[index : index + 1]}
            if index + 1 < len(rows):
                page["next"] = f"/other/prefix/v2/images?name=eq%3Aname&marker={index + 1}"
            return as_json(page)

        return answer

    def test_all_pages_are_read(self) -> None:
        rows = [{**RECORD, "name": "no"}, RECORD, {**RECORD, "name": "no"}]
        with (
            ScriptedServer(self.pages(*rows)) as server,
            service_at(server.url, page_size=1) as service,
        ):
            (image,) = service.find_images(["name"])
            assert image.id == ID
            assert "limit=1" in server.requests[0].path
            assert "name=eq%3Aname" in server.requests[0].path
            assert server.requests[2].path.startswith("/v2/images?")

    def test_a_marker_that_was_deleted_begins_the_walk_anew(self) -> None:
        pages = self.pages(RECORD, {**RECORD, "name": "no"}, lose_marker=2)
        with ScriptedServer(pages) as server, service_at(server.url) as service:
            assert [image.id for image in service.find_images(["name"])] == [ID]

    def test_a_list_that_never_holds_still_is_given_up(self) -> None:
        rows = [RECORD, {**RECORD, "name": "no"}]
        error, asked = find(self.pages(*rows, lose_marker=99), name="name")
        assert "changed too often" in error.message
        assert len(asked) < 10

    def test_many_ids_go_in_few_requests(self) -> None:
        ids = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(250)]
        asked: list[str] = []

        def answer(request: Request) -> Answer:
            if request.path.endswith("/file"):
                return Answer(206, b"x")
            asked.append(request.path)
            assert len(request.path) < 8000
            return as_json(
                {"images": [{**RECORD, "id": word} for word in ids if word in request.path]}
            )

        with ScriptedServer(answer) as server, service_at(server.url) as service:
            assert [image.id for image in service.find_images(ids)] == ids
        assert len(asked) == 3


@pytest.mark.row("N12")
@pytest.mark.parametrize(
    ("status", "what"),
    [
        (204, "no data"),
        (403, "may not be downloaded"),
        (404, "is gone"),
        (401, "may not"),
        (416, "no data"),
    ],
)
def test_an_image_that_cannot_be_read_is_a_problem(status: int, what: str) -> None:
    def answer(request: Request) -> Answer:
        return (
            Answer(status, headers=REQUEST_ID)
            if request.path.endswith("/file")
            else as_json(RECORD)
        )

    error, _ = find(answer)
    assert isinstance(error, ImageProblemsError)
    assert what in error.problems[0].what
    assert "req-canary" in error.problems[0].what


class TestReading:
    def read(self, *answers: Answer, offset: int = 0) -> tuple[bytes, list[Request]]:
        script = list(answers)

        def answer(request: Request) -> Answer:
            if not request.path.endswith("/file"):
                return as_json(RECORD)
            return (
                Answer(206, b"x") if request.headers.get("Range") == "bytes=0-0" else script.pop(0)
            )

        with ScriptedServer(answer) as server, service_at(server.url) as service:
            (image,) = service.find_images([ID])
            del server.requests[:]
            with service.read(image, offset=offset) as blocks:
                return b"".join(blocks), server.requests

    def test_a_first_try_asks_for_no_range(self) -> None:
        data, asked = self.read(Answer(body=DATA))
        assert data == DATA
        assert "Range" not in asked[0].headers
        assert asked[0].headers["Accept-Encoding"] == "identity"

    @pytest.mark.row("N1")
    @pytest.mark.parametrize(
        "first",
        [
            Answer(206, DATA[100:], {"Content-Range": f"bytes 100-4999/{len(DATA)}"}),
            Answer(200, DATA),
            Answer(400, b"cannot seek"),
            Answer(416, b""),
            Answer(206, DATA[200:], {"Content-Range": f"bytes 200-4999/{len(DATA)}"}),
        ],
    )
    def test_an_offset_is_reached_in_any_way(self, first: Answer) -> None:
        data, _ = self.read(first, Answer(body=DATA), offset=100)
        assert data == DATA[100:]

    @pytest.mark.row("N4")
    @pytest.mark.parametrize(
        "answer",
        [
            Answer(body=DATA[:-1]),
            Answer(body=DATA + b"x"),
            Answer(body=DATA[:-1], headers={"Content-Length": str(len(DATA))}),
            Answer(body=DATA[:-1], length=False),
            Answer(body=DATA * 3, length=False),
            Answer(204),
            Answer(206, DATA),
        ],
    )
    def test_anything_but_exactly_the_size_is_an_error(self, answer: Answer) -> None:
        with pytest.raises(ImageServiceError) as caught:
            self.read(answer)
        assert ID in caught.value.message or "206" in caught.value.message


@pytest.mark.row("N4")
def test_a_wrong_length_is_told_before_the_first_byte() -> None:
    def answer(request: Request) -> Answer:
        if request.path.endswith("/file"):
            first = request.headers.get("Range") == "bytes=0-0"
            return Answer(206, b"x") if first else Answer(body=DATA[:-1])
        return as_json(RECORD)

    with ScriptedServer(answer) as server, service_at(server.url) as service:
        (image,) = service.find_images([ID])
        with pytest.raises(ImageServiceError, match="announces 4999"), service.read(image):
            pytest.fail("opened")


def make_certificate(folder: Path, days_off: int = 0) -> Path:
    """Make a key and a certificate for 127.0.0.1 that nobody knows, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "imgcache test")])
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days_off)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


class TestTls:
    @pytest.mark.row("N16")
    def test_an_unknown_ca_is_told_at_once_with_the_remedy(self, tmp_path: Path) -> None:
        sleeps: list[float] = []
        with (
            ScriptedServer(lambda _: as_json(RECORD), make_certificate(tmp_path)) as server,
            service_at(server.url, sleeps) as service,
            pytest.raises(ImageServiceUnreachableError) as caught,
        ):
            service.find_images([ID])
        assert "OS_CACERT" in (caught.value.hint or "")
        assert sleeps == []
        assert server.requests == []

    @pytest.mark.row("C12")
    @pytest.mark.parametrize("days_off", [-7, 7], ids=["expired", "not yet valid"])
    def test_a_wrong_clock_is_told_as_what_may_be_the_cause(
        self, tmp_path: Path, days_off: int
    ) -> None:
        path = make_certificate(tmp_path, days_off)
        with (
            ScriptedServer(lambda _: as_json(RECORD), path) as server,
            service_at(server.url, cacert=str(path)) as service,
            pytest.raises(ImageServiceUnreachableError) as caught,
        ):
            service.find_images([ID])
        assert "valid" in str(caught.value) or "expired" in str(caught.value)
        assert "this machine's clock" in (caught.value.hint or "")

    def test_a_ca_that_was_named_is_trusted_and_told_to_hosts(self, tmp_path: Path) -> None:
        path = make_certificate(tmp_path)

        def answer(request: Request) -> Answer:
            return Answer(206, b"x") if request.path.endswith("/file") else as_json(RECORD)

        with (
            ScriptedServer(answer, path) as server,
            service_at(server.url, cacert=str(path)) as service,
        ):
            images = service.find_images([ID])
            with service.host_access(images, "run", 600) as access:
                given = access.for_image(images[0])
        assert given.ca_pem is not None
        assert given.ca_pem.startswith("-----BEGIN CERTIFICATE-----")
        assert "PRIVATE" not in given.ca_pem
        assert (given.insecure, access.warnings) == (False, ())

    @pytest.mark.row("N16")
    def test_insecure_is_passed_on_and_warned_about(self, tmp_path: Path) -> None:
        def answer(request: Request) -> Answer:
            return Answer(206, b"x") if request.path.endswith("/file") else as_json(RECORD)

        with (
            ScriptedServer(answer, make_certificate(tmp_path)) as server,
            service_at(server.url, insecure=True) as service,
        ):
            images = service.find_images([ID])
            with service.host_access(images, "run", 600) as access:
                assert access.for_image(images[0]).insecure
                assert "not checked" in access.warnings[0]

    def test_a_ca_bundle_too_large_for_a_frame_is_left_to_the_hosts(self, tmp_path: Path) -> None:
        path = make_certificate(tmp_path)
        path.write_text(path.read_text() * 100)
        with service_at("https://glance.example", cacert=str(path)) as service:
            given = service.access_without_token()
        assert given is not None
        assert given.ca_pem is None


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Have the environment name a proxy for everything, which refuses; return what it was sent."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    heard.append(connection.recv(65536))
                    if not heard[-1]:
                        return
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=listen)
        thread.start()
        address = listener.getsockname()
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            for variable in (name, name.upper()):
                monkeypatch.setenv(variable, f"http://{address[0]}:{address[1]}")
        yield heard
        socket.create_connection(address).close()
        thread.join()


@pytest.mark.row("N18")
@pytest.mark.row("T1")
class TestProxies:
    def test_a_proxy_gets_no_password_and_no_token_of_plain_http(
        self, proxied: list[bytes]
    ) -> None:
        def answer(request: Request) -> Answer:
            return Answer(206, b"x") if request.path.endswith("/file") else as_json(RECORD)

        with ScriptedServer(answer) as server, service_at(server.url) as service:
            (image,) = service.find_images([ID])
        assert image.id == ID
        assert server.requests
        assert proxied == []

    def test_through_a_proxy_https_is_a_tunnel(self, proxied: list[bytes], tmp_path: Path) -> None:
        path = make_certificate(tmp_path)
        with (
            ScriptedServer(lambda _: as_json(RECORD), path) as server,
            service_at(server.url, cacert=str(path)) as service,
            pytest.raises(ImageServiceUnreachableError, match="403 Forbidden"),
        ):
            service.find_images([ID])
        assert server.requests == []
        assert {line.split(b" ")[0] for line in proxied} == {b"CONNECT"}

    def test_what_only_the_proxy_reaches_is_told_with_the_remedy(
        self, proxied: list[bytes]
    ) -> None:
        with (
            service_at(f"http://127.0.0.1:{free_port()}") as service,
            pytest.raises(ImageServiceUnreachableError) as caught,
        ):
            service.find_images([ID])
        assert "no proxy is asked over http" in (caught.value.hint or "")
        assert proxied == []
