"""A boot that stands still at each of its steps, while everything that removes is run beside it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from helper.life.tree import DAY, Life, Tree, aged, item, sha1
from scenarios.faults_site import local_fleet, wait_until
from servers.fleet_fixtures import add_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers.fleet_fixtures import Fleet

pytestmark = [pytest.mark.qemu, pytest.mark.row("D9")]

#: Another file of this name that is open, anywhere on the machine, would count as use.
BASE = sha1(os.urandom(8).hex())
DATA = b"neither qcow2 nor anything else " * 20000
#: Nova holds its lock.
HELD = {"fetching", "half", "part", "renamed", "locked", "overlaid"}
FETCH = ["missing", "fetching", "half", "part", "renamed", "fetched"]
BOOT = ["touched", "sized", "locked", "overlaid", "unlocked", "running", "off"]
#: The instance's disk names the base file, and days may pass.
SETTLED = {"unlocked", "running", "off"}


class Nova:
    """A boot in a process of its own; ``step`` is where it stands. Use as a context manager."""

    def __init__(self, tree: Tree, base: str = BASE, folder: str = "vm-1", *more: str) -> None:
        source = tree.instances.parent / "image"
        if not source.exists():
            source.write_bytes(DATA)
        script = Path(__file__).with_name("frozen_nova.py")
        self.tree, self.base, self.disk = tree, tree.cache / base, tree.instances / folder / "disk"
        self.lock = tree.instances / "locks" / f"nova-{base}"
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(tree.instances), base, str(source), folder, *more],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.step = self._heard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def _heard(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def go(self) -> str:
        """Let it take one step."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.step = self._heard()
        return self.step

    def go_to(self, step: str) -> None:
        """Let it go on up to a step."""
        seen = [self.step]
        while self.step != step:
            assert self.step
            assert self.step.split()[0] not in {"booted", "failed"}, seen
            seen.append(self.go())

    def end(self) -> str:
        """Let it go on to its end; return its last word."""
        while self.step.split()[0] not in {"booted", "failed"}:
            assert self.go(), "it died"
        return self.step

    def rush(self) -> None:
        """Let it go on to its end without a stop."""
        assert self.process.stdin
        self.process.stdin.write("\n" * (len(FETCH) + len(BOOT) + 1))

    def assert_lock(self) -> None:
        """It holds its lock, or nobody does."""
        if not self.lock.exists():
            assert self.step not in HELD
            return
        with self.lock.open("a") as file, contextlib.ExitStack() as stack:
            if self.step in HELD:
                stack.enter_context(pytest.raises(BlockingIOError))
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def assert_whole(self) -> None:
        """The instance can be started: its disk is sound, and its base file is all there."""
        assert self.base.read_bytes() == DATA
        shown = subprocess.run(
            ["qemu-img", "info", "--backing-chain", "--output=json", self.disk],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert [one["filename"] for one in json.loads(shown.stdout)] == [
            str(self.disk), str(self.base),
        ]  # fmt: skip
        subprocess.run(["qemu-img", "check", "-q", self.disk], check=True)


def expected(step: str, *, there: bool) -> tuple[str, str | None]:
    """Return what becomes of the base file, aged two days before the boot, at a step of it."""
    if step in {"start", "exists"}:
        return ("removed", None) if there else ("gone", None)
    if step in FETCH[:4]:
        return "gone", None
    return "kept", "in-use" if step in SETTLED else "young"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Return a host's files with an empty cache."""
    return Tree(tmp_path / "instances")


@pytest.fixture
def life(tree: Tree) -> Iterator[Life]:
    """Return a helper whose cache is open."""
    with Life() as helper:
        helper.start_on(tree.instances)
        yield helper


def inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


@pytest.mark.parametrize(
    ("there", "step"),
    [
        *((True, step) for step in ["start", "exists", *BOOT]),
        *((False, step) for step in ["start", *FETCH, *BOOT]),
    ],
)
def test_everything_that_removes_at_one_step(
    there: bool, step: str, tree: Tree, life: Life
) -> None:
    """With the plan of before the boot, and with one of now."""
    base = tree.base(BASE, DATA)
    old_plan = item(base)
    if not there:
        base.unlink()
    with Nova(tree) as nova:
        nova.go_to(step)
        if step in SETTLED:
            aged(base, 2 * DAY)  # Nova does not renew what is only named by disks
        lock = inode(nova.lock)
        began = time.monotonic()
        new_plan = item(base) if base.exists() else old_plan
        state, code = expected(step, there=there)
        if step in BOOT:
            rows, _ = life.rows(life.order("remove", items=[old_plan]))
            assert [(row["state"], row["code"]) for row in rows] == [("kept", "changed")]
        rows, _ = life.rows(life.order("remove", items=[new_plan]))
        assert [(row["state"], row["code"]) for row in rows] == [(state, code)]
        parts = {f"{BASE}.part": ("kept", "young")} if step in {"half", "part"} else {}
        assert life.clean(0) == parts
        assert time.monotonic() - began < 5
        nova.assert_lock()
        assert lock is None or inode(nova.lock) == lock
        end = nova.end()
        if (there, step) == (True, "exists"):
            assert end == "failed FileNotFoundError"
            assert not nova.disk.exists()
        else:
            assert end == "booted"
            nova.assert_whole()
    if end != "booted":  # the scheduler tries again
        with Nova(tree) as nova:
            assert nova.end() == "booted"
            nova.assert_whole()
    aged(base, 2 * DAY)
    assert life.remove_one(base) == "in-use"


def test_prune_at_every_step_of_one_boot(tree: Tree, life: Life) -> None:
    """What the boot needs is never gone, however often and however old it looks once there is a disk."""
    base = tree.base(BASE, DATA)
    steps, states = [], []
    with Nova(tree) as nova:
        while nova.step != "booted":
            if nova.step in SETTLED:
                aged(base, 2 * DAY)
            if base.exists():
                states += life.remove(base)
                life.clean(0)
            nova.assert_lock()
            steps.append(nova.step)
            nova.go()
        nova.assert_whole()
    assert steps == ["start", *FETCH, *BOOT]
    assert states == [("removed", None)] + [("kept", "young")] * 6 + [("kept", "in-use")] * 3


@pytest.mark.parametrize("step", ["locked", "overlaid"])
def test_a_boot_that_could_not_touch_goes_on_while_prune_waits_for_its_lock(
    step: str, tree: Tree, life: Life
) -> None:
    """Its base file is as old as before: only the second look for users, under the lock, saves it."""
    base, other = tree.base(BASE, DATA), tree.image("other")
    with Nova(tree, BASE, "vm-1", "untouchable") as nova:
        nova.go_to(step)
        number = life.order("remove", items=[item(base), item(other)])
        wait_until(lambda: not other.exists())  # the first round is over
        assert base.exists()
        nova.go_to("unlocked")
        rows, _ = life.rows(number)
        codes = {row["name"]: (row["state"], row["code"]) for row in rows}
        assert codes == {BASE: ("kept", "in-use"), other.name: ("removed", None)}
        assert nova.end() == "booted"
        nova.assert_whole()


# ---- the whole command


@pytest.fixture
def site(tmp_path: Path) -> Fleet:
    """One local host and a directory image service."""
    fleet = local_fleet(tmp_path, {"kind": "directory", "path": "images"})
    add_image(tmp_path / "images", "11fe11fe-2222-4333-8444-000000000009", "other", DATA)
    conf = tmp_path / "nova.conf"
    conf.write_text("[DEFAULT]\nhost=edge1-01\n")
    fleet.overrides["edge1-01"] = {"nova_conf": str(conf)}
    return fleet


def pruned(site: Fleet) -> dict[str, tuple[str, str | None]]:
    """Run the command; return entry -> (outcome, code)."""
    done = site.run("prune", "--all", "-f", "json", timeout_s=30)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["outcomes"]
    return {one["entry"]: (one["outcome"], one["code"]) for one in found}


def test_the_whole_command_beside_a_boot(site: Fleet) -> None:
    tree = Tree(site.instances("edge1-01"))
    base = tree.base(BASE, DATA)
    with Nova(tree) as nova:
        nova.go_to("exists")
        assert pruned(site) == {BASE: ("removed", None)}
        assert nova.end() == "failed FileNotFoundError"
    with Nova(tree) as nova:
        nova.go_to("touched")
        assert pruned(site) == {BASE: ("kept", "young")}
        nova.go_to("running")
        aged(base, 2 * DAY)
        assert pruned(site) == {BASE: ("kept", "in-use")}
        assert nova.end() == "booted"
        nova.assert_whole()


@pytest.mark.row("H15")
@pytest.mark.row("H16")
def test_boots_that_hold_their_locks_for_days_are_waited_for_only_so_long(site: Fleet) -> None:
    """One before its disk is made, whose base could not be touched; one in a stalled download."""
    tree = Tree(site.instances("edge1-01"))
    base, fetched = tree.base(BASE, DATA), sha1("fetched")
    with (
        Nova(tree, BASE, "vm-1", "untouchable") as booting,
        Nova(tree, fetched, "vm-2") as fetching,
        Life() as life,
    ):
        booting.go_to("locked")
        fetching.go_to("half")
        part = aged(tree.cache / f"{fetched}.part", 2 * DAY)
        life.start_on(tree.instances)
        began = time.monotonic()
        number = life.order("clean", stall_age_s=DAY, dry=False)
        found = pruned(site)
        rows, _ = life.rows(number)
        assert 5 < time.monotonic() - began < 25
        assert found[BASE] == ("kept", "busy")
        assert [(row["name"], row["code"]) for row in rows] == [(part.name, "busy")]
        for nova in (booting, fetching):
            nova.assert_lock()
            assert nova.end() == "booted"
            nova.assert_whole()
    assert inode(base)
    assert sorted(os.listdir(tree.instances / "locks")) == sorted(
        [f"nova-{BASE}", f"nova-{fetched}"]
    )


@pytest.mark.parametrize("untouchable", [[], ["untouchable"]])
def test_boots_and_prune_at_full_speed(untouchable: list[str], tree: Tree, life: Life) -> None:
    """Nobody stands still: each boot ends whole, or as Nova's own purge could have ended it."""
    for number in range(6):
        base, removed = tree.base(BASE, DATA), 0
        with Nova(tree, BASE, f"vm-{number}", *untouchable) as nova:
            nova.rush()
            while nova.process.poll() is None:
                with contextlib.suppress(FileNotFoundError):  # between looking and ordering
                    rows, _ = life.rows(life.order("remove", items=[item(base)]))
                    removed += rows[0]["state"] == "removed"
            assert nova.process.stdout
            if nova.process.stdout.read().endswith("booted\n"):
                nova.assert_whole()
                nova.disk.unlink()
            else:
                assert removed
                assert not nova.disk.exists()
