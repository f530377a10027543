"""What is said, counted and logged while a command about cache entries runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from imgcache.errors import ErrorCode
from imgcache.events import EntryEnded, Event, HostFailed, RunEnded, RunStarted
from imgcache.plan import EntryWord, OutcomeWord
from imgcache.ui.log import RunLog
from imgcache.ui.messages import Messages, summary_line
from imgcache.ui.tally import Tally
from ui.clock import Clock
from ui.life_samples import failure, outcome
from ui.samples import HOSTILE, assert_clean

if TYPE_CHECKING:
    from pathlib import Path

END = RunEnded(interrupted=False)


def said(verbosity: int, *events: Event) -> list[str]:
    messages = Messages(verbosity)
    return [line for event in events for line in messages.lines(event)]


def evidence(host: str) -> EntryEnded:
    """A host on which nothing is removed."""
    nothing = {"entry": "", "kind": None, "image_id": None, "image_name": None, "bytes": 0}
    why = {"code": ErrorCode.EVIDENCE, "reason": "disk.info cannot be read"}
    return EntryEnded(outcome(host, EntryWord.ERROR, **nothing, **why))


def test_failures_are_told_at_once_and_many_are_folded() -> None:
    hosts = [evidence(f"h{number}") for number in range(6)]
    assert said(0, *hosts, END) == [
        "h0: error (evidence): disk.info cannot be read",
        "h1: error (evidence): disk.info cannot be read",
        "h2: error (evidence): disk.info cannot be read",
        "3 more hosts: h[3-5]: error (evidence)",
    ]
    failed = [HostFailed(failure(f"h{number}", f"no route {number}")) for number in range(5)]
    assert said(0, *failed, END)[2:] == [
        "h2: error (connect): no route 2",
        "2 more hosts: h[3-4]: error (connect)",
    ]


def test_a_host_that_cannot_have_a_cache_was_warned_about_before() -> None:
    cannot = HostFailed(replace(failure("h1"), outcome=OutcomeWord.UNSUPPORTED))
    assert said(0, cannot, END) == []
    assert said(2, cannot) == ["h1: unsupported (connect): no route"]


def test_what_went_well_is_told_to_who_asks() -> None:
    removed = EntryEnded(outcome("h1", reason="unused for 2 days"))
    assert said(1, removed) == []
    assert said(2, removed) == ["h1: debian-12 (original): removed: unused for 2 days"]


@pytest.mark.parametrize(
    ("outcomes", "summary"),
    [
        (
            [outcome("h1", bytes_freed=2_000_000_000), outcome("h1", EntryWord.KEPT)],
            "1 removed, 1 kept; 2.00 GB freed",
        ),
        (
            [outcome("h1", EntryWord.SKIPPED, code=ErrorCode.DRY_RUN, bytes_freed=5_000_000)],
            "1 skipped; 5.00 MB would be freed",
        ),
        (
            [outcome("h1", EntryWord.INTACT), outcome("h1", EntryWord.DAMAGED)],
            "1 intact, 1 damaged",
        ),
    ],
)
def test_the_last_line_sums_up(outcomes: list[object], summary: str) -> None:
    tally = Tally(Clock())
    tally.take(RunStarted("run-1", "prune", 1, 0, 0, 1))
    for one in outcomes:
        tally.take(EntryEnded(one))  # type: ignore[arg-type]
    assert summary_line(tally, interrupted=False) == f"done in 0.0s: {summary}; run run-1"


def test_the_log_has_every_entry_with_its_bytes(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log")
    for event in (
        RunStarted("run-1", "prune", 1, 0, 0, 1),
        EntryEnded(outcome("h1", bytes_freed=1_250_000_000, reason="unused for 2 days")),
        EntryEnded(outcome("h1", EntryWord.KEPT, code=ErrorCode.YOUNG, reason="young")),
        evidence("h2"),
        HostFailed(failure("h3")),
    ):
        log.emit(event)
    log.close()
    lines = [line.partition("Z ")[2] for line in (tmp_path / "log").read_text().splitlines()]
    name = "a" * 40
    assert lines[1:] == [
        "INFO run=run-1 host=h1 debian-12 (original): removed: unused for 2 days"
        f" entry={name} bytes=1250000000 freed=1250000000",
        f"INFO run=run-1 host=h1 debian-12 (original): kept (young): young entry={name}"
        " bytes=1250000000 freed=0",
        "ERROR run=run-1 host=h2 error (evidence): disk.info cannot be read freed=0",
        "ERROR run=run-1 host=h3 error (connect): no route",
    ]


@pytest.mark.row("M6")
@pytest.mark.row("R20")
def test_nothing_goes_out_raw(tmp_path: Path) -> None:
    hostile = outcome(HOSTILE, EntryWord.ERROR, image_name=HOSTILE, entry=HOSTILE, reason=HOSTILE)
    events = EntryEnded(hostile), HostFailed(failure(HOSTILE, HOSTILE)), END
    log = RunLog(tmp_path / "log")
    for event in events:
        log.emit(event)
    log.close()
    for text in ("\n".join(said(0, *events)), (tmp_path / "log").read_text()):
        assert text
        assert_clean(text)
