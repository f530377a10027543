"""Fixtures of tests that run the helper under a real Windows Python."""

from __future__ import annotations

import base64
import contextlib
from typing import TYPE_CHECKING, Any, Self

import pytest

from helper.controller import Controller
from servers import wine

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


class WindowsHost:
    """A helper's host: an instances folder, and helpers started on it under a Windows Python."""

    def __init__(self, windows: wine.Wine, folder: Path) -> None:
        self.windows = windows
        self.instances = folder / "Instances"
        self.instances.mkdir(parents=True)
        self.base = self.instances / "_base"
        self.opened: dict[str, Any] = {}
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        """End everything that was started."""
        self._stack.close()

    def start(self, python: str = wine.INSTALLED, **options: Any) -> Controller:
        """Start a helper and open the cache."""
        helper = self._stack.enter_context(
            Controller(python, prefix=(wine.WINE,), env=self.windows.environ, **options)
        )
        helper.load("conf", "vhd", "winstore", "hyperv", "watch", "download", "body")
        helper.load("hyperv_fetch", "hyperv_use", "hyperv_life", "hyperv_remove", "hyperv_keep")
        settings = {"instances_path": wine.windows_path(self.instances), "nova_conf": None}
        self.opened = helper.result(helper.order("hyperv_open", settings=settings))
        return helper

    def run_python(self, code: str) -> Program:
        """Start a Windows program that does something and then waits; see ``Program``."""
        return self._stack.enter_context(Program(self.windows, code))

    def names(self) -> list[str]:
        """Return the names in the cache, Nova's locks and our own folder left out."""
        return sorted(
            path.name
            for path in (self.base.iterdir() if self.base.exists() else ())
            if path.name != ".imgcache" and not path.name.startswith("nova-")
        )


class Program:
    """Python code that runs on Windows, says ``ready``, and goes on until it is told to end."""

    def __init__(self, windows: wine.Wine, code: str) -> None:
        lines = f"{code}\nprint('ready', flush=True)\nsys.stdin.read()\n"
        source = base64.b64encode(lines.encode()).decode()
        boot = f"import base64,sys;exec(base64.b64decode('{source}'))"
        self.process = windows.start(wine.OTHER, "-I", "-c", boot)
        assert self.process.stdout
        said = self.process.stdout.readline()
        if said.strip() != b"ready":
            _, errors = self.process.communicate(timeout=30)
            raise AssertionError(said + errors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Let it end, which closes what it has open."""
        if self.process.returncode is None:
            self.process.communicate(timeout=30)


@pytest.fixture
def hyperv_host(windows: wine.Wine, tmp_path: Path) -> Iterator[WindowsHost]:
    """Return an empty Hyper-V host."""
    host = WindowsHost(windows, tmp_path)
    yield host
    host.close()
