"""The guards of ``remove``, one by one; each decides again under Nova's lock."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from helper.life.tree import DAY, Life, Tree, aged, child, item, overlay, sha1

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO

#: Stands for nova-compute: takes a lock as it does, says so, lets go when told to.
HOLD_LOCK = (
    "import fcntl, sys\n"
    "f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX)\n"
    "print('held', flush=True); sys.stdin.readline(); f.close(); print('free', flush=True); sys.stdin.read()"
)


@pytest.mark.row("D4")
@pytest.mark.row("D10")
@pytest.mark.parametrize(
    "name",
    [
        "x" * 40, "A" * 40, sha1("a")[:39], sha1("a") + "0", sha1("a") + "_x", sha1("a") + "_", "swap_",
        "swap_1x",
        "ephemeral_1_123456", "ephemeral_1_12345678", "lost+found", sha1("a") + ".part", sha1("a") + ".info",
        sha1("a") + "\n", "notes.txt", "swap_1\n",
    ],
)  # fmt: skip
def test_unknown_names_stay(name: str, tree: Tree, life: Life) -> None:
    path = tree.base(name)
    assert life.remove_one(path) == "foreign"


@pytest.mark.row("D10")
def test_every_kind_of_final(tree: Tree, life: Life) -> None:
    base = sha1("image")
    names = [base, f"{base}_20", f"{base}_sm", f"{base}_5", "swap_512", "ephemeral_1_40d1d2c"]
    paths = [tree.base(name) for name in names]
    rows, _ = life.look()
    kinds = [rows[name]["kind"] for name in names]
    assert kinds == ["original", "resized", "resized", "resized", "swap", "ephemeral"]
    assert life.remove(*paths) == [("removed", None)] * 6
    locks = {f"nova-{name}" for name in names}
    assert set(os.listdir(tree.instances / "locks")) == locks


@pytest.mark.row("D4")
@pytest.mark.row("H10")
@pytest.mark.parametrize("kind", ["symlink", "folder", "fifo", "two names"])
def test_no_plain_file_stays(kind: str, tree: Tree, life: Life, tmp_path: Path) -> None:
    path = tree.cache / sha1("image")
    if kind == "symlink":
        path.symlink_to(tree.image("other"))
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        tree.image("image")
        os.link(path, tmp_path / "second name")
    changes: dict[str, Any] = {"min_age_s": 0, "ours_ok": True}
    if kind != "symlink":
        aged(path, 2 * DAY)
    assert life.remove_one(path, **changes) == "foreign"
    assert life.look()[0][path.name]["kind"] == ("original" if kind == "two names" else "foreign")


@pytest.mark.row("D4")
@pytest.mark.row("D2")
def test_age(tree: Tree, life: Life) -> None:
    path = tree.image("image", age=7200)
    assert life.remove_one(path, min_age_s=7300) == "young"
    aged(path, 3500)
    for least in (0, -1, -1e30):
        assert life.remove_one(path, min_age_s=least) == "young"
    aged(path, 7200)
    assert life.remove_one(path, min_age_s=7100) is None


@pytest.mark.row("H13")
def test_a_time_in_the_future_keeps(tree: Tree, life: Life) -> None:
    path = tree.image("image", age=-3600)
    tree.manifest(path)
    assert life.look()[0][path.name]["age"] < -3500
    order = life.order("remove", items=[item(path, min_age_s=-9999, ours_ok=True)])
    assert "in the future" in life.rows(order)[0][0]["reason"]
    assert path.exists()


@pytest.mark.row("D4")
def test_what_we_touched_last_may_go_early(tree: Tree, life: Life) -> None:
    path = tree.image("image", age=10)
    assert life.remove_one(path, min_age_s=0, ours_ok=True) == "young"  # not ours
    tree.manifest(path)
    assert life.remove_one(path, min_age_s=0) == "young"  # not asked for
    assert life.remove_one(path, min_age_s=60, ours_ok=True) == "young"
    aged(path, 9)  # somebody boots from it
    assert life.remove_one(path, min_age_s=0, ours_ok=True) == "young"
    touch = life.order("touch", base=path.name, sizes=[], dry=False)
    assert life.result(touch)["managed"]
    assert life.remove_one(path, min_age_s=0, ours_ok=True) is None
    assert not (tree.own / f"{path.name}.json").exists()


def test_pinned(tree: Tree, life: Life) -> None:
    path = tree.image("image")
    for pin in ("forever", time.time() + 60, "what is this", [1]):
        tree.manifest(path, pin=pin)
        assert life.remove_one(path) == "pinned"
    tree.manifest(path, pin=time.time() - 60)
    aged(path, 2 * DAY + 1)
    assert life.remove_one(path) is None
    path = tree.image("image")
    tree.manifest(path, pin="forever")
    assert life.remove_one(path, pinned_ok=True) is None


@pytest.mark.row("D9")
def test_changed_since_the_plan(tree: Tree, life: Life) -> None:
    path = tree.image("image")
    seen = item(path)
    aged(path, 2 * DAY - 5)
    assert life.remove_one(path, mtime_ns=seen["mtime_ns"]) == "changed"
    seen = item(path)
    path.rename(tree.instances / "away")
    tree.image("image")
    os.utime(path, ns=(seen["mtime_ns"], seen["mtime_ns"]))
    assert life.remove_one(path, inode=seen["inode"]) == "changed"


@pytest.mark.row("R25")
@pytest.mark.qemu
@pytest.mark.row("D9")
@pytest.mark.parametrize(
    ("boot", "code"),
    [("touch", "changed"), ("overlay", "in-use"), ("open", "in-use"), ("vanish", None)],
)
def test_boot_between_plan_and_lock(boot: str, code: str | None, tree: Tree, life: Life) -> None:
    """A process standing for nova-compute holds the lock, boots, and lets go while ``remove`` waits."""
    path, other = tree.image("image"), tree.image("other")
    lock = tree.instances / "locks" / f"nova-{path.name}"
    opened = None
    with child(sys.executable, "-c", HOLD_LOCK, lock) as nova:
        number = life.order("remove", items=[item(path), item(other)])
        other_gone(other)  # so the first round is over
        if boot == "touch":
            os.utime(path)
        elif boot == "overlay":
            tree.disk(path)
        elif boot == "open":
            opened = path.open("rb")
        else:
            path.unlink()
        assert nova.stdin
        nova.stdin.write(b"\n")
        nova.stdin.flush()
        rows, _ = life.rows(number)
    by_name = {row["name"]: (row["state"], row["code"]) for row in rows}
    assert by_name == {
        other.name: ("removed", None), path.name: ("kept" if code else "gone", code),
    }  # fmt: skip
    if opened:
        opened.close()


def other_gone(path: Path) -> None:
    """Wait until a file is removed."""
    deadline = time.monotonic() + 20
    while path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def try_lock(file: IO[str]) -> bool:
    """Whether nobody else holds a lock; takes it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@pytest.mark.row("H15")
def test_lock_held_by_nova(tree: Tree, life: Life) -> None:
    path = tree.image("image")
    resized = tree.base(f"{path.name}_20")
    with child(sys.executable, "-c", HOLD_LOCK, tree.instances / "locks" / f"nova-{path.name}"):
        began = time.monotonic()
        assert life.remove(path, resized) == [("kept", "busy")] * 2
        assert time.monotonic() - began > 5
    assert life.remove(path, resized) == [("removed", None)] * 2


@pytest.mark.row("H15")
def test_no_locks_nothing_removed(tree: Tree, shim: Path) -> None:
    path = tree.image("image")
    for number in ("ENOLCK", "EOPNOTSUPP"):
        fault = f"lock:1:{getattr(os, number, 0) or getattr(__import__('errno'), number)}"
        with Life(env={"LD_PRELOAD": str(shim), "FAULT": fault}) as life:
            life.start_on(tree.instances)
            assert life.remove_one(path) == "lock"


@pytest.mark.row("H10")
def test_linked_folders_are_refused(tree: Tree, tmp_path: Path) -> None:
    path = tree.image("image")
    (tree.instances / "locks").rename(tmp_path / "locks")
    (tree.instances / "locks").symlink_to(tmp_path / "locks")
    with Life() as life:
        life.start_on(tree.instances)
        assert life.remove_one(path) == "lock"
    tree.cache.rename(tmp_path / "cache")
    tree.cache.symlink_to(tmp_path / "cache")
    with Life() as life:
        life.start_on(tree.instances)
        assert life.error(life.order("list", formats=True, use=True))["code"] == "symlink"
        assert life.error(life.order("remove", items=[item(path)]))["code"] == "symlink"
    assert path.exists()


@pytest.mark.row("T9")
@pytest.mark.row("D12")
def test_locks_are_let_go_and_stay(tree: Tree, life: Life) -> None:
    path, kept = tree.image("image"), tree.image("kept", age=60)
    assert life.remove(path, kept) == [("removed", None), ("kept", "young")]
    assert os.listdir(tree.instances / "locks") == [f"nova-{path.name}"]
    with (tree.instances / "locks" / f"nova-{path.name}").open("a") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.row("D9")
def test_the_lock_is_held_while_it_looks_and_removes(tree: Tree, life: Life) -> None:
    """Whoever stands in line for the lock finds the file gone, never on its way."""
    path = tree.image("image")
    overlay(tree.instances / "slow", "/nowhere")
    for number in range(300):
        (tree.instances / f"vm-{number}").mkdir()
        (tree.instances / f"vm-{number}/disk").write_bytes(bytes(4096))
    seen: list[bool] = []
    lock = tree.instances / "locks" / f"nova-{path.name}"

    def stand_in_line() -> None:
        with lock.open("a") as file:
            while try_lock(file):  # the helper does not hold it yet
                fcntl.lockf(file, fcntl.LOCK_UN)
                time.sleep(0.001)
            fcntl.lockf(file, fcntl.LOCK_EX)
            seen.append(path.exists())

    thread = threading.Thread(target=stand_in_line)
    thread.start()
    assert life.remove_one(path) is None
    thread.join()
    assert seen == [False]


@pytest.mark.row("H17")
def test_gone_already(tree: Tree, life: Life) -> None:
    path = tree.image("image")
    seen = item(path)
    path.unlink()
    rows, _ = life.rows(life.order("remove", items=[seen]))
    assert [(row["state"], row["bytes"]) for row in rows] == [("gone", 0)]


@pytest.mark.row("H18")
def test_two_runs_at_once(tree: Tree, life: Life) -> None:
    paths = [tree.image(f"image {number}") for number in range(60)]
    items = [item(path) for path in paths]
    with Life() as second:
        second.start_on(tree.instances)
        orders = [(helper, helper.order("remove", items=items)) for helper in (life, second)]
        rows = [row for helper, number in orders for row in helper.rows(number)[0]]
    assert len(rows) == 120
    assert sorted(row["state"] for row in rows) == ["gone"] * 60 + ["removed"] * 60
    assert not any(path.exists() for path in paths)


@pytest.mark.row("H18")
def test_our_own_live_staging_keeps(tree: Tree, life: Life) -> None:
    path = tree.image("image")
    staging = tree.own / f"{path.name}.{'0' * 16}.staging"
    staging.touch()
    with child(sys.executable, "-c", HOLD_LOCK, staging):
        assert life.remove_one(path) == "busy"
    assert life.remove_one(path) is None


@pytest.mark.row("D13")
def test_killed_in_the_middle(tree: Tree) -> None:
    """Every file is there or gone; no lock stays; the next run does the rest."""
    for round_number in range(8):
        paths = [tree.image(f"image {number}") for number in range(100)]
        for path in paths:
            tree.manifest(path)
        with Life(ping=False) as life:
            life.start_on(tree.instances)
            life.look()
            number = life.order("remove", items=[item(path) for path in paths])
            while round_number and sum(path.exists() for path in paths) > 100 - round_number * 12:
                pass
            life.process.send_signal(signal.SIGKILL)
            life.process.wait()
            assert number
        left = [path for path in paths if path.exists()]
        assert all(path.read_bytes() == b"x" * 8192 for path in left)
        with Life() as life:
            life.start_on(tree.instances)
            assert life.remove(*left) == [("removed", None)] * len(left)
            assert life.clean() == {}
        assert os.listdir(tree.cache) == [".imgcache"]
        assert os.listdir(tree.own) == []


def test_big_files_do_not_hold_the_lock(tree: Tree, life: Life) -> None:
    """The blocks are freed when the descriptor is closed; all that is left behind is nothing."""
    paths = [tree.image(f"image {number}", os.urandom(1 << 20)) for number in range(20)]
    rows, _ = life.rows(life.order("remove", items=[item(path) for path in paths]))
    assert {row["bytes"] for row in rows} == {1 << 20}
    links = subprocess.run(
        ["ls", "-l", f"/proc/{life.process.pid}/fd"], capture_output=True, text=True, check=True
    )
    assert "deleted" not in links.stdout


def test_file_system_refuses(tree: Tree, shim: Path) -> None:
    path, other = tree.image("image"), tree.image("other")
    with Life(env={"LD_PRELOAD": str(shim), "FAULT": "unlinkat:1:5"}) as life:
        life.start_on(tree.instances)
        assert life.remove(path, other) == [("kept", "io"), ("removed", None)]


def test_more_than_a_hundred_is_a_mistake(tree: Tree, life: Life) -> None:
    items = [item(tree.image("image"))] * 101
    assert life.error(life.order("remove", items=items))["code"] == "protocol"
