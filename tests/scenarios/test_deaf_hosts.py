"""Hosts that read nothing of what they are sent: they cost the others no time, and the run ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from servers.ssh_server import ssh_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DEAF = tuple(f"deaf-{number:02}" for number in range(10))
GOOD = ("good-1", "good-2", "good-3")

COMMANDS = (
    ("check", "--all"),
    ("list", "--all"),
    ("prune", "--all", "--dry-run"),
    ("clean", "--all", "--dry-run"),
)


@asynccontextmanager
async def fleet(folder: Path) -> AsyncIterator[Path]:
    """Serve the hosts, real good ones last; give the inventory."""
    sleeper = folder / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 100\n")
    sleeper.chmod(0o755)
    async with (
        ssh_server(folder / "deaf", window=16384, reads=False) as deaf,
        ssh_server(folder / "good") as good,
    ):
        hosts = [
            # Half of them are deaf as a server, half have a helper that never reads.
            _host(folder, name, deaf if number % 2 else good, str(sleeper))
            for number, name in enumerate(DEAF)
        ]
        hosts += [_host(folder, name, good, sys.executable) for name in GOOD]
        (folder / "images").mkdir()
        (folder / "images" / "images.yaml").write_text("images: []\n")
        path = folder / "inventory.yaml"
        document = {
            "image_service": {"kind": "directory", "path": "images"},
            "defaults": {"user": "nova", "images_type": "qcow2", "reserve": 0},
            "aggregates": {"edge-1": {"hosts": hosts}},
        }
        path.write_text(yaml.safe_dump(document))
        path.chmod(0o600)
        yield path


def _host(folder: Path, name: str, server: Any, python: str) -> dict[str, Any]:
    (folder / name / "_base").mkdir(parents=True)
    return {
        "instances_path": str(folder / name),
        "name": name,
        "address": "127.0.0.1",
        "port": server.port,
        "ssh_key": str(server.client_key),
        "known_hosts": str(server.known_hosts),
        "python": python,
    }


async def started(inventory: Path, *argv: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "imgcache", "--inventory", str(inventory), *argv,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=dict(os.environ),
    )  # fmt: skip


@pytest.mark.row("S7")
@pytest.mark.row("S8")
def test_ten_hosts_that_read_nothing_delay_nobody_in_check_list_prune_and_clean(
    tmp_path: Path,
) -> None:
    async def main() -> list[tuple[int | None, str, str]]:
        async with fleet(tmp_path) as inventory:
            runs = [
                await started(inventory, *argv, "--concurrency", "2", "-f", "json")
                for argv in COMMANDS
            ]
            said = await asyncio.wait_for(asyncio.gather(*(one.communicate() for one in runs)), 100)
            return [
                (run.returncode, out.decode(), err.decode())
                for run, (out, err) in zip(runs, said, strict=True)
            ]

    began = time.monotonic()
    for (command, *_), (status, out, err) in zip(COMMANDS, asyncio.run(main()), strict=True):
        assert status == (5 if command == "check" else 1), (command, out, err)
        document = json.dumps(json.loads(out))
        # Good hosts are named where they have rows: nothing is to be pruned or cleaned there.
        expected = DEAF + (GOOD if command in {"check", "list"} else ())
        assert [name for name in expected if f'"{name}"' not in document] == [], (command, out)
        assert document.count("did not answer within 15 s") >= len(DEAF), (command, out)
    # One after the other, or two by two, they would take a minute and more.
    assert time.monotonic() - began < 60


@pytest.mark.row("C1")
def test_a_signal_ends_a_run_at_once_whose_hosts_read_nothing(tmp_path: Path) -> None:
    async def main() -> tuple[int | None, float]:
        async with fleet(tmp_path) as inventory:
            run = await started(inventory, "check", "--all")
            await asyncio.sleep(6)  # all are waited for by then
            began = time.monotonic()
            run.send_signal(signal.SIGTERM)
            _, err = await asyncio.wait_for(run.communicate(), 30)
            assert b"Traceback" not in err
            return run.returncode, time.monotonic() - began

    status, took_s = asyncio.run(main())
    assert status == 143
    assert took_s < 8
