"""The kernel's answer to whether anything has a file open, and who may ask."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from helper.life.holders import IN_FLIGHT
from helper.life.test_life_use import NOBODY, give_away, system_python
from helper.life.tree import Life, Tree, child
from imgcache.helper import leases as leases_module

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

#: The helper's own code has no types.
leases: Any = leases_module


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    return path


def asked(path: Path) -> bool | None:
    """Open a file, ask, and close it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        answer: bool | None = leases.take(fd)
    finally:
        os.close(fd)
    return answer


def test_free_files_are_granted_again_and_again(file: Path) -> None:
    assert [asked(file) for _ in range(3)] == [True] * 3


def test_what_is_held_is_refused(file: Path, holder: str) -> None:
    with child(sys.executable, "-c", holder, file):
        assert asked(file) is False
    assert asked(file) is True


def test_what_is_mapped_or_open_here_is_refused(file: Path) -> None:
    with file.open("rb") as other:
        assert asked(file) is False
        mapped = mmap.mmap(other.fileno(), 0, prot=mmap.PROT_READ)
    assert asked(file) is False
    mapped.close()
    assert asked(file) is True


def test_a_loop_device_is_refused(file: Path, needs_root: None) -> None:
    command = ["losetup", "--find", "--show", "--read-only", str(file)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip("no loop devices here")
    try:
        assert asked(file) is False
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_one_who_opens_a_leased_file_waits_and_goes_on(file: Path) -> None:
    """And we live: the signal that says so would else end this process."""
    fd = os.open(file, os.O_RDONLY)
    assert leases.take(fd) is True
    opener = subprocess.Popen([sys.executable, "-c", "import sys; open(sys.argv[1])", file])
    deadline = time.monotonic() + 20
    while fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert opener.poll() is None
    file.unlink()
    leases.give_back(fd)
    os.close(fd)
    assert opener.wait(timeout=20) == 0


def test_where_there_is_no_answer_none_is_made_up(file: Path) -> None:
    assert asked(file.parent) is None  # no file: as on file systems without leases
    fd = os.open(file, os.O_PATH)
    assert leases.take(fd) is None
    os.close(fd)


def test_root_asks_about_files_that_nova_does_not_own(needs_root: None, free_folder: Path) -> None:
    tree = Tree(free_folder / "instances")
    base = tree.image(f"image of {os.getpid()}")
    give_away(tree.instances)
    os.chown(base, 0, 0)  # libvirt does that
    with Life(system_python()) as life:
        life.start_on(tree.instances)
        with child(sys.executable, "-c", IN_FLIGHT, base):
            assert life.remove_one(base) == "in-use"
        assert life.remove_one(base) is None


def test_who_may_not_ask_goes_by_what_shows(needs_root: None, free_folder: Path) -> None:
    tree = Tree(free_folder / "instances")
    base = tree.image(f"image of {os.getpid()}")
    give_away(tree.instances)
    os.chown(base, 0, 0)
    with Life(system_python(), user=NOBODY) as life:
        life.start_on(tree.instances)
        with child(sys.executable, "-c", IN_FLIGHT, base):
            assert life.remove_one(base) in {
                None,
                "evidence",
            }  # the latter: a test's qemu runs as root


def test_a_momentary_look_of_another_run_keeps_nothing(tree: Tree, life: Life) -> None:
    """It opens each file of the cache for some microseconds, as fast as it can."""
    bases = [tree.image(f"{number} of {os.getpid()}") for number in range(50)]
    look = (
        "import os, sys\nprint('held', flush=True)\nwhile True:\n"
        " for name in os.listdir(sys.argv[1]):\n"
        "  try: os.close(os.open(sys.argv[1] + '/' + name, os.O_RDONLY | os.O_NONBLOCK))\n"
        "  except OSError: pass"
    )
    with child(sys.executable, "-c", look, tree.cache):
        states = life.remove(*bases)
    assert {code for _, code in states} <= {None, "in-use"}
    assert [state for state, _ in states].count("removed") > 25
