from __future__ import annotations

import pytest

from imgcache.errors import ErrorCode
from imgcache.events import (
    Event,
    HostEnded,
    HostStarted,
    ItemEnded,
    ItemRetry,
    Notice,
    RunEnded,
    RunStarted,
)
from imgcache.plan import OutcomeWord
from imgcache.ui.messages import Messages
from ui.samples import HOSTILE, IMAGE, assert_clean, outcome


def said(verbosity: int, *events: Event) -> list[str]:
    messages = Messages(verbosity)
    return [line for event in events for line in messages.lines(event)]


def failures(count: int) -> list[Event]:
    return [
        ItemEnded(
            outcome(
                f"edge1-{number:02}",
                OutcomeWord.ERROR,
                code=ErrorCode.CONNECT,
                reason=f"192.0.2.{number}: no answer",
            )
        )
        for number in range(1, count + 1)
    ]


def test_the_first_failures_are_told_at_once_and_the_rest_in_one_line() -> None:
    lines = said(0, *failures(17), RunEnded(interrupted=False))
    assert lines == [
        "edge1-01: debian-12: error (connect): 192.0.2.1: no answer",
        "edge1-02: debian-12: error (connect): 192.0.2.2: no answer",
        "edge1-03: debian-12: error (connect): 192.0.2.3: no answer",
        "14 more hosts: edge1-[04-17]: error (connect)",
    ]


def test_a_long_reason_is_told_to_its_end() -> None:
    reason = f"{'why ' * 150}: do this"
    told = outcome("edge1-01", OutcomeWord.ERROR, code=ErrorCode.HOSTKEY_CHANGED, reason=reason)
    (line,) = said(0, ItemEnded(told))
    assert line.endswith(": do this")


def test_verbose_tells_them_all() -> None:
    assert len(said(1, *failures(17), RunEnded(interrupted=False))) == 17


def test_the_same_warning_of_many_hosts_is_folded() -> None:
    notices = [Notice("vmwareapi cannot pre-cache", host=f"vc-{number}") for number in range(5)]
    assert said(0, *notices, RunEnded(interrupted=False)) == [
        "vc-0: warning: vmwareapi cannot pre-cache",
        "vc-1: warning: vmwareapi cannot pre-cache",
        "vc-2: warning: vmwareapi cannot pre-cache",
        "2 more hosts: vc-[3-4]: warning: vmwareapi cannot pre-cache",
    ]


def test_warnings_that_differ_do_not_flood() -> None:
    notices = [Notice(f"clock is {number} s off", host=f"h{number}") for number in range(100)]
    lines = said(0, *notices)
    assert len(lines) == 20


def test_notices_about_the_run_are_always_told() -> None:
    notice = Notice("the token carries an admin role", hint="use an application credential")
    assert (
        said(0, *[notice] * 5)
        == ["warning: the token carries an admin role (use an application credential)"] * 5
    )
    assert said(0, Notice("raised the limit of open files", level="info")) == [
        "raised the limit of open files"
    ]


def test_steps_and_repetitions_are_told_when_asked() -> None:
    events: list[Event] = [
        RunStarted("r", "precache", 1, 1, 1, 1),
        HostStarted("h1"),
        ItemRetry("h1", IMAGE.id, 1, 2.5, "connection reset"),
        ItemEnded(outcome("h1")),
        HostEnded("h1", failed=False),
    ]
    assert said(0, *events) == []
    assert said(1, *events) == ["h1: repetition 1 in 2.5s: connection reset"]
    assert said(2, *events) == [
        "h1: contacting",
        "h1: repetition 1 in 2.5s: connection reset",
        "h1: debian-12: cached",
        "h1: done",
    ]


@pytest.mark.row("M6")
@pytest.mark.parametrize("verbosity", [0, 1, 2])
def test_hostile_strings_are_escaped(verbosity: int) -> None:
    word, code = OutcomeWord.ERROR, ErrorCode.PROTOCOL
    bad = outcome(HOSTILE, word, code=code, reason=HOSTILE, image_name=HOSTILE)
    events: list[Event] = [
        HostStarted(HOSTILE),
        ItemRetry(HOSTILE, HOSTILE, 1, 1.0, HOSTILE),
        Notice(HOSTILE, hint=HOSTILE, level=HOSTILE),
        *[Notice(HOSTILE, host=HOSTILE + str(number)) for number in range(9)],
        *[ItemEnded(bad)] * 9,
        HostEnded(HOSTILE, failed=True),
        RunEnded(interrupted=True),
    ]
    lines = said(verbosity, *events)
    assert lines
    for line in lines:
        assert_clean(line, allowed="")
