"""A compute host's files, as Nova and libvirt lay them out, and a controller that asks about them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from helper.controller import Controller, Frame
from imgcache.drivers.libvirt import CLEAN_MODULES, VERIFY_MODULES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What the orders about the life of the cache need, in loading order.
LIFE = tuple(
    name for name in (*CLEAN_MODULES, *VERIFY_MODULES[-1:]) if name not in {"conf", "cache"}
)
DAY = 86400


def sha1(text: str) -> str:
    """Return the base file's name of an image id."""
    return hashlib.sha1(text.encode()).hexdigest()


class Tree:
    """An ``instances_path`` with a cache in it."""

    def __init__(self, instances: Path) -> None:
        self.instances = instances
        self.cache = instances / "_base"
        self.own = self.cache / ".imgcache"
        self.own.mkdir(parents=True)
        (instances / "locks").mkdir()

    def base(self, name: str, data: bytes = b"x" * 8192, *, age: float = 2 * DAY) -> Path:
        """Make an entry of this name, or of the image of this id."""
        path = self.cache / name
        path.write_bytes(data)
        return aged(path, age)

    def image(self, image_id: str, data: bytes = b"x" * 8192, *, age: float = 2 * DAY) -> Path:
        """Make the base file of an image."""
        return self.base(sha1(image_id), data, age=age)

    def manifest(self, path: Path, **changes: Any) -> Path:
        """Write the manifest that imgcache would have written for a base file."""
        data = path.read_bytes()
        value = hashlib.sha512(data).hexdigest()
        stored = {
            "algo": "sha512", "value": value, "size": len(data), "format": "raw",
            "mtime_ns": path.stat().st_mtime_ns,
        }  # fmt: skip
        manifest = {
            "version": 1, "image_id": "id", "image_name": "name", "base": path.name,
            "digest": {"algo": "sha512", "value": value, "weak": False}, "stored": stored,
            "disk_format": "raw", "source": "push", "tool": "t", "run": "r",
            "cached_at": "2026-11-20T07:00:00Z", "touched_at": None, "verified_at": None, "pin": None,
            **changes,
        }  # fmt: skip
        place = self.own / f"{path.name}.json"
        place.write_text(json.dumps(manifest))
        return place

    def disk(self, backing: Path | str, place: str = "vm-1/disk", *, fmt: str = "raw") -> Path:
        """Make an instance's disk, a real overlay."""
        path = self.instances / place
        path.parent.mkdir(parents=True, exist_ok=True)
        overlay(path, backing, fmt)
        return path


def aged(path: Path, age: float) -> Path:
    """Give a file an age in seconds."""
    at = time.time() - age
    os.utime(path, (at, at))
    return path


def overlay(path: Path, backing: Path | str, fmt: str = "raw") -> None:
    """Make a qcow2 file with a backing file, by qemu-img; the backing file need not exist."""
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", fmt, "-b", backing, path, "1M"],
        check=True,
    )


class Life(Controller):
    """A helper with the cache opened, and one call per order."""

    def start_on(self, instances: Path, **settings: Any) -> None:
        """Send ``open``; nova.conf is one without a word."""
        conf = instances.parent / "nova.conf"
        if not conf.exists():
            conf.write_text("[DEFAULT]\n")
        self.open(instances, **{"nova_conf": [str(conf)], **settings})
        self.load(*LIFE)

    def rows(self, number: int, timeout_s: float = 30) -> tuple[list[Frame], Frame]:
        """Return the rows of an order, and its result."""
        rows: list[Frame] = []
        while True:
            frame = self.event(number, "rows", "result", timeout_s=timeout_s)
            if frame["event"] == "result":
                return rows, frame
            rows += frame["rows"]

    def look(
        self, *, formats: bool = True, use: bool = True, mark: bool = False
    ) -> tuple[dict[str, Frame], Frame]:
        """List the cache: rows by name, and the facts."""
        rows, facts = self.rows(self.order("list", formats=formats, use=use, mark=mark))
        assert len({row["name"] for row in rows}) == len(rows)
        return {row["name"]: row for row in rows}, facts

    def users(self, path: Path) -> list[str]:
        """Return who uses an entry; all evidence must have been readable."""
        rows, facts = self.look()
        assert facts["problems"] == []
        assert rows[path.name]["users"] == len(rows[path.name]["used_by"])
        return list(rows[path.name]["used_by"])

    def remove(self, *paths: Path, **changes: Any) -> list[tuple[str, str | None]]:
        """Remove entries as they are now; return (state, code) of each."""
        items = [item(path, **changes) for path in paths]
        rows, _ = self.rows(self.order("remove", items=items))
        by_name = {row["name"]: (row["state"], row["code"]) for row in rows}
        assert len(by_name) == len(rows) == len(paths)
        return [by_name[path.name] for path in paths]

    def remove_one(self, path: Path, **changes: Any) -> str | None:
        """Remove one entry; return None, or the code of why it was kept."""
        state, code = self.remove(path, **changes)[0]
        assert (state == "removed") == (not path.exists()) == (code is None)
        return code

    def clean(self, age: float = DAY, *, dry: bool = False) -> dict[str, tuple[str, str | None]]:
        """Clean; return name -> (state, code)."""
        rows, _ = self.rows(self.order("clean", stall_age_s=age, dry=dry))
        return {row["name"]: (row["state"], row["code"]) for row in rows}


def item(path: Path, **changes: Any) -> Frame:
    """Return a ``remove`` item for a file as it is now."""
    status = os.lstat(path)
    return {
        "name": path.name, "inode": status.st_ino, "mtime_ns": status.st_mtime_ns,
        "min_age_s": DAY, "ours_ok": False, "pinned_ok": False, **changes,
    }  # fmt: skip


@contextmanager
def child(*command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command that says a line when it is ready, until the end of the block."""
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout
    assert process.stdin
    try:
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
