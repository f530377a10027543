"""Hosts that share a cache and not its locks: NFS mounted with nolock, say, or FUSE that knows none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from helper.controller import PUSH, Controller, base_name, image_of
from helper.life.tree import DAY, Life, Tree, aged
from servers.network_storage import mounting

if TYPE_CHECKING:
    from pathlib import Path

    from helper.controller import Frame

pytestmark = [pytest.mark.row("T8"), pytest.mark.row("H18"), pytest.mark.row("D14")]
MIB = 1 << 20
DATA = os.urandom(3 * MIB + 12345)
IMAGE = image_of(DATA)
BASE = base_name(IMAGE["id"])
CUT = 2 * MIB + 777
KEEP = {"keep_partial": True}
#: Takes a lock as our helpers do, says so, and stays until its end.
HOLD_FIRST_BYTE = (
    "import fcntl, sys\nf = open(sys.argv[1], 'r+b')\nfcntl.lockf(f, fcntl.LOCK_EX, 1, 0)\n"
    "print('held', flush=True); sys.stdin.read()"
)


class Hosts:
    """Helpers that see one folder as network storage, each as another host where that is asked for."""

    def __init__(self, instances: Path, folder: Path, shim: Path) -> None:
        self.instances = instances
        self.own = instances / "_base/.imgcache"
        self.final = instances / "_base" / BASE
        self.folder = folder
        self.shim = shim
        self.number = 0

    def helper(self, hostname: str | None = None, *, common_locks: bool = False) -> Controller:
        """Return a helper. Locks are its own host's alone: it gets each one that it asks for."""
        self.number += 1
        command = mounting(self.folder / str(self.number), nfs4=self.instances)
        env = {} if common_locks else {"LD_PRELOAD": str(self.shim), "FAULT_LOCKS": "granted"}
        prefix: tuple[str, ...] = ()
        if hostname:
            rename = 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"'
            prefix = ("unshare", "--uts", "sh", "-c", rename, hostname)
            if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode:
                pytest.skip("being another host needs root and a namespace for its name")
        return Controller(env=env, prefix=(*prefix, *command))

    def begin(self, helper: Controller, data: bytes = DATA[:CUT]) -> int:
        """Push the first bytes of the image, and return the order once they are in the file."""
        helper.open(self.instances)
        number = helper.fetch(IMAGE, PUSH, more=KEEP)
        assert helper.event(number, "ready")["offset"] == 0
        for at in range(0, len(data), 100_000):
            part = data[at : at + 100_000]
            helper.tell("data", number, part, size=len(part))
        while helper.event(number, "progress")["done"] < len(data):
            pass
        return number

    def left(self) -> Path:
        """Make what another host's helper has so far, or left when it died."""
        self.own.mkdir(parents=True)
        path = self.own / f"{BASE}.{'0' * 16}.staging"
        path.write_bytes(DATA[:CUT])
        journal = {
            "version": 1, "image_id": IMAGE["id"], "base": BASE, "size": len(DATA), "run": "other",
            "digest": IMAGE["digest"], "started_at": "2026-11-21T07:00:00Z",
        }  # fmt: skip
        path.with_name(path.name + ".json").write_text(json.dumps(journal))
        for file in self.own.iterdir():
            file.chmod(0o600)
        return path


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "instances")


@pytest.fixture
def hosts(instances: Path, tmp_path: Path, shim: Path) -> Hosts:
    return Hosts(instances, tmp_path / "hosts", shim)


def complete(helper: Controller, hosts: Hosts) -> Frame:
    """Fetch the image, by push; return the result."""
    helper.open(hosts.instances)
    number = helper.fetch(IMAGE, PUSH, more=KEEP)
    helper.push(number, DATA[helper.event(number, "ready")["offset"] :])
    return helper.result(number)


def test_a_file_that_another_host_may_be_writing_is_neither_continued_nor_removed(
    hosts: Hosts,
) -> None:
    path = hosts.left()
    with hosts.helper() as helper:
        assert complete(helper, hosts)["resumed"] == 0
    assert hosts.final.read_bytes() == DATA
    assert path.read_bytes() == DATA[:CUT]
    assert sorted(os.listdir(hosts.own)) == sorted([f"{BASE}.json", path.name, path.name + ".json"])


def test_two_hosts_that_fetch_at_once_publish_only_right_bytes(hosts: Hosts) -> None:
    """The bytes that the slower one still writes never reach the final: here they are wrong ones."""
    with hosts.helper("one") as one, hosts.helper("two") as two:
        number = hosts.begin(one)
        assert complete(two, hosts)["state"] == "cached"
        one.push(number, bytes(len(DATA) - CUT))
        assert one.error(number)["code"] == "digest"
    assert hosts.final.read_bytes() == DATA
    assert os.listdir(hosts.own) == [f"{BASE}.json"]


@pytest.mark.row("H21")
def test_after_a_reboot_a_host_goes_on_with_its_own(hosts: Hosts) -> None:
    """Its name and machine id stay, and whatever wrote before is dead."""
    with hosts.helper() as helper:
        hosts.begin(helper)
        helper.process.kill()
        helper.process.wait()
    with hosts.helper() as helper:
        assert complete(helper, hosts)["resumed"] == 2 * MIB
    assert hosts.final.read_bytes() == DATA
    assert os.listdir(hosts.own) == [f"{BASE}.json"]


def test_where_locks_are_common_another_hosts_run_is_waited_for(hosts: Hosts) -> None:
    path = hosts.left()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_FIRST_BYTE, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder, hosts.helper(common_locks=True) as helper:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        helper.open(hosts.instances)
        number = helper.fetch(IMAGE, PUSH, more=KEEP, lock_wait_s=1)
        assert helper.error(number)["code"] == "busy"
        holder.kill()
    assert path.read_bytes() == DATA[:CUT]


def test_a_file_that_was_taken_over_is_not_published_by_who_began_it(hosts: Hosts) -> None:
    """Two hosts of one name and one machine id cannot be told apart: then its own name protects the final."""
    with hosts.helper() as one, hosts.helper() as two:
        number = hosts.begin(one)
        two.open(hosts.instances)
        other = two.fetch(IMAGE, PUSH, more=KEEP)
        assert two.event(other, "ready")["offset"] == 2 * MIB
        one.push(number, DATA[CUT:])
        error = one.error(number)
        assert (error["code"], "taken over" in error["message"]) == ("busy", True)
        assert not hosts.final.exists()
        two.push(other, DATA[2 * MIB :])
        assert two.result(other)["state"] == "cached"
    assert hosts.final.read_bytes() == DATA
    assert os.listdir(hosts.own) == [f"{BASE}.json"]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("what", ["byte", "cut", "more"])
def test_what_somebody_else_wrote_to_just_before_it_is_published_is_not(
    hosts: Hosts, shared: bool, what: str
) -> None:
    lock = hosts.instances / "locks" / f"nova-{BASE}"
    lock.parent.mkdir()
    lock.touch()
    helper = hosts.helper(common_locks=True) if shared else Controller()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_FIRST_BYTE.replace(", 1, 0", ""), lock],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with holder, helper:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        helper.open(hosts.instances)
        number = helper.fetch(IMAGE, PUSH, more=KEEP, lock_wait_s=30)
        helper.event(number, "ready")
        helper.push(number, DATA)
        while helper.event(number, "progress")["phase"] != "lock":
            pass
        [path] = hosts.own.glob("*.staging")
        with path.open("r+b") as file:
            if what == "byte":
                file.write(bytes([DATA[0] ^ 1]))
            else:
                file.truncate(len(DATA) + (1 if what == "more" else -1))
        holder.kill()
        assert helper.error(number)["code"] == "changed"
    assert not hosts.final.exists()
    assert os.listdir(hosts.own) == []


def test_clean_goes_by_age_where_a_lock_tells_nothing(tree: Tree, tmp_path: Path) -> None:
    """And ``delete`` keeps the image that another host may be bringing."""
    (tree.instances / "compute_nodes").write_text(json.dumps({"one": time.time()}))
    base = tree.image("image")
    path = tree.own / f"{base.name}.{'0' * 16}.staging"
    path.write_bytes(b"x")
    with Life(prefix=mounting(tmp_path / "mounts", nfs4=tree.instances)) as life:
        life.start_on(tree.instances)
        assert life.look()[0][path.name]["live"] is False
        for age, stall_age in ((600, 0), (2 * 3600, DAY)):
            aged(path, age)
            assert life.clean(stall_age) == {path.name: ("kept", "young")}
        assert life.remove_one(base) == "busy"
        aged(path, 2 * DAY)
        assert life.clean() == {path.name: ("removed", None)}
        assert life.remove_one(base) is None
