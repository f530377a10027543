"""Whole runs against Hyper-V hosts: CLI, SSH, cmd, a real Windows Python, and compute-hyperv as the judge."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from imgcache.cli import main
from servers import wine
from servers.fleet_fixtures import add_image
from servers.vhd_files import differencing_vhd, fixed_vhd

if TYPE_CHECKING:
    from pathlib import Path

    from servers.fleet_fixtures import Fleet
    from servers.wine import Judge

pytestmark = [
    pytest.mark.wine,
    pytest.mark.qemu,
    pytest.mark.xdist_group("wine"),
    pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed"),
]

IMAGE_ID = "7a11bade-4444-4333-8444-000000000001"
QCOW_ID = "7a11bade-4444-4333-8444-000000000002"
OLD = time.time() - 3 * 86400


@pytest.fixture
def stocked(windows_fleet: Fleet, tmp_path: Path) -> Fleet:
    """The hosts, and a VHDX of 8 MiB."""
    disk = tmp_path / "disk.vhdx"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", str(disk), "16M"], check=True)
    write = ["qemu-io", "-f", "vhdx", "-c", "write -P 7 1M 4M", str(disk)]
    subprocess.run(write, check=True, stdout=subprocess.DEVNULL)
    add_image(tmp_path / "images", IMAGE_ID, "win", disk.read_bytes(), "vhdx")
    return windows_fleet


def final(fleet: Fleet, name: str) -> Path:
    """Return where Nova looks on that host."""
    return fleet.instances(name) / "_base" / f"{IMAGE_ID}.vhdx"


def parts(fleet: Fleet, name: str) -> list[str]:
    """Return transfer files of ours on a host."""
    return [path.name for path in (fleet.instances(name) / "_base").glob("*.part")]


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """Return host -> outcome, of the one image."""
    assert done.stdout, done.stderr
    return {one["host"]: one for one in json.loads(done.stdout)["outcomes"]}


def precache(fleet: Fleet, *more: str) -> subprocess.CompletedProcess[str]:
    """Run ``imgcache precache`` of the image."""
    return fleet.run("precache", "--aggregate", "edge-1", "win", "-f", "json", *more)


def test_what_is_cached_is_a_hit_for_compute_hyperv(
    stocked: Fleet, nova_judge: Judge, tmp_path: Path
) -> None:
    done = precache(stocked)
    assert done.returncode == 0, done.stderr
    assert {one["outcome"] for one in outcomes(done).values()} == {"cached"}
    for name in stocked.names:
        assert final(stocked, name).read_bytes() == (tmp_path / "disk.vhdx").read_bytes()
        assert not parts(stocked, name)
    os.utime(final(stocked, "hv-01"), (OLD, OLD))
    instances = stocked.instances("hv-01")
    path, fetched = nova_judge.ask(instances, "cache_image", image_id=IMAGE_ID, image_type="vhdx")
    assert (path, fetched) == (wine.windows_path(final(stocked, "hv-01")), False)
    assert final(stocked, "hv-01").stat().st_mtime > time.time() - 600

    # Nova's manager renews what is used, and removes the rest once it is old.
    os.utime(final(stocked, "hv-01"), (OLD, OLD))
    nova_judge.ask(instances, "update", used=[IMAGE_ID])
    assert final(stocked, "hv-01").stat().st_mtime > time.time() - 600
    os.utime(final(stocked, "hv-01"), (OLD, OLD))
    nova_judge.ask(instances, "update", used=[])
    assert not final(stocked, "hv-01").exists()

    again = outcomes(precache(stocked))
    assert {name: one["outcome"] for name, one in again.items()} == {
        "hv-01": "cached", "hv-02": "existing",
    }  # fmt: skip


def test_what_compute_hyperv_has_cached_is_existing(
    stocked: Fleet, nova_judge: Judge, tmp_path: Path
) -> None:
    (stocked.instances("hv-01") / "_base").mkdir()
    source = wine.windows_path(tmp_path / "disk.vhdx")
    order = {"image_id": IMAGE_ID, "image_type": "vhdx", "source": source}
    path, fetched = nova_judge.ask(stocked.instances("hv-01"), "cache_image", **order)
    assert (path, fetched) == (wine.windows_path(final(stocked, "hv-01")), True)
    os.utime(final(stocked, "hv-01"), (OLD, OLD))
    done = outcomes(precache(stocked, "--host", "hv-01"))
    assert done["hv-01"]["outcome"] == "existing"
    assert final(stocked, "hv-01").stat().st_mtime > time.time() - 600
    adopted = stocked.run("verify", "--host", "hv-01", "--adopt", "win", "-f", "json")
    assert adopted.returncode == 0, adopted.stdout + adopted.stderr


def test_the_life_of_an_image(stocked: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, which is cheaper; the others in this module start the program."""

    def run(*argv: str, code: int = 0) -> None:
        ended = main(["--inventory", str(stocked.inventory()), *argv, "-f", "json"])
        assert ended == code, (argv, capsys.readouterr())

    run("precache", "--aggregate", "edge-1", "win")
    for command in ("check", "list", "verify"):
        run(command, "--aggregate", "edge-1")
    disk = stocked.instances("hv-01") / "vm1" / "root.vhdx"
    disk.parent.mkdir()
    disk.write_bytes(differencing_vhd(wine.windows_path(final(stocked, "hv-01"))))
    for name in stocked.names:
        os.utime(final(stocked, name), (OLD, OLD))
    run("prune", "--aggregate", "edge-1")
    assert final(stocked, "hv-01").exists()
    assert not final(stocked, "hv-02").exists()

    run("pin", "--host", "hv-01", "win", "--forever")
    disk.unlink()
    run("delete", "--host", "hv-01", "win", code=1)
    assert final(stocked, "hv-01").exists()
    run("unpin", "--host", "hv-01", "win")
    run("delete", "--host", "hv-01", "win")
    assert not final(stocked, "hv-01").exists()


def test_python_is_found_where_the_installer_puts_it(stocked: Fleet) -> None:
    stocked.defaults["python"] = None
    done = precache(stocked, "--host", "hv-01")
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcomes(done)["hv-01"]["outcome"] == "cached"


def test_a_wrong_python_says_what_there_is(stocked: Fleet) -> None:
    stocked.defaults["python"] = ["C:\\nowhere\\python.exe"]
    one = outcomes(precache(stocked, "--host", "hv-01"))["hv-01"]
    assert (one["outcome"], one["code"]) == ("error", "python")
    assert wine.INSTALLED in one["reason"]


def test_images_that_hyper_v_cannot_use_are_said_so(stocked: Fleet, tmp_path: Path) -> None:
    add_image(tmp_path / "images", QCOW_ID, "qcow", b"QFI\xfb" + bytes(1000), "qcow2")
    done = stocked.run("precache", "--host", "hv-01", "qcow", "-f", "json")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "qcow" in done.stderr
    assert "disk format qcow2" in done.stderr


def test_a_killed_controller_leaves_what_the_next_run_needs(stocked: Fleet, tmp_path: Path) -> None:
    add_image(tmp_path / "images", QCOW_ID, "big", fixed_vhd(os.urandom(60 << 20)), "vhdx")
    base = stocked.instances("hv-01") / "_base"
    command = stocked.command("precache", "--host", "hv-01", "big")
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in base.glob("*.part")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = stocked.run("precache", "--host", "hv-01", "big", "-f", "json")
    assert outcomes(done)["hv-01"]["outcome"] == "cached", done.stdout
    assert (base / f"{QCOW_ID}.vhd").stat().st_size == 60 << 20
    assert not parts(stocked, "hv-01")
