"""Nothing in use is removed: every way to use a base file, on a host with a real libvirt, under all commands.

All ways are there at once, each with a base file that has no other user, so one run judges them all.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from scenarios.libvirt_matrix import BLIND, UNUSED, USES, WORDS
from servers import libvirt_host
from servers.fleet_fixtures import add_image

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from scenarios.libvirt_matrix import Use
    from servers.libvirt_host import LibvirtHost

pytestmark = [pytest.mark.libvirt, pytest.mark.qemu]

DAY = 86400.0
INSTANCES = Path("/srv/nova/instances")
HOLDERS = Path(__file__).parents[1] / "rig/holders.py"
#: No hole, as swap wants it.
CONTENT = b"neither qcow2 nor anything else\n" * 8192
#: Each with what it makes of a base file that nothing uses.
COMMANDS = {
    "prune": (["prune", "--all"], "removed"),
    "delete": (["delete", "--all"], "removed"),
    "clean": (["clean", "--all", "--invalid"], "removed"),
    "verify": (["verify", "--all", "--repair"], "repaired"),
}


@dataclass
class World:
    """The host, and a base file for each case; ``ids`` maps its name to the image's id."""

    host: LibvirtHost
    folder: Path
    ids: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        base = self.host.at(INSTANCES / "_base")
        for path in (base / ".imgcache", base.parent / "locks"):
            path.mkdir(parents=True)
        self.host.script(
            "mkdir -p /srv/volumes; chown -R nova /srv/nova; echo '[DEFAULT]' >/srv/nova.conf"
        )
        document = {
            "image_service": {"kind": "directory", "path": "images"},
            "defaults": {
                "transport": "local", "python": "/usr/bin/python3", "images_type": "qcow2", "reserve": 0,
                "nova_conf": "/srv/nova.conf", "instances_path": str(INSTANCES),
            },
            "aggregates": {"edge-1": {"cell": "cell1", "hosts": ["edge1-01"]}},
        }  # fmt: skip
        inventory = self.folder / "inventory.yaml"
        inventory.write_text(yaml.safe_dump(document))
        inventory.chmod(0o600)

    def base(self, name: str) -> Path:
        """Return where a case's base file is on the host."""
        return INSTANCES / "_base" / hashlib.sha1(self.ids[name].encode()).hexdigest()

    def there(self, name: str) -> bool:
        """Whether a case's base file is there, be it another one."""
        return self.host.at(self.base(name)).exists()

    def make(self, use: Use) -> None:
        """Make a case."""
        self.ids[use.name] = str(uuid.uuid4())
        add_image(self.folder / "images", self.ids[use.name], use.name, CONTENT[:4096])
        self.fill(use.name)
        self.script(use, f"mkdir -p $I $V\n{use.script}")

    def script(self, use: Use, text: str) -> None:
        """Run a script of a case."""
        place = {"I": INSTANCES / use.name, "V": Path("/srv/volumes") / use.name}
        self.host.script(
            WORDS + text,
            B=self.base(use.name), N=use.name, PYTHON=sys.executable, HOLDERS=HOLDERS, **place,
        )  # fmt: skip

    @contextmanager
    def made(self, use: Use) -> Iterator[None]:
        """Let a case be for a while."""
        self.make(use)
        try:
            yield
        finally:
            self.script(use, use.undo)
            self.host.at(self.base(use.name)).unlink(missing_ok=True)
            del self.ids[use.name]

    def fill(self, name: str) -> None:
        """Let a base file be there, with a note that it is not as it was cached: ``clean`` wants it gone."""
        path = self.host.at(self.base(name))
        path.write_bytes(CONTENT)
        os.chown(path, libvirt_host.NOVA, libvirt_host.NOVA)
        value = hashlib.sha512(CONTENT).hexdigest()
        stored = {"algo": "sha512", "value": value, "size": 4096, "format": "raw", "mtime_ns": 1}
        note = {
            "version": 1, "image_id": self.ids[name], "image_name": name, "base": path.name,
            "digest": {"algo": "sha512", "value": value, "weak": False}, "stored": stored,
            "disk_format": "raw", "source": "push", "tool": "t", "run": "r",
            "cached_at": "2026-11-20T07:00:00Z", "touched_at": None, "verified_at": None, "pin": None,
        }  # fmt: skip
        notes = path.parent / ".imgcache" / f"{path.name}.json"
        notes.write_text(json.dumps(note))
        os.chown(notes, libvirt_host.NOVA, libvirt_host.NOVA)

    def run(self, command: str) -> Ran:
        """Run a command on base files that are old, with those that nothing uses as at first."""
        for name in self.ids:
            path = self.host.at(self.base(name))
            if not path.exists() or name in {use.name for use in UNUSED}:
                self.fill(name)
            os.utime(path, (time.time() - 2 * DAY,) * 2)
        argv, _ = COMMANDS[command]
        names = list(self.ids.values()) if command == "delete" else []
        before = {name: identity(self.host.at(self.base(name))) for name in self.ids}
        done = self.host.run(
            "--inventory", str(self.folder / "inventory.yaml"), *argv, *names, "-f", "json"
        )
        return Ran(self, command, done, before)


@dataclass
class Ran:
    """What came of one run; ``before``: the base files' identities."""

    world: World
    command: str
    done: subprocess.CompletedProcess[str]
    before: dict[str, tuple[int, int] | None]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        assert self.done.stdout, self.done.stderr
        for row in json.loads(self.done.stdout)["outcomes"]:
            self.rows[row["image_name"] or row["entry"]] = row
        for name, known in self.before.items():
            if identity(self.world.host.at(self.world.base(name))) == known:
                self.kept.add(name)


def identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from one that was fetched anew, which may get the old one's inode."""
    if not path.exists():
        return None
    return path.stat().st_ino, path.stat().st_size


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The host with all cases."""
    if reason := libvirt_host.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("libvirt")
    with libvirt_host.libvirt_host(folder / "host") as host:
        made = World(host, folder)
        for use in (*USES, *UNUSED):
            made.make(use)
        yield made


@pytest.fixture(scope="module", params=list(COMMANDS))
def ran(request: pytest.FixtureRequest, world: World) -> Ran:
    """What came of each command."""
    return world.run(request.param)


def name_of(use: Use) -> str:
    """Return the name of a test's parameter."""
    return use.name


@pytest.mark.row("D5")
@pytest.mark.parametrize("use", USES, ids=name_of)
def test_in_use(use: Use, ran: Ran) -> None:
    row = ran.rows.get(use.name, {})
    assert use.name in ran.kept, row
    assert row["code"] == "in-use", row


@pytest.mark.parametrize("use", UNUSED, ids=name_of)
def test_unused(use: Use, ran: Ran) -> None:
    row = ran.rows.get(use.name, {})
    assert use.name not in ran.kept, row
    assert row["outcome"] == COMMANDS[ran.command][1], row
    assert row["code"] is None


def test_the_evidence_is_complete(ran: Ran) -> None:
    assert ran.rows.get("", {}).get("reason") is None


@pytest.mark.row("D6")
@pytest.mark.parametrize(
    ("use", "command"),
    [
        pytest.param(use, command, id=f"{use.name}-{command}")
        for number, use in enumerate(BLIND)
        for command in (COMMANDS if number == 0 else ["prune"])
    ],
)
def test_evidence_that_is_missing_keeps_everything(use: Use, command: str, world: World) -> None:
    with world.made(use):
        ran = world.run(command)
        assert ran.kept == set(world.ids)
    row = ran.rows[""]
    assert (row["outcome"], row["code"]) == ("error", "evidence")
    assert BLIND[use] in row["reason"]
