"""Stands for nova-compute: boots one instance, and stands still at each step until it is told to go on.

    frozen_nova.py INSTANCES BASE SOURCE FOLDER [untouchable]

Says a step's name and waits for a line; the end of its input is its death. Ends with ``booted``, or with
``failed`` and the reason, as where Nova gives a boot up and the scheduler tries again. ``untouchable``: the
base file belongs to the emulator's user, so that its time cannot be set, which Nova does not mind.

Source: nova ``virt/libvirt/imagebackend.py`` (``Image.cache``, ``Qcow2.create_image``,
``_update_utime_ignore_eacces``), ``virt/images.py`` (``fetch_to_raw``); fasteners ``process_lock.py``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def stand_still(step: str) -> None:
    """Say where we are; go on when told to."""
    print(step, flush=True)
    if not sys.stdin.readline():
        sys.exit(1)


@contextlib.contextmanager
def locked(instances: Path, base: str) -> Iterator[None]:
    """Hold Nova's lock on a base file."""
    folder = instances / "locks"
    folder.mkdir(exist_ok=True)
    with (folder / f"nova-{base}").open("a") as file:
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
        yield


def fetch(path: Path, source: Path) -> None:
    """Bring the base file, as one that is missing; the lock is held."""
    data = source.read_bytes()
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        stand_still("half")
        file.write(data[len(data) // 2 :])
        file.flush()
        os.fsync(file.fileno())
    stand_still("part")
    part.rename(path)
    stand_still("renamed")


def boot(instances: Path, base: str, source: Path, folder: str, *, touchable: bool) -> None:
    """Boot."""
    path, disk = instances / "_base" / base, instances / folder / "disk"
    stand_still("start")
    if path.exists():
        stand_still("exists")
    else:
        stand_still("missing")
        with locked(instances, base):
            stand_still("fetching")
            if not path.exists():
                fetch(path, source)
        stand_still("fetched")
    if touchable:
        os.utime(path)
    stand_still("touched")
    qemu_img("info", "--force-share", path)
    stand_still("sized")
    with locked(instances, base):
        stand_still("locked")
        disk.parent.mkdir()
        qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", path, disk, "16M")
        stand_still("overlaid")
    stand_still("unlocked")
    with disk.open("rb"), path.open("rb"):
        stand_still("running")
    stand_still("off")


def qemu_img(*argv: str | Path) -> None:
    """Run qemu-img."""
    subprocess.run(["qemu-img", *argv], check=True, capture_output=True)


def main(instances: str, base: str, source: str, folder: str, *more: str) -> None:
    """Boot, and say how it ended."""
    try:
        boot(Path(instances), base, Path(source), folder, touchable="untouchable" not in more)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        print(f"failed {type(error).__name__}", flush=True)
    else:
        print("booted", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
