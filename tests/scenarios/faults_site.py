"""Whole processes whose hosts are this machine: a Glance that follows a script, or a folder of images."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from servers.fleet_fixtures import Fleet
from servers.misbehaving_http import HttpServer, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servers.misbehaving_http import Behaviour

IMAGE_ID = "22222222-3333-4444-8555-000000000001"


def local_fleet(folder: Path, image_service: dict[str, Any], hosts: int = 1) -> Fleet:
    """Return a fleet without sshd: each host is this machine, with its own instances path."""
    names = tuple(f"edge1-{number:02}" for number in range(1, hosts + 1))
    nobody = SimpleNamespace(
        addresses=[None] * hosts, user=None, port=None, client_key=None, known_hosts=None
    )
    defaults = {"transport": "local", "ssh_key": None, "known_hosts": None}
    fleet = Fleet(folder, nobody, image_service, names, defaults=defaults)  # type: ignore[arg-type]
    for name in names:
        fleet.instances(name).mkdir(parents=True)
    return fleet


class _Routes(dict[str, Any]):
    """Finds a route without the query as well."""

    def get(self, target: str, default: Any = None) -> Any:
        return super().get(target) or super().get(target.partition("?")[0], default)


class ScriptedGlance:
    """Glance as far as a run needs it: true records, and files sent as a script says."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        server._routes = _Routes()
        self._records: list[dict[str, Any]] = []

    @property
    def settings(self) -> dict[str, Any]:
        """The inventory's ``image_service``."""
        return {"kind": "glance", "endpoint": self.server.url}

    def add(self, data: bytes, *script: Behaviour, name: str = "img", **changes: Any) -> str:
        """Add an image; the first answer, to the controller's look at the file, is a good one."""
        image_id = IMAGE_ID[:-1] + str(len(self._records) + 1)
        record = {
            "id": image_id, "name": name, "status": "active", "size": len(data), "disk_format": "raw",
            "container_format": "bare", "visibility": "public", "os_hash_algo": "sha512",
            "os_hash_value": hashlib.sha512(data).hexdigest(), **changes,
        }  # fmt: skip
        self._records.append(record)
        self.server.route(f"/v2/images/{image_id}", json.dumps(record).encode())
        self.server.route("/v2/images", json.dumps({"images": self._records}).encode())
        self.server.route(f"/v2/images/{image_id}/file", data, serve(), *script)
        return image_id

    def file_requests(self) -> int:
        """How often a whole file, or the rest of one, was asked for."""
        asked = [one for one in self.server.requests if one.target.endswith("/file")]
        return len([one for one in asked if one.header("range") != "bytes=0-0"])


@contextlib.contextmanager
def scripted_glance() -> Iterator[ScriptedGlance]:
    """Run one."""
    with HttpServer() as server:
        yield ScriptedGlance(server)


@contextlib.contextmanager
def started(fleet: Fleet, *argv: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """Start ``imgcache``; whatever is left of it is killed at the end."""
    options: dict[str, Any] = {
        "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True,
        "env": {**os.environ, **fleet.environ},
    }  # fmt: skip
    process = subprocess.Popen(fleet.command(*argv), **{**options, **more})
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(what: Callable[[], Any], timeout_s: float = 30) -> Any:
    """Return what ``what`` returns as soon as that is something; for facts that only the disk tells."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)
    return found


def staging_files(fleet: Fleet, name: str = "edge1-01") -> list[Path]:
    """Return the staging files on a host."""
    return list(fleet.instances(name).glob("_base/.imgcache/*.staging"))


def outcomes(stdout: str) -> list[dict[str, Any]]:
    """Return the outcomes of a run with ``-f json``."""
    found: list[dict[str, Any]] = json.loads(stdout)["outcomes"]
    return found


def helpers_below(pid: int) -> list[int]:
    """Return the ids of helper processes below a process."""
    found, todo = [], [pid]
    while todo:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{todo.pop()}/task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
        for child in todo:
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                if b"-I" in words and b"sudo" not in words[0] and child not in found:
                    found.append(child)
    return found


def kill(pid: int) -> None:
    """Kill one process, which may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def stuck_python(folder: Path) -> str:
    """Return a command for ``python:`` whose standard input gets stuck after 900,000 bytes."""
    pump, script = folder / "pump.py", folder / "stuck-python"
    pump.write_text(
        "import os, time\nleft = 900000\n"
        "while left:\n"
        "    block = os.read(0, min(left, 65536))\n"
        "    if not block:\n        break\n"
        "    os.write(1, block)\n    left -= len(block)\n"
        "time.sleep(40)\n"
    )
    script.write_text(f'#!/bin/sh\n{sys.executable} {pump} | {sys.executable} "$@"\n')
    script.chmod(0o755)
    return str(script)
