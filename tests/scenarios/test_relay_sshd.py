"""Relays as the operator has them: the whole program, real sshd, real processes."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from servers.fleet_fixtures import add_image

if TYPE_CHECKING:
    from servers.fleet_fixtures import Fleet

pytestmark = pytest.mark.sshd

IMAGE_ID = "11111111-2222-4333-8444-000000000001"
DATA = os.urandom(3_000_001)


@pytest.mark.row("T4")
def test_a_pushed_image_goes_through_one_host_to_the_others(fleet: Fleet) -> None:
    add_image(fleet.folder / "images", IMAGE_ID, "relayed", DATA)
    log = fleet.folder / "run.log"
    argv = ["precache", "--all", "relayed", "-f", "json", "--log-file", str(log)]
    done = fleet.run(*argv, "--source", "push-relay")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["outcomes"]
    assert [one["outcome"] for one in found] == ["cached"] * 3
    assert sorted(one["source"] for one in found) == ["push", "relay", "relay"]
    for name in fleet.names:
        assert fleet.final(name, IMAGE_ID).read_bytes() == DATA
        assert not fleet.leftovers(name)
    written = [path for path in fleet.folder.rglob("*") if path.is_file()]
    keys = [
        path for path in written if b"PRIVATE KEY" in path.read_bytes() and "sshd" not in path.parts
    ]
    assert keys == []
    assert "relay key" not in log.read_text()

    again = fleet.run(*argv, "--source", "push-relay")
    assert [one["outcome"] for one in json.loads(again.stdout)["outcomes"]] == ["existing"] * 3


def test_a_host_that_comes_later_reads_from_one_that_has_it(fleet: Fleet) -> None:
    add_image(fleet.folder / "images", IMAGE_ID, "relayed", DATA)
    argv = ["precache", "relayed", "-f", "json", "--source", "push-relay"]
    first = fleet.run(*argv, "--host", fleet.names[0])
    assert first.returncode == 0, first.stderr
    later = fleet.run(*argv, "--host", fleet.names[1])
    (one,) = json.loads(later.stdout)["outcomes"]
    assert (one["outcome"], one["source"]) == ("cached", "relay"), later.stderr
    assert fleet.final(fleet.names[1], IMAGE_ID).read_bytes() == DATA
