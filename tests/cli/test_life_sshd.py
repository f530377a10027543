"""One image's life on three hosts behind a real sshd, from its first fetch to its removal."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from servers.fleet_fixtures import add_image
from servers.life_fixtures import DAY, schema

if TYPE_CHECKING:
    from servers.fleet_fixtures import Fleet

pytestmark = [pytest.mark.sshd, pytest.mark.qemu]

QCOW_ID = "11fe11fe-2222-4333-8444-00000000000c"


def outcomes(fleet: Fleet, *argv: str, code: int = 0) -> dict[str, tuple[str, str | None]]:
    """Return host -> outcome and code of a run about the one image."""
    done = fleet.run(*argv, "-f", "json")
    assert done.returncode == code, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    jsonschema.validate(document, schema(argv[0]))
    return {one["host"]: (one["outcome"], one["code"]) for one in document["outcomes"]}


def test_the_life_of_an_image(fleet: Fleet) -> None:
    image = fleet.folder / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "8M"], check=True)
    add_image(fleet.folder / "images", QCOW_ID, "debian-12", image.read_bytes(), "qcow2")
    first, second, third = fleet.names
    node_set = f"edge1-[{first[-2:]}-{second[-2:]}]"

    # Cached on two hosts and pinned as it goes; the gate names the third.
    done = fleet.run("precache", "--host", node_set, "--keep-for", "2h", "debian-12")
    assert done.returncode == 0, done.stderr
    gate = fleet.run("list", "--all", "--missing", "debian-12", "-f", "value", "-c", "host")
    assert (gate.returncode, gate.stdout) == (5, f"{third}\n")
    assert fleet.run("precache", "--host", third, "debian-12").returncode == 0

    # An instance boots from it on the second host, as Nova would make its disk.
    final = fleet.final(second, QCOW_ID)
    disk = fleet.instances(second) / "0b5e2f4e-instance" / "disk"
    disk.parent.mkdir()
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(final), str(disk)],
        check=True,
    )
    matrix = fleet.run("list", "--all", "--matrix")
    assert [line.split() for line in matrix.stdout.splitlines()[:4]] == [
        ["HOST", "debian-12"], [first, "p"], [second, "b"], [third, "x"],
    ]  # fmt: skip

    # Old everywhere: pins and use keep it, and only where neither holds it goes.
    old = time.time() - 3 * DAY
    for name in fleet.names:
        os.utime(fleet.final(name, QCOW_ID), (old, old))
    assert set(outcomes(fleet, "verify", "--all").values()) == {("intact", None)}
    assert outcomes(fleet, "prune", "--all") == {
        first: ("kept", "pinned"),
        second: ("kept", "in-use"),
        third: ("removed", None),
    }
    assert outcomes(fleet, "refresh", "--all") == {
        first: ("renewed", None),
        second: ("renewed", None),
    }
    assert fleet.final(first, QCOW_ID).stat().st_mtime > time.time() - 60

    status = fleet.run("status", "--all", "-f", "json")
    jsonschema.validate(json.loads(status.stdout), schema("status"))
    sizes = {one["host"]: one["in_use_bytes"] > 0 for one in json.loads(status.stdout)["hosts"]}
    assert sizes == {first: False, second: final.stat().st_blocks > 0, third: False}

    # Unpinned, it may go at once, since imgcache itself touched it last; save where it is in use.
    assert set(outcomes(fleet, "unpin", "--host", node_set, "debian-12").values()) == {
        ("unpinned", None)
    }
    assert outcomes(fleet, "delete", "--all", "debian-12", code=1) == {
        first: ("removed", None),
        second: ("kept", "in-use"),
        third: ("absent", "absent"),
    }
    assert final.exists()
    assert outcomes(fleet, "clean", "--all", "--invalid") == {}
