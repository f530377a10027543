"""Every command over Glance nodes, and over nodes and a compute host together, as an operator types it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from imgcache.cli import main
from servers.glance_nodes import GlanceNode
from servers.openstack import ADMIN, ADMIN_PASSWORD, MEMBER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers.glance_nodes_fixtures import GlanceNodes
    from servers.openstack import KeystoneAndGlance, User

pytestmark = pytest.mark.openstack


@dataclass
class Desk:
    """An operator's desk: an inventory, and what commands said."""

    folder: Path
    cloud: KeystoneAndGlance
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    hosts: list[dict[str, Any]] = field(default_factory=list)
    shown: str = ""

    def work_as(self, user: User) -> None:
        for name, value in self.cloud.environ(user).items():
            self.monkeypatch.setenv(name, value)

    def run(self, command: str, *argv: str, code: int | None = 0) -> dict[str, Any]:
        """Run a command over all hosts; return its result. ``code``: how it ends; None: in any way."""
        inventory = {
            "image_service": {"kind": "glance"},
            "aggregates": {"nodes": {"driver": "glance-cache", "hosts": self.hosts}},
        }
        path = self.folder / "inventory.yaml"
        path.write_text(yaml.safe_dump(inventory))
        words = ["--inventory", str(path), command, "--all", "-f", "json", *argv]
        ended = main([*words, "--log-file", str(self.folder / "log"), "-vv"])
        out, err = self.capsys.readouterr()
        self.shown += out + err
        assert code in {ended, None}, (ended, words, out, err)
        self.said = err
        document: dict[str, Any] = json.loads(out)
        return document

    def words(self, command: str, *argv: str, code: int = 0) -> dict[str, list[str]]:
        """Run a command; return host -> its outcomes' words, each with its code."""
        found: dict[str, list[str]] = {}
        for row in self.run(command, *argv, code=code)["outcomes"]:
            word = f"{row['outcome']} {row['code']}" if row["code"] else row["outcome"]
            found.setdefault(row["host"], []).append(word)
        return found

    def upload(self, name: str, size: int) -> str:
        return self.cloud.glance.upload(name, os.urandom(size), token=self.cloud.admin_token)


@pytest.fixture
def desk(
    tmp_path: Path,
    cloud: KeystoneAndGlance,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Desk]:
    desk = Desk(tmp_path, cloud, monkeypatch, capsys)
    desk.work_as(ADMIN)
    yield desk
    # Whatever was run: no secret is shown or logged.
    log = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
    for secret in (ADMIN_PASSWORD, MEMBER.password, "gAAAAAB"):
        assert secret not in desk.shown
        assert secret not in log


@pytest.fixture
def three(desk: Desk, glance_nodes: GlanceNodes) -> Desk:
    """A desk with three empty nodes."""
    for name in ("central", "second", "sqlite"):
        node: GlanceNode = getattr(glance_nodes, name)
        node.call("DELETE", "/v2/cache").raise_for_status()
        desk.hosts.append({"name": name, "endpoint": node.url})
    return desk


def test_nodes_are_filled_listed_and_emptied(three: Desk, glance_nodes: GlanceNodes) -> None:
    ids = [three.upload("filled-a", 300_000), three.upload("filled-b", 70_000)]
    names = ("central", "second", "sqlite")
    planned = three.words("precache", "--dry-run", "filled-a", "filled-b")
    assert planned == {name: ["skipped dry-run"] * 2 for name in names}
    assert three.words("precache", "filled-a", "filled-b") == {
        name: ["cached", "cached"] for name in names
    }
    assert three.words("precache", "filled-b", ids[0]) == {
        name: ["existing", "existing"] for name in names
    }
    both = glance_nodes.central.call("GET", f"/v2/cache/nodes/{ids[0]}").json()
    assert sorted(both) == sorted([glance_nodes.central.url, glance_nodes.second.url])

    glance_nodes.sqlite.hit(ids[0])
    listed = {(row["host"], row["image_name"]): row for row in three.run("list")["entries"]}
    assert listed.keys() == {(host, name) for host in names for name in ("filled-a", "filled-b")}
    one = listed["sqlite", "filled-a"]
    assert (one["kind"], one["hits"], one["users"], one["gone"]) == ("original", 1, 0, False)
    assert (one["size_bytes"], one["image_id"]) == (300_000, ids[0])
    assert listed["central", "filled-a"]["hits"] == 0
    assert not three.run("list", "--missing", "filled-a")["missing"]

    status = {row["host"]: row for row in three.run("status")["hosts"]}
    assert [(status[name]["entries"], status[name]["cache_bytes"]) for name in names] == [
        (2, 370_000)
    ] * 3
    assert status["central"]["reclaimable_bytes"] == 0

    pinned = three.words("precache", "--keep-for", "1h", "filled-a")
    assert pinned == {name: ["existing driver"] for name in names}
    assert "not pinned: Glance's cache knows no pins" in three.said

    assert three.words("delete", "filled-a") == {name: ["removed"] for name in names}
    assert three.words("delete", "filled-a") == {name: ["absent absent"] for name in names}
    assert three.run("list", "--missing", "filled-a", code=5)["missing"]
    assert glance_nodes.second.cached(ids[0]) is None


def test_prune_goes_by_what_is_said_and_by_nothing_else(
    three: Desk, glance_nodes: GlanceNodes
) -> None:
    three.hosts = three.hosts[:1]
    first, second = three.upload("pruned-a", 100_000), three.upload("pruned-b", 100_000)
    three.run("precache", first, second)
    glance_nodes.central.hit(first)
    assert three.words("prune") == {"central": ["kept policy"] * 2}
    assert three.words("prune", "--min-age", "30d") == {"central": ["kept young"] * 2}
    assert three.words("prune", "--min-free", "1G") == {"central": ["kept policy"] * 2}
    assert "does not tell how much room" in three.said
    planned = three.words("prune", "--max-size", "150K", "--dry-run")
    assert planned == {"central": ["kept policy", "skipped dry-run"]}
    kept = three.words("prune", "--max-size", "1K", "--keep", first, "--keep", second)
    assert kept == {"central": ["kept keep"] * 2}
    assert three.words("prune", "--max-size", "150K") == {"central": ["kept policy", "removed"]}
    # the one that was read last stays
    assert glance_nodes.central.cached(first) is not None
    assert glance_nodes.central.cached(second) is None


def test_an_image_that_is_gone_from_glance_is_pruned(
    three: Desk, glance_nodes: GlanceNodes
) -> None:
    gone, staying = three.upload("gone", 1000), three.upload("staying", 1000)
    three.run("precache", gone, staying)
    path = f"/v2/images/{gone}"
    three.cloud.glance.call("DELETE", path, token=three.cloud.admin_token, expect=204)
    listed = three.run("list", "--gone")["entries"]
    assert {(row["host"], row["image_id"]) for row in listed} == {
        (name, gone) for name in ("central", "second", "sqlite")
    }
    assert three.words("prune", "--gone") == {
        name: ["kept policy", "removed"] for name in ("central", "second", "sqlite")
    }
    assert glance_nodes.central.cached(gone) is None


def test_what_waits_is_shown_and_taken_back(
    desk: Desk, cloud: KeystoneAndGlance, tmp_path: Path
) -> None:
    with GlanceNode(cloud, tmp_path / "node") as node:
        node.wait_ready()
        desk.hosts = [{"name": "g1", "endpoint": node.url}]
        cached, lost = desk.upload("there", 1000), desk.upload("lost", 1000)
        waiting = desk.upload("waits", 1000)
        desk.run("precache", cached)
        cloud.glance.stored(lost).unlink()
        # the node's worker dies of this one, so what follows waits for ever
        node.call("PUT", f"/v2/cache/{lost}").raise_for_status()
        assert desk.words("precache", "--no-wait", waiting) == {"g1": ["skipped queued"]}
        kinds = {row["image_id"]: row["kind"] for row in desk.run("list")["entries"]}
        assert kinds == {cached: "original", lost: "queued", waiting: "queued"}
        assert desk.run("list", "--missing", waiting, code=5)["missing"]
        assert desk.words("delete", "--queued", waiting, cached) == {
            "g1": ["removed", "absent absent"]
        }
        assert desk.words("delete", lost, cached) == {"g1": ["removed", "removed"]}
        assert desk.run("list")["entries"] == []
        assert node.state() == {"cached_images": [], "queued_images": []}


def test_clean_and_check(three: Desk, glance_nodes: GlanceNodes) -> None:
    broken = glance_nodes.second.cache / "invalid" / "b9a1a2f0-6f39-4f0d-9b0c-0d2f0e6d5c11"
    broken.write_bytes(b"x")
    assert three.words("clean", "--dry-run")["second"] == ["skipped dry-run"]
    assert broken.exists()
    assert three.words("clean")["second"] == ["removed"]
    assert not broken.exists()
    checks = three.run("check")["checks"]
    assert {(row["host"], row["check"]) for row in checks} == {
        (name, check)
        for name in ("central", "second", "sqlite")
        for check in ("api", "rights", "cache", "clean", "clock")
    }
    assert {row["state"] for row in checks} == {"ok"}


def test_hosts_of_several_kinds_in_one_run(
    three: Desk, glance_nodes: GlanceNodes, tmp_path: Path
) -> None:
    instances = tmp_path / "instances"
    instances.mkdir()
    compute = {
        "name": "compute", "driver": "libvirt", "transport": "local", "python": sys.executable,
        "instances_path": str(instances), "images_type": "qcow2", "reserve": "0",
    }  # fmt: skip
    three.hosts = [
        three.hosts[0],
        {"name": "without", "endpoint": glance_nodes.without.url},
        {"name": "down", "endpoint": "http://127.0.0.1:1"},
        {"name": "nowhere"},
        compute,
    ]
    image = three.upload("mixed", 50_000)
    found = three.words("precache", "--source", "push", image, code=1)
    assert found == {
        "central": ["cached"],
        "without": ["unsupported backend"],
        "down": ["error unreachable"],
        "nowhere": ["error config"],
        "compute": ["cached"],
    }
    assert "endpoint: http://nowhere:9292" in three.said
    assert "without: warning: the node has no image cache with an API" in three.said
    three.hosts = [three.hosts[0], compute]
    listed = three.run("list")["entries"]
    assert sorted((row["host"], row["entry"] == image) for row in listed) == [
        ("central", True),
        ("compute", False),
    ]
    # what else there is on this machine to complain of does not matter
    checked = {(row["host"], row["check"]) for row in three.run("check", code=None)["checks"]}
    assert ("compute", "login") in checked
    assert ("central", "login") not in checked


def test_a_member_is_refused_with_the_reason(three: Desk, glance_nodes: GlanceNodes) -> None:
    token = three.cloud.admin_token
    image = three.cloud.glance.upload("public", b"x" * 1000, token=token, visibility="public")
    three.work_as(MEMBER)
    assert three.words("precache", image, code=1) == {
        name: ["error forbidden"] for name in ("central", "second", "sqlite")
    }
    assert "needs the role admin" in three.said
    checks = three.run("check", code=5)["checks"]
    assert {(row["check"], row["state"]) for row in checks} == {("rights", "fail")}
    assert glance_nodes.central.cached(image) is None
