"""The disk fails, or the helper dies, at every step in turn: a final is absent, or complete."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import PUSH, Controller, Frame, base_name, image_of
from helper.life.tree import LIFE
from servers.vhd_files import vhdx_with_pending_log

if TYPE_CHECKING:
    from pathlib import Path

DATA = os.urandom(300_000)
IMAGE = image_of(DATA)
BASE = base_name(IMAGE["id"])


def attempt(
    instances: Path, env: dict[str, str], image: Frame = IMAGE, data: bytes = DATA
) -> Frame | None:
    """Fetch under faults; None when the helper died of a signal."""
    with Controller(env=env, ping=False) as helper:
        helper.open(instances)
        fetch = helper.fetch(image, PUSH)
        helper.push_when_ready(fetch, data)
        while True:
            frame = helper.received.get(timeout=30)
            if frame is None:
                assert helper.process.wait(10) == -signal.SIGKILL, helper.stderr
                return None
            assert frame["event"] != "crash", frame
            if frame.get("id") == fetch and frame["event"] in {"result", "error"}:
                assert helper.end() == 0
                return frame


def assert_whole_or_absent(instances: Path, data: bytes = DATA) -> bool:
    """Return whether the final is there; if so it is whole, and as Nova would have made it."""
    final = instances / "_base" / BASE
    if not final.exists():
        return False
    assert final.read_bytes() == data
    assert final.stat().st_mode & 0o7777 == 0o644
    return True


def assert_rerun_works(instances: Path) -> None:
    answer = attempt(instances, {})
    assert answer is not None
    assert answer["event"] == "result", answer
    assert assert_whole_or_absent(instances)
    left = [
        name for name in os.listdir(instances / "_base/.imgcache") if not name.endswith(".json")
    ]
    assert [name for name in left if not name.endswith(".new")] == []
    assert (instances / "_base" / BASE).stat().st_nlink == 1


STEPS = [
    ("write", 3), ("fsync", 4), ("fchmod", 2), ("linkat", 1), ("renameat", 1), ("unlinkat", 1),
    ("mkdirat", 3), ("lock", 2),
]  # fmt: skip
EACH = [(name, number) for name, count in STEPS for number in range(1, count + 1)]


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
    assert_whole_or_absent(instances)
    assert_rerun_works(instances)


@pytest.mark.row("T8")
@pytest.mark.row("H8")
@pytest.mark.parametrize(("name", "number"), EACH)
def test_io_error_at_every_step(shim: Path, instances: Path, name: str, number: int) -> None:
    answer = attempt(instances, {"LD_PRELOAD": str(shim), "FAULT": f"{name}:{number}:{errno.EIO}"})
    assert answer is not None
    there = assert_whole_or_absent(instances)
    if answer["event"] == "error":
        assert answer["code"] == "io"
        folder = instances / "_base/.imgcache"
        assert not there or name in {"fsync", "unlinkat"}  # only after the link
        assert name == "unlinkat" or not folder.exists() or list(folder.glob("*.staging")) == []
    else:
        assert there
    assert_rerun_works(instances)


@pytest.mark.row("H8")
def test_a_failed_fsync_is_never_success(shim: Path, instances: Path) -> None:
    answer = attempt(instances, {"LD_PRELOAD": str(shim), "FAULT": f"fsync:1:{errno.EIO}"})
    assert answer is not None
    assert (answer["event"], answer["code"]) == ("error", "io")
    assert not (instances / "_base" / BASE).exists()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(errno.ENOSPC, "space", marks=pytest.mark.row("H6")),
        pytest.param(errno.EDQUOT, "quota", marks=pytest.mark.row("H7")),
        pytest.param(errno.EFBIG, "toobig", marks=pytest.mark.row("H7")),
        pytest.param(errno.EIO, "io", marks=pytest.mark.row("H8")),
        pytest.param(errno.EROFS, "io", marks=pytest.mark.row("H8")),
    ],
)
@pytest.mark.parametrize("step", ["write:1", "write:2", "fsync:1"])
def test_errors_are_told_apart(
    shim: Path, instances: Path, number: int, code: str, step: str
) -> None:
    answer = attempt(instances, {"LD_PRELOAD": str(shim), "FAULT": f"{step}:{number}"})
    assert answer is not None
    assert (answer["event"], answer["code"]) == ("error", code)
    assert os.listdir(instances / "_base/.imgcache") == []
    assert not (instances / "_base" / BASE).exists()


@pytest.mark.row("H15")
@pytest.mark.parametrize("number", [1, 2])
def test_without_locks_the_link_decides(shim: Path, instances: Path, number: int) -> None:
    answer = attempt(instances, {"LD_PRELOAD": str(shim), "FAULT": f"lock:{number}:{errno.ENOLCK}"})
    assert answer is not None
    assert answer["state"] == "cached"
    assert assert_whole_or_absent(instances)


@pytest.mark.row("H18")
@pytest.mark.row("H15")
def test_without_locks_nobody_removes_what_another_may_be_writing(
    shim: Path, instances: Path
) -> None:
    with Controller() as first:
        first.open(instances)
        number = first.fetch(IMAGE, PUSH)
        first.event(number, "ready")
        (live,) = os.listdir(instances / "_base/.imgcache")
        # The second lock that it wants is that on the other's file.
        env = {"LD_PRELOAD": str(shim), "FAULT": f"lock:2:{errno.ENOLCK}"}
        with Controller(env=env) as second:
            second.open(instances)
            other = second.fetch(IMAGE, PUSH)
            second.event(other, "ready")
            assert live in os.listdir(instances / "_base/.imgcache")
            second.push(other, DATA)
            assert second.result(other)["state"] == "cached"
        first.push(number, DATA)
        assert first.result(number)["state"] == "existing"
    assert assert_whole_or_absent(instances)


@pytest.mark.row("H24")
@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_hard_links_a_rename_that_overwrites_nothing(
    shim: Path, instances: Path, number: int
) -> None:
    answer = attempt(instances, {"LD_PRELOAD": str(shim), "FAULT": f"linkat:1:{number}"})
    assert answer is not None
    assert answer["state"] == "cached"
    assert assert_whole_or_absent(instances)
    assert os.listdir(instances / "_base/.imgcache") == [f"{BASE}.json"]


@pytest.mark.row("H16")
@pytest.mark.parametrize("call", [f"linkat:1:{errno.EEXIST}", f"linkat:1:{errno.EPERM}"])
def test_a_final_that_appears_at_the_last_moment_is_kept(
    shim: Path, instances: Path, call: str
) -> None:
    """Nova's own pre-caching takes no lock, so a final may appear between our look and our link."""
    env = {"LD_PRELOAD": str(shim), "FAULT": call}
    if call.endswith(str(errno.EPERM)):
        env["FAULT_APPEARS"] = str(instances / "_base" / BASE)
    answer = attempt(instances, env)
    assert answer is not None
    assert answer["state"] == "existing"
    assert list((instances / "_base/.imgcache").glob("*")) == []
    if "FAULT_APPEARS" in env:
        assert (instances / "_base" / BASE).read_bytes() == b""


def touched(instances: Path, shim: Path, **faults: str) -> Frame:
    (instances / "_base").mkdir()
    (instances / "_base" / BASE).write_bytes(DATA)
    with Controller(env={"LD_PRELOAD": str(shim), **faults}) as helper:
        helper.open(instances)
        return helper.result(helper.order("touch", base=BASE, sizes=[], dry=False))


@pytest.mark.row("R21")
def test_a_lock_on_a_file_that_nova_has_just_deleted_is_none(shim: Path, instances: Path) -> None:
    lock = instances / "locks" / f"nova-{BASE}"
    answer = touched(instances, shim, FAULT="lock:1:VANISH", FAULT_PATH=str(lock))
    assert answer["touched"] is True
    assert lock.exists()  # it was made again, and locked


@pytest.mark.row("H17")
def test_a_final_that_vanishes_just_before_it_is_renewed(shim: Path, instances: Path) -> None:
    path = str(instances / "_base" / BASE)
    assert (
        touched(instances, shim, FAULT="utimensat:1:VANISH", FAULT_PATH=path)["state"] == "absent"
    )


@pytest.mark.row("H21")
@pytest.mark.row("R9")
def test_order_of_the_commit(shim: Path, instances: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    answer = attempt(
        instances, {"LD_PRELOAD": str(shim), "FAULT": "none:1:5", "FAULT_LOG": str(log)}
    )
    assert answer is not None
    lines = log.read_text().splitlines()
    staging = next(
        line for line in lines if line.startswith("unlinkat") and line.endswith(".staging")
    )
    wanted = [
        "lock file", "write ", "fchmod file", "fsync file", "lock file", f"linkat {BASE}", staging,
        "fsync folder", "write ", "fsync file", f"renameat {BASE}.json",
    ]  # fmt: skip
    at = 0
    for line in wanted:
        assert line in lines[at:], (line, lines)
        at = lines.index(line, at) + 1


@pytest.mark.row("H19")
@pytest.mark.row("T8")
def test_killed_at_random_times(instances: Path, tmp_path: Path) -> None:
    data = os.urandom(4 << 20)
    image = image_of(data, id=IMAGE["id"])
    moments = random.Random(1)
    for _ in range(8):
        with Controller(ping=False) as helper:
            helper.open(instances)
            fetch = helper.fetch(image, PUSH)
            helper.push_when_ready(fetch, data)
            helper.event(fetch, "ready")
            time.sleep(moments.uniform(0, 0.08))
            helper.process.kill()
        if assert_whole_or_absent(instances, data):
            (instances / "_base" / BASE).unlink()
    answer = attempt(instances, {}, image, data)
    assert answer is not None
    assert answer["state"] == "cached"
    assert os.listdir(instances / "_base/.imgcache") == [f"{BASE}.json"]


def limited(kind: str, value: int) -> tuple[str, ...]:
    """Return a command prefix that sets a resource limit."""
    code = (
        "import os,resource as r,sys;"
        f"r.setrlimit(r.{kind},({value},{value}));os.execvp(sys.argv[1],sys.argv[1:])"
    )
    return (shutil.which("python3", path="/usr/bin:/usr/local/bin") or "python3", "-I", "-c", code)


@pytest.mark.row("H7")
def test_file_size_limit(instances: Path) -> None:
    with Controller(prefix=limited("RLIMIT_FSIZE", 100_000)) as helper:
        helper.open(instances)
        fetch = helper.fetch(IMAGE, PUSH)
        helper.push_when_ready(fetch, DATA)
        assert helper.error(fetch)["code"] == "toobig"
    assert os.listdir(instances / "_base/.imgcache") == []


@pytest.mark.qemu
@pytest.mark.row("R7")
def test_limits_of_the_host_that_are_tighter_stay(instances: Path, tmp_path: Path) -> None:
    plain, made = tmp_path / "plain", tmp_path / "made"
    plain.write_bytes(DATA)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", plain, made], check=True)
    data = made.read_bytes()
    with Controller(prefix=limited("RLIMIT_CPU", 20)) as helper:
        helper.open(instances)
        fetch = helper.fetch(image_of(data, "qcow2"), PUSH)
        helper.push_when_ready(fetch, data)
        assert helper.result(fetch)["state"] == "cached"


class Tmpfs:
    """A small file system of our own, when that is possible."""

    def __init__(self, path: Path, options: str) -> None:
        self.path = path
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        if (
            os.geteuid() != 0
            or subprocess.run(command, check=False, capture_output=True).returncode
        ):
            pytest.skip("mounting a tmpfs is not possible here")

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", self.path], check=True)


def fetched(instances: Path, image: Frame, data: bytes, **limits: Any) -> Frame:
    with Controller() as helper:
        helper.open(instances)
        fetch = helper.fetch(image, PUSH, **limits)
        helper.push_when_ready(fetch, data)
        return helper.answer(fetch)


@pytest.mark.row("H5")
@pytest.mark.row("R6")
def test_no_room_is_told_before_a_byte_is_written(instances: Path) -> None:
    with Tmpfs(instances, "size=1m"):
        data = os.urandom(2 << 20)
        answer = fetched(instances, image_of(data), data)
        assert answer["code"] == "space"
        assert answer["fields"]["need"] == len(data)
        assert answer["fields"]["have"] <= 1 << 20
        assert os.listdir(instances / "_base/.imgcache") == []


@pytest.mark.row("H5")
def test_the_reserve_stays_free(instances: Path) -> None:
    room = os.statvfs(instances)
    free = room.f_bavail * room.f_frsize
    answer = fetched(instances, IMAGE, DATA, reserve=free + (1 << 40))
    assert (answer["code"], answer["fields"]["reserve"]) == ("space", free + (1 << 40))
    if free < 10 << 30:
        pytest.skip("less than the default reserve is free here")
    assert fetched(instances, IMAGE, DATA, reserve=None)["state"] == "cached"


def made_by_qemu(tmp_path: Path, data: bytes, *options: str) -> bytes:
    """Return a qcow2 with this content."""
    plain, made = tmp_path / "plain", tmp_path / "made.qcow2"
    plain.write_bytes(data)
    command = ["qemu-img", "convert", *options, "-f", "raw", "-O", "qcow2", str(plain), str(made)]
    subprocess.run(command, check=True)
    return made.read_bytes()


@pytest.mark.row("H5")
@pytest.mark.qemu
def test_room_for_the_converted_form_is_needed_as_well(instances: Path, tmp_path: Path) -> None:
    plain = b"imgcache" * (64 << 17)
    data = made_by_qemu(tmp_path, plain, "-c")
    assert len(data) < 2 << 20
    with Tmpfs(instances, "size=8m"):
        for virtual_size in (64 << 20, None):  # known before, or only from the header
            image = image_of(data, "qcow2", virtual_size=virtual_size)
            answer = fetched(instances, image, data)
            assert answer["code"] == "space"
            assert answer["fields"]["need"] >= 64 << 20
            assert "its virtual size" in answer["message"]
            assert os.listdir(instances / "_base/.imgcache") == []


@pytest.mark.row("H5")
@pytest.mark.qemu
@pytest.mark.parametrize("disk_format", ["qcow2", "vmdk", "vdi", "vhdx"])
def test_a_large_virtual_size_with_few_bytes_needs_few(
    instances: Path, tmp_path: Path, disk_format: str
) -> None:
    """As ``qemu-img create -f qcow2 x 100G`` makes it (OpenNebula #2974, CDI #1509)."""
    made = tmp_path / "made"
    subprocess.run(["qemu-img", "create", "-q", "-f", disk_format, made, "4G"], check=True)
    command = ["qemu-io", "-f", disk_format, "-c", "write -P 7 2G 1M", str(made)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    data = made.read_bytes()
    assert len(data) < 32 << 20
    with Tmpfs(instances, "size=96m"):
        image = image_of(data, disk_format, virtual_size=4 << 30)
        answer = fetched(instances, image, data)
        assert answer.get("state") == "cached", answer
        final = instances / "_base" / base_name(image["id"])
        assert final.stat().st_size == 4 << 30
        assert final.stat().st_blocks * 512 < 4 << 20


@pytest.mark.row("H5")
@pytest.mark.qemu
def test_which_number_was_taken_is_said(instances: Path, tmp_path: Path) -> None:
    data = made_by_qemu(tmp_path, b"imgcache" * (24 << 17) + bytes(40 << 20), "-c")
    with Tmpfs(instances, "size=16m"):
        answer = fetched(instances, image_of(data, "qcow2", virtual_size=64 << 20), data)
        assert answer["code"] == "space"
        assert 24 << 20 <= answer["fields"]["need"] < 26 << 20
        assert f"(its data, to convert it; its virtual size is {64 << 20})" in answer["message"]


@pytest.mark.row("H5")
@pytest.mark.qemu
def test_a_qemu_img_that_cannot_measure(instances: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", made, "64M"], check=True)
    fake = tmp_path / "bin" / "qemu-img"
    fake.parent.mkdir()
    fake.write_text(
        '#!/bin/sh\n[ "$1" = measure ] && exec sh -c "echo Command not found: measure >&2; exit 1"\n'
        f'exec {shutil.which("qemu-img")} "$@"\n'
    )
    fake.chmod(0o755)
    data = made.read_bytes()
    with (
        Tmpfs(instances, "size=8m"),
        Controller(env={"PATH": f"{fake.parent}:{os.environ['PATH']}"}) as helper,
    ):
        helper.open(instances)
        fetch = helper.fetch(image_of(data, "qcow2"), PUSH)
        helper.push_when_ready(fetch, data)
        answer = helper.error(fetch)
        assert (answer["code"], answer["fields"]["need"]) == ("space", 64 << 20)


@pytest.mark.row("H6")
@pytest.mark.qemu
def test_a_conversion_that_eats_up_the_reserve_is_stopped(instances: Path, tmp_path: Path) -> None:
    data = made_by_qemu(tmp_path, os.urandom(4 << 20))
    fake = tmp_path / "bin" / "qemu-img"
    fake.parent.mkdir()
    # Another program fills the disk meanwhile, and the conversion itself goes on for long.
    fake.write_text(
        '#!/bin/sh\nif [ "$1" = convert ]; then\n'
        f"for n in 1 2 3 4 5; do head -c 4M /dev/zero >{instances}/other$n; done; sleep 60; fi\n"
        f'exec {shutil.which("qemu-img")} "$@"\n'
    )
    fake.chmod(0o755)
    with (
        Tmpfs(instances, "size=32m"),
        Controller(env={"PATH": f"{fake.parent}:{os.environ['PATH']}"}) as helper,
    ):
        helper.open(instances)
        fetch = helper.fetch(image_of(data, "qcow2"), PUSH, reserve=22 << 20)
        helper.push_when_ready(fetch, data)
        answer = helper.error(fetch)
        assert answer["code"] == "space"
        assert "of a reserve of" in answer["message"]
        assert os.listdir(instances / "_base/.imgcache") == []


@pytest.mark.qemu
def test_a_disk_of_no_bytes_is_told_as_empty(instances: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", made, "0"], check=True)
    data = made.read_bytes()
    answer = fetched(instances, image_of(data, "qcow2"), data)
    assert answer["code"] == "size"
    assert answer["message"] == "the disk in it is empty: its virtual size is 0"


@pytest.mark.qemu
def test_all_that_qemu_img_says_is_the_reason_without_our_path(
    instances: Path, tmp_path: Path
) -> None:
    """A VHDX with a log to replay: qemu-img's last line is but a command, with our staging file."""
    made = tmp_path / "made"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", made, "8M"], check=True)
    data = vhdx_with_pending_log(made.read_bytes())
    answer = fetched(instances, image_of(data, "vhdx"), data)
    assert answer["code"] == "qemu"
    assert "contains a log that needs to be replayed" in answer["message"]
    assert ".staging" not in answer["message"]
    assert str(instances) not in answer["message"]
    assert len(answer["message"]) < 700


@pytest.mark.row("H6")
def test_the_disk_fills_while_writing(instances: Path) -> None:
    with Tmpfs(instances, "size=4m"), Controller() as helper:
        data = os.urandom(3 << 20)
        helper.open(instances)
        fetch = helper.fetch(image_of(data), PUSH)
        helper.event(fetch, "ready")
        (instances / "other").write_bytes(bytes(2 << 20))
        helper.push(fetch, data)
        answer = helper.error(fetch)
        assert answer["code"] == "space"
        assert "have" in answer["fields"]
        assert os.listdir(instances / "_base/.imgcache") == []
        (instances / "other").unlink()
        again = helper.fetch(image_of(data), PUSH)
        helper.push_when_ready(again, data)
        assert helper.result(again)["state"] == "cached"


@pytest.mark.row("H6")
@pytest.mark.qemu
def test_the_disk_fills_while_converting(instances: Path, tmp_path: Path) -> None:
    plain, made = tmp_path / "plain", tmp_path / "made"
    plain.write_bytes(os.urandom(1 << 20) * 6)
    subprocess.run(
        ["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", plain, made], check=True
    )
    data = made.read_bytes()
    fake = tmp_path / "bin" / "qemu-img"
    fake.parent.mkdir()
    # Room is taken away between the check and the conversion.
    fake.write_text(
        f'#!/bin/sh\n[ "$1" = convert ] && head -c 9M /dev/zero >{instances}/other\n'
        f'exec {shutil.which("qemu-img")} "$@"\n'
    )
    fake.chmod(0o755)
    with (
        Tmpfs(instances, "size=18m"),
        Controller(env={"PATH": f"{fake.parent}:{os.environ['PATH']}"}) as helper,
    ):
        helper.open(instances)
        fetch = helper.fetch(image_of(data, "qcow2"), PUSH)
        helper.push_when_ready(fetch, data)
        answer = helper.error(fetch)
        assert answer["code"] in {"space", "qemu"}
        assert os.listdir(instances / "_base/.imgcache") == []


@pytest.mark.row("H24")
@pytest.mark.qemu
def test_a_file_system_without_direct_io(instances: Path, tmp_path: Path) -> None:
    plain, made = tmp_path / "plain", tmp_path / "made"
    plain.write_bytes(DATA.ljust(1 << 20, b"\0"))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", plain, made], check=True)
    data = made.read_bytes()
    image = image_of(data, "qcow2")
    with Tmpfs(instances, "size=16m"):
        assert fetched(instances, image, data)["state"] == "cached"
        assert (instances / "_base" / base_name(image["id"])).read_bytes() == plain.read_bytes()


@pytest.mark.row("H7")
def test_no_inodes(instances: Path) -> None:
    with Tmpfs(instances, "size=8m,nr_inodes=6"):
        (instances / "_base/.imgcache").mkdir(parents=True)
        for number in range(3):
            (instances / f"f{number}").touch()
        answer = fetched(instances, IMAGE, DATA)
        assert answer["code"] == "inodes"


def test_the_manifest_says_what_was_done(instances: Path) -> None:
    assert fetched(instances, IMAGE, DATA)["state"] == "cached"
    manifest = json.loads((instances / "_base/.imgcache" / f"{BASE}.json").read_text())
    assert manifest["stored"].pop("mtime_ns") == (instances / "_base" / BASE).stat().st_mtime_ns
    times = [manifest.pop(name) for name in ("cached_at", "touched_at", "verified_at")]
    assert len(set(times)) == 1
    time.strptime(times[0], "%Y-%m-%dT%H:%M:%SZ")
    value = hashlib.sha512(DATA).hexdigest()
    assert manifest == {
        "version": 1, "image_id": IMAGE["id"], "image_name": "test", "base": BASE,
        "digest": {"algo": "sha512", "value": value, "weak": False},
        "stored": {"algo": "sha512", "value": value, "size": len(DATA), "format": "raw"},
        "disk_format": "raw", "source": "push", "tool": "imgcache test", "run": "run-1", "pin": None,
    }  # fmt: skip


def test_a_pin_set_while_the_stored_file_is_hashed_stays(instances: Path, tmp_path: Path) -> None:
    if not shutil.which("qemu-img"):
        pytest.skip("no qemu-img")
    source = tmp_path / "big.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", source, "2G"], check=True)
    data = source.read_bytes()
    image = image_of(data, "qcow2")
    manifest = instances / "_base/.imgcache" / f"{base_name(image['id'])}.json"
    with Controller() as helper, Controller() as other:
        helper.open(instances)
        fetch = helper.fetch(image, PUSH)
        helper.push_when_ready(fetch, data)
        while not manifest.exists():
            assert helper.process.poll() is None
            time.sleep(0.005)
        other.open(instances)
        other.load(*LIFE)
        pin = other.order("pin", base=base_name(image["id"]), until="forever")
        assert other.result(pin)["state"] == "pinned"
        assert json.loads(manifest.read_text())["stored"]["value"] is None  # it is still at it
        assert helper.result(fetch, 120)["reason"] is None
    written = json.loads(manifest.read_text())
    assert written["pin"] == "forever"
    assert len(written["stored"]["value"]) == 128
