"""A compute host as files, with a Nova that boots, resizes, rescues, deletes and moves instances on it.

Prune is the real one, but for the wire: the helper's own code lists and removes, the controller's own code
reads the rows and plans. Between any two steps, and while the helper looks for users, Nova may act; only
what needs a lock that the helper holds waits, since a process does not lock itself out.

Source: nova ``virt/libvirt/imagebackend.py`` (``Qcow2.create_image``: is the base there, set its time,
then make the overlay under the base's lock), ``virt/libvirt/driver.py`` (``migrate_disk_and_power_off``,
``_cleanup_resize``, ``delete_instance_files``, ``rescue``).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imgcache.drivers.entry_rows import cache_from, entry_from
from imgcache.helper import cache as cache_module
from imgcache.helper import domains
from imgcache.helper import entries as entries_module
from imgcache.helper import removal as removal_module
from imgcache.helper import usage as usage_module
from imgcache.model import base_file_name
from imgcache.policy import PrunePolicy, plan_prune
from imgcache.transport.wire import Fields
from unit.life_values import image_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from imgcache.model import HostCache
    from imgcache.policy import Decision

HOUR = 3600.0
#: The helper's code has no types.
cache: Any = cache_module
entries: Any = entries_module
removal: Any = removal_module
usage: Any = usage_module


def overlay(path: Path, backing: str) -> None:
    """Write the header of a qcow2 version 3 whose backing file has this name."""
    name = backing.encode()
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb", 3, 112, len(name), 16, 1 << 20, 0, 1, 0x30000, 0x10000, 1, 0, 0, 0, 0, 0, 4, 104,
    )  # fmt: skip
    path.write_bytes((header + b"\0" * 8 + name).ljust(1024, b"\0"))


class Session:
    """Stands for the wire: keeps the rows."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        self.open_failure = None
        self.rows: list[dict[str, Any]] = []

    def answer(self, order: object, event: str, **fields: Any) -> None:
        assert event == "rows"
        rows = fields["rows"]
        self.rows += rows if isinstance(rows, list) else json.loads(repr(rows))


class Watch:
    """Stands for the thread that listens: lets Nova act whenever the helper looks up."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def tell(self, phase: str, done: int, total: int) -> None:
        self._act()

    def check(self) -> None:
        self._act()


@dataclass
class Vm:
    folder: str
    needs: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Disk -> the base file that it was made on, and its inode."""


class Hurt(AssertionError):
    """Something that is in use, or must stay, is gone."""


class World:
    """One host. ``seed`` decides everything that happens."""

    def __init__(self, root: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.instances = root / "instances"
        self.base = self.instances / "_base"
        (self.base / ".imgcache").mkdir(parents=True)
        (self.instances / "locks").mkdir()
        self.proc = root / "proc"
        for folder in ("proc/1/fd", "proc/1/task", "proc/self", "sys/block"):
            (root / folder).mkdir(parents=True)
        (self.proc / "1/task/1").symlink_to(self.proc / "1")
        (self.proc / "1" / "maps").write_text("")
        (self.proc / "self" / "mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/sda rw\n")
        conf = root / "nova.conf"
        conf.write_text("[DEFAULT]\nhost=h1\n")
        values = {
            "instances_path": str(self.instances),
            "cache_subdirectory": "_base",
            "force_raw_images": True,
            "images_type": "qcow2",
        }
        self.cache = cache.Cache(values)
        self.cache.nova_conf = [str(conf)]
        none = domains.Places((), (), (), str(root / "no passwd"))
        roots = usage.Roots(str(self.proc), str(root / "sys"), none)
        self.cache.usage = usage.Usage(self.cache, roots)
        self.vms: list[Vm] = []
        self.boots: list[tuple[Iterator[str], set[str]]] = []
        self.booting: dict[int, tuple[str, int]] = {}
        """Boots that have set their base's time, and what that base was."""
        self.pinned: set[str] = set()
        self.locked: set[str] = set()
        self.removed = 0
        self.log: list[str] = []
        self._number = 0
        self._waits: dict[int, str] = {}
        """A boot's steps (by id) -> what its next one needs: ``lock`` or ``free``."""

    # ---- Nova

    def note(self, text: str) -> None:
        self.log.append(text)

    def boot(self) -> None:
        name = base_file_name(image_id(self.random.randrange(4)))
        if self.random.random() < 0.3:
            name += f"_{self.random.randrange(1, 3)}"
        self._number += 1
        vm = Vm(f"vm-{self._number}")
        self.boots.append((self._boot(self._number, vm, name, "disk"), {name, name[:40]}))

    def rescue(self) -> None:
        if self.vms:
            vm = self.random.choice(self.vms)
            name = base_file_name(image_id(self.random.randrange(4)))
            self._number += 1
            self.boots.append((self._boot(self._number, vm, name, "disk.rescue"), {name}))

    def _boot(self, number: int, vm: Vm, name: str, disk: str) -> Iterator[str]:
        path = self.base / name
        if not path.exists():
            yield "lock"
            if not path.exists():
                path.write_bytes(os.urandom(600))
                self.note(f"fetch {name[:6]}{name[40:]}")
        yield "free"
        try:
            os.utime(path)
        except FileNotFoundError:
            self.note("a boot fails, its base went just before it was touched")
            return
        self.booting[number] = (name, path.stat().st_ino)
        self.note(f"touch {name[:6]}{name[40:]} for {vm.folder}/{disk}")
        yield "lock"
        del self.booting[number]
        folder = self.instances / vm.folder
        if disk == "disk":
            folder.mkdir()
            self.vms.append(vm)
        elif not folder.exists():
            return
        overlay(folder / disk, self.random.choice([str(path), f"../_base/{name}"]))
        vm.needs[disk] = name, path.stat().st_ino
        self.note(f"overlay {vm.folder}/{disk} on {name[:6]}{name[40:]}")

    def step_boot(self) -> None:
        """One boot goes one step further, unless it needs a lock that the helper holds."""
        ready = [boot for boot in self.boots if not (boot[1] & self.locked) or self._is_free(boot)]
        if not ready:
            return
        boot = self.random.choice(ready)
        steps, names = boot
        following = next(steps, None)
        self.boots.remove(boot)
        if following is not None:
            self.boots.append((steps, names))
            self._waits[id(steps)] = following

    def _is_free(self, boot: tuple[Iterator[str], set[str]]) -> bool:
        return self._waits.get(id(boot[0])) == "free"

    def rename(self) -> None:
        """Resize, revert, begin of a deletion: the folder gets another name."""
        if self.vms:
            vm = self.random.choice(self.vms)
            other = (
                vm.folder.split("_")[0] if "_" in vm.folder
                else vm.folder + self.random.choice(["_resize", "_del"])
            )  # fmt: skip
            (self.instances / vm.folder).rename(self.instances / other)
            self.note(f"rename {vm.folder} to {other}")
            vm.folder = other

    def destroy(self) -> None:
        for _ in range(min(len(self.vms), self.random.randrange(1, 4))):
            vm = self.vms.pop(self.random.randrange(len(self.vms)))
            shutil.rmtree(self.instances / vm.folder)
            self.note(f"destroy {vm.folder}")

    def move_in(self) -> None:
        """A disk comes from another host; its base is here, and nobody touches it."""
        names = [name for name in self.finals() if name not in self.locked]
        if names:
            name = self.random.choice(names)
            self._number += 1
            vm = Vm(f"vm-{self._number}", {"disk": (name, (self.base / name).stat().st_ino)})
            (self.instances / vm.folder).mkdir()
            overlay(self.instances / vm.folder / "disk", str(self.base / name))
            self.vms.append(vm)
            self.note(f"move in {vm.folder} on {name[:6]}{name[40:]}")

    def pass_time(self) -> None:
        while self.boots:  # no boot stands still for an hour between touch and overlay
            self.step_boot()
        gone_s = self.random.choice([0.3, 1.1, 30]) * HOUR
        for path in [*self.base.iterdir()]:
            if path.is_file():
                status = path.stat()
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - round(gone_s * 1e9)))
        self.note(f"{gone_s / HOUR:.1f} h pass")

    def toggle_pin(self) -> None:
        names = [name for name in self.finals() if len(name) == 40]
        if names:
            name = self.random.choice(names)
            self.pinned ^= {name}
            stored = {"algo": "sha512", "value": "0" * 128, "size": 600, "format": "raw"}
            number = next(n for n in range(4) if base_file_name(image_id(n)) == name)
            manifest = {
                "version": 1, "image_id": image_id(number), "image_name": "i", "base": name,
                "digest": {"algo": "sha512", "value": "0" * 128}, "stored": stored,
                "disk_format": "raw", "source": "push", "cached_at": "2026-01-01T00:00:00Z",
                "pin": "forever" if name in self.pinned else None,
            }  # fmt: skip
            (self.base / ".imgcache" / f"{name}.json").write_text(json.dumps(manifest))
            self.note(f"pin {name[:6]}: {name in self.pinned}")

    def finals(self) -> list[str]:
        return sorted(path.name for path in self.base.iterdir() if path.is_file())

    # ---- prune

    def act(self, chance: float = 0.3) -> None:
        """Let Nova do something, or not: what it does beside the helper."""
        while self.random.random() < chance:
            self.random.choice(
                [self.boot, self.step_boot, self.step_boot, self.step_boot, self.rename, self.rename,
                 self.rescue, self.destroy, self.move_in]
            )()  # fmt: skip
            self.check()

    def prune(self) -> None:
        asked = PrunePolicy(
            min_age_s=self.random.choice([None, 1.0, 2 * HOUR]),
            max_size_bytes=self.random.choice([None, 1, 8192]),
        )
        plan = plan_prune(self.look(), asked)
        self.note(f"prune: {[one.entry.name[:6] + one.entry.name[40:] for one in plan.removals]}")
        self.act(0.6)
        self.remove(plan.removals)

    def look(self) -> HostCache:
        session = Session(self.cache)
        order = {"id": 1, "formats": False, "use": True}
        listing = entries.Listing(session, order, Watch(lambda: self.act(0.15)))
        facts = Fields(listing.run())
        opened = Fields({"cache_path": str(self.base), "instances_path": str(self.instances)})
        return cache_from(opened, facts, [entry_from(Fields(row)) for row in session.rows])

    def remove(self, decisions: tuple[Decision, ...]) -> None:
        items: list[dict[str, Any]] = [
            {
                "name": one.entry.name, "inode": one.entry.inode, "mtime_ns": one.entry.mtime_ns,
                "min_age_s": one.min_age_s, "ours_ok": False, "pinned_ok": False,
            }
            for one in decisions
        ]  # fmt: skip
        if not items:
            return
        before = {path.name: path.stat() for path in self.base.iterdir() if path.is_file()}
        self.locked = {one["name"] for one in items} | {one["name"][:40] for one in items}
        session = Session(self.cache)
        try:
            work = removal.Remove(session, {"id": 2}, Watch(lambda: self.act(0.15)))
            work.run(items)
        finally:
            self.locked = set()
        for row in session.rows:
            self.note(f"{row['state']} {row['name'][:6]}{row['name'][40:]} {row['code']}")
            if row["state"] == "removed":
                self.removed += 1
                if row["name"] in self.pinned:
                    raise Hurt(self.story("a pinned entry was removed"))
                if time.time() - before[row["name"]].st_mtime < HOUR:
                    raise Hurt(self.story("an entry below an hour was removed"))
        self.check()

    def check(self) -> None:
        """All that instances need is there, and is the very file that they were made on."""
        needed = [(vm.folder, name, inode) for vm in self.vms for name, inode in vm.needs.values()]
        needed += [("a boot", name, inode) for name, inode in self.booting.values()]
        for who, name, inode in needed:
            try:
                found = (self.base / name).stat().st_ino
            except FileNotFoundError:
                found = 0
            if found != inode:
                raise Hurt(self.story(f"{who} lost {name[:6]}{name[40:]}"))

    def story(self, end: str) -> str:
        return "\n".join([f"seed {self.seed}:", *self.log, end])

    def live(self, steps: int) -> None:
        """One history."""
        for _ in range(steps):
            self.random.choice(
                [self.boot, self.boot, self.step_boot, self.step_boot, self.step_boot, self.rename,
                 self.rescue, self.destroy, self.destroy, self.move_in, self.pass_time, self.pass_time,
                 self.toggle_pin, self.prune, self.prune]
            )()  # fmt: skip
            self.check()

    def close(self) -> None:
        """Let go of the descriptors."""
        for fd in (
            self.cache.cache_fd,
            self.cache.own_fd,
            self.cache.locks_fd,
            self.cache.instances_fd,
        ):
            if fd is not None:
                os.close(fd)
