"""Windows programs under wine: one prefix for all sessions, in ``build/``, and a real Windows Python in it.

What needs it is skipped where it is missing. The wine server of a session ends by itself, some seconds
after the last program that the session started: nothing here ends what another session works with.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
#: Where ``tools/setup.sh test`` puts what comes from PyPI.
PARTS = ROOT / "build" / "windows"
PREFIX = ROOT / "build" / "wine"
NEWER, OLDER = PARTS / "python313", PARTS / "python38"
_SHELL = Path(__file__).with_name("winshell.py")
#: Where Cloudbase's installer puts Nova's Python, and where another one is.
INSTALLED = "C:\\Program Files\\Cloudbase Solutions\\OpenStack\\Nova\\Python\\python.exe"
OTHER = "C:\\Python38\\python.exe"
WINE = next((path for path in (shutil.which("wine64"), "/usr/lib/wine/wine64") if path), "")


def missing() -> str | None:
    """Return what is missing here to run Windows programs, or None."""
    if not Path(WINE).exists():
        return "wine is not installed (wine64)"
    absent = [path.name for path in (NEWER, OLDER) if not (path / "python.exe").exists()]
    return f"build/windows lacks {', '.join(absent)}" if absent else None


def windows_path(path: Path) -> str:
    """Return a path of this machine as Windows programs have it."""
    return "Z:" + str(path).replace("/", "\\")


class Wine:
    """A prefix in which programs can be started; a context manager that keeps it warm."""

    def __init__(self) -> None:
        self.environ = {
            **os.environ,
            "WINEPREFIX": str(PREFIX),
            "WINEARCH": "win64",
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "mscoree,mshtml=",
            "HOME": str(PREFIX),
        }
        self._keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with _locked(PREFIX.with_suffix(".lock")):
            if not (PREFIX / ".made").exists():
                self._make()
            # The first program starts wine's own: they keep its streams, which must not be a test's.
            self._run("cmd", "/c", "exit")
        self._keeper = self.start(INSTALLED, "-I", "-c", "import sys; sys.stdin.read()")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._keeper
        self._keeper.communicate(timeout=60)

    def start(self, *command: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start a Windows program; all its streams are pipes, else Windows Python does not start."""
        return subprocess.Popen(
            [WINE, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**self.environ, **environ},
        )

    def run(self, *command: str, data: bytes = b"", timeout_s: float = 120) -> tuple[int, str, str]:
        """Run a Windows program to its end; return its status and what it wrote."""
        with self.start(*command) as process:
            out, err = process.communicate(data, timeout_s)
        return process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")

    def login_shell(self, python: str = OTHER) -> tuple[str, ...]:
        """Return what an SSH server starts with a command for cmd, as the last word."""
        # As an argument wine would quote it anew.
        passed = [f"{name}={shlex.quote(self.environ[name])}" for name in _PASSED]
        words = [WINE, python, "-I", "-S", windows_path(_SHELL)]
        script = f'{" ".join(passed)} IMGCACHE_COMMAND="$1" exec {shlex.join(words)}'
        return ("/bin/sh", "-c", script, "sh")

    def _make(self) -> None:
        """Make the prefix; takes about 20 s, once."""
        shutil.rmtree(PREFIX, ignore_errors=True)
        PREFIX.mkdir(parents=True)
        self._run("wineboot", "-i")
        self._run("winecfg", "-v", "win10")
        for source, target in ((NEWER, INSTALLED), (OLDER, OTHER)):
            folder = PREFIX / "drive_c" / target[3:].replace("\\", "/")
            shutil.copytree(source, folder.parent)
        (PREFIX / ".made").touch()

    def _run(self, *command: str) -> None:
        subprocess.run(
            [WINE, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self.environ,
            timeout=300,
            check=False,
        )


_PASSED = ("WINEPREFIX", "WINEARCH", "WINEDEBUG", "WINEDLLOVERRIDES", "HOME")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def lacks_judge() -> str | None:
    """Return why compute-hyperv's own code cannot be asked, or None."""
    absent = [name for name in ("site", "compute-hyperv") if not (PARTS / name).is_dir()]
    return f"build/windows lacks {', '.join(absent)}" if absent else None


class Judge:
    """compute-hyperv's own image cache code, asked about caches; see ``rig/hyperv_judge.py``."""

    def __init__(self, windows: Wine) -> None:
        program = windows_path(ROOT / "tests" / "rig" / "hyperv_judge.py")
        self._process = windows.start(INSTALLED, "-W", "ignore", "-I", program)
        self._tell([windows_path(PARTS / name) for name in ("site", "compute-hyperv")])

    def ask(self, instances: Path, op: str, **order: Any) -> Any:
        """Have it do something with a cache; return what it answers."""
        self._tell({"op": op, "instances_path": windows_path(instances), **order})
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            _, errors = self._process.communicate(timeout=30)
            raise AssertionError(errors.decode("utf-8", "replace"))
        return json.loads(line)["answer"]

    def _tell(self, what: Any) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """End it."""
        if self._process.returncode is None:
            self._process.communicate(timeout=60)
