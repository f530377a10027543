"""Each order once, as it goes well, under every Python found."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from helper.controller import PUSH, Controller, base_name, image_of, pythons

if TYPE_CHECKING:
    from pathlib import Path

RAW = os.urandom(3 << 20)


@pytest.mark.parametrize("python", pythons())
def test_push_then_touch(python: str, instances: Path) -> None:
    image = image_of(RAW)
    with Controller(python) as helper:
        hello = helper.result(helper.start_id)
        assert hello["protocol"] == 1
        assert hello["pid"] == helper.process.pid
        opened = helper.result(helper.open(instances))
        assert opened["cache_path"] == f"{instances}/_base"
        assert opened["cache_exists"] is False
        touch = helper.order("touch", base=base_name(image["id"]), sizes=[], dry=False)
        assert helper.result(touch)["state"] == "absent"
        fetch = helper.fetch(image, PUSH)
        helper.event(fetch, "ready")
        helper.push(fetch, RAW)
        result = helper.result(fetch)
        assert (result["state"], result["size"], result["bytes_fetched"]) == (
            "cached",
            len(RAW),
            len(RAW),
        )
        final = instances / "_base" / base_name(image["id"])
        assert final.read_bytes() == RAW
        assert final.stat().st_mode & 0o7777 == 0o644
        os.utime(final, (1, 1))
        touch = helper.order("touch", base=final.name, sizes=[len(RAW)], dry=False)
        touched = helper.result(touch)
        assert (touched["touched"], touched["managed"], touched["mtime"]) == (True, True, 1)
        assert final.stat().st_mtime > 1e9
        helper.order("bye")
        assert helper.process.wait(10) == 0
    assert sorted(os.listdir(instances / "_base/.imgcache")) == [final.name + ".json"]


@pytest.mark.qemu
@pytest.mark.parametrize("disk_format", ["qcow2", "vmdk", "vdi", "vhdx"])
def test_convert(disk_format: str, helper: Controller, instances: Path, tmp_path: Path) -> None:
    plain, made = tmp_path / "plain", tmp_path / "made"
    content = os.urandom(1 << 20) + bytes(5 << 20) + os.urandom(1 << 20)
    plain.write_bytes(content)
    options = ["-o", "subformat=streamOptimized"] if disk_format == "vmdk" else []
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", disk_format, *options, plain, made], check=True
    )
    data = made.read_bytes()
    image = image_of(data, disk_format)
    helper.open(instances)
    fetch = helper.fetch(image, PUSH)
    helper.event(fetch, "ready")
    helper.push(fetch, data)
    result = helper.result(fetch)
    assert (result["state"], result["stored_format"], result["confirmed"]) == (
        "cached",
        "raw",
        True,
    )
    final = instances / "_base" / base_name(image["id"])
    assert final.read_bytes() == content
    manifest = json.loads((instances / "_base/.imgcache" / (final.name + ".json")).read_text())
    assert manifest["stored"] == {
        "algo": "sha512",
        "value": hashlib.sha512(content).hexdigest(),
        "size": len(content),
        "format": "raw",
        "mtime_ns": final.stat().st_mtime_ns,
    }
    assert manifest["digest"]["value"] == image["digest"]["value"]
    assert helper.end() == 0
