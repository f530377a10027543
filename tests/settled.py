"""A pytest plugin: no test leaves threads, child processes or asyncio tasks behind.

A plugin, not part of ``conftest.py``: the hooks of a folder's conftest are not called for fixtures
of a whole session.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from asyncio import runners
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# How long what a test has ended may take to be gone.
GRACE_S = 3.0


@dataclass(frozen=True)
class Running:
    """Threads by object id, child processes by pid, with a line of description each."""

    threads: dict[int, str]
    children: dict[int, str]


class Ledger:
    """Tells what is running, apart from what fixtures of a wider scope have started."""

    def __init__(self) -> None:
        self._allowed_threads: set[int] = set()
        self._allowed_children: set[int] = set()

    def now(self) -> Running:
        """Return the threads and the children of this process."""
        threads = {
            id(thread): f"thread {thread.name!r}" + (" (daemon)" if thread.daemon else "")
            for thread in threading.enumerate()
            # xdist's own channel to its master makes threads as it needs them.
            if not (thread.name.startswith("Dummy-") or "execnet" in repr(thread).lower())
        }
        return Running(threads, dict(_children()))

    def allow_since(self, before: Running) -> None:
        """Let everything live on that was started since ``before``."""
        now = self.now()
        self._allowed_threads |= now.threads.keys() - before.threads.keys()
        self._allowed_children |= now.children.keys() - before.children.keys()

    def left_since(self, before: Running) -> list[str]:
        """Describe what was started since and does not end within ``GRACE_S``."""
        deadline = time.monotonic() + GRACE_S
        while left := self._new_since(before):
            if time.monotonic() > deadline:
                break
            # Nothing to await: these are other people's threads and processes.
            time.sleep(0.02)
        return left

    def _new_since(self, before: Running) -> list[str]:
        now = self.now()
        old_threads = before.threads.keys() | self._allowed_threads
        old_children = before.children.keys() | self._allowed_children
        return [text for key, text in now.threads.items() if key not in old_threads] + [
            text for pid, text in now.children.items() if pid not in old_children
        ]


def _children() -> Iterator[tuple[int, str]]:
    """Yield pid and description of each child. Source: proc(5), /proc/PID/task/TID/children."""
    for task in Path("/proc/self/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
        except OSError:  # a thread that has just ended
            continue
        for pid in pids:
            yield int(pid), _describe(int(pid))


def _describe(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return f"child process {pid} (just ended)"
    if state == "Z":
        return f"child process {pid} (ended, but never waited for)"
    return f"child process {pid}: {os.fsdecode(command)[:200]}"


@contextmanager
def track_tasks() -> Iterator[list[str]]:
    """Collect the asyncio tasks that are still alive when an ``asyncio.run`` has its result.

    ``asyncio.run`` cancels such tasks without a word. Here they first get a moment to end by
    themselves, as those of a closed connection do.
    """
    abandoned: list[str] = []
    cancel_all = runners._cancel_all_tasks  # type: ignore[attr-defined]

    def report_then_cancel(loop: asyncio.AbstractEventLoop) -> Any:
        tasks = asyncio.all_tasks(loop)
        if tasks and not loop.is_closed():
            _, pending = loop.run_until_complete(asyncio.wait(tasks, timeout=GRACE_S))
            abandoned.extend(f"asyncio task {task!r}" for task in pending)
        return cancel_all(loop)

    runners._cancel_all_tasks = report_then_cancel  # type: ignore[attr-defined]
    try:
        yield abandoned
    finally:
        runners._cancel_all_tasks = cancel_all  # type: ignore[attr-defined]


_ledger = Ledger()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    """Let fixtures that outlive a test keep the threads and children that they start."""
    if fixturedef.scope == "function":
        return (yield)
    before = _ledger.now()
    try:
        return (yield)
    finally:
        _ledger.allow_since(before)


@pytest.fixture(autouse=True)
def _settled() -> Iterator[None]:
    """Fail a test that leaves threads, child processes or asyncio tasks behind."""
    before = _ledger.now()
    with track_tasks() as abandoned:
        yield
    left = [*_ledger.left_since(before), *abandoned]
    if left:
        pytest.fail("left behind by this test:\n  " + "\n  ".join(left), pytrace=False)
