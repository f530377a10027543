"""The examples for cron, systemd and CI: parsed, checked by systemd itself, and run for real."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

from imgcache.cli import COMMANDS, load_command
from servers.life_fixtures import DAY, schema

if TYPE_CHECKING:
    from servers.life_fixtures import LifeSite

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
UNITS = sorted(path.name for path in EXAMPLES.glob("imgcache-*.service"))
PROGRAM = Path(sys.executable).with_name("imgcache")


def assert_understood(words: list[str]) -> str:
    """Parse the words of a call as the program itself does; return the command."""
    name, *rest = words[1:]
    assert name in COMMANDS
    load_command(name).make_context(name, rest)
    return name


def shell(line: str, site: LifeSite, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a line in a shell that finds this imgcache and this site's inventory."""
    path = f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["/bin/sh", "-e", "-c", line],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=site.folder,
        stdin=subprocess.DEVNULL,
        env=site.environ(PATH=path, **environ),
    )


# ---------------------------------------------------------------------------------------------------- cron

FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def cron_lines() -> list[tuple[list[str], str, str]]:
    """Return (time fields, user, command) of each line, as cron reads a file of /etc/cron.d."""
    found = []
    for line in (EXAMPLES / "crontab").read_text("utf-8").splitlines():
        if not line.strip() or line.startswith("#") or re.match(r"[A-Z_]+\s*=", line):
            continue
        *times, user, command = line.split(None, 6)
        # Unescaped, a percent sign ends the command.
        assert not re.search(r"(?<!\\)%", command), line
        found.append((times, user, command.replace(r"\%", "%")))
    return found


def assert_cron_field(text: str, low: int, high: int) -> None:
    for part in text.split(","):
        found = re.fullmatch(r"(\*|\d+(?:-\d+)?)(?:/(\d+))?", part)
        assert found, text
        numbers = [int(number) for number in re.findall(r"\d+", found[1])]
        assert all(low <= number <= high for number in numbers), text
        assert numbers == sorted(numbers), text
        assert found[2] is None or 1 <= int(found[2]) <= high, text


def test_the_crontab_is_one_and_its_commands_are_understood() -> None:
    names = []
    for times, user, command in cron_lines():
        for text, (low, high) in zip(times, FIELDS, strict=True):
            assert_cron_field(text, low, high)
        assert re.fullmatch(r"[a-z][a-z0-9_-]*", user)
        names.append(assert_understood(shlex.split(command.partition(" >")[0])))
    assert {"prune", "refresh", "clean"} <= set(names)
    assert (EXAMPLES / "crontab").read_text("utf-8").endswith("\n")


def test_the_crontabs_lines_are_silent_when_all_went_well_and_tell_when_not(life: LifeSite) -> None:
    life.age("rescue", 3 * DAY, "edge1-01")
    assert life.run("pin", "--all", "--forever", "debian-12").returncode == 0
    lines = [
        command.replace("/var/log/imgcache", str(life.folder)) for _, _, command in cron_lines()
    ]
    for line in lines:
        done = shell(line, life)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), line
    assert not life.final("edge1-01", "rescue").exists()
    assert "removed" in (life.folder / "prune.log").read_text("utf-8")

    life.instances("edge1-02").rename(life.folder / "moved")
    prune = next(line for line in lines if " prune " in line)
    done = shell(prune, life)
    assert done.stdout == f"imgcache prune ended with 1, see {life.folder}/prune.log\n"
    assert "nopath" in (life.folder / "prune.log").read_text("utf-8")


# ------------------------------------------------------------------------------------------------- systemd


def unit(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((EXAMPLES / name).read_text("utf-8"))
    return parser


@pytest.mark.parametrize("name", UNITS)
def test_a_service_calls_a_command_that_is_understood_and_has_a_timer(name: str) -> None:
    service = unit(name)["Service"]
    words = shlex.split(service["ExecStart"].replace("%%", "%"))
    assert "%" not in service["ExecStart"].replace("%%", "")
    assert f"imgcache-{assert_understood(words)}.service" == name
    assert service["Type"] == "oneshot"
    assert service["User"] != "root"
    timer = unit(name.replace(".service", ".timer"))
    assert timer["Timer"]["OnCalendar"]
    assert timer["Install"]["WantedBy"] == "timers.target"


def test_there_are_units_for_what_wants_doing_again_and_again() -> None:
    assert UNITS == ["imgcache-clean.service", "imgcache-prune.service", "imgcache-refresh.service"]


def test_systemd_itself_finds_nothing_wrong(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("systemd is not installed")
    paths = []
    for path in sorted(EXAMPLES.glob("imgcache-*.*")):
        text = path.read_text("utf-8").replace("/usr/local/bin/imgcache", sys.executable)
        paths.append(tmp_path / path.name)
        paths[-1].write_text(text, "utf-8")
    done = subprocess.run(
        [analyze, "verify", "--man=no", *paths],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "imgcache" in line]
    assert (done.returncode, ours) == (0, [])


# ------------------------------------------------------------------------------------------------------ CI


def pipeline() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((EXAMPLES / "ci-rollout.yaml").read_text("utf-8"))
    return loaded


def gate(site: LifeSite, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the gate's job as a runner does: its lines in one shell that ends at the first failure."""
    job = pipeline()["warm-caches"]
    given = {**{key: str(value) for key, value in pipeline()["variables"].items()}, **variables}
    return shell("\n".join(job["script"]), site, **given)


def test_the_pipeline_lets_a_rollout_begin_only_behind_the_gate(life: LifeSite) -> None:
    jobs = pipeline()
    assert jobs["rollout"]["needs"] == ["warm-caches"]
    assert jobs["stages"] == ["warm", "rollout"]
    for line in jobs["warm-caches"]["script"]:
        assert_understood(shlex.split(line.partition(" >")[0]))

    # One host lacks it: the first line of the gate changes that.
    assert life.run("list", "--all", "--missing", "rescue").returncode == 5
    done = gate(life, IMAGE="rescue")
    assert done.returncode == 0, done.stderr
    document = json.loads((life.folder / "precache.json").read_text("utf-8"))
    jsonschema.validate(document, schema("precache"))
    assert document["totals"]["cached"] == 1
    assert life.final("edge1-02", "rescue").exists()


def test_the_gate_stays_shut_while_a_host_lacks_the_image_or_cannot_be_asked(
    life: LifeSite,
) -> None:
    assert gate(life, IMAGE="no-such-image").returncode == 4
    life.instances("edge1-02").rename(life.folder / "moved")
    assert gate(life).returncode == 1
    (life.folder / "moved").rename(life.instances("edge1-02"))
    life.final("edge1-02", "debian-12").unlink()
    # Somebody removed it between the two lines.
    second = pipeline()["warm-caches"]["script"][1]
    done = shell(second, life, AGGREGATE="edge-1", IMAGE="debian-12")
    assert done.returncode == 5
    assert "edge1-02" in done.stdout
