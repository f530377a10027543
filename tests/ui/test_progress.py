from __future__ import annotations

import io
import os
import re

import pytest
from rich.console import Console

from imgcache.events import Event, HostStarted, ItemProgress, Notice, RunEnded, RunStarted
from imgcache.ui.progress import ProgressDisplay
from imgcache.ui.stream import discard
from ui.clock import Clock
from ui.samples import HOSTILE, IMAGE, assert_clean

#: The sequences that redraw in place, colours left out; all else is escaped text.
_REDRAW = re.compile(r"\x1b\[(?:\?25[lh]|\d*[AK]|2K|1A|[\d;]*m)|\r")


def shown(*events: Event, height: int = 24, width: int = 100) -> str:
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, width=width, height=height, markup=False, emoji=False
    )
    display = ProgressDisplay(0, out, clock=Clock(), console=console)
    for event in events:
        display.emit(event)
    display.tick()
    display.close()
    return out.getvalue()


def run_of(hosts: int) -> list[Event]:
    started: list[Event] = [RunStarted("run-1", "precache", hosts, 1, 100_000_000, 100)]
    return started + [HostStarted(f"edge1-{number:02}") for number in range(1, hosts + 1)]


def test_the_hosts_at_work_have_capped_rows() -> None:
    progress = ItemProgress("edge1-03", IMAGE.id, IMAGE.name, "download", 25_000_000, 100_000_000)
    text = shown(*run_of(17), progress)
    assert "0/17 hosts done, 17 active, 0 failed" in text
    assert re.search(r"edge1-03 +debian-12 +download +25% of 100 MB", text)
    assert re.search(r"[━╸╺]\S*\n *edge1-01", text), "the bar ends its line"
    assert "edge1-10" in text
    assert "edge1-11" not in text
    assert "… and 7 more" in text


def test_a_low_terminal_gets_fewer_rows() -> None:
    text = shown(*run_of(17), height=8)
    assert "edge1-03" in text
    assert "edge1-04" not in text
    assert "… and 14 more" in text


def test_the_cursor_is_never_left_hidden() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=24)
    display = ProgressDisplay(0, out, clock=Clock(), console=console)
    display.emit(run_of(1)[0])
    display.tick()
    text = out.getvalue()
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")
    display.close()


@pytest.mark.row("C2")
def test_a_reader_that_went_away_is_an_error_for_the_sink() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", encoding="utf-8")
    display = ProgressDisplay(0, stream, clock=Clock())
    with pytest.raises(BrokenPipeError):
        display.emit(Notice("hello"))
    discard(stream)
    stream.close()


def test_the_summary_stays() -> None:
    assert shown(*run_of(1), RunEnded(interrupted=True)).endswith("run run-1\n")


@pytest.mark.row("M6")
@pytest.mark.parametrize("field", ["host", "image_name", "phase"])
def test_a_hostile_string_in_a_row_is_escaped(field: str) -> None:
    bad = "\x1b]0;t\x07\u202e"
    names = {"host": "edge1-01", "image_name": IMAGE.name, "phase": "download"} | {field: bad}
    progress = ItemProgress(**names, image_id=IMAGE.id, done_bytes=1, total_bytes=2)
    plain = _REDRAW.sub("", shown(*run_of(1), progress))
    assert "\\x1b]0;t\\x07\\u202e" in plain
    assert_clean(plain)


@pytest.mark.row("M6")
def test_hostile_strings_are_escaped_and_no_markup_is_read() -> None:
    text = shown(
        *run_of(2),
        ItemProgress(HOSTILE, IMAGE.id, HOSTILE, HOSTILE, 1, 2),
        Notice("[bold red]name[/] :warning: [link=http://x]y[/link]", host="[reverse]h[/]"),
    )
    plain = _REDRAW.sub("", text)
    assert_clean(plain)
    assert "[reverse]h[/]: warning: [bold red]name[/] :warning: [link=http://x]y[/link]" in plain
