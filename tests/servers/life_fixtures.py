"""Two hosts that are this machine, with images in their caches, for whole runs of the life commands."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from servers.fleet_fixtures import add_image

IDS = {
    "debian-12": "11fe11fe-2222-4333-8444-00000000000a",
    "rescue": "11fe11fe-2222-4333-8444-00000000000b",
}
DAY = 86_400.0


@dataclass
class LifeSite:
    """An inventory with the hosts ``edge1-01`` and ``edge1-02``, in a folder of its own."""

    folder: Path
    names: tuple[str, ...] = ("edge1-01", "edge1-02")

    def instances(self, name: str) -> Path:
        """Return a host's instances path."""
        return self.folder / name

    def final(self, name: str, image: str) -> Path:
        """Return where Nova on that host looks for an image's base file."""
        return self.instances(name) / "_base" / hashlib.sha1(IDS[image].encode()).hexdigest()

    def age(self, image: str, seconds: float, *names: str) -> None:
        """Give the image's files on these hosts, or on all, an age."""
        at = time.time() - seconds
        for name in names or self.names:
            os.utime(self.final(name, image), (at, at))

    def boot(self, name: str, image: str, instance: str = "i-1") -> Path:
        """Make an instance's disk on a host that uses the image: a qcow2 with a backing file."""
        backing = os.fsencode(self.final(name, image))
        # Version 3: magic, version, backing file's offset and length, cluster bits, size, no tables.
        head = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 512, len(backing), 16, 1 << 30)
        head = head.ljust(72, b"\0") + struct.pack(">QQQII", 0, 0, 0, 4, 104)
        disk = self.instances(name) / instance / "disk"
        disk.parent.mkdir()
        disk.write_bytes(head.ljust(512, b"\0") + backing.ljust(1024, b"\0"))
        return disk

    def forget_image(self, image: str) -> None:
        """Take an image out of the image service."""
        path = self.folder / "images" / "images.yaml"
        document = yaml.safe_load(path.read_text("utf-8"))
        document["images"] = [one for one in document["images"] if one["name"] != image]
        path.write_text(yaml.safe_dump(document), "utf-8")

    def nova_conf(self, text: str) -> None:
        """Write the hosts' nova.conf."""
        (self.folder / "nova.conf").write_text(text, "utf-8")

    def snapshot(self) -> dict[str, tuple[int, bytes]]:
        """Return what is below the instances paths: path -> mtime and content."""
        found = {}
        for name in self.names:
            for path in self.instances(name).rglob("*"):
                content = path.read_bytes() if path.is_file() else b""
                found[str(path)] = (path.stat().st_mtime_ns if path.is_file() else 0, content)
        return found

    def command(self, *argv: str) -> list[str]:
        """Return the command line of one call, as a process."""
        return [sys.executable, "-m", "imgcache", *argv]

    def environ(self, **more: str) -> dict[str, str]:
        """Return the environment of a call."""
        return {
            **os.environ,
            "IMGCACHE_INVENTORY": str(self.folder / "inventory.yaml"),
            "LC_ALL": "C.UTF-8",
            **more,
        }

    def run(self, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run ``imgcache`` with this inventory as a whole process."""
        return subprocess.run(
            self.command(*argv),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            env=self.environ(**environ),
        )

    def result(self, *argv: str, code: int = 0) -> dict[str, Any]:
        """Run with ``-f json``; check the exit code, and the result against its schema."""
        done = self.run(*argv, "-f", "json")
        assert done.returncode == code, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        jsonschema.validate(document, schema(argv[0]))
        return document

    def words(self, *argv: str, code: int = 0) -> dict[tuple[str, str], tuple[str, str | None]]:
        """Return (host, image name or entry) -> outcome and code of a run."""
        outcomes = self.result(*argv, code=code)["outcomes"]
        return {
            (one["host"], one["image_name"] or one["entry"]): (one["outcome"], one["code"])
            for one in outcomes
        }


def schema(command: str) -> dict[str, Any]:
    """Return the schema of a command's result."""
    loaded: dict[str, Any] = json.loads(Path(f"docs/schemas/{command}.json").read_text("utf-8"))
    return loaded


@pytest.fixture(scope="session")
def filled_site(tmp_path_factory: pytest.TempPathFactory) -> LifeSite:
    """A site to copy; see ``life``."""
    site = make_site(tmp_path_factory.mktemp("site"))
    assert site.run("precache", "--all", "debian-12").returncode == 0
    assert site.run("precache", "--host", "edge1-01", "rescue").returncode == 0
    return site


@pytest.fixture
def life(filled_site: LifeSite, tmp_path: Path) -> LifeSite:
    """Both hosts have ``debian-12``, the first ``rescue``, too; cached moments ago."""
    shutil.copytree(filled_site.folder, tmp_path, dirs_exist_ok=True)
    make_inventory(tmp_path)
    return LifeSite(tmp_path)


def make_site(tmp_path: Path) -> LifeSite:
    """Make a site with empty caches."""
    for number, (name, image_id) in enumerate(IDS.items()):
        content = f"not an image of any known format, number {number}\n".encode() * 2000
        add_image(tmp_path / "images", image_id, name, content)
    site = LifeSite(tmp_path)
    for name in site.names:
        (site.instances(name) / "_base").mkdir(parents=True)
    site.nova_conf("[DEFAULT]\n")
    make_inventory(tmp_path)
    return site


def make_inventory(tmp_path: Path) -> None:
    """Write the inventory of a site."""
    site = LifeSite(tmp_path)
    hosts = [{"name": name, "instances_path": str(site.instances(name))} for name in site.names]
    inventory = {
        "image_service": {"kind": "directory", "path": "images"},
        "defaults": {
            "transport": "local",
            "python": sys.executable,
            "images_type": "qcow2",
            "reserve": 0,
            "nova_conf": str(tmp_path / "nova.conf"),
        },
        "aggregates": {"edge-1": {"cell": "cell1", "hosts": hosts}},
    }
    path = tmp_path / "inventory.yaml"
    path.write_text(yaml.safe_dump(inventory), "utf-8")
    path.chmod(0o600)
