"""Files that something has open where no look at a process's own table of open files shows it.

Each of these was removed once: the kernel's own answer, right before the unlink, is what keeps them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest

from helper.life.holders import BEGIN, HOLDERS
from helper.life.test_life_use import NOBODY, give_away, system_python
from helper.life.tree import Life, Tree, child, sha1

if TYPE_CHECKING:
    from pathlib import Path


def fresh() -> str:
    """Return an image's id of this test's own: names count as use, also those of tests beside this one."""
    return str(uuid.uuid4())


@pytest.mark.row("D5")
def test_held_files_stay(holder: str, tree: Tree, life: Life) -> None:
    base, other = tree.image(fresh()), tree.image(fresh())
    with child(sys.executable, "-c", holder, base):
        assert life.remove(base, other) == [("kept", "in-use"), ("removed", None)]
    assert life.remove_one(base) is None


@pytest.mark.row("D5")
def test_held_parts_of_nova_stay(holder: str, tree: Tree, life: Life) -> None:
    part = tree.base(f"{sha1(fresh())}.part")
    with child(sys.executable, "-c", holder, part):
        assert life.clean() == {part.name: ("kept", "in-use")}
    assert life.clean() == {part.name: ("removed", None)}


@pytest.mark.row("D5")
@pytest.mark.parametrize(
    "kind", ["main thread ended", "main thread ended, mapped", "a thread's own table"]
)
def test_who_holds_it_is_told(kind: str, tree: Tree, life: Life) -> None:
    base = tree.image(fresh())
    instance = fresh()
    with child(sys.executable, "-c", BEGIN + HOLDERS[kind], base, "-uuid", instance):
        assert life.users(base) == [instance]
    assert life.users(base) == []


@pytest.mark.row("D5")
def test_swap_on_a_base_file(tree: Tree, life: Life, needs_root: None) -> None:
    base = tree.image(fresh(), os.urandom(1 << 20))
    base.chmod(0o600)
    subprocess.run(["mkswap", base], check=True, capture_output=True)
    os.utime(base, (1e9, 1e9))
    if subprocess.run(["swapon", base], check=False, capture_output=True).returncode:
        pytest.skip("no swap files here")
    try:
        assert life.users(base) == ["swap"]
        assert life.remove_one(base) == "in-use"
    finally:
        subprocess.run(["swapoff", base], check=True)
    assert life.remove_one(base) is None


@pytest.mark.row("D6")
def test_unreadable_qemu_without_its_main_thread_keeps_everything(
    needs_root: None, free_folder: Path
) -> None:
    tree = Tree(free_folder / "instances")
    base = tree.image(fresh())
    give_away(tree.instances)
    script = BEGIN + HOLDERS["main thread ended"]
    name, bash = "qemu-system-x86_64", shutil.which("bash")
    assert bash
    command = (bash, "-c", f'exec -a {name} "$@"', bash, system_python(), "-c", script, "/dev/null")
    with Life(system_python(), user=NOBODY) as life:
        life.start_on(tree.instances)
        with child(*command) as process:
            _, facts = life.look()
            assert any(f"process {process.pid} " in problem for problem in facts["problems"])
            assert life.remove_one(base) == "evidence"
