"""Windows, deadlines, waves and plans of ``imgcache precache`` as a whole process, on local hosts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from imgcache.config.load import load_inventory
from imgcache.images.directory import DirectoryImageService
from imgcache.operations.precache import PrecacheRequest, plan_precache
from imgcache.operations.selection import Selection
from scenarios.faults_site import wait_until

IMAGE_ID = "6b8e1c3a-9f0d-4a57-8a86-0d8d4c0e9b11"
OTHER_ID = "7c9f2d4b-0a1e-4b68-9b97-1e9e5d1f0c22"
SIZE = 66_000
RESULT = json.loads(Path("docs/schemas/precache.json").read_text("utf-8"))


@dataclass
class Site:
    """An inventory of local hosts in a folder of its own."""

    folder: Path

    def write(self, sites: dict[str, Any] | None = None, hosts: int = 4, broken: int = 0) -> None:
        """Write the inventory: so many hosts, half of them in oslo, half in bergen; the last ones fail."""
        named: dict[str, list[dict[str, str]]] = {"oslo": [], "bergen": []}
        for number in range(hosts):
            path = self.folder / f"host-{number}"
            (path / "_base").mkdir(parents=True, exist_ok=True)
            if number >= hosts - broken:
                path = self.folder / f"missing-{number}"
            host = {"name": f"edge-{number}", "instances_path": str(path)}
            named["oslo" if number % 2 == 0 else "bergen"].append(host)
        document = {
            "image_service": {"kind": "directory", "path": "images"},
            "defaults": {
                "transport": "local", "images_type": "qcow2", "python": sys.executable, "reserve": "0",
            },
            "sites": sites or {},
            "aggregates": {
                name: {"site": name, "hosts": hosts} for name, hosts in named.items() if hosts
            },
        }  # fmt: skip
        (self.folder / "inventory.yaml").write_text(
            yaml.safe_dump(document, sort_keys=False), "utf-8"
        )

    def command(self, *argv: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "imgcache",
            "--inventory",
            "inventory.yaml",
            "precache",
            *argv,
        ]

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*argv),
            capture_output=True, text=True, timeout=120, check=False, cwd=self.folder,
        )  # fmt: skip

    def result(self, *argv: str, code: int) -> dict[str, Any]:
        """Run with ``-f json`` and return the result, which is as its schema says."""
        done = self.run(*argv, "-f", "json")
        assert done.returncode == code, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        jsonschema.validate(document, RESULT)
        return document


@pytest.fixture
def site(tmp_path: Path) -> Site:
    images = tmp_path / "images"
    images.mkdir()
    entries = []
    for name, image_id in (("small", IMAGE_ID), ("other", OTHER_ID)):
        (images / f"{name}.raw").write_bytes(name.encode()[:5].ljust(5) * (SIZE // 5))
        entries.append({"id": image_id, "name": name, "file": f"{name}.raw", "disk_format": "raw"})
    (images / "images.yaml").write_text(yaml.safe_dump({"images": entries}), "utf-8")
    made = Site(tmp_path)
    made.write()
    return made


def window(begins: float, ends: float) -> str:
    """Return a window by hours from now."""
    now = datetime.now(UTC)
    first, last = (now + timedelta(hours=hours) for hours in (begins, ends))
    return f"{first:%H:%M}-{last:%H:%M} UTC"


def codes(document: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    return {one["host"]: (one["outcome"], one["code"]) for one in document["outcomes"]}


# ----------------------------------------------------------------------------------------------- windows


def test_a_closed_window_that_is_not_waited_for_ends_with_5_and_touches_no_host(site: Site) -> None:
    document = site.result("--all", "small", "--window", window(2, 3), "--no-wait", code=5)
    assert set(codes(document).values()) == {("skipped", "window")}
    assert document["plan"] == []
    assert not list(site.folder.glob("host-*/_base/*"))


def test_a_site_whose_window_is_closed_leaves_the_others_alone(site: Site) -> None:
    text = window(2, 3).removesuffix(" UTC")
    site.write({"oslo": {"window": text, "timezone": "UTC"}})
    document = site.result("--all", "small", "--no-wait", code=5)
    assert codes(document) == {
        "edge-0": ("skipped", "window"), "edge-2": ("skipped", "window"),
        "edge-1": ("cached", None), "edge-3": ("cached", None),
    }  # fmt: skip
    # Nobody has looked at oslo's hosts: they are not "not reached".
    assert [one["site"] for one in document["plan"]] == ["bergen"]


def test_an_open_window_is_no_hindrance_and_is_in_the_plan(site: Site) -> None:
    document = site.result("--all", "small", "--window", window(-1, 2), code=0)
    assert set(codes(document).values()) == {("cached", None)}
    assert document["coverage"] == 1
    oslo, bergen = document["plan"]
    assert (oslo["site"], bergen["site"]) == ("oslo", "bergen")
    assert (oslo["hosts"], oslo["cold"], oslo["warm"]) == (2, 2, 0)
    assert oslo["opens_at"] is None
    assert oslo["ends_at"]
    assert 3600 < oslo["available_s"] < 2 * 3600
    assert oslo["bytes_per_s"] is None
    assert oslo["fits"] is None


@pytest.mark.row("C1")
def test_it_tells_until_when_it_waits_and_can_be_interrupted(site: Site) -> None:
    text = window(2, 3)
    command = [
        *site.command("--all", "small", "--window", text, "-f", "json"),
        "--log-file",
        "run.log",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=site.folder
    ) as process:
        log = site.folder / "run.log"
        try:
            wait_until(lambda: log.exists() and "waits: the window of" in log.read_text("utf-8"))
            # Not SIGINT, which stays ignored below a shell's background job.
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 143, err
    assert "site oslo waits for its window, which opens at " in err
    assert f"{text[:5]} (UTC)" in err
    assert "waits: a first look at 4 hosts" in log.read_text("utf-8")
    assert set(codes(json.loads(out)).values()) == {("skipped", "interrupted")}


# ----------------------------------------------------------------------------------------- plan and limits


def test_a_plan_that_cannot_fit_is_refused_unless_partial(site: Site) -> None:
    site.write({"oslo": {"bandwidth": "8kbit/s"}})
    done = site.run("--all", "small", "--deadline", "60s", "--source", "push")
    assert done.returncode == 3, done.stderr
    # Two copies of the image at 1000 bytes a second, headers included.
    assert "site oslo: 132 kB at 1.00 kB/s take 2m 18s, and until " in done.stderr
    assert " there are 59s" in done.stderr or " there are 1m 0s" in done.stderr
    assert "--partial" in done.stderr
    assert "bergen: 132" not in done.stderr
    limits = ("--all", "small", "--deadline", "60s", "--source", "push")
    document = site.result(*limits, "--dry-run", code=3)
    assert [one["fits"] for one in document["plan"]] == [False, None]
    site.result(*limits, "--dry-run", "--partial", code=0)
    assert not list(site.folder.glob("host-*/_base/*"))


def test_a_relay_brings_one_copy_per_site(site: Site) -> None:
    site.write({"oslo": {"bandwidth": "100Mbit/s"}})
    document = site.result("--all", "small", "other", "--dry-run", code=0)
    plans = {one["site"]: one for one in document["plan"]}
    assert plans["oslo"]["bytes_outside"] == plans["bergen"]["bytes_outside"] == 2 * SIZE
    assert plans["oslo"]["bytes_per_s"] == 12_500_000
    assert plans["oslo"]["expected_s"] == round(2 * SIZE / 12_500_000, 3)
    assert (plans["bergen"]["bytes_per_s"], plans["bergen"]["expected_s"]) == (None, None)
    assert plans["oslo"]["fits"] is True
    assert {one["reason"] for one in document["outcomes"]} == {
        f"dry run: would be fetched, {SIZE} bytes by relay from a host of its site, or push"
    }
    two = site.result("--all", "small", "--seeds", "2", "--dry-run", code=0)
    assert two["plan"][0]["bytes_outside"] == 2 * SIZE
    pushed = site.result(
        "--all", "small", "--source", "push", "--rate-limit", "1M", "--dry-run", code=0
    )
    assert pushed["plan"][0]["bytes_outside"] == 2 * SIZE
    assert pushed["outcomes"][0]["reason"].endswith("bytes by push")
    assert pushed["plan"][0]["bytes_per_s"] == 2_000_000


def test_the_plan_line_tells_warm_cold_and_what_is_wrong(site: Site) -> None:
    site.write({"oslo": {"bandwidth": "100Mbit/s"}}, broken=1)
    assert site.run("--host", "edge-0", "small").returncode == 0
    done = site.run("--all", "small")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "from outside" in line]
    assert lines[0] == (
        "imgcache: site oslo: 2 hosts: 1 has all, 1 lacks images; 66.0 kB from outside, about 0.0s at "
        "12.5 MB/s"
    )
    assert "site bergen: 2 hosts: 1 lacks images, 1 in other trouble" in lines[1]


def test_a_timeout_that_is_too_short_for_the_link_is_told_before(site: Site) -> None:
    site.write({"oslo": {"bandwidth": "80kbit/s"}})
    limits = ("--all", "small", "other", "--source", "push", "--dry-run")
    done = site.run(*limits, "--timeout", "20s")
    assert done.returncode == 0
    # Two hosts at a time, of two images each, at 10,000 bytes a second.
    said = (
        "site oslo: a host needs 28s at this rate, and --timeout ends it after 20s (raise it; else "
    )
    assert said in done.stderr
    assert "bergen: a host needs" not in done.stderr
    assert "a host needs" not in site.run(*limits, "--timeout", "30s").stderr


def test_without_limits_no_host_is_looked_at_first(site: Site) -> None:
    assert site.result("--all", "small", code=0)["plan"] is None


def test_a_deadline_leaves_time_and_one_in_the_past_is_refused(site: Site) -> None:
    assert (
        site.result("--all", "small", "--deadline", "2h", code=0)["plan"][0]["available_s"] > 7000
    )
    done = site.run("--all", "small", "--deadline", "2020-01-01T05:00")
    assert done.returncode == 2
    assert "is in the past" in done.stderr


def test_hosts_that_lack_the_room_are_told(site: Site) -> None:
    site.write({"oslo": {"bandwidth": "1Mbit/s"}})
    inventory = (site.folder / "inventory.yaml").read_text("utf-8")
    (site.folder / "inventory.yaml").write_text(
        inventory.replace("reserve: '0'", "reserve: 900TB"), "utf-8"
    )
    document = site.result("--all", "small", "--dry-run", code=1)
    assert [one["no_room"] for one in document["plan"]] == [2, 2]
    assert [one["bytes_outside"] for one in document["plan"]] == [0, 0]


# -------------------------------------------------------------------------------------------- in which order


def test_canary_waves_and_failures(site: Site) -> None:
    site.write(hosts=6, broken=2)
    document = site.result(
        "--all", "small", "--canary", "1", "--wave", "2", "--max-failures", "0", "--concurrency", "1",
        code=1,
    )  # fmt: skip
    found = codes(document)
    assert ("cached", None) in found.values()
    assert sum(outcome == "error" for outcome, _ in found.values()) == 1
    halted = [one for one in document["outcomes"] if one["code"] == "halted"]
    assert halted[0]["reason"] == "not begun: 1 host has failed, --max-failures allows 0"


def test_too_little_coverage_ends_with_5(site: Site) -> None:
    assert site.run("--host", "edge-[0-1]", "small").returncode == 0
    document = site.result("--all", "small", "--dry-run", "--min-coverage", "75%", code=5)
    assert document["coverage"] == 0.5
    site.result("--all", "small", "--dry-run", "--min-coverage", "50%", code=0)
    site.write(broken=1)
    site.result("--all", "small", "--min-coverage", "75%", code=1)


def test_only_what_failed_in_an_earlier_run(site: Site) -> None:
    site.write(hosts=4, broken=1)
    done = site.run("--all", "small", "other", "-f", "json", "--column", "host")
    site.folder.joinpath("columns.json").write_text(done.stdout, "utf-8")
    first = site.run("--all", "small", "other", "-f", "json")
    assert first.returncode == 1
    site.folder.joinpath("run.json").write_text(first.stdout, "utf-8")
    site.write(hosts=4)
    again = site.result("--limit-failed", "run.json", code=0)
    items = {(one["host"], one["image_name"], one["outcome"]) for one in again["outcomes"]}
    assert items == {("edge-3", "small", "cached"), ("edge-3", "other", "cached")}
    one = site.result("--limit-failed", "run.json", "--all", "small", code=0)
    assert codes(one) == {"edge-3": ("existing", None)}
    elsewhere = site.run("--limit-failed", "run.json", "--host", "edge-0", "small")
    assert elsewhere.returncode == 2
    assert "none of the selected hosts has failed there" in elsewhere.stderr
    narrow = {"outcomes": [json.loads(first.stdout)["outcomes"][-1]], "command": "precache"}
    site.folder.joinpath("narrow.json").write_text(json.dumps(narrow), "utf-8")
    other_image = "small" if narrow["outcomes"][0]["image_name"] == "other" else "other"
    nothing = site.run("--limit-failed", "narrow.json", other_image)
    assert nothing.returncode == 2
    assert "none of these images has failed" in nothing.stderr
    excluded = site.run("--limit-failed", "run.json", "--exclude", "edge-3")
    assert "none of the selected hosts has failed there" in excluded.stderr
    columns = site.run("--limit-failed", "columns.json")
    assert columns.returncode == 2
    assert "without --column" in columns.stderr


def test_excluded_hosts_are_not_even_asked_for_what_they_have(site: Site) -> None:
    inventory = load_inventory(site.folder / "inventory.yaml")
    selection = Selection(hosts=("edge-0",), exclude=("edge-[1-2]",))
    with closing(DirectoryImageService(site.folder / "images")) as service:
        request = PrecacheRequest(selection=selection, names=("small",))
        plan = plan_precache(request, inventory, service)
    assert [host.name for host in plan.neighbours] == ["edge-0", "edge-3"]


def test_a_host_that_is_not_in_the_inventory_any_more(site: Site) -> None:
    document = {
        "command": "precache",
        "outcomes": [
            {"host": "gone-1", "image_id": IMAGE_ID, "outcome": "error", "code": "connect"}
        ],
    }
    (site.folder / "run.json").write_text(json.dumps(document), "utf-8")
    done = site.run("--limit-failed", "run.json")
    assert done.returncode == 2
    assert "host 'gone-1' is not in the inventory" in done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"),
        ("\x00\x1b[31m", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not the result of a precache run"),
        ('{"command": "verify", "outcomes": []}', "is not the result of a precache run"),
        ('{"command": "precache"}', "has no list of outcomes"),
        ('{"command": "precache", "outcomes": []}', "nothing has failed there"),
        ('{"command": "precache", "outcomes": [7]}', "outcomes[0] is not an outcome"),
        (
            '{"command":"precache","outcomes":[{"host":"a","image_id":"b","outcome":["error"],"code":{}}]}',
            "outcomes[0] is not an outcome",
        ),
        (
            '{"command":"precache","outcomes":[{"host":"a","image_id":"b","outcome":"cached","code":[]}]}',
            "outcomes[0] is not an outcome",
        ),
    ],
)
def test_files_that_are_no_earlier_result(site: Site, content: str, said: str) -> None:
    (site.folder / "run.json").write_text(content, "utf-8")
    done = site.run("--limit-failed", "run.json")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "\x1b" not in done.stderr


def test_special_files_are_no_earlier_result(site: Site) -> None:
    os.mkfifo(site.folder / "run.json")
    done = site.run("--limit-failed", "run.json")
    assert done.returncode == 2
    assert "is not a regular file" in done.stderr


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--window", "22-05"], "is not a window such as 22:00-05:00"),
        (["--wave", "0"], "write a number of hosts above 0"),
        (["--wave", "150%"], "write a number of hosts above 0"),
        (["--max-failures", "200%"], "is more than all hosts"),
        (["--max-failures", "x"], "neither a number of hosts nor a share"),
        (["--min-coverage", "0%"], "is not a share"),
        (["--rate-limit", "100Mb/s"], "is not a rate"),
        (["--deadline", "soon"], "is no deadline"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_values_that_make_no_sense(site: Site, argv: list[str], said: str) -> None:
    done = site.run("--all", "small", *argv)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.row("S8")
def test_a_host_that_the_first_look_did_not_reach_is_not_tried_again(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    site.write({"oslo": {"bandwidth": "100Mbit/s"}}, hosts=2)
    path = site.folder / "inventory.yaml"
    inventory = yaml.safe_load(path.read_text("utf-8"))
    dead = {
        "name": "dead",
        "transport": "ssh",
        "address": "127.0.0.1",
        "port": port,
        "user": "nova",
    }
    inventory["aggregates"]["oslo"]["hosts"].append(dead)
    path.write_text(yaml.safe_dump(inventory, sort_keys=False), "utf-8")
    limits = ("--all", "small", "--max-failures", "0", "--log-file", "run.log")
    document = site.result(*limits, code=1)
    assert [one["not_reached"] for one in document["plan"]] == [1, 0]
    found = codes(document)
    assert found.pop("dead")[0] == "error"
    assert set(found.values()) == {("skipped", "halted")}
    log = (site.folder / "run.log").read_text("utf-8")
    assert log.count("host=dead small: error") == 1
    assert "host=dead started" not in log
    allowed = site.result("--all", "small", "--max-failures", "1", "--canary", "1", code=1)
    assert set(codes(allowed).values()) == {found_code(document, "dead"), ("cached", None)}


def found_code(document: dict[str, Any], host: str) -> tuple[str, str | None]:
    return codes(document)[host]
