"""What a helper says, and when, beside what its main thread says."""

# mypy: allow-untyped-calls

from __future__ import annotations

import fcntl
import io
import json
import os
import threading
import time
from typing import TYPE_CHECKING

from imgcache.helper import core
from imgcache.helper.download import Retry
from imgcache.helper.staging import Sink
from imgcache.helper.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _wait_until(good: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not good():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _fill(fd: int) -> int:
    """Write until nothing more fits; return how much that was."""
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(fd, False)
    filled = 0
    try:
        while True:
            filled += os.write(fd, b"\n" * 4096)
    except BlockingIOError:
        os.set_blocking(fd, True)
    return filled


def test_no_progress_is_told_behind_a_question(tmp_path: Path) -> None:
    """Nobody reads for a moment: the question waits, and whoever would tell the progress waits behind it."""
    reading, writing = os.pipe()
    session = core.Session(io.BytesIO(), writing)
    watch = session.watch = Watch(session)
    watch.begin(7, 15.0)
    watch.tell("download", 10, 10)
    with open(tmp_path / "file", "wb") as file:
        sink = Sink(file.fileno(), None, 10, "sha256")
        fill = _fill(writing)
        question = Retry("digest", "wrong bytes")
        asking = threading.Thread(target=watch.ask, args=({"id": 7}, question, sink))
        asking.start()
        _wait_until(watch._sending.locked)
        telling = threading.Thread(target=watch._beat)
        telling.start()
        time.sleep(0.2)  # it waits by now
        said = b""
        while b"retry" not in said:
            said += os.read(reading, fill)
        telling.join()
        with watch.changed:
            watch.answers.append({"op": "again"})
            watch.changed.notify_all()
        asking.join()
        watch._beat()
        said += os.read(reading, fill)
        sink.close()
    os.close(reading)
    os.close(writing)
    frames = [json.loads(line) for line in said.split(b"\n") if line]
    assert [frame["event"] for frame in frames] == ["retry", "progress"]
    assert frames[1]["done"] == 0  # what the sink has, not what it had
