from __future__ import annotations

import io
from dataclasses import replace

import pytest

from imgcache.errors import ErrorCode
from imgcache.events import HostEnded, HostStarted, ItemEnded, ItemProgress, RunEnded, RunStarted
from imgcache.plan import OutcomeWord, SourceKind
from imgcache.ui.plain import PlainDisplay
from ui.clock import Clock
from ui.samples import HOSTILE, IMAGE, assert_clean, outcome

MB = 1_000_000


def test_a_run_in_plain_lines() -> None:
    clock, out = Clock(), io.StringIO()
    display = PlainDisplay(0, out, clock=clock)
    display.emit(RunStarted("run-1", "precache", 3, 1, 100 * MB, 10))
    display.tick()
    display.emit(HostStarted("edge1-01"))
    display.emit(ItemProgress("edge1-01", IMAGE.id, IMAGE.name, "download", 25 * MB, 100 * MB))
    for _ in range(12):
        clock.now += 0.5
        display.tick()
    display.emit(ItemEnded(outcome("edge1-01", bytes_fetched=100 * MB)))
    display.emit(HostEnded("edge1-01", failed=False))
    failed = outcome(
        "edge1-02", OutcomeWord.ERROR, code=ErrorCode.SPACE, reason="needs 4 GB, has 1 GB"
    )
    display.emit(ItemEnded(failed))
    display.emit(HostEnded("edge1-02", failed=True))
    clock.now += 5
    display.tick()
    display.emit(ItemEnded(outcome("edge1-03", OutcomeWord.EXISTING)))
    display.emit(RunEnded(interrupted=False))
    clock.now += 60
    display.tick()
    display.close()
    assert out.getvalue() == (
        "imgcache: 0/3 hosts done, 1 active, 0 failed; 25.0 MB of 300 MB, 5.00 MB/s; about 55s left\n"
        "imgcache: edge1-02: debian-12: error (space): needs 4 GB, has 1 GB\n"
        "imgcache: 2/3 hosts done, 0 active, 1 failed; 100 MB of 200 MB, 9.09 MB/s; about 6s left\n"
        "imgcache: done in 11s: 1 cached, 1 existing, 1 error; 100 MB fetched; run run-1\n"
    )


def test_the_end_says_how_much_did_not_come_over_the_link() -> None:
    clock, out = Clock(), io.StringIO()
    display = PlainDisplay(0, out, clock=clock)
    display.emit(RunStarted("run-1", "precache", 3, 1, 100 * MB, 10))
    for host, source in (("edge1-01", SourceKind.SERVICE), ("edge1-02", SourceKind.RELAY)):
        display.emit(ItemEnded(replace(outcome(host, bytes_fetched=100 * MB), source=source)))
    display.emit(RunEnded(interrupted=False))
    told = "2 cached; 200 MB fetched, 100 MB of it from hosts of the same site; run run-1"
    assert out.getvalue() == f"imgcache: done in 0.0s: {told}\n"


def test_a_run_without_items_sums_up_its_hosts() -> None:
    clock, out = Clock(), io.StringIO()
    display = PlainDisplay(0, out, clock=clock)
    display.emit(RunStarted("run-1", "check", 2, 0, 0, 10))
    display.emit(HostEnded("edge1-01", failed=False))
    display.emit(HostEnded("edge1-02", failed=True))
    display.emit(RunEnded(interrupted=False))
    assert out.getvalue() == "imgcache: done in 0.0s: 2 hosts, 1 failed; run run-1\n"


@pytest.mark.row("C10")
@pytest.mark.row("M6")
def test_nothing_but_printable_ascii_where_no_more_is_possible() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    display = PlainDisplay(2, stream, clock=Clock())
    display.emit(RunStarted(HOSTILE, HOSTILE, 1, 1, 1, 1))
    display.emit(HostStarted(HOSTILE + "é" * 400))
    display.emit(RunEnded(interrupted=True))
    display.close()
    text = raw.getvalue().decode("ascii")
    assert "interrupted after" in text
    assert_clean(text)
