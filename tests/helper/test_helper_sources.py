"""A fetch goes from one source to another, and what peers do wrong is never the end of it."""

from __future__ import annotations

import os
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import (
    PUSH,
    Controller,
    base_name,
    from_peer,
    from_service,
    image_of,
    pythons,
)
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helper.controller import Frame

DATA = os.urandom(2_500_000)
IMAGE = image_of(DATA)
HALF = 1_000_000
MIB = 1 << 20
BLOCK = 100_000


@pytest.fixture
def server() -> Iterator[http.HttpServer]:
    with http.HttpServer() as server:
        yield server


class Item:
    """One fetch whose source changes."""

    def __init__(self, helper: Controller, instances: Path, server: http.HttpServer) -> None:
        self.helper = helper
        self.server = server
        self.final = instances / "_base" / base_name(IMAGE["id"])
        self.own = instances / "_base/.imgcache"
        self.number = 0
        self.routes = 0
        helper.open(instances)

    def source(self, kind: str, *script: http.Behaviour) -> Frame:
        """Return a source; the script is what its server does."""
        if kind == "push":
            return PUSH
        self.routes += 1
        url = self.server.route(f"/{self.routes}", DATA, *script)
        return from_peer(url) if kind == "relay" else from_service(url)

    def start(self, kind: str, *script: http.Behaviour, **limits: Any) -> int:
        self.number = self.helper.fetch(IMAGE, self.source(kind, *script), **limits)
        return self.number

    def push(self, start: int, end: int) -> None:
        for at in range(start, end, BLOCK):
            part = DATA[at : min(at + BLOCK, end)]
            self.helper.tell("data", self.number, part, size=len(part))

    def retry(self) -> Frame:
        return self.helper.event(self.number, "retry")

    def again(self, kind: str | None = None, *script: http.Behaviour) -> None:
        more: Frame = {} if kind is None else {"source": self.source(kind, *script)}
        self.helper.tell("again", self.number, token=None, **more)

    def finish_from(self, kind: str, offset: int) -> Frame:
        """Go on from another source, which must be asked for no more than what is missing."""
        before = len(self.server.requests)
        self.again(kind)
        if kind == "push":
            assert self.helper.event(self.number, "ready")["offset"] == offset
            self.push(offset, len(DATA))
            self.helper.tell("data", self.number, size=0)
        result = self.helper.result(self.number)
        assert result["state"] == "cached"
        assert self.final.read_bytes() == DATA
        if kind != "push":
            assert [one.offset for one in self.server.requests[before:]] == [offset or None]
        return result


@pytest.fixture
def item(helper: Controller, instances: Path, server: http.HttpServer) -> Item:
    return Item(helper, instances, server)


@pytest.mark.row("N1")
@pytest.mark.row("N20")
@pytest.mark.parametrize("new", ["service", "push", "relay"])
@pytest.mark.parametrize("old", ["service", "push", "relay"])
def test_from_any_kind_to_any_kind(item: Item, old: str, new: str) -> None:
    number = item.start(old, http.truncate_after(HALF))
    if old == "push":
        item.helper.event(number, "ready")
        item.push(0, HALF)
        while item.helper.event(number, "progress")["done"] < HALF:
            pass
        item.helper.tell("switch", number)
    retry = item.retry()
    assert retry["code"] == ("switched" if old == "push" else "download")
    assert retry["offset"] == HALF
    assert item.finish_from(new, HALF)["bytes_fetched"] == len(DATA)


def test_a_new_source_has_its_own_token(item: Item) -> None:
    item.start("service", http.truncate_after(HALF))
    item.retry()
    source = item.source("service")
    item.helper.tell("again", item.number, token=None, source={**source, "token": "other"})
    item.helper.result(item.number)
    assert [one.header("x-auth-token") for one in item.server.requests] == ["t0ken", "other"]


def test_an_unknown_kind_of_source_is_refused(item: Item) -> None:
    item.start("service", http.status(500))
    item.retry()
    item.helper.tell("again", item.number, token=None, source={"kind": "magic"})
    assert item.helper.error(item.number)["code"] == "protocol"
    assert os.listdir(item.own) == []


# ---- switch


@pytest.mark.row("N2")
@pytest.mark.parametrize("kind", ["service", "relay"])
@pytest.mark.parametrize("script", [http.stall_after(HALF), http.stall_before_head()])
def test_switch_ends_a_read_at_once(item: Item, kind: str, script: http.Behaviour) -> None:
    number = item.start(kind, script, stall_s=60)
    while not item.server.requests:
        item.helper.event(number, "progress")
    item.helper.tell("switch", number)
    began = time.monotonic()
    retry = item.retry()
    assert time.monotonic() - began < 10
    assert retry["code"] == "switched"
    item.finish_from("service", retry["offset"])


def test_switch_while_our_own_rate_holds_the_read_back(item: Item) -> None:
    number = item.start("relay", http.serve(), rate=2048)
    item.helper.event(number, "progress")
    item.helper.tell("switch", number)
    retry = item.retry()
    assert retry["code"] == "switched"
    assert 0 < retry["offset"] < len(DATA)
    item.helper.tell("rate", number, rate=None)
    item.finish_from("relay", retry["offset"])


def test_switch_before_the_source_was_asked(item: Item) -> None:
    number = item.start("relay", http.serve())
    item.helper.tell("switch", number)  # most likely before, surely not after the end
    frame = item.helper.event(number, "retry", "result")
    if frame["event"] == "retry":
        assert frame["code"] == "switched"
        item.finish_from("service", frame["offset"])


def test_bytes_of_a_push_that_was_left_are_dropped(item: Item) -> None:
    number = item.start("push")
    item.helper.event(number, "ready")
    item.push(0, HALF)
    item.helper.tell("switch", number)
    for _ in range(40):  # still on their way; more than what may wait
        item.helper.tell("data", number, bytes(BLOCK), size=BLOCK)
    retry = item.retry()
    assert retry["code"] == "switched"
    item.finish_from("push", retry["offset"])
    assert [frame["event"] for frame in item.helper.frames].count("retry") == 1


def test_a_switch_that_comes_too_late_is_about_the_source_before(item: Item) -> None:
    number = item.start("service", http.truncate_after(HALF))
    item.retry()
    item.helper.tell("switch", number)
    item.finish_from("service", HALF)
    item.helper.tell("switch", number)
    item.helper.tell("rate", number, rate=1)
    other = image_of(b"x" * 700)
    with_push = item.helper.fetch(other, PUSH)
    item.helper.push_when_ready(with_push, b"x" * 700)
    assert item.helper.result(with_push)["state"] == "cached"


def test_a_switch_after_again_is_about_the_new_source(item: Item) -> None:
    number = item.start("service", http.truncate_after(HALF))
    item.retry()
    item.again("relay", http.stall_before_head())
    item.helper.tell("switch", number)
    assert item.retry()["code"] == "switched"
    item.finish_from("service", HALF)


# ---- peers


def encoded(exchange: http.Exchange) -> None:
    exchange.head(200, {"Content-Encoding": "gzip", "Content-Length": len(DATA)})
    exchange.body(DATA)


PEER_FAULTS = [
    *(
        pytest.param(http.status(code), "peer", id=str(code))
        for code in (204, 401, 403, 404, 410, 418)
    ),
    *(pytest.param(http.status(code), "download", id=str(code)) for code in (429, 500, 503)),
    pytest.param(http.status(302, location="http://127.0.0.1:1/"), "peer", id="redirect"),
    pytest.param(http.status(302, location="http://["), "peer", id="redirect to nowhere"),
    pytest.param(encoded, "peer", id="encoded"),
    pytest.param(http.serve("chunked"), "peer", id="chunked"),
    pytest.param(http.serve("close"), "peer", id="no length"),
    pytest.param(http.endless(), "peer", id="endless"),
    pytest.param(http.too_long(1), "peer", id="too long"),
    pytest.param(http.truncate_after(HALF, announced=HALF), "download", id="too short"),
    pytest.param(http.raw(b""), "download", id="nothing"),
    pytest.param(http.raw(b"SSH-2.0-what\r\n"), "download", id="no http"),
    pytest.param(http.reset_after(0), "download", id="reset"),
    pytest.param(http.stall_before_head(), "stall", id="stall"),
    pytest.param(http.flip_bit(5), "digest", id="digest"),
]


@pytest.mark.row("N20")
@pytest.mark.row("M9")
@pytest.mark.parametrize(("script", "code"), PEER_FAULTS)
def test_a_peer_that_does_wrong_is_left_for_another(
    item: Item, script: http.Behaviour, code: str
) -> None:
    item.start("relay", script, stall_s=2 if code == "stall" else 30)
    for _ in range(3):  # as often as the controller allows
        retry = item.retry()
        assert (retry["code"], retry["offset"]) == (code, 0)
        item.again()
    item.retry()
    item.finish_from("service", 0)


@pytest.mark.row("N20")
@pytest.mark.parametrize("ranges", ["400", "416", "ignore", "wrong"])
def test_a_peer_that_does_not_go_on_costs_no_bytes(item: Item, ranges: http.Ranges) -> None:
    item.start("service", http.truncate_after(HALF))
    item.retry()
    item.again("relay", http.serve(ranges=ranges))
    retry = item.retry()
    assert (retry["code"], retry["offset"]) == ("peer", HALF)
    item.finish_from("relay", HALF)


@pytest.mark.row("N20")
@pytest.mark.row("N21")
def test_a_peer_that_cannot_be_reached(item: Item) -> None:
    item.number = item.helper.fetch(IMAGE, from_peer("http://127.0.0.1:1/x"), connect_s=1)
    assert item.retry()["code"] == "unreachable"
    item.finish_from("service", 0)


@pytest.mark.row("N20")
@pytest.mark.row("N6")
def test_wrong_bytes_of_a_peer_do_not_count_against_the_service(item: Item) -> None:
    item.start("relay", http.flip_bit(5), http.truncate_after(HALF))
    assert item.retry()["code"] == "digest"
    item.again()
    assert item.retry()["offset"] == HALF
    item.again("service", http.flip_bit(2_000_000))
    assert item.retry()["code"] == "digest"  # of both: it may be the peer's
    item.again()
    assert item.retry()["code"] == "digest"  # of the service alone, once
    item.again()
    assert item.helper.error(item.number)["code"] == "digest"
    assert os.listdir(item.own) == []


class Steps:
    """Sends so many bytes when told to, and nothing after that."""

    def __init__(self, *ends: int) -> None:
        self.ends = (0, *ends)
        self.gates = [threading.Event() for _ in ends]

    def __call__(self, exchange: http.Exchange) -> None:
        exchange.head(200, {"Content-Length": len(DATA)})
        for gate, (start, end) in zip(self.gates, pairwise(self.ends), strict=True):
            gate.wait(30)
            exchange.body(DATA[start:end])
        exchange.hold()


@pytest.mark.parametrize("kind", ["relay", "service"])
def test_bytes_that_others_wait_for_are_on_the_disk_at_once(item: Item, kind: str) -> None:
    # The second end: a read up to the end of a buffer of ours, with few bytes behind it.
    steps = Steps(10_000, MIB - 100, MIB + 17)
    serve = {"serve": {"name": "x", "key": "00" * 16}}
    item.number = item.helper.fetch(IMAGE, item.source(kind, steps), more=serve, stall_s=60)
    deadline = time.monotonic() + 30
    for gate, end in zip(steps.gates, steps.ends[1:], strict=True):
        gate.set()
        while not item.own.is_dir() or [path.stat().st_size for path in item.own.iterdir()] != [
            end
        ]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    item.helper.tell("stop", item.number)
    assert item.helper.error(item.number)["code"] == "interrupted"


@pytest.mark.parametrize("python", [pythons()[0], pythons()[-1]])
def test_under_old_and_new_pythons(python: str, instances: Path, server: http.HttpServer) -> None:
    with Controller(python) as helper:
        item = Item(helper, instances, server)
        number = item.start("relay", http.stall_after(HALF), stall_s=60, rate=10 << 20)
        while helper.event(number, "progress")["done"] < HALF:
            pass
        helper.tell("rate", number, rate=None)
        helper.tell("switch", number)
        assert item.retry()["code"] == "switched"
        item.finish_from("push", HALF)
