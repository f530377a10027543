from __future__ import annotations

import io
import os
import threading
import time

import pytest

from imgcache.events import Event, HostStarted, ItemProgress, Notice, RunEnded
from imgcache.ui.plain import PlainDisplay
from imgcache.ui.sink import DisplaySink, make_sink
from ui.samples import IMAGE


class Recorder:
    """A display that keeps what it gets."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = False
        self.threads: set[int] = set()

    def emit(self, event: Event) -> None:
        self.threads.add(threading.get_ident())
        self.events.append(event)

    def tick(self) -> None:
        self.threads.add(threading.get_ident())

    def close(self) -> None:
        self.closed = True


class Raiser(Recorder):
    """A display whose stream is gone, or that has a bug."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def emit(self, event: Event) -> None:
        super().emit(event)
        raise self._error


def test_everything_is_shown_in_order_by_one_other_thread() -> None:
    recorder = Recorder()
    events: list[Event] = [HostStarted(f"h{number}") for number in range(1000)]
    with DisplaySink([recorder], tick_s=0.001) as sink:
        for event in events:
            sink.emit(event)
    assert recorder.events == events
    assert recorder.closed
    assert len(recorder.threads) == 1
    assert threading.get_ident() not in recorder.threads


@pytest.mark.row("C2")
def test_a_display_without_a_reader_is_dropped_and_the_others_go_on() -> None:
    gone, recorder = Raiser(BrokenPipeError()), Recorder()
    with DisplaySink([gone, recorder], tick_s=0.001) as sink:
        sink.emit(HostStarted("h1"))
        sink.emit(HostStarted("h2"))
    assert len(gone.events) == 1
    assert not gone.closed
    assert len(recorder.events) == 2


def test_a_bug_in_a_display_is_raised_at_the_end() -> None:
    sink = DisplaySink([Raiser(KeyError("bug"))], tick_s=0.001)
    with pytest.raises(KeyError, match="bug"), sink:
        sink.emit(HostStarted("h1"))


def test_the_error_of_the_run_wins_over_a_bug_in_a_display() -> None:
    sink = DisplaySink([Raiser(KeyError("bug"))], tick_s=0.001)
    sink.emit(HostStarted("h1"))
    with pytest.raises(RuntimeError, match="the run"), sink:
        raise RuntimeError("the run")


@pytest.mark.row("C2")
def test_a_pipe_that_nobody_reads_does_not_hold_up_the_run() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        sink = DisplaySink([PlainDisplay(0, stream)], tick_s=0.001)
        sink.__enter__()
        began = time.monotonic()
        for _ in range(2000):
            sink.emit(Notice("x" * 900))
        assert time.monotonic() - began < 1.0
        # Now somebody reads: all of it comes.
        taken = threading.Thread(target=drain, args=(reader,))
        taken.start()
        sink.__exit__(None, None, None)
    taken.join()


def drain(reader: int) -> None:
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read().count(b"\n") == 2000


def test_progress_is_dropped_when_the_display_is_far_behind() -> None:
    recorder = Recorder()
    sink = DisplaySink([recorder], tick_s=0.001)
    for number in range(30_000):
        sink.emit(ItemProgress("h1", IMAGE.id, IMAGE.name, "download", number, 30_000))
    sink.emit(RunEnded(interrupted=False))
    with sink:
        pass
    assert len(recorder.events) < 25_000
    assert isinstance(recorder.events[-1], RunEnded)


def test_quiet_shows_nothing_but_the_log_gets_all() -> None:
    out, log = io.StringIO(), Recorder()
    with make_sink(-1, out, log) as sink:
        sink.emit(Notice("hello"))
    assert out.getvalue() == ""
    assert len(log.events) == 1


def test_no_display_needs_no_thread() -> None:
    before = threading.active_count()
    with make_sink(-1, None) as sink:
        sink.emit(Notice("hello"))
        assert threading.active_count() == before


def test_where_nothing_can_be_redrawn_lines_are_plain() -> None:
    out = io.StringIO()
    with make_sink(0, out) as sink:
        sink.emit(Notice("hello"))
    assert out.getvalue() == "imgcache: warning: hello\n"
