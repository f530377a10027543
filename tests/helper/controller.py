"""A small controller for tests: starts the helper as a child process and speaks its protocol."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, Self

Frame = dict[str, Any]

HELPER = Path(__file__).parents[2] / "src/imgcache/helper"
#: In the order of the protocol page's table.
WARM = ("conf", "cache")
FETCH = (
    "watch", "staging", "mounts", "sharing", "owners", "journal", "formats", "qemu", "download", "body",
    "sources", "fetch",
)  # fmt: skip
ALL = (*WARM, *FETCH, "probe")
#: The same start as ``transport/launch.py``'s boot line, in fewer words.
BOOT = (
    "import sys,hashlib,types;i=sys.stdin.buffer;t=i.readline(200).split();s=i.read(int(t[0]));"
    "hashlib.sha256(s).hexdigest()==t[1].decode()or sys.exit(96);"
    "m=types.ModuleType('imgcache_helper.core');m.__file__='<imgcache-helper>/core.py';"
    "sys.modules[m.__name__]=m;exec(compile(s,m.__file__,'exec'),m.__dict__);m.main(i)"
)
#: Becomes another user on a host without libvirt, whose folders only root may read.
WITHOUT_LIBVIRT = (
    "unshare", "--mount", "sh", "-c",
    "for folder in /etc/libvirt /var/lib/libvirt; do"
    ' [ ! -d "$folder" ] || mount -t tmpfs -o mode=755 none "$folder" || exit; done;'
    ' exec setpriv --reuid="$0" --regid="$0" --clear-groups -- "$@"',
)  # fmt: skip
LIMITS = {
    "stall_s": 5, "min_rate": 0, "min_rate_window_s": 60, "connect_s": 5, "max_virtual_size": 2 << 40,
    "reserve": 0, "lock_wait_s": 5, "alive_s": 15,
}  # fmt: skip


def pythons() -> list[str]:
    """Return one Python of each version found, 3.6 and newer."""
    candidates = [path for minor in range(6, 16) if (path := shutil.which(f"python3.{minor}"))]
    root = os.environ.get("PYENV_ROOT")
    if root:
        candidates += sorted(glob.glob(f"{root}/versions/*/bin/python3"))
    found: dict[str, str] = {}
    for path in candidates:
        shown = subprocess.run(
            [path, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        version = shown.stdout.strip()
        if shown.returncode == 0 and version.startswith("3.") and int(version[2:]) >= 6:
            found.setdefault(version, path)
    return [found[version] for version in sorted(found, key=lambda text: int(text[2:]))]


class Controller:
    """One running helper. Use as a context manager: whatever is left of it is killed at the end."""

    def __init__(
        self,
        python: str = sys.executable,
        *,
        prefix: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        ping: bool = True,
        user: int | None = None,
    ) -> None:
        become = (*WITHOUT_LIBVIRT, str(user)) if user is not None else ()
        command = [*become, *prefix, python, *options, "-I", "-c", BOOT]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
        assert self.process.stdin
        assert self.process.stdout
        self.stdin: IO[bytes] = self.process.stdin
        self.frames: list[Frame] = []
        self.received: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self.stderr = b""
        self.loaded: set[str] = set()
        self.last_id = 0
        self._writing = threading.Lock()
        self._done = threading.Event()
        self._ready = threading.Condition()
        self._ready_ids: set[int] = set()
        self._ended_ids: set[int] = set()
        self._threads = [
            threading.Thread(target=self._read),
            threading.Thread(target=self._read_errors),
        ]
        if ping:
            self._threads.append(threading.Thread(target=self._ping))
        for thread in self._threads:
            thread.start()
        source = (HELPER / "core.py").read_bytes()
        self.write(f"{len(source)} {hashlib.sha256(source).hexdigest()}\n".encode() + source)
        self.start_id = self.order("start", protocol=1, marker="m4rker")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        with self._ready:
            self._ready.notify_all()
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream
            stream.close()

    def write(self, data: bytes) -> None:
        """Send bytes; a helper that is gone is no error here."""
        try:
            with self._writing:
                self.stdin.write(data)
                self.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass

    def order(self, op: str, raw: bytes = b"", **fields: Any) -> int:
        """Send an order of a new id and return that."""
        self.last_id += 1
        self.tell(op, self.last_id, raw, **fields)
        return self.last_id

    def tell(self, op: str, number: int, raw: bytes = b"", **fields: Any) -> None:
        """Send a frame that belongs to order ``number``."""
        self.write(json.dumps({"op": op, "id": number, **fields}).encode() + b"\n" + raw)

    def load(self, *names: str) -> None:
        """Send modules that were not sent yet."""
        for name in names:
            if name not in self.loaded:
                self.loaded.add(name)
                source = (HELPER / f"{name}.py").read_bytes()
                digest = hashlib.sha256(source).hexdigest()
                self.order("load", source, name=name, size=len(source), sha256=digest)

    def open(self, instances: Path | str, **settings: Any) -> int:
        """Send ``open`` with settings that need no nova.conf, save those overridden here."""
        self.load(*WARM)
        given = {
            "instances_path": str(instances), "cache_subdirectory": "_base", "force_raw_images": True,
            "images_type": "qcow2", "nova_conf": None, **settings,
        }  # fmt: skip
        return self.order("open", settings=given)

    def fetch(
        self, image: Frame, source: Frame, *, more: Frame | None = None, **limits: Any
    ) -> int:
        """Send ``fetch``, with ``more`` fields; the code it needs goes first."""
        self.load(*FETCH)
        return self.order(
            "fetch", base=base_name(image["id"]), image=image, source=source,
            limits={**LIMITS, **limits}, tool="imgcache test", run="run-1", **(more or {}),
        )  # fmt: skip

    def push(self, number: int, data: bytes, block: int = 256 << 10) -> None:
        """Send the bytes of a pushed fetch, and their end."""
        for at in range(0, len(data), block):
            part = data[at : at + block]
            self.tell("data", number, part, size=len(part))
        self.tell("data", number, size=0)

    def push_when_ready(self, number: int, data: bytes) -> None:
        """Send the bytes as soon as the helper asks for them, if it does; returns at once."""

        def wait() -> None:
            with self._ready:
                self._ready.wait_for(
                    lambda: self._done.is_set() or number in self._ready_ids | self._ended_ids, 30
                )
            if number in self._ready_ids:
                self.push(number, data)

        thread = threading.Thread(target=wait)
        self._threads.append(thread)
        thread.start()

    def answer(self, number: int, timeout_s: float = 30) -> Frame:
        """Return the result or error of an order."""
        return self.event(number, "result", "error", timeout_s=timeout_s)

    def result(self, number: int, timeout_s: float = 30) -> Frame:
        """Return the result of an order; fail on an error."""
        frame = self.answer(number, timeout_s)
        assert frame["event"] == "result", frame
        return frame

    def error(self, number: int, timeout_s: float = 30) -> Frame:
        """Return the error of an order; fail on a result."""
        frame = self.answer(number, timeout_s)
        assert frame["event"] == "error", frame
        return frame

    def event(self, number: int, *events: str, timeout_s: float = 30) -> Frame:
        """Return the next frame of an order that is one of ``events``."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                frame = self.received.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                message = f"no {events} of order {number}; {self.frames[-3:]}, {self.stderr!r}"
                raise AssertionError(message) from None
            assert frame is not None, (
                f"the helper ended: {self.process.wait()}, {self.frames[-3:]}, {self.stderr!r}"
            )
            assert frame["event"] != "crash", frame["traceback"]
            if frame.get("id") == number and (
                frame["event"] in events or frame["event"] == "error"
            ):
                assert frame["event"] in events, frame
                return frame

    def end(self, timeout_s: float = 20) -> int:
        """Close standard input and return the helper's exit status."""
        with self._writing, contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        return self.process.wait(timeout_s)

    def join_errors(self) -> None:
        """Wait until all of standard error is in ``stderr``; the process must have ended."""
        self._threads[1].join()

    def _read(self) -> None:
        stdout = self.process.stdout
        assert stdout
        synchronised = False
        for line in stdout:
            if not synchronised:
                synchronised = line.endswith(b"\0IMGCACHE0001 m4rker\n")
                continue
            assert len(line) <= 65536
            frame = json.loads(line)
            self.frames.append(frame)
            if frame["event"] in {"ready", "result", "error"}:
                known = self._ready_ids if frame["event"] == "ready" else self._ended_ids
                with self._ready:
                    known.add(frame["id"])
                    self._ready.notify_all()
            self.received.put(frame)
        self.received.put(None)

    def _read_errors(self) -> None:
        stderr = self.process.stderr
        assert stderr
        for line in stderr:
            self.stderr += line

    def _ping(self) -> None:
        while not self._done.wait(2):
            self.write(b'{"op":"ping"}\n')


def base_name(image_id: str) -> str:
    """Return the base file's name of an image."""
    return hashlib.sha1(image_id.encode()).hexdigest()


def image_of(data: bytes, disk_format: str = "raw", *, name: str = "test", **changes: Any) -> Frame:
    """Return a ``fetch`` order's image for these bytes; its id depends on them."""
    digest = hashlib.sha512(data).hexdigest()
    return {
        "id": f"{digest[:8]}-{digest[8:12]}-4000-8000-{digest[12:24]}", "name": name, "size": len(data),
        "disk_format": disk_format, "virtual_size": None,
        "digest": {"algo": "sha512", "value": digest}, **changes,
    }  # fmt: skip


PUSH: Frame = {"kind": "push"}


def from_service(
    url: str, token: str | None = "t0ken", ca_pem: str | None = None, *, insecure: bool = False
) -> Frame:
    """Return a ``fetch`` order's source for a download."""
    return {"kind": "service", "url": url, "token": token, "ca_pem": ca_pem, "insecure": insecure}


def from_peer(url: str, ca_pem: str | None = None) -> Frame:
    """Return a ``fetch`` order's source for another host of the site."""
    return {"kind": "relay", "url": url, "token": "n0nce.hmac", "ca_pem": ca_pem, "insecure": False}


def let_others_reach(path: Path) -> None:
    """Let other users reach a path below pytest's private folders, up to the shared temporary one."""
    while path != path.parent and path.stat().st_mode & 0o1000 == 0:
        path.chmod(path.stat().st_mode | 0o711)
        path = path.parent
