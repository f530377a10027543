"""The disk fails, or the helper dies, at every step of a fetch that keeps what came: the next one works."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from helper.controller import PUSH, Controller, base_name, image_of

if TYPE_CHECKING:
    from pathlib import Path

    from helper.controller import Frame

MIB = 1 << 20
DATA = os.urandom(2 * MIB + 5000)
IMAGE = image_of(DATA)
BASE = base_name(IMAGE["id"])
KEEP = {"keep_partial": True}
STEPS = [
    ("write", 11), ("fsync", 6), ("fchmod", 2), ("linkat", 1), ("renameat", 1), ("unlinkat", 2),
    ("lock", 2),
]  # fmt: skip
EACH = [(name, number) for name, count in STEPS for number in range(1, count + 1)]


def attempt(instances: Path, env: dict[str, str]) -> Frame | None:
    """Fetch by push, from where the helper wants; None when it died of a signal."""
    with Controller(env=env, ping=False) as helper:
        helper.open(instances)
        number = helper.fetch(IMAGE, PUSH, more=KEEP)
        while True:
            frame = helper.received.get(timeout=30)
            if frame is None:
                assert helper.process.wait(10) == -signal.SIGKILL, helper.stderr
                return None
            assert frame["event"] != "crash", frame
            if frame.get("id") != number:
                continue
            if frame["event"] == "ready":
                helper.push(number, DATA[frame["offset"] :])
            elif frame["event"] in {"result", "error"}:
                assert helper.end() == 0
                return frame


def is_whole(instances: Path) -> bool:
    """Whether the final is there; if so it is whole."""
    final = instances / "_base" / BASE
    if not final.exists():
        return False
    assert final.read_bytes() == DATA
    return True


def assert_rerun_works(instances: Path) -> int:
    """Return how many bytes it did not fetch again."""
    answer = attempt(instances, {})
    assert answer is not None
    assert answer["event"] == "result", answer
    assert is_whole(instances)
    assert (instances / "_base" / BASE).stat().st_nlink == 1
    left = {name.rpartition(".")[2] for name in os.listdir(instances / "_base/.imgcache")}
    assert left <= {"json", "new"}
    return int(answer["resumed"])


@pytest.mark.row("T8")
@pytest.mark.row("H19")
@pytest.mark.parametrize(("name", "number"), EACH)
@pytest.mark.parametrize("how", ["KILL", "KILLAFTER"])
def test_killed_at_every_step(
    shim: Path, instances: Path, name: str, number: int, how: str
) -> None:
    answer = attempt(instances, {"LD_PRELOAD": str(shim), "FAULT": f"{name}:{number}:{how}"})
    if answer is not None:
        pytest.fail(f"{name} is called fewer than {number} times")
    is_whole(instances)
    assert_rerun_works(instances)


@pytest.mark.row("H8")
@pytest.mark.row("H6")
@pytest.mark.parametrize(("name", "number"), EACH)
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_failure_at_every_step(
    shim: Path, instances: Path, name: str, number: int, error: int
) -> None:
    answer = attempt(instances, {"LD_PRELOAD": str(shim), "FAULT": f"{name}:{number}:{error}"})
    assert answer is not None
    there = is_whole(instances)
    if answer["event"] == "error":
        assert answer["code"] in {"io", "space"}
        left = [path.name for path in (instances / "_base").glob(".imgcache/*.staging*")]
        assert name == "unlinkat" or left == []
    else:
        assert there
    assert_rerun_works(instances)


@pytest.mark.row("H19")
@pytest.mark.row("T8")
def test_killed_again_and_again_it_gets_there(instances: Path) -> None:
    """Each run goes on where the one before was killed; in the end all bytes are right."""
    moments = random.Random(4)
    for _ in range(12):
        with Controller(ping=False) as helper:
            helper.open(instances)
            number = helper.fetch(IMAGE, PUSH, more=KEEP)
            frame = helper.event(number, "ready", "result")
            if frame["event"] == "ready":
                helper.push(number, DATA[frame["offset"] :])
            time.sleep(moments.uniform(0, 0.05))
            helper.process.kill()
        if is_whole(instances):
            (instances / "_base" / BASE).unlink()
    assert_rerun_works(instances)
    assert sorted(os.listdir(instances / "_base/.imgcache")) == [f"{BASE}.json"]
