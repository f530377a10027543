from __future__ import annotations

import logging
import os
import re
import stat
from typing import TYPE_CHECKING

import pytest

from imgcache import __version__
from imgcache.errors import ConfigError, ErrorCode, ExitCode
from imgcache.events import (
    Event,
    HostEnded,
    HostStarted,
    ItemEnded,
    ItemProgress,
    ItemRetry,
    Notice,
    Planned,
    RunEnded,
    RunStarted,
    Waiting,
)
from imgcache.plan import OutcomeWord
from imgcache.ui.log import RunLog
from imgcache.ui.messages import site_line
from ui.samples import HOSTILE, IMAGE, assert_clean, outcome
from ui.test_plan_lines import PLAN

if TYPE_CHECKING:
    from pathlib import Path

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ([A-Z]+) run=(\S+) host=(\S+) (.*)")


def logged(path: Path, *events: Event) -> list[tuple[str, ...]]:
    log = RunLog(path)
    for event in events:
        log.emit(event)
    log.close()
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        match.groups() if (match := LINE.fullmatch(line)) else ("no log line", line)
        for line in lines
    ]


def test_the_plan_of_a_hundred_sites_is_written_whole(tmp_path: Path) -> None:
    lines = logged(tmp_path / "log", Planned((PLAN,) * 100))
    assert len(lines) == 100
    assert set(lines) == {("INFO", "-", "-", site_line(PLAN))}


def test_one_and_the_same_wait_is_written_once(tmp_path: Path) -> None:
    wait, over = Waiting("the window of site oslo opens at 22:00"), Waiting(None)
    assert len(logged(tmp_path / "log", wait, over, wait, over, wait)) == 1
    assert len(logged(tmp_path / "other", wait, over, Waiting("wave 2"), over)) == 2


def test_every_event_has_a_line_with_run_and_host(tmp_path: Path) -> None:
    failed = outcome("h1", OutcomeWord.ERROR, code=ErrorCode.STALL, reason="no byte for 30 s")
    assert logged(
        tmp_path / "log",
        Notice("before the run", level="info"),
        RunStarted("run-1", "precache", 2, 1, 5, 10, "abc123"),
        HostStarted("h1"),
        ItemProgress("h1", IMAGE.id, IMAGE.name, "download", 1, 2),
        ItemRetry("h1", IMAGE.id, 1, 2.0, "reset"),
        ItemEnded(failed),
        HostEnded("h1", failed=True),
        ItemEnded(outcome("h2", bytes_fetched=5)),
        Notice("admin role", host="h2", hint="avoid it"),
        RunEnded(interrupted=False),
    ) == [
        ("INFO", "-", "-", "before the run"),
        (
            "INFO",
            "run-1",
            "-",
            "precache started: 2 hosts, 1 images, 5 bytes per cold host, concurrency 10, "
            f"imgcache {__version__} with helper sha256:abc123",
        ),
        ("INFO", "run-1", "h1", "started"),
        ("WARNING", "run-1", "h1", "repetition 1 in 2.0s: reset"),
        (
            "ERROR", "run-1", "h1",
            f"debian-12: error (stall): no byte for 30 s image={IMAGE.id} bytes=0 seconds=1.2",
        ),
        ("INFO", "run-1", "h1", "failed"),
        ("INFO", "run-1", "h2", f"debian-12: cached image={IMAGE.id} source=service bytes=5 seconds=1.2"),
        ("WARNING", "run-1", "h2", "warning: admin role (avoid it)"),
        ("INFO", "run-1", "-", "ended"),
    ]  # fmt: skip


def test_warnings_of_libraries_go_there_sanitised_and_nothing_else_of_them(tmp_path: Path) -> None:
    library = logging.getLogger("some.module")
    log = RunLog(tmp_path / "log")
    library.warning("odd %s", HOSTILE)
    library.info("not this")
    log.close()
    library.warning("not this either")
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 1
    assert " WARNING run=- host=- odd \\x1b[31mred" in text
    assert_clean(text)


def test_it_appends_and_only_the_owner_may_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    logged(path, Notice("one"))
    assert len(logged(path, Notice("two"))) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.row("M6")
def test_hostile_strings_are_escaped(tmp_path: Path) -> None:
    bad = outcome(HOSTILE, OutcomeWord.ERROR, code=ErrorCode.IO, reason=HOSTILE, image_name=HOSTILE)
    logged(
        tmp_path / "log",
        RunStarted(HOSTILE, HOSTILE, 1, 1, 1, 1),
        HostStarted(HOSTILE),
        ItemRetry(HOSTILE, None, 1, 1.0, HOSTILE),
        ItemEnded(bad),
        Notice(HOSTILE, host=HOSTILE, hint=HOSTILE),
    )
    text = (tmp_path / "log").read_bytes().decode("utf-8")
    assert len(text.splitlines()) == 5
    assert_clean(text)


def test_no_secret_gets_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_PASSWORD", "correct-horse")
    logged(
        tmp_path / "log",
        Notice("Keystone said: bad password correct-horse for https://u:pw1234@k/v3"),
    )
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert "correct-horse" not in text
    assert "pw1234" not in text


@pytest.mark.row("C4")
def test_a_file_that_cannot_be_opened_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "log", tmp_path):
        with pytest.raises(ConfigError) as caught:
            RunLog(path)
        assert caught.value.exit_code is ExitCode.USAGE
        assert caught.value.problems[0].where == str(path)


@pytest.mark.row("C4")
def test_a_disk_that_gets_full_is_told_once_and_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.symlink("/dev/full", path)
    told: list[str] = []
    log = RunLog(path)
    log.on_failure = told.append
    for _ in range(3):
        log.emit(Notice("hello"))
    assert len(told) == 1
    assert told[0].startswith(f"the log file {path} cannot be written any more: ")
    assert "No space left" in told[0]
    with pytest.raises(OSError, match="No space left"):
        log.close()


def test_a_traceback_has_no_values_and_no_secrets(tmp_path: Path) -> None:
    def fail(password: str) -> None:
        note = f"local {password}"
        raise ValueError("X-Auth-Token: gAAAA-header-value" + HOSTILE[:5], len(note))

    log = RunLog(tmp_path / "log")
    try:
        fail("hunter" + str(22))
    except ValueError as exc:
        log.bug(exc)
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert "ValueError" in text
    assert "in fail" in text
    assert "hunter22" not in text
    assert "gAAAA-header-value" not in text
    assert_clean(text)
