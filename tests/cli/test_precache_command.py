"""`imgcache precache` as a whole process: the directory service, and hosts that are this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest
import yaml

IMAGE_ID = "6b8e1c3a-9f0d-4a57-8a86-0d8d4c0e9b11"
RESULT = json.loads(Path("docs/schemas/precache.json").read_text("utf-8"))
ERROR = json.loads(Path("docs/schemas/error.json").read_text("utf-8"))


@dataclass
class Site:
    """An inventory in a folder of its own."""

    folder: Path

    def run(self, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "imgcache", "--inventory", "inventory.yaml", *argv],
            capture_output=True, text=True, timeout=120, check=False, cwd=self.folder,
            env={**os.environ, **environ},
        )  # fmt: skip


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Three hosts, the third without an instances path."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "small.raw").write_bytes(b"not an image of any known format\n" * 2000)
    entry = {"id": IMAGE_ID, "name": "small", "file": "small.raw", "disk_format": "raw"}
    (images / "images.yaml").write_text(yaml.safe_dump({"images": [entry]}), "utf-8")
    for number in (1, 2):
        (tmp_path / f"host-{number}" / "_base").mkdir(parents=True)
    inventory = {
        "image_service": {"kind": "directory", "path": "images"},
        "defaults": {"transport": "local", "images_type": "qcow2", "python": sys.executable},
        "aggregates": {
            "edge-1": {
                "hosts": [
                    {
                        "name": f"edge1-{number:02}",
                        "instances_path": str(tmp_path / f"host-{number}"),
                    }
                    for number in (1, 2, 3)
                ]
            }
        },
    }
    (tmp_path / "inventory.yaml").write_text(yaml.safe_dump(inventory), "utf-8")
    return Site(tmp_path)


def test_a_table_on_standard_output_and_all_else_on_standard_error(site: Site) -> None:
    done = site.run("precache", "--host", "edge1-[01-02]", "small")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "HOST           IMAGE NAME  OUTCOME  CODE  REASON\n"
        "edge1-[01-02]  small       cached\n"
    )  # fmt: skip
    assert done.stderr.startswith("imgcache: done in ")
    assert ": 2 cached; 132 kB fetched; run " in done.stderr

    again = site.run("precache", "--aggregate", "edge-1", "--exclude", "edge1-03", IMAGE_ID)
    assert again.returncode == 0
    assert again.stdout.splitlines()[1].split()[:3] == ["edge1-[01-02]", "small", "existing"]


def test_json_is_as_its_schema_says_and_a_failed_item_ends_with_1(site: Site) -> None:
    done = site.run("precache", "--all", "small", "-f", "json", "--log-file", "run.log")
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, RESULT)
    assert {one["host"]: (one["outcome"], one["code"]) for one in document["outcomes"]} == {
        "edge1-01": ("cached", None),
        "edge1-02": ("cached", None),
        "edge1-03": ("error", "nopath"),
    }
    assert document["totals"]["cached"] == 2
    log = (site.folder / "run.log").read_text("utf-8")
    assert log.count(f"run={document['run_id']} ") >= 5
    assert " ERROR " in log


def test_quiet_says_nothing_but_the_result(site: Site) -> None:
    done = site.run("precache", "--all", "small", "-q", "-f", "value", "-c", "outcome")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == "cached\ncached\nerror\n"


def test_a_dry_run_changes_nothing(site: Site) -> None:
    done = site.run("precache", "--host", "edge1-01", "small", "--dry-run", "-f", "json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)["outcomes"][0]
    assert (outcome["outcome"], outcome["code"]) == ("skipped", "dry-run")
    assert list((site.folder / "host-1" / "_base").iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--all", "smal", "nothing"], 4, ["smal", "nothing", "small"]),
        (["--aggregate", "edge-2", "small"], 2, ["edge-2", "edge-1"]),
        (["--host", "edge1-04", "small"], 2, ["edge1-04"]),
        (["small"], 2, ["no hosts selected", "--all"]),
    ],
)
def test_bad_input_is_told_and_nothing_is_done(
    site: Site, argv: list[str], code: int, said: list[str]
) -> None:
    done = site.run("precache", *argv, "-f", "json")
    assert (done.returncode, done.stdout) == (code, "")
    document = json.loads(done.stderr.splitlines()[-1])
    jsonschema.validate(document, ERROR)
    assert document["error"]["exit_code"] == code
    for word in said:
        assert word in done.stderr
    assert list((site.folder / "host-1" / "_base").iterdir()) == []


def test_an_unusable_inventory_ends_with_2(site: Site) -> None:
    (site.folder / "inventory.yaml").write_text("aggregatess: {}\nimage_service: 5\n", "utf-8")
    done = site.run("precache", "--all", "small", "-f", "json")
    assert (done.returncode, done.stdout) == (2, "")
    problems = json.loads(done.stderr.splitlines()[-1])["error"]["problems"]
    assert len(problems) >= 2
    assert problems[0]["where"].startswith("inventory.yaml:1:1")


@pytest.mark.row("C2")
def test_a_reader_that_went_away_does_not_change_the_end(site: Site) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "imgcache", "--inventory", "inventory.yaml", "precache", "--all", "small"],
        stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, check=False, cwd=site.folder,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr
