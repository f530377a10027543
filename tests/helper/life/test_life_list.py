"""What ``list`` tells: rows, formats, liveness, and the host's facts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from helper.life.test_life_remove import HOLD_LOCK
from helper.life.tree import DAY, Life, Tree, child, sha1

if TYPE_CHECKING:
    from pathlib import Path


def test_row(tree: Tree, life: Life) -> None:
    path = tree.image("image", b"x" * 5000, age=100)
    tree.manifest(path, pin=123.5)
    row = life.look()[0][path.name]
    status = path.stat()
    assert 99 < row.pop("age") < 130
    assert row.pop("manifest")["stored"]["size"] == 5000
    assert row == {
        "name": path.name, "kind": "original", "size": 5000, "allocated": status.st_blocks * 512,
        "format": "raw", "mtime_ns": status.st_mtime_ns, "inode": status.st_ino, "links": 1, "users": 0,
        "used_by": [], "live": False, "unremovable": None,
    }  # fmt: skip
    row = life.look(formats=False, use=False)[0][path.name]
    assert (row["format"], row["users"], row["used_by"]) == (None, None, [])


@pytest.mark.qemu
def test_formats(tree: Tree, life: Life) -> None:
    formats = {"qcow2": "qcow2", "vmdk": "vmdk", "vdi": "vdi", "vhdx": "vhdx", "raw": "raw"}
    for made in formats:
        path = tree.cache / sha1(made)
        subprocess.run(["qemu-img", "create", "-q", "-f", made, path, "4M"], check=True)
    tree.image("several", b"QFI\xfb".ljust(510, b"\0") + b"\x55\xaa" + bytes(4096))
    tree.image("empty", b"")
    (tree.cache / sha1("link")).symlink_to("/etc/passwd")
    os.mkfifo(tree.cache / sha1("fifo"))
    rows, _ = life.look()
    formats.update(several="unknown", empty="raw", link=None, fifo=None)  # type: ignore[call-overload]
    assert {name: rows[sha1(name)]["format"] for name in formats} == formats


def test_users_are_counted_once_per_instance(tree: Tree, life: Life) -> None:
    path = tree.image("image")
    for number in range(5):
        for disk in ("disk", "disk.rescue"):
            tree.disk(path, f"vm-{number}/{disk}")
    row = life.look()[0][path.name]
    assert (row["users"], row["used_by"]) == (5, ["vm-0", "vm-1", "vm-2"])


def test_damaged_manifests_mean_unmanaged(tree: Tree, life: Life) -> None:
    path = tree.image("image")
    place = tree.manifest(path)
    good = json.loads(place.read_text())
    broken = [
        "",
        "null",
        "[" * 60000,
        "{}",
        json.dumps({**good, "base": "x"}),
        json.dumps({**good, "stored": []}),
    ]
    for text in broken:
        place.write_text(text)
        assert life.look()[0][path.name]["manifest"] is None
    long = {**good, "image_name": "n" * 5000, "more": {"deep": [[[[]]]]}, "source": ["x"]}
    place.write_text(json.dumps(long))
    shown = life.look()[0][path.name]["manifest"]
    assert (len(shown["image_name"]), shown["source"], "more" in shown) == (300, None, False)


@pytest.mark.row("H12")
def test_hostile_names(tree: Tree, life: Life) -> None:
    names = [
        b"new\nline",
        b"\x1b[31mred",
        b"\xff\xfe\x80",
        b"a" * 255,
        b"-rf",
        b"x" * 40,
        "é∞".encode(),
        b'q"\\',
    ]
    for name in names:
        with open(os.fsencode(tree.cache) + b"/" + name, "wb") as file:
            file.write(b"data")
    (tree.cache / "folder").mkdir()
    rows, _ = life.look()
    assert {row["kind"] for row in rows.values()} == {"foreign"}
    shown = {name.decode("utf-8", "backslashreplace") for name in names} | {"folder"}
    assert set(rows) == shown


@pytest.mark.row("H12")
def test_a_flood_of_names(tree: Tree, life: Life) -> None:
    for number in range(20_000):
        (tree.cache / f"{number:040x}{'z' * 60}").touch()
    path = tree.image("image")
    rows, _ = life.look()
    assert len(rows) == 1001
    assert rows[path.name]["users"] == 0
    with open(f"/proc/{life.process.pid}/status") as lines:
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    assert peak < 64 << 10


@pytest.mark.row("H11")
def test_no_cache_yet(tmp_path: Path) -> None:
    instances = tmp_path / "instances"
    instances.mkdir()
    with Life() as life:
        life.start_on(instances)
        rows, facts = life.look()
        assert (rows, facts["nova_usage"], facts["storage_id"]) == ({}, 0, None)
        assert life.clean() == {}
        seen = {"name": sha1("x"), "inode": 1, "mtime_ns": 1, "min_age_s": 0}
        order = life.order("remove", items=[{**seen, "ours_ok": False, "pinned_ok": False}])
        assert life.rows(order)[0][0]["state"] == "gone"
    assert os.listdir(instances) == []


@pytest.mark.row("D14")
def test_live_flag(tree: Tree, life: Life) -> None:
    ours = tree.own / f"{sha1('a')}.{'0' * 16}.staging"
    parts = [
        tree.base(sha1(name) + ending) for name, ending in (("b", ".part"), ("c", ".converted"))
    ]
    opened = tree.base(sha1("d") + ".part")
    ours.touch()
    names = [ours.name, *(path.name for path in parts), opened.name]
    rows, _ = life.look()
    assert [(rows[name]["kind"], rows[name]["live"]) for name in names] == [("staging", False)] * 4
    locks = [tree.instances / "locks" / f"nova-{path.name[:40]}" for path in parts]
    with (
        child(sys.executable, "-c", HOLD_LOCK, ours),
        child(sys.executable, "-c", HOLD_LOCK, locks[0]),
        child(sys.executable, "-c", HOLD_LOCK, locks[1]),
        opened.open("ab"),
    ):
        rows, _ = life.look()
        assert [rows[name]["live"] for name in names] == [True] * 4


def test_accounting_is_novas(tree: Tree, life: Life) -> None:
    """As ``get_disk_usage`` counts: blocks of all plain files in the folder, temporaries too, no folders."""
    paths = [
        tree.image("a", b"x" * 9000),
        tree.base("b.part", b"y" * 5000),
        tree.base("notes", b"z"),
    ]
    with (tree.cache / sha1("sparse")).open("wb") as file:
        file.truncate(1 << 30)
    tree.manifest(paths[0])
    _, facts = life.look()
    assert facts["nova_usage"] == sum(path.stat().st_blocks * 512 for path in paths)
    room = os.statvfs(tree.cache)
    assert facts["size"] == room.f_blocks * room.f_frsize
    assert 0 < facts["free"] <= facts["size"]
    assert facts["own_filesystem"] is False


def test_policy(tree: Tree, life: Life) -> None:
    assert life.look()[1]["policy"] == {
        "remove_unused": True, "original_min_age_s": 86400, "resized_min_age_s": 3600,
        "reserved_host_disk_mb": 0, "reserves_cache": False, "manager_interval_s": 2400,
    }  # fmt: skip
    assert life.look()[1]["nodename"] == socket.gethostname()


def test_policy_from_every_place(tree: Tree, tmp_path: Path) -> None:
    conf = tmp_path / "nova.conf"
    new = (
        "[DEFAULT]\nhost=node-1\nreserved_host_disk_mb = 512\n[image_cache]\nmanager_interval = -1\n"
        "remove_unused_base_images = false\nremove_unused_original_minimum_age_seconds = 7\n"
        "remove_unused_resized_minimum_age_seconds = 8\n[workarounds]\n"
        "reserve_disk_resource_for_image_cache = yes\n"
    )
    old = (
        "[DEFAULT]\nhost=node-1\nreserved_host_disk_mb = 512\nimage_cache_manager_interval = -1\n"
        "remove_unused_base_images = off\nremove_unused_original_minimum_age_seconds = 7\n"
        "[libvirt]\nremove_unused_resized_minimum_age_seconds = 8\n"
        "[workarounds]\nreserve_disk_resource_for_image_cache = 1\n"
    )
    for text in (new, old):
        conf.write_text(text)
        with Life() as life:
            life.start_on(tree.instances)
            _, facts = life.look()
        assert facts["policy"] == {
            "remove_unused": False, "original_min_age_s": 7, "resized_min_age_s": 8,
            "reserved_host_disk_mb": 512, "reserves_cache": True, "manager_interval_s": -1,
        }  # fmt: skip
        assert (facts["nodename"], facts["problems"]) == ("node-1", [])


def test_unreadable_policy_is_a_problem(tree: Tree, tmp_path: Path) -> None:
    conf = tmp_path / "nova.conf"
    for text in ("[image_cache]\nremove_unused_base_images = perhaps\n", "nonsense\n"):
        conf.write_text(text)
        with Life() as life:
            life.start_on(tree.instances)
            _, facts = life.look()
        assert len(facts["problems"]) == 1
        assert facts["policy"]["original_min_age_s"] == DAY


@pytest.mark.row("H14")
@pytest.mark.row("D11")
def test_shared_storage(tree: Tree, life: Life) -> None:
    registry = tree.instances / "compute_nodes"
    now = time.time()
    registry.write_text(json.dumps({socket.gethostname(): now, "gone": now - DAY - 9}))
    _, facts = life.look()
    assert (facts["storage_id"], facts["shares_with"]) == (None, [])
    registry.write_text(
        json.dumps({socket.gethostname(): now, "other": now - DAY + 99, "future": now + 99})
    )
    with Life() as second:
        second.start_on(tree.instances)
        seen = [helper.look(mark=True)[1] for helper in (life, second, life)]
    assert len({facts["storage_id"] for facts in seen}) == 1
    assert len(seen[0]["storage_id"]) == 32
    assert [facts["shares_with"] for facts in seen] == [["future", "other"]] * 3
    assert os.listdir(tree.own) == ["storage-id"]


@pytest.mark.row("H14")
@pytest.mark.parametrize("text", ["", "[1]", '{"a": "x"}', "{"])
def test_unreadable_registry_is_a_problem(text: str, tree: Tree, life: Life) -> None:
    (tree.instances / "compute_nodes").write_text(text)
    _, facts = life.look()
    assert [("compute_nodes" in problem) for problem in facts["problems"]] == [True]


def test_the_end_comes_at_once(tree: Tree, life: Life) -> None:
    """A helper whose controller is gone does not finish a long look."""
    for number in range(500):
        tree.image(f"image {number}")
    life.order("list", formats=True, use=True)
    assert life.end() == 0
