"""The main job with pushed images: real sshd, several hosts, whole processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from servers.fleet_fixtures import add_image

if TYPE_CHECKING:
    from pathlib import Path

    from servers.fleet_fixtures import Fleet

pytestmark = pytest.mark.sshd

RAW_ID = "7a11bade-2222-4333-8444-000000000001"
QCOW_ID = "7a11bade-2222-4333-8444-000000000002"
RAW = os.urandom(3_000_001)


def qcow2(path: Path) -> bytes:
    """Return a real qcow2 with a little data at 1 MiB."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "8M"], check=True)
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 1M", str(path)]
    subprocess.run(write, check=True, stdout=subprocess.DEVNULL)
    return path.read_bytes()


@pytest.fixture
def stocked(fleet: Fleet, tmp_path: Path) -> Fleet:
    add_image(tmp_path / "images", RAW_ID, "raw", RAW)
    add_image(tmp_path / "images", QCOW_ID, "qcow", qcow2(tmp_path / "disk.qcow2"), "qcow2")
    return fleet


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return (host, image name) -> outcome."""
    assert done.stdout, done.stderr
    return {(one["host"], one["image_name"]): one for one in json.loads(done.stdout)["outcomes"]}


@pytest.mark.qemu
def test_images_are_cached_then_existing_as_nova_would_have_them(stocked: Fleet) -> None:
    first = stocked.run("precache", "--aggregate", "edge-1", "raw", "qcow", "-f", "json")
    assert first.returncode == 0, first.stderr
    assert {one["outcome"] for one in outcomes(first).values()} == {"cached"}
    assert len(outcomes(first)) == 6
    for name in stocked.names:
        assert stocked.final(name, RAW_ID).read_bytes() == RAW
        converted = stocked.final(name, QCOW_ID).read_bytes()
        assert len(converted) == 8 << 20
        assert converted[1 << 20 : 2 << 20] == b"\7" * (1 << 20)
        assert stocked.final(name, RAW_ID).stat().st_mode & 0o7777 == 0o644
        assert not stocked.leftovers(name)

    old = time.time() - 90_000
    os.utime(stocked.final("edge1-02", RAW_ID), (old, old))
    second = stocked.run("precache", "--aggregate", "edge-1", "raw", "qcow", "-f", "json")
    assert second.returncode == 0, second.stderr
    assert {one["outcome"] for one in outcomes(second).values()} == {"existing"}
    assert sum(one["bytes_fetched"] for one in outcomes(second).values()) == 0
    assert stocked.final("edge1-02", RAW_ID).stat().st_mtime > time.time() - 60
    manifest = next((stocked.final("edge1-02", RAW_ID).parent / ".imgcache").glob("*.json"))
    assert json.loads(manifest.read_text())["touched_at"]


def test_force_raw_off_keeps_the_verified_original(stocked: Fleet, tmp_path: Path) -> None:
    stocked.overrides["edge1-01"] = {"force_raw_images": False}
    done = stocked.run("precache", "--host", "edge1-01", "qcow", "-f", "json")
    assert done.returncode == 0, done.stderr
    assert (
        stocked.final("edge1-01", QCOW_ID).read_bytes()
        == (tmp_path / "images/qcow.img").read_bytes()
    )


def test_nova_conf_of_the_host_is_read_and_the_inventory_overrides_it(
    stocked: Fleet, tmp_path: Path
) -> None:
    conf = tmp_path / "nova.conf"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    conf.write_text(
        f"[DEFAULT]\nstate_path = {tmp_path}\ninstances_path = $state_path/elsewhere\n"
        "[image_cache]\nsubdirectory_name = _cache\n[libvirt]\nimages_type = rbd\n"
    )
    stocked.defaults["images_type"] = None
    stocked.overrides["edge1-01"] = {
        "nova_conf": str(conf),
        "instances_path": None,
        "images_type": "raw",
    }
    stocked.overrides["edge1-02"] = {"nova_conf": str(conf), "cache_subdirectory": "_other"}
    done = stocked.run("precache", "--host", "edge1-[01-02]", "raw", "-f", "json")
    assert done.returncode == 0, done.stderr
    found = outcomes(done)
    name = hashlib.sha1(RAW_ID.encode()).hexdigest()
    assert found["edge1-01", "raw"]["outcome"] == "cached"
    assert (elsewhere / "_cache" / name).read_bytes() == RAW
    assert found["edge1-02", "raw"]["outcome"] == "unsupported"
    assert "rbd" in found["edge1-02", "raw"]["reason"]
    assert not (stocked.instances("edge1-02") / "_other").exists()


def test_rbd_hosts_are_warned_about_and_do_not_fail_the_run(stocked: Fleet) -> None:
    stocked.overrides["edge1-02"] = {"images_type": "rbd"}
    done = stocked.run("precache", "--all", "raw", "-f", "json")
    assert done.returncode == 0
    found = outcomes(done)
    assert [found[name, "raw"]["outcome"] for name in stocked.names] == [
        "cached",
        "unsupported",
        "cached",
    ]
    assert "edge1-02" in done.stderr
    assert "rbd" in done.stderr


def test_dry_run_changes_nothing_and_says_what_it_would_do(stocked: Fleet) -> None:
    stocked.run("precache", "--host", "edge1-01", "raw")
    before = stocked.final("edge1-01", RAW_ID).stat().st_mtime_ns
    done = stocked.run("precache", "--all", "raw", "--dry-run", "-f", "json")
    assert done.returncode == 0
    assert [outcomes(done)[name, "raw"]["outcome"] for name in stocked.names] == [
        "existing",
        "skipped",
        "skipped",
    ]
    assert stocked.final("edge1-01", RAW_ID).stat().st_mtime_ns == before
    assert not (stocked.instances("edge1-02") / "_base").exists()
    assert not (stocked.instances("edge1-02") / "locks").exists()


@pytest.mark.row("H5")
def test_a_dry_run_tells_of_too_little_room(stocked: Fleet) -> None:
    stocked.overrides["edge1-01"] = {"reserve": "1000TiB"}
    done = stocked.run("precache", "--host", "edge1-[01-02]", "raw", "--dry-run", "-f", "json")
    assert done.returncode == 1
    found = outcomes(done)
    assert [found[f"edge1-0{n}", "raw"]["code"] for n in (1, 2)] == ["space", "dry-run"]


def test_check_needs_no_right_images_yaml(stocked: Fleet) -> None:
    """It looks at no image; precache does."""
    (stocked.folder / "images" / "images.yaml").write_text("images: [{id: 7}]")
    done = stocked.run("check", "--host", "edge1-01", "-f", "json")
    assert done.returncode in {0, 5}, done.stderr
    checks = {one["check"]: one["state"] for one in json.loads(done.stdout)["checks"]}
    assert checks["login"] == checks["cache"] == "ok"
    assert stocked.run("precache", "--host", "edge1-01", "raw").returncode == 2


@pytest.mark.row("S8")
def test_a_dead_a_wrong_and_a_broken_host_leave_the_third_alone(stocked: Fleet) -> None:
    stocked.overrides["edge1-01"] = {"port": 1}
    stocked.overrides["edge1-02"] = {"python": "/nonexistent/python3"}
    done = stocked.run("precache", "--all", "raw", "-f", "json", "--retries", "0")
    assert done.returncode == 1
    found = outcomes(done)
    assert [found[name, "raw"]["code"] for name in stocked.names] == ["connect", "python", None]
    assert found["edge1-03", "raw"]["outcome"] == "cached"


@pytest.mark.row("H11")
def test_an_instances_path_that_is_missing_is_never_made(stocked: Fleet, tmp_path: Path) -> None:
    missing = tmp_path / "no" / "such"
    stocked.overrides["edge1-01"] = {"instances_path": str(missing)}
    done = stocked.run("precache", "--host", "edge1-01", "raw", "-f", "json")
    assert done.returncode == 1
    assert outcomes(done)["edge1-01", "raw"]["code"] == "nopath"
    assert str(missing) in outcomes(done)["edge1-01", "raw"]["reason"]
    assert not missing.exists()


@pytest.mark.row("H5")
def test_too_little_room_is_told_with_numbers_before_a_byte_moves(stocked: Fleet) -> None:
    stocked.overrides["edge1-01"] = {"reserve": "1000TiB"}
    done = stocked.run("precache", "--host", "edge1-01", "raw", "-f", "json")
    assert done.returncode == 1
    outcome = outcomes(done)["edge1-01", "raw"]
    assert outcome["code"] == "space"
    assert str(1000 << 40) in outcome["reason"]
    assert outcome["bytes_fetched"] == 0
    assert not stocked.leftovers("edge1-01")


@pytest.mark.row("N6")
def test_a_damaged_image_file_never_becomes_a_final(stocked: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "images" / "raw.img"
    entries = (tmp_path / "images" / "images.yaml").read_text()
    wrong = hashlib.sha512(b"other bytes").hexdigest()
    (tmp_path / "images" / "images.yaml").write_text(
        entries.replace("name: raw\n", f"name: raw\n  sha512: {wrong}\n")
    )
    assert path.exists()
    done = stocked.run("precache", "--host", "edge1-01", "raw", "-f", "json")
    assert done.returncode == 1
    assert outcomes(done)["edge1-01", "raw"]["code"] == "digest"
    assert not stocked.final("edge1-01", RAW_ID).exists()
    assert not stocked.leftovers("edge1-01")


def test_python_may_be_a_command_prefix_such_as_a_container_exec(
    stocked: Fleet, tmp_path: Path
) -> None:
    wrapper = tmp_path / "podman"
    # As `podman exec -i NAME COMMAND…`: takes words before the command, keeps only standard input and
    # output, and starts in a folder and with an environment of its own.
    wrapper.write_text(
        '#!/bin/sh\n[ "$1 $2 $3" = "exec -i nova_compute" ] || exit 125\nshift 3\n'
        'cd / && exec env -i PATH="$PATH" "$@"\n'
    )
    wrapper.chmod(0o755)
    stocked.defaults["python"] = f"{wrapper} exec -i nova_compute {sys.executable}"
    done = stocked.run("precache", "--host", "edge1-01", "raw", "-f", "json")
    assert done.returncode == 0, done.stderr
    assert stocked.final("edge1-01", RAW_ID).read_bytes() == RAW


@pytest.mark.row("H16")
def test_a_final_that_nova_made_meanwhile_is_kept(stocked: Fleet) -> None:
    final = stocked.final("edge1-01", RAW_ID)
    final.parent.mkdir()
    final.write_bytes(RAW)
    inode = final.stat().st_ino
    done = stocked.run("precache", "--host", "edge1-01", "raw", "-f", "json")
    assert outcomes(done)["edge1-01", "raw"]["outcome"] == "existing"
    assert final.stat().st_ino == inode


@pytest.mark.row("R26")
def test_a_final_of_a_wrong_size_is_told_and_left_alone(stocked: Fleet) -> None:
    final = stocked.final("edge1-01", RAW_ID)
    final.parent.mkdir()
    final.write_bytes(RAW[:1000])
    os.utime(final, (1000, 1000))
    done = stocked.run("precache", "--host", "edge1-01", "raw", "-f", "json")
    assert done.returncode == 1
    assert outcomes(done)["edge1-01", "raw"]["code"] == "damaged"
    assert final.read_bytes() == RAW[:1000]
    assert final.stat().st_mtime == 1000


@pytest.mark.row("R26")
@pytest.mark.qemu
def test_a_cut_off_converted_final_is_not_called_existing(stocked: Fleet) -> None:
    stocked.run("precache", "--host", "edge1-01", "qcow")
    final = stocked.final("edge1-01", QCOW_ID)
    os.truncate(final, 4096)
    done = stocked.run("precache", "--host", "edge1-01", "qcow", "-f", "json")
    assert done.returncode == 1
    outcome = outcomes(done)["edge1-01", "qcow"]
    assert outcome["code"] == "damaged"
    assert "verify --repair" in outcome["reason"]


@pytest.mark.row("C2")
@pytest.mark.parametrize(("signal_name", "status"), [("INT", 130), ("TERM", 143)])
def test_a_signal_winds_the_run_up_and_leaves_nothing_behind(
    stocked: Fleet, tmp_path: Path, signal_name: str, status: int
) -> None:
    # One host whose push never ends: its helper waits behind a pipe that is not read on.
    slow = tmp_path / "slow-python"
    pump = tmp_path / "pump.py"
    pump.write_text(
        "import os, time\nleft = 400000\n"
        "while left:\n"
        "    block = os.read(0, min(left, 65536)) or exit()\n    os.write(1, block)\n    left -= len(block)\n"
        "time.sleep(60)\n"
    )
    slow.write_text(f'#!/bin/sh\n{sys.executable} {pump} | {sys.executable} "$@"\n')
    slow.chmod(0o755)
    stocked.overrides["edge1-02"] = {"python": str(slow)}
    command = stocked.command(
        "precache", "--host", "edge1-[01-02]", "raw", "-f", "json", "--concurrency", "2"
    )
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not list(stocked.instances("edge1-02").glob("_base/.imgcache/*.staging")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    start = time.monotonic()
    process.send_signal(getattr(__import__("signal"), f"SIG{signal_name}"))
    stdout, _ = process.communicate(timeout=30)
    assert process.returncode == status
    assert time.monotonic() - start < 10
    words = {one["host"]: one["outcome"] for one in json.loads(stdout)["outcomes"]}
    assert words["edge1-02"] == "unknown"
    # the sleeping wrapper keeps the helper's standard input open; its heartbeat ends it
    deadline = time.monotonic() + 25
    while stocked.leftovers("edge1-02") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not stocked.leftovers("edge1-02")
    assert not stocked.final("edge1-02", RAW_ID).exists()


def hide_qemu(fleet: Fleet, name: str) -> None:
    """Let the helpers on a host find no qemu-img."""
    script = fleet.folder / "no-qemu"
    script.write_text(f'mount --bind /dev/null {shutil.which("qemu-img")} && exec "$@"\n')
    apart = ["unshare", "--mount", "sh", str(script)]
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("hiding qemu-img needs root and a mount namespace")
    fleet.overrides[name] = {"python": f"{' '.join(apart)} {sys.executable}"}


@pytest.mark.qemu
@pytest.mark.row("H22")
def test_what_qemu_img_did_not_confirm_is_told(stocked: Fleet) -> None:
    hide_qemu(stocked, "edge1-01")
    done = stocked.run("precache", "--host", "edge1-[01-02]", "raw", "qcow", "-f", "json")
    found = outcomes(done)
    assert {key: (one["outcome"], one["code"]) for key, one in found.items()} == {
        ("edge1-01", "raw"): ("cached", "unconfirmed"),
        ("edge1-01", "qcow"): ("error", "qemu"),
        ("edge1-02", "raw"): ("cached", None),
        ("edge1-02", "qcow"): ("cached", None),
    }
    assert "no qemu-img" in found["edge1-01", "raw"]["reason"]
    again = stocked.run("precache", "--host", "edge1-01", "raw", "-f", "json")
    assert again.returncode == 0, again.stderr
    (one,) = outcomes(again).values()
    assert (one["outcome"], one["code"]) == ("existing", None)
