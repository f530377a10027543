"""What a fetch may take from its source in a second, and what it must not be blamed for then."""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import Controller, from_peer, from_service, image_of, pythons
from imgcache.helper.body import LeastRate
from imgcache.helper.download import Retry
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MIB = 1 << 20
DATA = os.urandom(3 * MIB)
IMAGE = image_of(DATA)
#: What may be under way besides: the buffers of both ends, and what a reader may make up for.
SLACK_BYTES = MIB


@pytest.fixture
def server() -> Iterator[http.HttpServer]:
    with http.HttpServer() as server:
        yield server


class Sending:
    """A behaviour that sends the data as fast as it is taken, and notes when."""

    def __init__(self) -> None:
        self.notes: list[tuple[float, int]] = []

    def __call__(self, exchange: http.Exchange) -> None:
        data = memoryview(exchange.data)[exchange.request.offset or 0 :]
        exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        exchange.head(200, {"Content-Length": len(data)})
        self.notes.append((time.monotonic(), 0))
        for at in range(0, len(data), 16384):
            exchange.connection.sendall(data[at : at + 16384])
            self.notes.append((time.monotonic(), min(at + 16384, len(data))))

    def most(self, seconds: float) -> int:
        """Return the most bytes that were sent within so many seconds; all notes must be in."""
        most, first = 0, 0
        for at, count in self.notes:
            while at - self.notes[first][0] > seconds:
                first += 1
            most = max(most, count - self.notes[first][1])
        return most


@pytest.mark.parametrize("python", [pythons()[0], pythons()[-1]])
@pytest.mark.parametrize("source", [from_service, from_peer])
def test_the_link_sees_the_rate(
    python: str,
    instances: Path,
    server: http.HttpServer,
    source: Callable[[str], dict[str, object]],
) -> None:
    sending = Sending()
    with Controller(python) as helper:
        helper.open(instances)
        url = server.route("/i", DATA, sending)
        began = time.monotonic()
        number = helper.fetch(IMAGE, source(url), rate=MIB)
        assert helper.result(number)["state"] == "cached"
    assert time.monotonic() - began > 2.2  # three seconds' worth, less what may be made up for
    assert sending.most(1.0) < MIB + SLACK_BYTES


def test_a_rate_is_no_less_than_asked_for(helper: Controller, instances: Path) -> None:
    """A fast source gives what the rate allows; the limit is what holds it back, not how it is kept."""
    with http.HttpServer() as server:
        helper.open(instances)
        url = server.route("/i", DATA)
        number = helper.fetch(IMAGE, from_service(url), rate=10 * MIB)
        helper.event(number, "progress")
        began = time.monotonic()
        helper.result(number)
        assert time.monotonic() - began < 20


@pytest.mark.parametrize("first", [4096, None])
def test_a_new_rate_holds_at_once(
    helper: Controller, instances: Path, server: http.HttpServer, first: int | None
) -> None:
    """With the first rate alone it would last for minutes, or for no time."""
    gate = threading.Event()

    def behave(exchange: http.Exchange) -> None:
        exchange.head(200, {"Content-Length": len(DATA)})
        exchange.body(DATA[: 64 << 10])
        gate.wait(30)
        exchange.body(DATA[64 << 10 :])

    helper.open(instances)
    number = helper.fetch(IMAGE, from_service(server.route("/i", DATA, behave)), rate=first)
    while helper.event(number, "progress")["phase"] != "download":
        pass
    helper.tell("rate", number, rate=None if first else MIB)
    began = time.monotonic()
    gate.set()
    assert helper.result(number)["state"] == "cached"
    took = time.monotonic() - began
    assert took < 25 if first else took > 2


def test_what_a_slow_source_missed_is_not_made_up_for(
    helper: Controller, instances: Path, server: http.HttpServer
) -> None:
    gone_on = []

    def behave(exchange: http.Exchange) -> None:
        exchange.head(200, {"Content-Length": len(DATA)})
        exchange.body(DATA[:1000])
        exchange.server.closing.wait(2.5)
        gone_on.append(time.monotonic())
        exchange.body(DATA[1000:])

    helper.open(instances)
    helper.result(helper.fetch(IMAGE, from_service(server.route("/i", DATA, behave)), rate=MIB))
    assert time.monotonic() - gone_on[0] > 2


def test_again_brings_a_rate(helper: Controller, instances: Path, server: http.HttpServer) -> None:
    helper.open(instances)
    url = server.route("/i", DATA, http.truncate_after(1000), http.serve())
    number = helper.fetch(IMAGE, from_service(url))
    helper.event(number, "retry")
    began = time.monotonic()
    helper.tell("again", number, token=None, rate=MIB)
    helper.result(number)
    assert time.monotonic() - began > 2


@pytest.mark.row("N3")
def test_our_own_limit_is_no_stall(
    helper: Controller, instances: Path, server: http.HttpServer
) -> None:
    """The source sends less than the least rate, and that is more than a quarter of what may be taken."""
    data = DATA[:24_000]

    def drip(exchange: http.Exchange) -> None:
        exchange.head(200, {"Content-Length": len(data)})
        for at in range(0, len(data), 1000):
            if exchange.server.closing.wait(0.2):
                return
            exchange.connection.sendall(data[at : at + 1000])

    helper.open(instances)
    source = from_service(server.route("/i", data, drip))
    limits: dict[str, Any] = {"min_rate": 1 << 30, "min_rate_window_s": 3, "rate": 5500}
    number = helper.fetch(image_of(data), source, **limits)
    assert helper.event(number, "retry", "result")["event"] == "result"


@pytest.mark.row("N3")
def test_a_source_far_below_the_limit_is_one(
    helper: Controller, instances: Path, server: http.HttpServer
) -> None:
    helper.open(instances)
    source = from_service(server.route("/i", DATA, http.drip(50)))
    limits: dict[str, Any] = {"min_rate": 65536, "min_rate_window_s": 1, "rate": 1 << 20}
    assert helper.event(helper.fetch(IMAGE, source, **limits), "retry")["code"] == "stall"


@pytest.mark.row("N3")
def test_a_rate_that_changes_all_the_time_hides_no_source_that_drips() -> None:
    """Downloads of a site come and go, and with each the parts of the others change."""
    least = LeastRate({"min_rate_window_s": 0.4, "min_rate": 1000})

    def drip() -> int:
        time.sleep(0.02)
        return 1

    with pytest.raises(Retry):  # noqa: PT012 - some time, not at the first
        for number in range(100):
            least.timed(50_000 + number % 2 * 10_000, drip)


def test_who_was_held_back_a_moment_ago_is_not_blamed() -> None:
    least = LeastRate({"min_rate_window_s": 0.4, "min_rate": 1000})

    def drip() -> int:
        time.sleep(0.02)
        return 1

    for number in range(40):
        least.timed(4 if number % 10 == 0 else None, drip)
