"""Helpers that read from each other while the bytes are still coming."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import pytest

from helper.controller import (
    FETCH,
    PUSH,
    WARM,
    Controller,
    base_name,
    from_peer,
    from_service,
    image_of,
    pythons,
)
from imgcache.transport.relay_certificate import make_certificate
from imgcache.transport.relay_secret import RelayKey
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helper.controller import Frame

MIB = 1 << 20
DATA = os.urandom(4 * MIB + 321)
IMAGE = image_of(DATA)
HALF = 2 * MIB + 17
PYTHONS = pythons()


class Link:
    """One host: a helper with a cache of its own that lets others read."""

    def __init__(self, folder: Path, *, python: str | None = None, tls: bool = True) -> None:
        folder.mkdir()
        self.final = folder / "_base" / base_name(IMAGE["id"])
        self.key = RelayKey()
        pem, key_pem = make_certificate()
        self.pem = pem if tls else None
        self.helper = Controller(*[python] if python else [])
        self.helper.load(*WARM)
        self.helper.open(folder)
        self.helper.load("watch", "staging", "offers", "relay", *FETCH)
        order = self.helper.order(
            "relay", address="127.0.0.1", ports=None, max_readers=8, cert_pem=self.pem,
            key_pem=key_pem.reveal() if tls else None,
        )  # fmt: skip
        self.port = self.helper.result(order)["port"]
        self.number = 0

    def __enter__(self) -> Self:
        self.helper.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.helper.__exit__()

    def as_source(self) -> Frame:
        """Return the source that a new reader of this host gets."""
        scheme = "https" if self.pem else "http"
        source = from_peer(f"{scheme}://127.0.0.1:{self.port}/image", self.pem)
        return {**source, "token": self.key.ticket("image").reveal()}

    def fetch(self, source: Frame, **more: object) -> None:
        serve = {"serve": {"name": "image", "key": self.key.hex.reveal()}, **more}
        self.number = self.helper.fetch(IMAGE, source, more=serve, stall_s=20)

    def until(self, count: int) -> None:
        """Wait until so many bytes have come."""
        while True:
            frame = self.helper.event(self.number, "progress")
            if frame["phase"] == "download" and frame["done"] >= count:
                return

    def finish(self) -> Frame:
        result = self.helper.result(self.number)
        assert self.final.read_bytes() == DATA
        return result

    def go_on_from(self, source: Frame) -> Frame:
        """Take another source after a retry, which is returned."""
        retry = self.helper.event(self.number, "retry")
        self.helper.tell("again", self.number, token=None, source=source)
        return retry


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Gate:
    """An image service that sends one half, and the other one when it is told to."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def __call__(self, exchange: http.Exchange) -> None:
        data = exchange.data[exchange.request.offset or 0 :]
        if exchange.request.offset:
            http.serve()(exchange)
            return
        exchange.head(200, {"Content-Length": len(data)})
        exchange.body(data[:HALF])
        self.opened.wait(30)
        exchange.body(data[HALF:])


def chain_of(stack: ExitStack, folder: Path, count: int, *, tls: bool = True) -> list[Link]:
    """Return hosts of which the first and the last have the oldest and the newest Python."""
    found = [None] * (count - 2)
    chosen = [PYTHONS[0], *found, PYTHONS[-1]]
    return [
        stack.enter_context(Link(folder / f"h{number}", python=python, tls=tls))
        for number, python in enumerate(chosen)
    ]


@pytest.mark.parametrize("tls", [True, False])
def test_bytes_pass_all_hosts_while_they_come(
    stack: ExitStack, tmp_path: Path, *, tls: bool
) -> None:
    server, gate = stack.enter_context(http.HttpServer()), Gate()
    links = chain_of(stack, tmp_path, 4, tls=tls)
    links[0].fetch(from_service(server.route("/i", DATA, gate)))
    for parent, link in pairwise(links):
        link.fetch(parent.as_source())
    for link in links:
        link.until(HALF)
    gate.opened.set()
    for link in links:
        assert link.finish()["bytes_fetched"] == len(DATA)
    assert len(server.requests) == 1


@pytest.mark.row("N20")
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_parent_that_dies_is_replaced(stack: ExitStack, tmp_path: Path, how: str) -> None:
    server, gate = stack.enter_context(http.HttpServer()), Gate()
    seed, middle, last = chain_of(stack, tmp_path, 3)
    seed.fetch(from_service(server.route("/i", DATA, gate)))
    middle.fetch(seed.as_source())
    last.fetch(middle.as_source())
    last.until(HALF)
    if how == "killed":
        middle.helper.process.kill()
    else:
        middle.helper.tell("stop", middle.number)
    retry = last.go_on_from(seed.as_source())
    assert (retry["code"], retry["offset"]) == ("download", HALF)
    gate.opened.set()
    assert last.finish()["bytes_fetched"] == seed.finish()["bytes_fetched"] == len(DATA)


@pytest.mark.row("N20")
@pytest.mark.row("T5")
def test_wrong_bytes_go_no_further_than_they_must(stack: ExitStack, tmp_path: Path) -> None:
    """The service sends one bit wrong; nobody publishes it, and both begin anew."""
    server = stack.enter_context(http.HttpServer())
    seed, child = chain_of(stack, tmp_path, 2)
    seed.fetch(from_service(server.route("/i", DATA, http.flip_bit(MIB), http.serve())))
    child.fetch(seed.as_source())
    assert seed.helper.event(seed.number, "retry")["code"] == "digest"
    frame = child.helper.event(child.number, "retry")
    assert frame["code"] in {
        "digest",
        "download",
    }  # it read all bytes before its parent hung up, or not
    assert not child.final.exists()
    seed.helper.tell("again", seed.number, token=None)
    seed.finish()
    while frame["event"] == "retry":
        child.helper.tell("again", child.number, token=None, source=seed.as_source())
        frame = child.helper.event(child.number, "retry", "result")
    assert child.final.read_bytes() == DATA


@pytest.mark.row("C3")
def test_a_parent_that_goes_on_from_an_earlier_run_serves_that_too(
    stack: ExitStack, tmp_path: Path
) -> None:
    seed, child = chain_of(stack, tmp_path, 2)
    seed.fetch(PUSH, keep_partial=True)
    seed.helper.event(seed.number, "ready")
    for at in range(0, 3 * MIB, 256 << 10):
        seed.helper.tell("data", seed.number, DATA[at : at + (256 << 10)], size=256 << 10)
    seed.until(3 * MIB)
    seed.helper.tell("stop", seed.number)
    assert seed.helper.error(seed.number)["code"] == "interrupted"
    seed.fetch(PUSH, keep_partial=True)
    child.fetch(seed.as_source())
    child.until(3 * MIB)
    assert seed.helper.event(seed.number, "ready")["offset"] == 3 * MIB
    seed.helper.push(seed.number, DATA[3 * MIB :])
    assert seed.finish()["resumed"] == 3 * MIB
    assert child.finish()["bytes_fetched"] == len(DATA)
