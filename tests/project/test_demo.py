"""``make demo``: a first look at the main job, and the first thing that must not rot."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import sample_images

ROOT = Path(__file__).resolve().parents[2]


def run_demo(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "demo/run.py", folder],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.qemu
def test_demo_caches_then_finds_existing_and_works_twice(tmp_path: Path) -> None:
    for _ in range(2):
        done = run_demo(tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        first, _, second = done.stdout.partition("Once more")
        assert "$ imgcache precache --aggregate demo debian-12 rescue" in first
        assert first.count("cached") >= 2
        assert "existing" in second
        assert "Traceback" not in done.stderr
        assert "Warning" not in done.stderr
    running = [
        path
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(tmp_path).encode() in _read(path)
    ]
    assert running == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.qemu
def test_qcow2_written_without_qemu_img_is_a_sound_one(tmp_path: Path) -> None:
    disk = os.urandom(3 * sample_images.CLUSTER_BYTES + 100)
    virtual_size = 8 * sample_images.MIB
    image, plain = tmp_path / "a.qcow2", tmp_path / "a.raw"
    image.write_bytes(sample_images.qcow2_of(disk, virtual_size))
    plain.write_bytes(disk.ljust(virtual_size, b"\0"))
    assert struct.unpack(">4sI", image.read_bytes()[:8]) == (b"QFI\xfb", 2)
    subprocess.run(["qemu-img", "check", "-q", image], check=True)
    subprocess.run(["qemu-img", "compare", "-q", image, plain], check=True)


def test_sample_images_need_no_qemu_img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not shutil.which("qemu-img")
    sample_images.make_images(tmp_path / "images")
    assert (tmp_path / "images/debian-12.qcow2").read_bytes()[:4] == b"QFI\xfb"
    assert (tmp_path / "images/rescue.raw").stat().st_size == 24 * sample_images.MIB
