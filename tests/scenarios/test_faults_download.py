"""The network rows, controller and host together: hosts download from a server that breaks."""

from __future__ import annotations

import os
import socket
import time
from email.utils import formatdate
from typing import TYPE_CHECKING

import pytest

from imgcache.drivers import order_fields
from imgcache.errors import ErrorCode
from imgcache.events import HostEnded
from imgcache.operations import host_run
from imgcache.plan import SourceKind
from scenarios.faults_rig import Rig, failed_with
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = os.urandom(1_500_000)
GOOD = os.urandom(50_000)
HALF = 700_000


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """One host; short pauses and short limits."""
    monkeypatch.setattr(host_run, "FIRST_BACK_OFF_S", 0.01)
    for name, value in {"stall_s": 1, "connect_s": 2, "min_rate_window_s": 1}.items():
        monkeypatch.setitem(order_fields.DEFAULT_LIMITS, name, value)
    (tmp_path / "hosts").mkdir()
    with http.HttpServer() as server:
        yield Rig(tmp_path / "hosts", server)


REPEATED = [
    pytest.param(
        http.reset_after(HALF), ErrorCode.DOWNLOAD, id="reset", marks=pytest.mark.row("N1")
    ),
    pytest.param(http.stall_after(HALF), ErrorCode.STALL, id="stall", marks=pytest.mark.row("N2")),
    pytest.param(http.stall_before_head(), ErrorCode.STALL, id="mute", marks=pytest.mark.row("N2")),
    pytest.param(http.drip(50), ErrorCode.STALL, id="drip", marks=pytest.mark.row("N3")),
    pytest.param(
        http.truncate_after(HALF), ErrorCode.DOWNLOAD, id="short", marks=pytest.mark.row("N4")
    ),
    pytest.param(
        http.truncate_after(HALF, "close"),
        ErrorCode.DOWNLOAD,
        id="clean-short",
        marks=pytest.mark.row("N4"),
    ),
    pytest.param(http.status(429), ErrorCode.DOWNLOAD, id="429", marks=pytest.mark.row("N13")),
    pytest.param(http.status(500), ErrorCode.DOWNLOAD, id="500", marks=pytest.mark.row("N14")),
    pytest.param(http.status(502), ErrorCode.DOWNLOAD, id="502", marks=pytest.mark.row("N14")),
    pytest.param(http.status(504), ErrorCode.DOWNLOAD, id="504", marks=pytest.mark.row("N14")),
]


@pytest.mark.parametrize(("fault", "code"), REPEATED)
def test_what_may_pass_is_repeated_and_then_works(
    rig: Rig, fault: http.Behaviour, code: ErrorCode
) -> None:
    image = rig.add(DATA, fault, http.serve())
    (outcome,) = rig.run()
    assert (outcome.outcome, outcome.source) == ("cached", SourceKind.SERVICE), outcome.reason
    assert rig.final(image).read_bytes() == DATA
    assert [event.attempt for event in rig.events.retries] == [1]
    assert len(DATA) <= outcome.bytes_fetched <= len(DATA) + HALF


@pytest.mark.parametrize(
    ("fault", "code"), [param for param in REPEATED if param.id not in {"mute", "drip"}]
)
def test_what_does_not_pass_is_repeated_as_often_as_told_and_fails_alone(
    rig: Rig, fault: http.Behaviour, code: ErrorCode
) -> None:
    bad = rig.add(DATA, fault)
    good = rig.add(GOOD)
    first, second = rig.run(retries=2)
    assert failed_with(first, code), first
    assert [event.attempt for event in rig.events.retries] == [1, 2]
    assert len([one for one in rig.server.requests if bad.id in one.target]) >= 3
    rig.assert_absent(bad)
    assert second.outcome == "cached"
    assert rig.final(good).read_bytes() == GOOD


@pytest.mark.row("N1")
def test_without_retries_nothing_is_repeated(rig: Rig) -> None:
    bad = rig.add(DATA, http.reset_after(HALF), http.serve())
    (outcome,) = rig.run(retries=0)
    assert failed_with(outcome, ErrorCode.DOWNLOAD)
    assert 0 < outcome.bytes_fetched <= HALF
    assert rig.events.retries == []
    rig.assert_absent(bad)


@pytest.mark.row("N1")
def test_faults_of_several_kinds_share_one_number_of_repetitions(rig: Rig) -> None:
    rig.add(
        DATA, http.reset_after(1000), http.stall_after(0), http.status(500), http.stall_after(0),
        http.serve(),
    )  # fmt: skip
    (outcome,) = rig.run(retries=3)
    assert failed_with(outcome, ErrorCode.STALL)
    assert [event.attempt for event in rig.events.retries] == [1, 2, 3]


@pytest.mark.row("N1")
def test_a_reset_download_goes_on_where_it_was(rig: Rig) -> None:
    image = rig.add(DATA, http.reset_after(HALF), http.serve())
    (outcome,) = rig.run()
    offset = rig.server.requests[1].offset
    assert offset
    assert 0 < offset <= HALF
    assert outcome.bytes_fetched == len(DATA)
    assert rig.final(image).read_bytes() == DATA


@pytest.mark.row("N11")
@pytest.mark.parametrize("ranges", ["400", "416", "ignore", "wrong"])
def test_a_refused_range_starts_anew_and_all_bytes_are_counted(
    rig: Rig, ranges: http.Ranges
) -> None:
    image = rig.add(DATA, http.truncate_after(HALF), http.serve(ranges=ranges))
    (outcome,) = rig.run()
    assert outcome.outcome == "cached"
    assert outcome.bytes_fetched == HALF + len(DATA)
    assert rig.final(image).read_bytes() == DATA


@pytest.mark.row("N6")
@pytest.mark.row("N11")
@pytest.mark.parametrize(
    ("first", "then", "fetched"),
    [
        pytest.param(http.flip_bit(99), http.serve(), 2 * len(DATA), id="wrong-bytes"),
        pytest.param(
            http.truncate_after(HALF), http.serve(ranges="ignore"), HALF + len(DATA), id="no-range"
        ),
    ],
)
def test_a_start_from_zero_at_a_service_that_thinks_before_it_answers(
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    first: http.Behaviour,
    then: http.Behaviour,
    fetched: int,
) -> None:
    """What the host says meanwhile is nothing that would run backwards afterwards."""
    monkeypatch.setitem(order_fields.DEFAULT_LIMITS, "stall_s", 10)
    image = rig.add(DATA, first, http.late(2.5, then))
    (outcome,) = rig.run()
    assert outcome.outcome == "cached", outcome.reason
    assert outcome.bytes_fetched == fetched
    assert rig.final(image).read_bytes() == DATA


NOT_REPEATED = [
    pytest.param(http.status(403), ErrorCode.FORBIDDEN, id="403", marks=pytest.mark.row("N9")),
    pytest.param(http.status(404), ErrorCode.GONE, id="404", marks=pytest.mark.row("N10")),
    pytest.param(http.status(410), ErrorCode.GONE, id="410", marks=pytest.mark.row("N10")),
    pytest.param(http.status(204), ErrorCode.NODATA, id="204", marks=pytest.mark.row("N12")),
    pytest.param(
        http.status(302, location="http://127.0.0.1:9/\x1b[31mx"), ErrorCode.REDIRECT, id="302",
        marks=pytest.mark.row("N15"),
    ),
    pytest.param(
        http.status(308, location="/elsewhere"), ErrorCode.REDIRECT, id="308", marks=pytest.mark.row("N15")
    ),
    pytest.param(http.too_long(1), ErrorCode.SIZE, id="one-more", marks=pytest.mark.row("N5")),
    pytest.param(http.endless(), ErrorCode.SIZE, id="endless", marks=pytest.mark.row("N5")),
    pytest.param(
        http.endless("chunked"), ErrorCode.SIZE, id="endless-chunked", marks=pytest.mark.row("N5")
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "code"), NOT_REPEATED)
def test_what_will_not_pass_is_not_repeated_and_fails_alone(
    rig: Rig, fault: http.Behaviour, code: ErrorCode
) -> None:
    bad = rig.add(DATA, fault)
    good = rig.add(GOOD)
    first, second = rig.run()
    assert failed_with(first, code), first
    assert "\x1b" not in str(first.reason)
    assert rig.events.retries == []
    rig.assert_absent(bad)
    assert rig.final(good).read_bytes() == GOOD
    assert second.outcome == "cached"


@pytest.mark.row("N10")
def test_an_existing_final_outlives_its_image(rig: Rig) -> None:
    image = rig.add(DATA, http.serve(), http.status(404))
    rig.run()
    (outcome,) = rig.run()
    assert outcome.outcome == "existing"
    assert rig.final(image).read_bytes() == DATA


@pytest.mark.row("N6")
@pytest.mark.parametrize("retries", [0, 1, 5])
def test_wrong_bytes_are_fetched_twice_at_most(rig: Rig, retries: int) -> None:
    bad = rig.add(DATA, http.flip_bit(99))
    (outcome,) = rig.run(retries=retries)
    assert failed_with(outcome, ErrorCode.DIGEST)
    assert len(rig.server.requests) == min(retries, 1) + 1
    rig.assert_absent(bad)


@pytest.mark.row("N8")
@pytest.mark.parametrize("retries", [0, 3])
def test_a_refused_token_is_replaced_once_whatever_the_retries(rig: Rig, retries: int) -> None:
    image = rig.add(DATA, http.status(401), http.serve())
    (outcome,) = rig.run(retries=retries)
    assert outcome.outcome == "cached", outcome.reason
    assert rig.tokens_seen() == ["token-1", "token-2"]
    assert rig.final(image).read_bytes() == DATA
    assert rig.events.retries == []


@pytest.mark.row("N8")
@pytest.mark.row("M8")
def test_a_second_refusal_is_final(rig: Rig) -> None:
    bad = rig.add(DATA, http.status(401))
    good = rig.add(GOOD)
    first, second = rig.run()
    assert failed_with(first, ErrorCode.AUTH)
    assert rig.tokens_seen() == ["token-1", "token-2", "token-2"]
    assert second.outcome == "cached"
    rig.assert_absent(bad)
    assert rig.final(good).exists()
    shown = repr(rig.events.seen) + repr((first, second))
    assert "token-" not in shown


@pytest.mark.row("N8")
def test_an_expired_token_in_the_middle_costs_no_byte_twice(rig: Rig) -> None:
    rig.add(DATA, http.truncate_after(HALF), http.status(401), http.serve())
    (outcome,) = rig.run(retries=1)
    assert outcome.outcome == "cached", outcome.reason
    assert outcome.bytes_fetched == len(DATA)
    assert [one.offset for one in rig.server.requests] == [None, HALF, HALF]


@pytest.mark.row("N8")
def test_hosts_that_are_refused_the_same_token_share_the_new_one(rig: Rig) -> None:
    def refuse_the_first(exchange: http.Exchange) -> None:
        known = exchange.request.header("x-auth-token") != "token-1"
        (http.serve() if known else http.status(401))(exchange)

    rig.add(DATA, refuse_the_first)
    outcomes = rig.run(*[rig.host(number) for number in (1, 2, 3)])
    assert {one.outcome for one in outcomes} == {"cached"}
    assert set(rig.tokens_seen()) == {"token-1", "token-2"}


@pytest.mark.row("N13")
@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("1", 1.0, 2.0),
        (formatdate(time.time() + 7200, usegmt=True), 60.0, 75.0),
        ("9" * 400, 60.0, 75.0),
        ("-7", 0.0, 0.02),
        (formatdate(1, usegmt=True), 0.0, 0.02),
        ("soon", 0.0, 0.02),
        ("nan", 0.0, 0.02),
    ],
    ids=["seconds", "date", "absurd", "negative", "past", "word", "nan"],
)
def test_retry_after_decides_the_pause_within_bounds(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, header: str, low: float, high: float
) -> None:
    delays: list[float] = []
    reckon = host_run.back_off_delay

    def note(attempt: int, after_s: float | None) -> float:
        delays.append(reckon(attempt, after_s))
        return 0.0

    monkeypatch.setattr(host_run, "back_off_delay", note)
    rig.add(DATA, http.status(503, retry_after=header), http.serve())
    (outcome,) = rig.run()
    assert outcome.outcome == "cached", outcome.reason
    (delay,) = delays
    assert low <= delay <= high


@pytest.mark.row("N13")
def test_a_host_that_waits_lends_its_place(rig: Rig) -> None:
    rig.add(DATA, http.status(503, retry_after=2), http.serve())
    outcomes = rig.run(rig.host(1), rig.host(2), concurrency=1)
    assert {one.outcome for one in outcomes} == {"cached"}
    ended = [event.host for event in rig.events.of(HostEnded)]
    assert ended == ["h2", "h1"]


@pytest.fixture
def nobody() -> Iterator[str]:
    """A URL at which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.mark.row("N17")
def test_a_host_that_cannot_reach_the_service_is_pushed_to(rig: Rig, nobody: str) -> None:
    rig.service.base = nobody
    images = [rig.add(DATA), rig.add(GOOD)]
    outcomes = rig.run(policy="auto", retries=2)
    assert [(one.outcome, one.source) for one in outcomes] == [("cached", SourceKind.PUSH)] * 2
    assert [rig.final(image).read_bytes() for image in images] == [DATA, GOOD]
    # found out once for the host, not once per image
    assert [event.attempt for event in rig.events.retries] == [1, 2]
    assert len([text for text in rig.events.notices if "pushing" in text]) == 1


@pytest.mark.row("N17")
def test_without_push_it_is_unreachable(rig: Rig, nobody: str) -> None:
    rig.service.base = nobody
    image = rig.add(DATA)
    (outcome,) = rig.run(retries=1)
    assert failed_with(outcome, ErrorCode.UNREACHABLE)
    assert nobody in str(outcome.reason)
    assert len(rig.events.retries) == 1
    rig.assert_absent(image)


@pytest.mark.row("N18")
def test_proxies_of_the_environment_are_not_asked(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    rig.add(GOOD)
    rig.settings["python"] = ("env", "http_proxy=http://127.0.0.1:9", *rig.host().settings.python)
    (outcome,) = rig.run()
    assert outcome.outcome == "cached", outcome.reason


@pytest.mark.row("N1")
def test_the_deadline_of_the_host_ends_all_repetitions(rig: Rig) -> None:
    bad = rig.add(DATA, http.stall_after(HALF))
    began = time.monotonic()
    (outcome,) = rig.run(retries=1000, timeout_s=3)
    assert time.monotonic() - began < 10
    assert failed_with(outcome, ErrorCode.TIMEOUT)
    rig.assert_absent(bad)
