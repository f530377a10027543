"""Runs that are ended: by the operator, by signals, by death on either side; and the runs after them."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from imgcache.operations import host_run
from scenarios.faults_rig import Rig
from scenarios.faults_site import (
    ScriptedGlance,
    helpers_below,
    kill,
    local_fleet,
    outcomes,
    scripted_glance,
    staging_files,
    started,
    stuck_python,
    wait_until,
)
from servers import misbehaving_http as http
from servers.fleet_fixtures import add_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers.fleet_fixtures import Fleet

DATA = os.urandom(2_000_000)
HALF = 1_400_000
PUSHED_ID = "11111111-2222-4333-8444-000000000001"


@pytest.fixture
def glance() -> Iterator[ScriptedGlance]:
    with scripted_glance() as running:
        yield running


@pytest.fixture
def site(glance: ScriptedGlance, tmp_path: Path) -> Fleet:
    """One local host."""
    return local_fleet(tmp_path, glance.settings)


def assert_clean_and_rerun_works(fleet: Fleet, image_id: str, name: str = "edge1-01") -> None:
    """Within 20 s nobody is at work; the next run needs no help, and the one after it moves nothing.

    What came stays for the next run, with a journal that says what it is.
    """
    wait_until(lambda: not any(is_held(path) for path in fleet.leftovers(name)), 20)
    left = fleet.leftovers(name)
    assert all(path.endswith(".staging") and Path(f"{path}.json").exists() for path in left), left
    assert len(left) <= 1
    assert not fleet.final(name, image_id).exists()
    again = fleet.run("precache", "--host", name, image_id, "-f", "json")
    assert again.returncode == 0, again.stderr
    assert [one["outcome"] for one in outcomes(again.stdout)] == ["cached"]
    assert fleet.final(name, image_id).read_bytes() == DATA
    third = fleet.run("precache", "--host", name, image_id, "-f", "json")
    assert [(one["outcome"], one["bytes_fetched"]) for one in outcomes(third.stdout)] == [
        ("existing", 0)
    ]
    assert not fleet.leftovers(name)


def is_held(path: str) -> bool:
    """Whether a helper that lives holds a staging file."""
    try:
        with open(path, "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@pytest.mark.row("C2")
@pytest.mark.row("C1")
@pytest.mark.parametrize(("name", "status"), [("INT", 130), ("TERM", 143), ("HUP", 143)])
def test_a_signal_in_mid_download(
    site: Fleet, glance: ScriptedGlance, name: str, status: int
) -> None:
    image_id = glance.add(DATA, http.stall_after(HALF), http.serve())
    with started(site, "precache", "--all", image_id, "-f", "json") as process:
        wait_until(lambda: [one for one in staging_files(site) if one.stat().st_size])
        began = time.monotonic()
        process.send_signal(getattr(signal, f"SIG{name}"))
        stdout, stderr = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert process.returncode == status
    assert [(one["outcome"], one["code"]) for one in outcomes(stdout)] == [
        ("unknown", "interrupted")
    ]
    assert "Traceback" not in stderr
    assert_clean_and_rerun_works(site, image_id)


@pytest.mark.row("C1")
def test_a_second_ctrl_c_ends_it_at_once(site: Fleet, tmp_path: Path) -> None:
    site.image_service = {"kind": "directory", "path": "images"}
    add_image(tmp_path / "images", PUSHED_ID, "raw", DATA)
    site.defaults["python"] = stuck_python(tmp_path)
    with started(site, "precache", "--all", "raw", "-f", "json") as process:
        wait_until(lambda: staging_files(site))
        time.sleep(0.5)  # the push is stuck by then
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None  # winding up: the host takes its time
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert time.monotonic() - began < 1.5
    assert process.returncode == 130
    site.defaults["python"] = sys.executable
    assert_clean_and_rerun_works(site, PUSHED_ID)


@pytest.mark.row("C2")
@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", ">/dev/full", "| true"])
def test_streams_that_are_closed_or_full(
    site: Fleet, glance: ScriptedGlance, redirection: str
) -> None:
    image_id = glance.add(DATA)
    command = " ".join(site.command("precache", "--all", image_id, "--log-file", "log"))
    done = subprocess.run(
        ["/bin/sh", "-c", f"{command} {redirection}"],
        capture_output=True, text=True, timeout=60, check=False, cwd=site.folder, env=os.environ,
    )  # fmt: skip
    assert done.returncode in {0, 1}
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert site.final("edge1-01", image_id).read_bytes() == DATA
    assert not site.leftovers("edge1-01")


@pytest.mark.row("C2")
def test_the_terminal_is_closed(site: Fleet, glance: ScriptedGlance, tmp_path: Path) -> None:
    image_id = glance.add(DATA, http.stall_after(HALF), http.serve())
    ours, theirs = os.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    log = tmp_path / "log"
    argv = ("precache", "--all", image_id, "--log-file", str(log))
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "preexec_fn": take_terminal}
    with started(site, *argv, **streams) as process:
        os.close(theirs)
        wait_until(lambda: [one for one in staging_files(site) if one.stat().st_size])
        os.close(ours)  # the kernel sends SIGHUP, and every write fails from now on
        process.wait(30)
    assert process.returncode == 143
    assert "Traceback" not in log.read_text()
    assert_clean_and_rerun_works(site, image_id)


@pytest.mark.row("C3")
@pytest.mark.row("H20")
@pytest.mark.sshd
def test_the_controller_is_killed_in_mid_download(fleet: Fleet, glance: ScriptedGlance) -> None:
    image_id = glance.add(DATA, http.stall_after(HALF), http.serve())
    fleet.image_service = glance.settings
    with started(fleet, "precache", "--host", "edge1-01", image_id) as process:
        wait_until(lambda: [one for one in staging_files(fleet) if one.stat().st_size])
        process.kill()
        process.wait()
    assert_clean_and_rerun_works(fleet, image_id)


@pytest.mark.row("C3")
@pytest.mark.row("H20")
@pytest.mark.sshd
def test_the_controller_is_killed_in_mid_push(fleet: Fleet, tmp_path: Path) -> None:
    add_image(tmp_path / "images", PUSHED_ID, "raw", DATA)
    fleet.defaults["python"] = stuck_python(tmp_path)
    with started(fleet, "precache", "--host", "edge1-01", "raw") as process:
        wait_until(lambda: [one for one in staging_files(fleet) if one.stat().st_size])
        process.kill()
        process.wait()
    fleet.defaults["python"] = sys.executable
    assert_clean_and_rerun_works(fleet, PUSHED_ID)


@pytest.mark.row("H20")
@pytest.mark.sshd
def test_the_connection_is_lost_in_mid_download(fleet: Fleet, glance: ScriptedGlance) -> None:
    image_id = glance.add(DATA, http.stall_after(HALF), http.serve())
    fleet.image_service = glance.settings
    argv = ("precache", "--host", "edge1-01", image_id, "--retries", "0", "-f", "json")
    with started(fleet, *argv) as process:
        wait_until(lambda: [one for one in staging_files(fleet) if one.stat().st_size])
        assert fleet.server._process
        for pid in _sessions_of(fleet.server._process.pid):
            kill(pid)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 1, stderr
    assert [(one["outcome"], one["code"]) for one in outcomes(stdout)] == [("unknown", "lost")]
    assert_clean_and_rerun_works(fleet, image_id)


def _sessions_of(listener: int) -> list[int]:
    """Return the processes of sshd's connections, without what they started."""
    found, todo = [], [listener]
    while todo:
        children = Path(f"/proc/{todo[0]}/task/{todo.pop(0)}/children").read_text().split()
        for pid in map(int, children):
            if Path(f"/proc/{pid}/comm").read_text().startswith("sshd"):
                found.append(pid)
                todo.append(pid)
    return found


@pytest.mark.row("C5")
def test_few_file_descriptors_lower_the_parallelism(glance: ScriptedGlance, tmp_path: Path) -> None:
    site = local_fleet(tmp_path, glance.settings, hosts=12)
    image_id = glance.add(DATA)
    command = " ".join(
        site.command("precache", "--all", image_id, "-f", "json", "--concurrency", "100")
    )
    done = subprocess.run(
        ["/bin/sh", "-c", f"ulimit -n 64; exec {command}"],
        capture_output=True, text=True, timeout=100, check=False, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {one["outcome"] for one in outcomes(done.stdout)} == {"cached"}
    assert "ulimit -n" in done.stderr


@pytest.mark.row("H18")
def test_two_runs_at_once_for_the_same_host_and_image(site: Fleet, glance: ScriptedGlance) -> None:
    gate = threading.Event()

    def wait_for_gate(exchange: http.Exchange) -> None:
        gate.wait(30)
        http.serve()(exchange)

    # Each of the two looks at the file before a host is contacted.
    image_id = glance.add(DATA, http.serve(), wait_for_gate)
    argv = ("precache", "--all", image_id, "-f", "json")
    with started(site, *argv) as one, started(site, *argv) as two:
        wait_until(lambda: len(staging_files(site)) == 1 and glance.file_requests() == 1)
        wait_until(lambda: len(helpers_below(one.pid) + helpers_below(two.pid)) == 2)
        time.sleep(1)
        gate.set()
        answers = [process.communicate(timeout=60) for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], answers
    words = sorted(row["outcome"] for stdout, _ in answers for row in outcomes(stdout))
    assert words == ["cached", "existing"]
    assert glance.file_requests() == 1
    assert site.final("edge1-01", image_id).read_bytes() == DATA
    assert not site.leftovers("edge1-01")


def _kill_helpers_at_random(rig: Rig, data: bytes, times: int) -> int:
    """Kill the helper at random moments of fetches; return how often it was in the middle of one."""
    dice = random.Random(os.environ.get("IMGCACHE_TEST_SEED") or os.urandom(8))
    lost = 0
    for number in range(1, times + 1):
        host = rig.host(number)
        policy: Any = dice.choice(["service", "push"])

        async def attack(host: Any = host, policy: Any = policy) -> Any:
            run = asyncio.create_task(rig.execute(host, policy=policy, retries=0))
            while not run.done() and not (found := helpers_below(os.getpid())):  # noqa: ASYNC110 - procfs
                await asyncio.sleep(0.002)
            await asyncio.sleep(dice.uniform(0, 0.35))
            for pid in found:
                kill(pid)
            return await run

        (outcome,) = asyncio.run(attack())
        final = rig.final(rig.images[0], number)
        assert outcome.outcome in {"cached", "unknown", "error"}, outcome
        assert not final.exists() or final.read_bytes() == data
        assert outcome.outcome != "cached" or final.exists()
        lost += outcome.outcome != "cached"
        (again,) = rig.run(host, policy=policy)
        assert again.outcome in {"cached", "existing"}, again
        assert final.read_bytes() == data
        assert final.stat().st_nlink == 1
        left = [name for name in rig.leftovers() if not name.endswith(".new")]
        assert left == []
    return lost


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(host_run, "FIRST_BACK_OFF_S", 0.01)
    (tmp_path / "hosts").mkdir()
    with http.HttpServer() as server:
        yield Rig(tmp_path / "hosts", server)


@pytest.mark.row("H19")
@pytest.mark.row("T8")
def test_helpers_killed_at_random_moments(rig: Rig) -> None:
    data = os.urandom(6_000_000)
    rig.add(data)
    _kill_helpers_at_random(rig, data, 8)


@pytest.mark.long
@pytest.mark.row("H19")
@pytest.mark.row("T8")
def test_helpers_killed_at_200_random_moments(rig: Rig) -> None:
    data = os.urandom(6_000_000)
    rig.add(data)
    assert _kill_helpers_at_random(rig, data, 200) > 50


@pytest.mark.row("H19")
def test_a_killed_helper_is_replaced_within_the_run(rig: Rig) -> None:
    image = rig.add(DATA, http.stall_after(HALF), http.serve())

    async def attack() -> Any:
        run = asyncio.create_task(rig.execute(retries=1))
        # Not before bytes have come: it is this request that stalls, and no later one.
        while not any(path.stat().st_size for path in rig.folder.rglob("*.staging")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for pid in helpers_below(os.getpid()):
            kill(pid)
        return await run

    (outcome,) = asyncio.run(attack())
    assert outcome.outcome == "cached", outcome
    assert rig.final(image).read_bytes() == DATA
    assert rig.leftovers() == []
