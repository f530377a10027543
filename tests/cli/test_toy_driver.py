"""A driver of another package, installed beside imgcache, in whole runs; also together with libvirt hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

from imgcache.model import ImageId, base_file_name
from servers.fleet_fixtures import add_image
from servers.life_fixtures import schema
from toy_driver.install import install_toy, register

if TYPE_CHECKING:
    from pathlib import Path

SMALL = "11fe11fe-2222-4333-8444-00000000000a"
OTHER = "11fe11fe-2222-4333-8444-00000000000b"


@dataclass
class Mixed:
    """One aggregate: ``kvm-1`` with libvirt, ``toy-1`` with the toy driver."""

    folder: Path

    @property
    def toys(self) -> Path:
        """Return the toy host's cache."""
        return self.folder / "toy-1"

    def run(self, *argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run imgcache with the toy driver's package beside it."""
        done = subprocess.run(
            [sys.executable, "-m", "imgcache", "--inventory", "inventory.yaml", *argv],
            capture_output=True, text=True, timeout=120, check=False, cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder / "site")},
        )  # fmt: skip
        assert done.returncode == code, (argv, done.stdout, done.stderr)
        return done

    def result(self, command: str, *argv: str, code: int = 0) -> dict[str, Any]:
        """Return the result of a run, which is as its schema says."""
        document: dict[str, Any] = json.loads(
            self.run(command, *argv, "-f", "json", code=code).stdout
        )
        jsonschema.validate(document, schema(command))
        return document


@pytest.fixture
def mixed(tmp_path: Path) -> Mixed:
    install_toy(tmp_path / "site")
    for name in ("kvm-1", "toy-1"):
        (tmp_path / name).mkdir()
    add_image(tmp_path / "images", SMALL, "small", b"not an image of any known format\n" * 2000)
    add_image(tmp_path / "images", OTHER, "other", b"nor this one\n" * 3000)
    inventory = {
        "image_service": {"kind": "directory", "path": "images"},
        "defaults": {"transport": "local", "images_type": "qcow2", "python": sys.executable},
        "aggregates": {
            "edge": {
                "hosts": [
                    {"name": "kvm-1", "instances_path": str(tmp_path / "kvm-1")},
                    {"name": "toy-1", "instances_path": str(tmp_path / "toy-1"), "driver": "toy"},
                ]
            }
        },
    }
    (tmp_path / "inventory.yaml").write_text(yaml.safe_dump(inventory), "utf-8")
    return Mixed(tmp_path)


def test_one_run_fills_the_caches_of_both_drivers(mixed: Mixed) -> None:
    rows = mixed.result("precache", "--all", "small")["outcomes"]
    assert {(row["host"], row["driver"], row["outcome"]) for row in rows} == {
        ("kvm-1", "libvirt", "cached"),
        ("toy-1", "toy", "cached"),
    }
    content = (mixed.toys / SMALL).read_bytes()
    base = mixed.folder / "kvm-1" / "_base" / base_file_name(ImageId(SMALL))
    assert content == base.read_bytes()
    again = mixed.run("precache", "--aggregate", "edge", "small")
    assert [line.split() for line in again.stdout.splitlines()] == [
        ["HOST", "DRIVER", "IMAGE", "NAME", "OUTCOME", "CODE", "REASON"],
        ["kvm-1", "libvirt", "small", "existing"],
        ["toy-1", "toy", "small", "existing"],
    ]
    assert "2 existing" in again.stderr


def test_lists_find_an_image_by_what_each_driver_calls_it(mixed: Mixed) -> None:
    mixed.run("precache", "--all", "small", "other")
    entries = mixed.result("list", "--all", "small")["entries"]
    assert {(row["host"], row["entry"], row["image_name"], row["known_by"]) for row in entries} == {
        ("kvm-1", base_file_name(ImageId(SMALL)), "small", "manifest"),
        ("toy-1", SMALL, "small", "name"),
    }
    (mixed.toys / OTHER).unlink()
    missing = mixed.result("list", "--all", "--missing", "other", code=5)["missing"]
    assert [(row["host"], row["driver"]) for row in missing] == [("toy-1", "toy")]


def test_status_sums_per_driver_where_there_are_several(mixed: Mixed) -> None:
    mixed.run("precache", "--all", "small")
    document = mixed.result("status", "--all")
    assert {row["host"]: row["driver"] for row in document["hosts"]} == {
        "kvm-1": "libvirt", "toy-1": "toy",
    }  # fmt: skip
    by_driver = {
        row["name"]: row["hosts"] for row in document["totals"] if row["group"] == "driver"
    }
    assert by_driver == {"libvirt": 1, "toy": 1}
    alone = mixed.result("status", "--host", "toy-1")
    assert {row["group"] for row in alone["totals"]} == {"aggregate"}


def test_what_one_driver_cannot_is_unsupported_there_and_done_elsewhere(mixed: Mixed) -> None:
    mixed.run("precache", "--all", "small")
    done = mixed.run("pin", "--all", "--forever", "small")
    assert "toy-1: warning: a toy notes nothing, so it knows no pins" in done.stderr
    rows = mixed.result("pin", "--all", "--forever", "small")["outcomes"]
    assert {(row["host"], row["outcome"]) for row in rows} == {
        ("kvm-1", "pinned"),
        ("toy-1", "unsupported"),
    }
    checks = mixed.result("check", "--host", "toy-1")["checks"]
    assert [(row["check"], row["state"]) for row in checks] == [("login", "ok"), ("cache", "ok")]


def test_an_image_to_keep_where_nothing_can_be_pinned_is_cached_all_the_same(mixed: Mixed) -> None:
    rows = mixed.result("precache", "--all", "--keep-for", "24h", "small")["outcomes"]
    (toy,) = [row for row in rows if row["driver"] == "toy"]
    assert (toy["outcome"], toy["code"]) == ("cached", "driver")
    assert toy["reason"] == "not pinned: a toy notes nothing, so it knows no pins"
    (kvm,) = [row for row in rows if row["driver"] == "libvirt"]
    assert (kvm["outcome"], kvm["code"]) == ("cached", None)


def test_prune_and_delete_go_by_the_rules_of_all(mixed: Mixed) -> None:
    mixed.run("precache", "--host", "toy-1", "small", "other")
    long_ago = time.time() - 3 * 86400
    os.utime(mixed.toys / SMALL, (long_ago, long_ago))
    kept = mixed.result("prune", "--host", "toy-1", "--keep", "small")["outcomes"]
    assert {(row["image_name"], row["outcome"], row["code"]) for row in kept} == {
        (None, "kept", "keep"), (None, "kept", "young"),
    }  # fmt: skip
    dry = mixed.result("prune", "--host", "toy-1", "--dry-run")["outcomes"]
    assert {row["image_id"]: row["outcome"] for row in dry} == {SMALL: "skipped", OTHER: "kept"}
    assert (mixed.toys / SMALL).exists()
    gone = mixed.result("prune", "--host", "toy-1")["outcomes"]
    assert {row["image_id"]: row["outcome"] for row in gone} == {SMALL: "removed", OTHER: "kept"}
    assert not (mixed.toys / SMALL).exists()
    # Not by imgcache's own note that it set the time: a toy has none, so an hour must pass.
    rows = mixed.result("delete", "--host", "toy-1", "other", code=1)["outcomes"]
    assert [(row["outcome"], row["code"]) for row in rows] == [("kept", "young")]
    rows = mixed.result("delete", "--host", "toy-1", "small")["outcomes"]
    assert [(row["outcome"], row["image_name"]) for row in rows] == [("absent", "small")]


# ------------------------------------------------------------------------------------------- imgcache drivers


def test_drivers_shows_what_is_installed_beside_what_is_built_in(mixed: Mixed) -> None:
    document = mixed.result("drivers")
    rows = {(row["driver"], row["command"]): row for row in document["capabilities"]}
    toy = rows["toy", "pin"]
    assert (toy["package"], toy["version"], toy["supported"]) == ("imgcache-toy", "1.5", False)
    assert toy["reason"] == "a toy notes nothing, so it knows no pins"
    assert len(toy["helper_sha256"]) == 64
    assert rows["toy", "prune"]["supported"]
    built_in = rows["libvirt", "verify --repair"]
    assert (built_in["package"], built_in["helper_sha256"]) == (None, None)
    assert built_in["supported"]
    assert document["problems"] == []


def test_the_table_of_drivers_is_for_people(mixed: Mixed) -> None:
    done = mixed.run("drivers")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0][:2] == ["COMMAND", "libvirt"]
    assert lines[0][-1] == "toy"
    assert [lines[15][0], lines[15][-1]] == ["refresh", "no"]
    assert "a toy knows no pins to renew" in done.stdout
    assert "imgcache-toy  1.5" in done.stdout
    values = mixed.run("drivers", "-f", "value", "-c", "driver", "-c", "command", "-c", "supported")
    assert "toy\tprune\tyes\n" in values.stdout
    assert mixed.run("drivers", "-f", "csv").stdout.startswith("driver,package,version,")
    assert yaml.safe_load(mixed.run("drivers", "-f", "yaml").stdout)["command"] == "drivers"
    assert "no such column" in mixed.run("drivers", "-c", "nothing", code=2).stderr


def test_a_broken_driver_is_told_and_breaks_no_other(mixed: Mixed) -> None:
    (mixed.folder / "site" / "broken.py").write_text("import no_such_module_at_all\n")
    register(
        mixed.folder / "site",
        "imgcache-broken",
        "[imgcache.drivers]\nbroken = broken:Driver\nlibvirt = toy_driver:ToyDriver\n",
    )
    done = mixed.run("drivers", "-f", "json")
    jsonschema.validate(document := json.loads(done.stdout), schema("drivers"))
    told = {row["driver"]: row["problem"] for row in document["problems"]}
    assert "No module named 'no_such_module_at_all'" in told["broken"]
    assert told["libvirt"] == "a built-in driver has this name, and is used"
    assert "warning: the driver broken of the package imgcache-broken cannot be used" in done.stderr
    mixed.run("precache", "--all", "small")
    assert mixed.run("drivers", "-q", "-f", "value").stderr == ""


def test_a_bug_in_a_driver_of_another_package_ends_its_hosts_only(mixed: Mixed) -> None:
    path = mixed.folder / "site" / "toy_driver" / "__init__.py"
    broken = path.read_text("utf-8").replace("context.begin(image)", "raise ValueError('hunter22')")
    path.write_text(broken, "utf-8")
    document = mixed.result("precache", "--all", "small", code=1)
    rows = {row["host"]: row for row in document["outcomes"]}
    assert (rows["toy-1"]["outcome"], rows["toy-1"]["code"]) == ("error", "crash")
    assert (
        "a bug in the driver toy of the package imgcache-toy: ValueError at "
        in rows["toy-1"]["reason"]
    )
    assert "hunter22" not in json.dumps(document)
    assert rows["kvm-1"]["outcome"] == "cached"


def test_a_host_with_a_broken_or_unknown_driver_stops_before_any_contact(mixed: Mixed) -> None:
    path = mixed.folder / "inventory.yaml"
    (mixed.folder / "site" / "broken.py").write_text("raise SystemExit(0)\n")
    entry_points = "[imgcache.drivers]\nbroken = broken:Driver\n"
    register(mixed.folder / "site", "imgcache-broken", entry_points)
    path.write_text(path.read_text("utf-8").replace("driver: toy", "driver: broken"), "utf-8")
    done = mixed.run("precache", "--all", "small", code=2)
    assert "inventory.yaml: aggregates.edge: the driver 'broken' cannot be used" in done.stderr
    path.write_text(path.read_text("utf-8").replace("driver: broken", "driver: toi"), "utf-8")
    for argv in (("precache", "small"), ("list",), ("prune",), ("trust", "--dry-run")):
        done = mixed.run(argv[0], "--host", "kvm-1", *argv[1:], code=2)
        assert "inventory.yaml: aggregates.edge: unknown driver 'toi'" in done.stderr
        assert "did you mean toy?" in done.stderr
        assert "glance-cache" in done.stderr
    assert not (mixed.folder / "kvm-1" / "_base").exists()
