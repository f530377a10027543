"""A fleet of hosts behind one real sshd, with an inventory, for tests of whole runs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from servers import openssh

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AGGREGATE = "edge-1"


@dataclass
class Fleet:
    """Hosts ``edge1-01`` … at loopback addresses of their own, each with its own instances path."""

    folder: Path
    server: openssh.OpenSshServer
    image_service: dict[str, Any]
    names: tuple[str, ...]
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Host name -> more of its settings."""
    defaults: dict[str, Any] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)

    def instances(self, name: str) -> Path:
        """Return a host's instances path."""
        return self.folder / name / "instances"

    def final(self, name: str, image_id: str) -> Path:
        """Return where Nova on that host looks for an image's base file."""
        return self.instances(name) / "_base" / hashlib.sha1(image_id.encode()).hexdigest()

    def leftovers(self, name: str) -> list[str]:
        """Return the files in a host's cache that are neither finals nor manifests nor locks."""
        base = self.instances(name) / "_base"
        kept = [path for path in base.rglob("*") if path.is_file()] if base.exists() else []
        return [
            str(path)
            for path in kept
            if not (path.suffix == ".json" or (len(path.name) == 40 and path.parent == base))
        ]

    def inventory(self) -> Path:
        """Write the inventory and return its path."""
        hosts = [
            _given(
                {
                    "name": name,
                    "address": self.server.addresses[number],
                    "instances_path": str(self.instances(name)),
                    **self.overrides.get(name, {}),
                }
            )
            for number, name in enumerate(self.names)
        ]
        document = {
            "image_service": self.image_service,
            "defaults": _given(
                {
                    "user": self.server.user,
                    "port": self.server.port,
                    "ssh_key": str(self.server.client_key),
                    "known_hosts": str(self.server.known_hosts),
                    "python": sys.executable,
                    "images_type": "qcow2",
                    "reserve": 0,
                    **self.defaults,
                }
            ),
            "aggregates": {AGGREGATE: {"cell": "cell1", "hosts": hosts}},
        }
        path = self.folder / "inventory.yaml"
        path.write_text(yaml.safe_dump(document), "utf-8")
        path.chmod(0o600)
        return path

    def command(self, *argv: str) -> list[str]:
        """Return the command line of one call, as a process."""
        return [sys.executable, "-m", "imgcache", "--inventory", str(self.inventory()), *argv]

    def run(
        self, *argv: str, timeout_s: float = 120, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``imgcache`` with this inventory as a whole process."""
        return subprocess.run(
            self.command(*argv),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self.environ, **environ},
        )


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without those that a test took back by None."""
    return {key: value for key, value in settings.items() if value is not None}


def add_image(
    folder: Path, image_id: str, name: str, content: bytes, disk_format: str = "raw"
) -> None:
    """Add an image to a directory image service."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.img").write_bytes(content)
    path = folder / "images.yaml"
    document = yaml.safe_load(path.read_text("utf-8")) if path.exists() else {"images": []}
    document["images"].append(
        {"id": image_id, "name": name, "file": f"{name}.img", "disk_format": disk_format}
    )
    path.write_text(yaml.safe_dump(document), "utf-8")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Three hosts and an empty directory image service at ``fleet.folder/images``."""
    if not openssh.available():
        pytest.skip("sshd is not installed")
    names = ("edge1-01", "edge1-02", "edge1-03")
    addresses = tuple(f"127.0.0.{number}" for number in range(11, 11 + len(names)))
    with openssh.OpenSshServer(tmp_path / "sshd", addresses) as server:
        made = Fleet(tmp_path, server, {"kind": "directory", "path": "images"}, names)
        for name in names:
            made.instances(name).mkdir(parents=True)
        yield made
