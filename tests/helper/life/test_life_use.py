"""What counts as use of a cache entry: every kind of evidence, and evidence that cannot be read."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helper.controller import let_others_reach
from helper.life.tree import Life, Tree, child, overlay, sha1

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = 65534

#: Opens a file, says so, and stays until its end.
HOLD_OPEN = "import sys; f = open(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
HOLD_MAPPED = (
    "import mmap, sys\n"
    "with open(sys.argv[1], 'rb') as f: m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n"
    "print('held', flush=True); sys.stdin.read()"
)


def qcow2(backing: bytes, size: int = 4096) -> bytes:
    """Return a file that begins like a qcow2 with this backing file."""
    header = struct.pack(">4sIQIIQ", b"QFI\xfb", 2, 512, len(backing), 16, 1 << 20)
    return (header.ljust(512, b"\0") + backing).ljust(size, b"\0")


@pytest.mark.qemu
@pytest.mark.row("D5")
@pytest.mark.parametrize(
    "place",
    [
        "8f7e-uuid/disk", "8f7e-uuid/disk.rescue", "8f7e-uuid/disk.eph0", "8f7e-uuid_resize/disk",
        "8f7e-uuid_del/disk", "instance-00000001/disk", "snapshots/tmp123/4f5e", "unknown/a/b.qcow2",
        "loose.qcow2",
    ],
)  # fmt: skip
def test_overlay_anywhere(place: str, tree: Tree, life: Life) -> None:
    base, other = tree.image("used"), tree.image("unused")
    tree.disk(base, place)
    assert life.users(base) == [place.partition("/")[0]]
    assert life.users(other) == []
    assert life.remove(base, other) == [("kept", "in-use"), ("removed", None)]


@pytest.mark.qemu
@pytest.mark.parametrize("name", [".snapshot", "~snapshot", ".snapshots", ".zfs"])
def test_snapshots_of_a_filer_keep_nothing_and_block_nothing(
    name: str, tree: Tree, life: Life
) -> None:
    """Old copies of disks; they are read-only, so what is wrong in there cannot be repaired."""
    base, used = tree.image("unused"), tree.image("used")
    tree.disk(base, f"{name}/hourly.0/u1/disk")
    lost = tree.instances / name / "hourly.1" / "link"
    lost.parent.mkdir()
    lost.symlink_to("/volume/that/is/gone")
    (tree.cache / name / "hourly.0").mkdir(parents=True)
    (tree.cache / name / "hourly.0" / "link").symlink_to("/volume/that/is/gone")
    tree.disk(used, f"8f7e-uuid/{name}/disk")  # deeper it is a folder like others
    assert life.look()[1]["problems"] == []
    assert life.users(base) == []
    assert life.remove(base, used) == [("removed", None), ("kept", "in-use")]


@pytest.mark.qemu
@pytest.mark.row("D5")
def test_names_in_every_form(tree: Tree, life: Life) -> None:
    names = {form: tree.image(form) for form in ("absolute", "relative", "file", "json", "deep")}
    tree.disk(names["absolute"], "a/disk")
    tree.disk(f"../_base/{names['relative'].name}", "b/disk")
    tree.disk(f"file:{names['file']}", "c/disk")
    json_name = json.dumps(
        {"driver": "raw", "file": {"driver": "file", "filename": str(names["json"])}}
    )
    tree.disk(f"json:{json_name}", "d/disk")
    tree.disk(f"../x/../../{tree.instances.name}/_base/{names['deep'].name}", "e/disk")
    rows, _ = life.look()
    assert {form: rows[path.name]["used_by"] for form, path in names.items()} == {
        "absolute": ["a"], "relative": ["b"], "file": ["c"], "json": ["d"], "deep": ["e"],
    }  # fmt: skip


@pytest.mark.qemu
@pytest.mark.row("D5")
def test_whole_chain(tree: Tree, life: Life, tmp_path: Path) -> None:
    let_others_reach(tmp_path)  # the helper follows no header into what not everybody may read
    base = tree.image("image")
    resized = tree.cache / f"{base.name}_20"
    overlay(resized, base)
    outside = tmp_path / "elsewhere" / "middle.qcow2"
    outside.parent.mkdir()
    overlay(outside, resized, "qcow2")
    (outside.parent / "link").symlink_to(outside)
    tree.disk(outside.parent / "link", fmt="qcow2")
    assert life.users(resized) == ["vm-1"]
    assert sorted(life.users(base)) == [f"cache entry {resized.name}", "vm-1"]


@pytest.mark.qemu
@pytest.mark.row("D5")
def test_external_data_file(tree: Tree, life: Life) -> None:
    base = tree.image("image", bytes(1 << 20))
    disk = tree.instances / "vm-1" / "disk"
    disk.parent.mkdir()
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o",
         f"data_file={tree.instances}/other,data_file_raw=on", disk, "1M"], check=True,
    )  # fmt: skip
    data = disk.read_bytes()
    name = f"{tree.instances}/other".encode()
    assert data.count(name) == 1
    (tree.instances / "other").unlink()
    os.rename(base, tree.instances / "other")
    os.symlink(tree.instances / "other", tree.cache / base.name)
    tree.image("image", b"y" * 4096)  # through the link: the same inode
    os.unlink(base)
    os.link(tree.instances / "other", base)
    assert life.users(base) == ["other", "vm-1"]


@pytest.mark.qemu
@pytest.mark.row("D7")
def test_by_inode_as_well_as_by_name(tree: Tree, life: Life, tmp_path: Path) -> None:
    by_link, by_name, twin = tree.image("by link"), tree.image("by name"), tree.image("twin")
    (tmp_path / "another-name").symlink_to(by_link)
    tree.disk(tmp_path / "another-name", "a/disk")
    tree.disk(f"/var/lib/nova-as-the-container-sees-it/_base/{by_name.name}", "b/disk")
    os.link(twin, tmp_path / "twin")
    tree.disk(tmp_path / "twin", "c/disk")
    moved = tmp_path / "moved"
    (tree.instances / "d").symlink_to(moved)
    moved.mkdir()
    through_folder = tree.image("through a linked folder")
    overlay(moved / "disk", through_folder)
    rows, _ = life.look()
    used = [rows[path.name]["used_by"] for path in (by_link, by_name, twin, through_folder)]
    assert used == [["a"], ["b"], ["c"], ["d"]]


@pytest.mark.row("D5")
@pytest.mark.parametrize("script", [HOLD_OPEN, HOLD_MAPPED], ids=["open", "mapped"])
def test_open_in_a_process(script: str, tree: Tree, life: Life, tmp_path: Path) -> None:
    base = tree.image("image")
    with child(sys.executable, "-c", script, base) as process:
        assert life.users(base)[0].startswith(f"process {process.pid} (")
        assert life.remove_one(base) == "in-use"
    os.link(base, tmp_path / "other name")
    with child(sys.executable, "-c", script, tmp_path / "other name"):
        assert len(life.users(base)) == 1
    os.unlink(tmp_path / "other name")
    assert life.remove_one(base) is None


@pytest.mark.row("D5")
def test_instance_of_a_process_is_told(tree: Tree, life: Life) -> None:
    base = tree.image("image")
    uuid = "0f0e0d0c-0b0a-4908-8706-050403020100"
    tree.base(base.name)
    with child(sys.executable, "-c", HOLD_OPEN, base, "-uuid", uuid):
        assert life.users(base) == [uuid]


@pytest.mark.row("D5")
def test_loop_device(tree: Tree, life: Life, needs_root: None) -> None:
    base = tree.image("image", bytes(1 << 20))
    made = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", base],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no loop devices here")
    device = made.stdout.strip()
    try:
        assert life.users(base) == [Path(device).name]
        assert life.remove_one(base) == "in-use"
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.row("D6")
@pytest.mark.parametrize("what", ["vm-1", "vm-1/disk"])
def test_unreadable_files_keep_everything(
    what: str, tmp_path: Path, needs_root: None, free_folder: Path
) -> None:
    tree = Tree(free_folder / "instances")
    base = tree.image("image")
    (tree.instances / "vm-1").mkdir()
    (tree.instances / "vm-1/disk").write_bytes(bytes(4096))
    (tree.instances / "vm-1/console.log").write_bytes(bytes(4096))
    give_away(tree.instances)
    os.chown(tree.instances / "vm-1/console.log", 0, 0)
    (tree.instances / "vm-1/console.log").chmod(0)  # holds no disk
    with Life(system_python(), user=NOBODY) as life:
        life.start_on(tree.instances)
        assert life.users(base) == []
        os.chown(tree.instances / what, 0, 0)
        (tree.instances / what).chmod(0)
        rows, facts = life.look()
        assert [what in problem for problem in facts["problems"]] == [True]
        assert rows[base.name]["users"] is None
        assert facts["filesystem"] != "unknown"
        assert life.remove_one(base) == "evidence"
        os.chown(tree.instances / what, NOBODY, NOBODY)
        (tree.instances / what).chmod(0o700)
        assert life.remove_one(base) is None


def once_quiet(holds: Callable[[], bool]) -> bool:
    """Whether it holds, once no other test runs a qemu-img of root's."""
    deadline = time.monotonic() + 20
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return held


@pytest.mark.row("D6")
@pytest.mark.parametrize("name", ["qemu-system-x86_64", "qemu-kvm", "kvm", "/usr/libexec/qemu-kvm"])
def test_unreadable_qemu_keeps_everything(name: str, needs_root: None, free_folder: Path) -> None:
    tree = Tree(free_folder / "instances")
    base = tree.image("image")
    give_away(tree.instances)
    with Life(system_python(), user=NOBODY) as life:
        life.start_on(tree.instances)
        assert once_quiet(lambda: life.look()[1]["problems"] == [])  # root's run, but no qemu
        with running_as(name) as process:
            _, facts = life.look()
            assert any(f"process {process.pid} " in problem for problem in facts["problems"])
            assert life.remove_one(base) == "evidence"
        assert once_quiet(lambda: life.remove_one(base) is None)


@pytest.mark.row("D6")
def test_root_reads_what_nova_may_not(needs_root: None, free_folder: Path) -> None:
    """A helper that was started as root works as Nova's user, and still sees what libvirt owns."""
    tree = Tree(free_folder / "instances")
    base = tree.image("image")
    disk = tree.instances / "vm-1/disk"
    disk.parent.mkdir()
    disk.write_bytes(qcow2(str(base).encode()))
    give_away(tree.instances)
    os.chown(disk, 0, 0)
    disk.chmod(0o600)
    with Life(system_python()) as life, running_as("qemu-system-x86_64"):
        life.start_on(tree.instances)
        assert life.users(base) == ["vm-1"]


@pytest.mark.row("D8")
def test_forged_headers_keep_one_file_at_most(tree: Tree, life: Life, tmp_path: Path) -> None:
    bases = [tree.image(f"image {number}") for number in range(4)]
    os.mkfifo(tmp_path / "fifo")
    vm = tree.instances / "vm-1"
    vm.mkdir()
    hostile = [
        str(bases[0]).encode(), str(tmp_path / "fifo").encode(), b"/dev/zero", b"/dev/tty", b"\xff\xfe",
        b"nbd://192.0.2.1/x", b"json:" + b"[" * 1000, b'json:{"filename":', b"json:null", b"", b".", b"..",
        b"\n\x1b[31m", b"a" * 1023, b"/proc/self/mem", b"/proc/kmsg", b"disk-of-itself",
        bases[1].name.encode() + b"/x",
        b"json:" + json.dumps({"file": {"filename": "json:{}"}}).encode(), b"x\0" + bases[2].name.encode(),
    ]  # fmt: skip
    for number, name in enumerate(hostile):
        (vm / f"disk{number}").write_bytes(qcow2(name))
    (vm / "disk-of-itself").write_bytes(qcow2(b"disk-of-itself"))
    (vm / "far").write_bytes(
        struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 1 << 63, 9, 16, 0).ljust(4096, b"\0")
    )
    (vm / "near").write_bytes(
        struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 1, 1 << 31, 16, 0).ljust(512, b"\xff")
    )
    (vm / "short").write_bytes(qcow2(b"")[:512])
    rows, facts = life.look()
    assert facts["problems"] == []
    assert [rows[path.name]["users"] for path in bases] == [1, 0, 0, 0]


@pytest.mark.row("D8")
def test_forged_circles_end(tree: Tree, life: Life) -> None:
    """Disks that name each other many times over would be followed for ever."""
    vm = tree.instances / "vm-1"
    vm.mkdir()
    base = tree.image("image")
    files = [{"filename": f"{vm}/disk{number}"} for number in range(15)]
    for number in range(15):
        (vm / f"disk{number}").write_bytes(qcow2(b"json:" + json.dumps(files).encode()))
    assert life.users(base) == []


@pytest.mark.row("D6")
def test_vanishing_files_are_no_problem(tree: Tree, life: Life) -> None:
    base = tree.image("image")
    (tree.instances / "vm-1").mkdir()
    (tree.instances / "vm-1/console.log").symlink_to("/nowhere")  # holds no disk
    busy = (
        f"import os\nos.chdir({str(tree.instances)!r})\nprint('held', flush=True)\nwhile True:\n"
        " os.mkdir('x'); open('x/disk', 'wb').write(bytes(999)); os.unlink('x/disk'); os.rmdir('x')\n"
        " os.symlink('vm-1', 'y'); os.unlink('y')"
    )
    with child(sys.executable, "-c", busy):
        for _ in range(30):
            assert life.users(base) == []


@pytest.mark.row("D6")
@pytest.mark.row("T10")
@pytest.mark.parametrize("link", ["vm-1", "vm-1/disk", "vm-1/snapshots/disk", "_base/swap_1"])
@pytest.mark.parametrize("through", ["missing", "file"])
def test_a_link_to_an_unmounted_volume_keeps_everything(
    link: str, through: str, tree: Tree, life: Life, tmp_path: Path
) -> None:
    """What is there cannot be read: the overlay of a stopped instance, say."""
    base, volume = tree.image("image"), tmp_path / "volume"
    place = tree.instances / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(volume / "vm-1")
    if through == "file":
        volume.write_text("no folder")
    _, facts = life.look()
    [problem] = facts["problems"]
    assert f"{place} is a link to {volume}/vm-1, which is missing" in problem
    assert life.remove_one(base) == "evidence"
    volume.unlink(missing_ok=True)
    volume.mkdir()
    (volume / "vm-1").mkdir()
    assert life.remove_one(base) is None


def system_python() -> str:
    """Return a Python that other users may run, which that of the tests' own environment need not be."""
    for path in ("/usr/bin/python3", "/usr/local/bin/python3"):
        if os.access(path, os.X_OK):
            return path
    pytest.skip("no system-wide Python")


def give_away(path: Path) -> None:
    """Let everything in a folder belong to the user who plays Nova."""
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", path], check=True)


def running_as(name: str):  # type: ignore[no-untyped-def]  # noqa: ANN201 - see ``child``
    """Run a process of ours under another name."""
    bash = shutil.which("bash")
    assert bash
    return child(bash, "-c", f"exec -a {name} {bash} -c 'echo held; read line'")


def test_sha1_of_the_contract() -> None:
    assert (
        sha1("11111111-2222-3333-4444-555555555555") == "97d22f8652571c42ac94d64936ba78d3abce1282"
    )
