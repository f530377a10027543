"""Fixtures of tests that run the helper under a real Windows Python."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import pytest

from helper.controller import Controller
from servers import wine
from servers.fleet_fixtures import Fleet
from servers.ssh_server import ssh_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def windows() -> Iterator[wine.Wine]:
    """Return a warm wine prefix with two Windows Pythons."""
    reason = wine.missing()
    if reason:
        pytest.skip(reason)
    with wine.Wine() as prefix:
        yield prefix


@pytest.fixture(scope="session")
def nova_judge(windows: wine.Wine) -> Iterator[wine.Judge]:
    """Return compute-hyperv's own code, to be asked."""
    reason = wine.lacks_judge()
    if reason:
        pytest.skip(reason)
    judge = wine.Judge(windows)
    yield judge
    judge.close()


@pytest.fixture(scope="session")
def shared_helpers(windows: wine.Wine) -> Iterator[dict[str, Controller]]:
    """Windows Python -> a helper that is lent from test to test: each opens a cache of its own with it."""
    helpers = {
        python: Controller(python, prefix=(wine.WINE,), env=windows.environ)
        for python in (wine.INSTALLED, wine.OTHER)
    }
    yield helpers
    for helper in helpers.values():
        helper.__exit__()


class WindowsHost:
    """A helper's host: an instances folder, and helpers on it under a Windows Python."""

    def __init__(
        self, windows: wine.Wine, folder: Path, shared: dict[str, Controller] | None = None
    ) -> None:
        self.windows = windows
        self._shared = {} if shared is None else shared
        self._lent: set[str] = set()
        self.instances = folder / "Instances"
        self.instances.mkdir(parents=True)
        self.base = self.instances / "_base"
        self.opened: dict[str, Any] = {}
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        """End everything that was started; a lent helper that is not at rest is lent to nobody again."""
        self._stack.close()
        for python in self._lent:
            helper = self._shared[python]
            order = helper.order("hyperv_touch", base="none", sizes=[1], dry=True)
            try:
                helper.error(order)
            except (AssertionError, OSError):
                self._shared.pop(python).__exit__()

    def start(self, python: str = wine.INSTALLED) -> Controller:
        """Start a helper of the test's own, which may die, and open the cache."""
        made = Controller(python, prefix=(wine.WINE,), env=self.windows.environ)
        return self._open(self._stack.enter_context(made))

    def helper(self, python: str = wine.INSTALLED) -> Controller:
        """Open the cache with a helper that other tests use, too; it is to be left at rest."""
        if python not in self._shared:
            made = Controller(python, prefix=(wine.WINE,), env=self.windows.environ)
            self._shared[python] = made
        self._lent.add(python)
        return self._open(self._shared[python])

    def _open(self, helper: Controller) -> Controller:
        helper.load("conf", "vhd", "winstore", "hyperv", "watch", "download", "body")
        helper.load("hyperv_fetch", "hyperv_use", "hyperv_life", "hyperv_remove", "hyperv_keep")
        settings = {"instances_path": wine.windows_path(self.instances), "nova_conf": None}
        self.opened = helper.result(helper.order("hyperv_open", settings=settings))
        return helper

    def run_python(self, code: str) -> Program:
        """Start a Windows program that does something and then waits; see ``Program``."""
        return self._stack.enter_context(Program(self.windows, code))

    def wait_for(self, names: list[str]) -> None:
        """Wait until these are the names in the cache: Windows closes a process's files after its end."""
        deadline = time.monotonic() + 60
        while self.names() != names:
            assert time.monotonic() < deadline, self.names()
            time.sleep(0.02)

    def names(self) -> list[str]:
        """Return the names in the cache, Nova's locks and our own folder left out."""
        return sorted(
            path.name
            for path in (self.base.iterdir() if self.base.exists() else ())
            if path.name != ".imgcache" and not path.name.startswith("nova-")
        )


class Program:
    """Python code that runs on Windows and then holds what it has made, ``held``, until it is told to end."""

    def __init__(self, windows: wine.Wine, code: str) -> None:
        lines = f"{code}\n{_HOLD}"
        source = base64.b64encode(lines.encode()).decode()
        boot = f"import base64,sys;exec(base64.b64decode('{source}'))"
        self.process = windows.start(wine.OTHER, "-I", "-c", boot)
        self._expect(b"ready")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Let it end, which closes what it has open."""
        if self.process.returncode is None:
            assert self.process.stdin
            self.process.stdin.close()
            self._expect(b"closed")
            self.process.stdin = None
            self.process.communicate(timeout=60)

    def _expect(self, word: bytes) -> None:
        assert self.process.stdout
        said = self.process.stdout.readline()
        if said.strip() != word:
            self.process.kill()
            _, errors = self.process.communicate(timeout=60)
            raise AssertionError(said + errors)


_HOLD = """
print("ready", flush=True)
sys.stdin.read()
held.close()
print("closed", flush=True)
"""


@pytest.fixture
def hyperv_host(
    windows: wine.Wine, shared_helpers: dict[str, Controller], tmp_path: Path
) -> Iterator[WindowsHost]:
    """Return an empty Hyper-V host."""
    host = WindowsHost(windows, tmp_path, shared_helpers)
    yield host
    host.close()


class WindowsServer:
    """An SSH server, in a thread of its own, whose login shell is wine's cmd."""

    def __init__(self, folder: Path, shell: tuple[str, ...]) -> None:
        self.user = "nova"
        self.addresses = ("127.0.0.1", "127.0.0.1")
        self._folder, self._shell = folder, shell
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._done = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()])

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        async with ssh_server(self._folder, shell=self._shell) as server:
            self.port = server.port
            self.client_key = server.client_key
            self.known_hosts = server.known_hosts
            self.commands = server.commands
            self._ready.set()
            await self._done.wait()


@pytest.fixture
def windows_fleet(windows: wine.Wine, tmp_path: Path) -> Iterator[Fleet]:
    """Two Hyper-V hosts behind one server, and an empty directory image service."""
    names = ("hv-01", "hv-02")
    with WindowsServer(tmp_path / "sshd", windows.login_shell()) as server:
        fleet = Fleet(tmp_path, server, {"kind": "directory", "path": "images"}, names)  # type: ignore[arg-type]
        fleet.defaults = {"driver": "hyperv", "python": [wine.INSTALLED], "images_type": None}
        for name in names:
            fleet.instances(name).mkdir(parents=True)
            fleet.overrides[name] = {"instances_path": wine.windows_path(fleet.instances(name))}
        yield fleet
