"""The helper's half of the network rows: what each fault of a server comes to."""

from __future__ import annotations

import hashlib
import os
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import Controller, Frame, base_name, from_service, image_of, pythons
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = os.urandom(2_500_000)
IMAGE = image_of(DATA)
HALF = 1_000_000


@pytest.fixture
def server() -> Iterator[http.HttpServer]:
    with http.HttpServer() as server:
        yield server


class Item:
    """One fetch from a scripted server."""

    def __init__(self, helper: Controller, instances: Path, server: http.HttpServer) -> None:
        self.helper = helper
        self.instances = instances
        self.server = server
        self.final = instances / "_base" / base_name(IMAGE["id"])

    def start(self, *script: http.Behaviour, **limits: Any) -> int:
        url = self.server.route("/v2/images/i/file", DATA, *script)
        self.helper.open(self.instances)
        return self.helper.fetch(IMAGE, from_service(url), **limits)

    def retried(self, *script: http.Behaviour, **limits: Any) -> tuple[Frame, Frame]:
        """Fetch with one repetition; return the retry and the result."""
        fetch = self.start(*script, **limits)
        retry = self.helper.event(fetch, "retry")
        self.helper.tell("again", fetch, token=None)
        result = self.helper.result(fetch)
        assert result["state"] == "cached"
        assert self.final.read_bytes() == DATA
        return retry, result

    def failed(self, *script: http.Behaviour, **limits: Any) -> Frame:
        """Fetch and expect an error without any repetition; nothing may be left."""
        error = self.helper.error(self.start(*script, **limits))
        self.assert_clean()
        return error

    def assert_clean(self) -> None:
        assert [path.name for path in self.instances.glob("_base/.*/*")] == []
        assert not self.final.exists()


@pytest.fixture
def item(helper: Controller, instances: Path, server: http.HttpServer) -> Item:
    return Item(helper, instances, server)


@pytest.mark.row("N7")
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_every_framing_works(item: Item, framing: http.Framing) -> None:
    result = item.helper.result(item.start(http.serve(framing)))
    assert (result["state"], result["bytes_fetched"]) == ("cached", len(DATA))
    assert item.final.read_bytes() == DATA
    request = item.server.requests[0]
    assert request.header("x-auth-token") == "t0ken"
    assert request.header("range") is None


@pytest.mark.row("N1")
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_reset_then_resume(item: Item, framing: http.Framing) -> None:
    retry, result = item.retried(http.reset_after(HALF, framing), http.serve())
    assert retry["code"] == "download"
    assert 0 < retry["offset"] <= HALF
    assert item.server.requests[1].offset == retry["offset"]
    assert result["bytes_fetched"] == len(DATA)


@pytest.mark.row("N1")
@pytest.mark.row("N11")
@pytest.mark.parametrize("ranges", ["400", "416", "ignore", "wrong"])
def test_refused_range_starts_from_zero(item: Item, ranges: http.Ranges) -> None:
    retry, result = item.retried(http.truncate_after(HALF), http.serve(ranges=ranges))
    assert retry["offset"] == HALF
    assert result["bytes_fetched"] == HALF + len(DATA)
    asked = [request.offset for request in item.server.requests]
    assert asked == ([None, HALF] if ranges == "ignore" else [None, HALF, None])


@pytest.mark.row("N2")
@pytest.mark.parametrize("script", [http.stall_after(HALF), http.stall_before_head()])
def test_stall_ends_the_attempt(item: Item, script: http.Behaviour) -> None:
    began = time.monotonic()
    retry, _ = item.retried(script, http.serve(), stall_s=1)
    assert retry["code"] == "stall"
    assert time.monotonic() - began < 6


@pytest.mark.row("N3")
def test_too_slow_counts_as_a_stall(item: Item) -> None:
    fetch = item.start(http.drip(50), http.serve(), min_rate=65536, min_rate_window_s=2)
    began = time.monotonic()
    assert item.helper.event(fetch, "retry")["code"] == "stall"
    assert 1 < time.monotonic() - began < 10


@pytest.mark.row("N3")
def test_a_head_that_comes_too_slowly(item: Item) -> None:
    def drip_head(exchange: http.Exchange) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 50:
            if exchange.server.closing.wait(0.1):
                return
            exchange.connection.sendall(bytes([byte]))

    began = time.monotonic()
    retry, _ = item.retried(drip_head, http.serve(), stall_s=1)
    assert retry["code"] == "download"
    assert time.monotonic() - began < 10


@pytest.mark.row("N3")
def test_a_chunks_head_that_comes_too_slowly(item: Item) -> None:
    def drip_chunk(exchange: http.Exchange) -> None:
        exchange.head(200, {"Transfer-Encoding": "chunked"})
        for byte in b"5;" + b"x" * 500:
            if exchange.server.closing.wait(0.1):
                return
            exchange.connection.sendall(bytes([byte]))

    began = time.monotonic()
    retry, _ = item.retried(drip_chunk, http.serve(), stall_s=1)
    assert retry["code"] == "download"
    assert time.monotonic() - began < 10


@pytest.mark.row("N4")
@pytest.mark.row("R12")
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_short_body_is_never_a_final(item: Item, framing: http.Framing) -> None:
    retry, _ = item.retried(http.truncate_after(HALF, framing), http.serve())
    assert (retry["code"], retry["offset"]) == ("download", HALF)


@pytest.mark.row("N4")
def test_announced_too_short(item: Item) -> None:
    retry, _ = item.retried(http.truncate_after(HALF, announced=HALF), http.serve())
    assert (retry["code"], retry["offset"]) == ("download", 0)


@pytest.mark.row("N5")
@pytest.mark.row("R15")
@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_endless_body_stops_at_one_byte_more(item: Item, framing: http.Framing) -> None:
    assert item.failed(http.endless(framing))["code"] == "size"


@pytest.mark.row("N5")
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_one_byte_too_many(item: Item, framing: http.Framing) -> None:
    assert item.failed(http.too_long(1, framing))["code"] == "size"


@pytest.mark.row("N6")
def test_wrong_bit_fails_after_two_attempts(item: Item) -> None:
    fetch = item.start(http.flip_bit(1_234_567))
    retry = item.helper.event(fetch, "retry")
    assert (retry["code"], retry["offset"]) == ("digest", 0)
    item.helper.tell("again", fetch, token=None)
    assert item.helper.error(fetch)["code"] == "digest"
    assert len(item.server.requests) == 2
    item.assert_clean()


@pytest.mark.row("N8")
def test_new_token_after_401(item: Item) -> None:
    fetch = item.start(http.truncate_after(HALF), http.status(401), http.serve())
    assert item.helper.event(fetch, "retry")["code"] == "download"
    item.helper.tell("again", fetch, token=None)
    retry = item.helper.event(fetch, "retry")
    assert (retry["code"], retry["offset"]) == ("auth", HALF)
    assert "t0ken" not in str(item.helper.frames)
    item.helper.tell("again", fetch, token="fresh")
    assert item.helper.result(fetch)["state"] == "cached"
    sent = [request.header("x-auth-token") for request in item.server.requests]
    assert sent == ["t0ken", "t0ken", "fresh"]


@pytest.mark.row("N9")
def test_forbidden(item: Item) -> None:
    assert item.failed(http.status(403))["code"] == "forbidden"


@pytest.mark.row("N10")
@pytest.mark.parametrize("code", [404, 410])
def test_gone(item: Item, code: int) -> None:
    assert item.failed(http.status(code))["code"] == "gone"


@pytest.mark.row("N12")
def test_no_data(item: Item) -> None:
    assert item.failed(http.status(204))["code"] == "nodata"


@pytest.mark.row("N12")
def test_size_0(helper: Controller, instances: Path) -> None:
    helper.open(instances)
    image = image_of(b"")
    assert (
        helper.error(helper.fetch(image, from_service("http://127.0.0.1:1/")))["code"] == "nodata"
    )


@pytest.mark.row("N13")
@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7, 7),
        ("-5", -5, -5),
        ("in 100 s", 40, 101),
        (formatdate(1, usegmt=True), -1e9, -1e8),
        ("9" * 400, 1e9, 1e9),
        ("soon", None, None),
        ("nan", None, None),
        (None, None, None),
    ],
)
@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_is_passed_on(
    item: Item, code: int, header: str | None, low: float | None, high: float | None
) -> None:
    if header == "in 100 s":
        header = formatdate(time.time() + 100, usegmt=True)
    answer = http.status(code, retry_after=header) if header else http.status(code)
    retry, _ = item.retried(answer, http.serve())
    assert retry["code"] == "download"
    if low is None or high is None:
        assert retry["after_s"] is None
    else:
        assert low <= retry["after_s"] <= high


@pytest.mark.row("N14")
@pytest.mark.parametrize("code", [500, 502, 504])
def test_server_errors_may_pass(item: Item, code: int) -> None:
    retry, _ = item.retried(http.status(code), http.serve())
    assert str(code) in retry["message"]


@pytest.mark.row("N15")
@pytest.mark.row("R11")
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(item: Item, code: int) -> None:
    with http.HttpServer() as other:
        target = other.route("/stolen", DATA).replace("http://", "http://u:p@") + "?token=\x1b[31m"
        error = item.failed(http.status(code, location=target))
        assert error["code"] == "redirect"
        assert f"127.0.0.1:{other.port}" in error["message"]
        assert "\x1b" not in error["message"]
        assert other.requests == []


@pytest.mark.row("N15")
@pytest.mark.parametrize("python", [pythons()[0], pythons()[-1]])
@pytest.mark.parametrize("target", ["http://[", "//[::1", "http://a:b:c", "\x00"])
def test_a_redirect_that_points_nowhere_is_one_too(
    instances: Path, server: http.HttpServer, python: str, target: str
) -> None:
    with Controller(python) as helper:
        helper.open(instances)
        url = server.route("/i", DATA, http.status(302, location=target))
        assert helper.error(helper.fetch(IMAGE, from_service(url)))["code"] == "redirect"


@pytest.mark.row("N13")
@pytest.mark.parametrize("python", [pythons()[0], pythons()[-1]])
def test_a_date_that_is_none_breaks_nothing(
    instances: Path, server: http.HttpServer, python: str
) -> None:
    with Controller(python) as helper:
        helper.open(instances)
        answer = http.status(503, retry_after="Mon, 16 Nov 2009 1.2.3.4 +0100")
        fetch = helper.fetch(IMAGE, from_service(server.route("/i", DATA, answer)))
        assert helper.event(fetch, "retry")["after_s"] is None
        helper.tell("stop", fetch)


@pytest.mark.row("N17")
@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http://no-such-host.invalid/x"])
def test_unreachable(helper: Controller, instances: Path, url: str) -> None:
    helper.open(instances)
    fetch = helper.fetch(IMAGE, from_service(url), connect_s=1)
    assert helper.event(fetch, "retry")["code"] == "unreachable"
    helper.tell("stop", fetch)
    assert helper.error(fetch)["code"] == "interrupted"


#: Makes a Python what one is that was built without OpenSSL.
NO_SSL = b"import http.client, sys\nsys.modules['ssl'] = None\ndel http.client.HTTPSConnection\n"


@pytest.mark.parametrize(("scheme", "code"), [("http", "unreachable"), ("https", "tls")])
def test_a_python_without_ssl_is_told_and_reads_what_needs_none(
    helper: Controller, instances: Path, scheme: str, code: str
) -> None:
    helper.open(instances)
    digest = hashlib.sha256(NO_SSL).hexdigest()
    helper.result(helper.order("load", NO_SSL, name="noise", size=len(NO_SSL), sha256=digest))
    fetch = helper.fetch(IMAGE, from_service(f"{scheme}://127.0.0.1:1/x"), connect_s=1)
    if scheme == "https":
        assert helper.error(fetch)["code"] == code
        return
    assert helper.event(fetch, "retry")["code"] == code
    helper.tell("stop", fetch)


@pytest.mark.row("N18")
def test_proxies_are_ignored(instances: Path, server: http.HttpServer) -> None:
    with http.HttpServer() as proxy:
        names = ("http_proxy", "https_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy")
        with Controller(env=dict.fromkeys(names, proxy.url)) as helper:
            item = Item(helper, instances, server)
            assert helper.result(item.start(http.serve()))["state"] == "cached"
        assert proxy.requests == []


@pytest.mark.row("R10")
@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http:///x",
        "http://u:p@127.0.0.1/x",
        "http://127.0.0.1/a b",
        "http://127.0.0.1:99999/x",
        "http://[::1/x",
        "",
    ],
)
def test_only_plain_http_urls(helper: Controller, instances: Path, url: str) -> None:
    helper.open(instances)
    assert helper.error(helper.fetch(IMAGE, from_service(url)))["code"] == "unreachable"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-what\r\n",
        b"HTTP/1.1 999999 no\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    ],
)
def test_nonsense_instead_of_http(item: Item, answer: bytes) -> None:
    retry, _ = item.retried(http.raw(answer), http.serve())
    assert retry["code"] == "download"


def test_unexpected_encoding_and_status(item: Item) -> None:
    assert item.failed(http.status(418))["code"] == "download"
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n12345"
    assert item.failed(http.raw(head))["code"] == "download"
    part = b"HTTP/1.1 206 Part\r\nContent-Length: %d\r\n\r\n" % len(DATA) + DATA
    assert item.failed(http.raw(part))["code"] == "download"


def test_a_token_that_could_split_the_header_is_refused(item: Item) -> None:
    item.helper.open(item.instances)
    url = item.server.route("/f", DATA)
    error = item.helper.error(item.helper.fetch(IMAGE, from_service(url, "a\r\nHost: b")))
    assert error["code"] == "auth"
    assert item.server.requests == []


def test_stop_ends_a_stalled_download_at_once(item: Item) -> None:
    fetch = item.start(http.stall_after(HALF), stall_s=60)
    item.helper.event(fetch, "progress")
    began = time.monotonic()
    item.helper.tell("stop", fetch)
    assert item.helper.error(fetch)["code"] == "interrupted"
    assert time.monotonic() - began < 5
    item.assert_clean()


def test_progress_goes_on_while_nothing_comes(item: Item) -> None:
    fetch = item.start(http.stall_after(HALF), stall_s=60)
    seen = [item.helper.event(fetch, "progress", timeout_s=2.5) for _ in range(3)]
    assert [frame["phase"] for frame in seen] == ["download"] * 3
    assert seen[-1]["done"] == HALF
    assert seen[-1]["total"] == len(DATA)
