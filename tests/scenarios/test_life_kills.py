"""The helper is killed at random moments of whole runs; what is then on the host, and the runs after it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from helper.life.tree import overlay, sha1
from scenarios.faults_site import helpers_below, kill, local_fleet, wait_until
from scenarios.life_rig import DAY, IDS, Rig
from servers.fleet_fixtures import add_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.qemu, pytest.mark.row("H19")]

HOST = "edge1-01"
#: An open file counts as use by its name alone, wherever on the machine it is: so names of this process.
MARK = os.urandom(4).hex()
BIG, QCOW = (f"{MARK}-2222-4333-8444-{number:012}" for number in range(2))
BIG_DATA = os.urandom(6 << 20)


@dataclass
class Killer:
    """Kills the helpers of one run at a fraction of its time, counted from when there is a helper."""

    fraction: float | None
    length_s: float = 0.0
    killed: bool = False
    took_s: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    def during(self, run: Callable[[], Any]) -> Any:
        """Return what the run returns."""
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            return run()
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        while not self._helpers():
            if self._over.wait(0.001):
                return
        began = time.monotonic()
        if self.fraction is not None and not self._over.wait(self.fraction * self.length_s):
            while not (found := self._helpers()):
                if self._over.wait(0.001):
                    return
            for pid in found:
                kill(pid)
            self.killed = True
        self._over.wait()
        self.took_s = time.monotonic() - began

    @staticmethod
    def _helpers() -> list[int]:
        return helpers_below(os.getpid())


class Scene:
    """One host before a run, and what must hold of it afterwards."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.fleet = local_fleet(folder, {"kind": "directory", "path": "images"})
        self.rig = Rig(self.fleet)
        self.instances = self.fleet.instances(HOST)
        self.cache = self.instances / "_base"
        self.own = self.cache / ".imgcache"
        self.wholes: dict[str, set[bytes]] = {}
        """Entry -> the digests that it may have; nothing else may have come to be there."""
        self.stays: set[str] = set()
        """Entries in use, pinned, young."""
        self.live: Path | None = None
        """A staging file that somebody else is at work on."""
        self.prepare()
        for path in self.finals():
            self.wholes.setdefault(path.name, set()).add(digest_of(path))

    def prepare(self) -> None:
        """Make what is there before."""

    def run(self) -> Any:
        """The run that is disturbed; return its report."""
        raise NotImplementedError

    def assert_told(self, report: Any) -> None:
        """What the killed run says that it brought about is so."""
        there = {path.name: path for path in self.cache.rglob("*")}
        for one in report.outcomes:
            word = one.outcome.value
            entry = sha1(one.image_id) if one.image_id else one.entry
            assert (word in {"removed", "gone", "absent"}) <= (entry not in there), one
            assert (word in {"cached", "existing", "repaired", "kept"}) <= (entry in there), one

    def assert_done(self, report: Any) -> None:
        """What an undisturbed run after it must have brought about."""
        raise NotImplementedError

    def assert_idle(self, report: Any) -> None:
        """What one more run reports."""
        raise NotImplementedError

    def boot(self, final: Path, folder: str) -> None:
        """Let an instance use a final, which stays from now on."""
        disk = self.instances / folder / "disk"
        disk.parent.mkdir()
        overlay(disk, final)
        self.stays.add(final.name)

    def final(self, image_id: str) -> Path:
        return self.cache / sha1(image_id)

    def finals(self) -> list[Path]:
        return [path for path in self.cache.glob("*") if path.is_file()]

    def assert_safe(self) -> None:
        """Each entry is absent or whole, nothing in use is gone, and nobody holds a lock."""
        wait_until(lambda: not self.held_locks(), 10)  # a killed helper's children die with it
        there = {path.name: digest_of(path) for path in self.finals()}
        assert {name for name, digest in there.items() if digest not in self.wholes[name]} == set()
        assert self.stays <= there.keys()
        for path in self.own.glob("*.json"):
            if path.stem.endswith(".staging"):
                continue  # the journal of a transfer that the next run goes on with
            assert json.loads(path.read_text())["base"] == path.stem

    def held_locks(self) -> list[str]:
        """Return the files on the host that a process has locked."""
        held = []
        for path in [*self.instances.glob("locks/*"), *self.own.glob("*")]:
            if path == self.live:
                continue
            with path.open("r+b") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    held.append(path.name)
        return held

    def contents(self) -> dict[str, tuple[int, bytes]]:
        """Return all that is in the cache but manifests: inode and digest."""
        return {
            str(path): (path.stat().st_ino, digest_of(path))
            for path in self.cache.rglob("*")
            if path.is_file() and path.suffix != ".json"
        }


def old(number: int) -> str:
    """Return the name of a base file that nothing is known about."""
    return f"{MARK}{number:032x}"


def digest_of(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def words_of(report: Any) -> list[str]:
    return sorted(one.outcome.value for one in report.outcomes)


class Precaching(Scene):
    """Two raw images of which one is there and in use, one that is converted."""

    def prepare(self) -> None:
        images = self.fleet.folder / "images"
        add_image(images, BIG, "big", BIG_DATA)
        raw, qcow = self.fleet.folder / "raw", self.fleet.folder / "qcow"
        raw.write_bytes(bytes(1 << 20) + BIG_DATA[: 3 << 20] + bytes(4 << 20))
        command = ["qemu-img", "convert", "-O", "qcow2", str(raw), str(qcow)]
        subprocess.run(command, check=True)
        add_image(images, QCOW, "qcow", qcow.read_bytes(), "qcow2")
        self.wholes[sha1(BIG)] = {hashlib.sha256(BIG_DATA).digest()}
        self.wholes[sha1(QCOW)] = {digest_of(raw)}
        self.boot(self.rig.base(0, 0), "vm-1")

    def run(self) -> Any:
        return self.rig.precache("img0", "big", "qcow")

    def assert_done(self, report: Any) -> None:
        assert {"cached", "existing"} >= set(words_of(report)), report
        assert {path.name for path in self.finals()} == {sha1(IDS[0]), sha1(BIG), sha1(QCOW)}
        assert {path.stat().st_nlink for path in self.finals()} == {1}
        assert not list(self.own.glob("*.staging"))
        # Killed before it had noted all, there is a final whose digest is not known: that can be mended.
        verified = self.rig.verify("big", "qcow", adopt=True)
        assert {"intact", "adopted"} >= set(words_of(verified)), verified
        assert words_of(self.rig.verify("big", "qcow")) == ["intact"] * 2

    def assert_idle(self, report: Any) -> None:
        assert {(one.outcome.value, one.bytes_fetched) for one in report.outcomes} == {
            ("existing", 0)
        }


class Pruning(Scene):
    """Sixty old base files; beside them one in use, a copy in use, a pinned one, a young one."""

    def prepare(self) -> None:
        self.rig.precache("img0", "img1", "img2", "img3")
        place = self.own / f"{sha1(IDS[1])}.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), "pin": "forever"}))
        for number in (0, 1, 3):
            self.rig.aged(self.final(IDS[number]), 3 * DAY)
        for number in range(60):
            path = self.cache / old(number)
            path.write_bytes(b"x" * 600)
            self.rig.aged(path, 3 * DAY)
        copy = self.cache / f"{old(7)}_20"
        copy.write_bytes(b"y" * 600)
        self.rig.aged(copy, 3 * DAY)
        self.boot(self.final(IDS[0]), "vm-1")
        self.boot(copy, "vm-2_resize")
        self.stays |= {sha1(IDS[1]), sha1(IDS[2])}

    def run(self) -> Any:
        return self.rig.prune()

    def assert_done(self, report: Any) -> None:
        assert {"removed", "kept"} >= set(words_of(report)), report
        # A resized copy in use keeps its original.
        assert {path.name for path in self.finals()} - {old(7)} == self.stays
        self.rig.clean()  # killed between the two, a final is gone and its manifest is not
        assert {path.stem for path in self.own.glob("*.json")} <= {
            path.name for path in self.finals()
        }

    def assert_idle(self, report: Any) -> None:
        assert set(words_of(report)) == {"kept"}
        assert report.bytes_freed == 0


class Cleaning(Scene):
    """Dead transfers, ours and Nova's, beside one that lives, and base files."""

    def prepare(self) -> None:
        self.rig.precache("img0", "img1", "img2")
        self.final(IDS[2]).unlink()  # its manifest is left
        self.boot(self.final(IDS[0]), "vm-1")
        self.stays.add(sha1(IDS[1]))
        for number in range(40):
            (self.own / f"{old(number)}.{number:016x}.staging").write_bytes(b"x" * 600)
            for ending in ("part", "converted"):
                part = self.cache / f"{old(number)}.{ending}"
                part.write_bytes(b"x" * 600)
                self.rig.aged(part, 3 * DAY)
        young = self.cache / f"{sha1('young')}.part"
        young.write_bytes(b"x" * 600)
        self.live = self.own / f"{sha1('live')}.{'0' * 16}.staging"
        self.stays.add(young.name)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Hold a staging file, as its helper does."""
        assert self.live
        with self.live.open("wb") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
            yield

    def run(self) -> Any:
        with self.at_work():
            return self.rig.clean()

    def assert_safe(self) -> None:
        super().assert_safe()
        assert self.live
        assert self.live.exists()

    def assert_done(self, report: Any) -> None:
        assert {"removed", "kept"} >= set(words_of(report)), report
        assert {path.name for path in self.finals()} == self.stays
        assert [*self.own.glob("*.staging")] == [self.live]
        assert not (self.own / f"{sha1(IDS[2])}.json").exists()

    def assert_idle(self, report: Any) -> None:
        assert words_of(report) == ["kept"] * 2
        assert report.bytes_freed == 0


class Verifying(Scene):
    """With ``--repair``: an intact file, a damaged one, a damaged one in use."""

    def prepare(self) -> None:
        add_image(self.fleet.folder / "images", BIG, "big", BIG_DATA)
        self.rig.precache("img0", "img1", "big")
        self.wholes[sha1(BIG)] = {hashlib.sha256(BIG_DATA).digest()}
        self.damaged = BIG_DATA[:-1] + bytes([BIG_DATA[-1] ^ 1])
        self.final(BIG).write_bytes(self.damaged)
        self.final(IDS[1]).write_bytes(b"z" * (len(self.rig.content) + 1))
        for image_id in (BIG, IDS[1]):
            self.rig.aged(self.final(image_id), 3 * DAY)
        self.boot(self.final(IDS[1]), "vm-1")
        self.stays.add(sha1(IDS[0]))

    def run(self) -> Any:
        return self.rig.verify("img0", "img1", "big", repair=True)

    def told(self, report: Any) -> dict[str, str]:
        return {one.image_id: one.outcome.value for one in report.outcomes}

    def assert_done(self, report: Any) -> None:
        told = self.told(report)
        assert (told[IDS[0]], told[IDS[1]]) == ("intact", "damaged")
        if told[BIG] == "absent":  # removed, and then contact was lost
            assert words_of(self.rig.precache("big")) == ["cached"]
        else:
            assert told[BIG] in {"intact", "repaired", "unmanaged"}, [
                one.reason for one in report.outcomes
            ]
        assert self.final(BIG).read_bytes() == BIG_DATA

    def assert_idle(self, report: Any) -> None:
        told = self.told(report)
        assert (told[IDS[0]], told[IDS[1]]) == ("intact", "damaged")
        # Killed between the final and its note, it is one that nobody knows, until somebody adopts it.
        assert told[BIG] in {"intact", "unmanaged"}
        if told[BIG] == "unmanaged":
            assert words_of(self.rig.verify("big", adopt=True)) == ["adopted"]


def kill_at_random(kind: type[Scene], folder: Path, times: int) -> None:
    """Kill the helper of ``times`` runs, each somewhere in its own part of the run's time."""
    seed = random.SystemRandom().getrandbits(32)
    dice = random.Random(seed)
    measure = Killer(None)
    scene = kind(folder / "measured")
    scene.assert_done(measure.during(scene.run))
    scene.assert_safe()
    length_s, killed = measure.took_s, 0
    for number in range(times):
        fraction = (number + dice.random()) / times
        scene = kind(folder / str(number))
        killer = Killer(fraction, length_s)
        report = killer.during(scene.run)
        where = f"{kind.__name__}, seed {seed}, killed: {killer.killed} at {fraction:.2f}: {report}"
        if killer.killed:
            killed += 1
        elif killer.took_s:
            length_s = killer.took_s  # the machine has become quicker
        try:
            scene.assert_safe()
            scene.assert_told(report)
            scene.assert_done(scene.run())
            scene.assert_safe()
            before = scene.contents()
            scene.assert_idle(scene.run())
            scene.assert_safe()
            assert scene.contents() == before
        except AssertionError as error:
            error.add_note(where)
            raise
    assert killed >= times // 4, f"only {killed} of {times} runs were still under way when killed"


KINDS = [
    pytest.param(Precaching, id="precache"),
    pytest.param(Pruning, id="prune", marks=pytest.mark.row("D13")),
    pytest.param(Cleaning, id="clean", marks=pytest.mark.row("D14")),
    pytest.param(Verifying, id="verify"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_helper_is_killed(kind: type[Scene], tmp_path: Path) -> None:
    kill_at_random(kind, tmp_path, 8)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_the_helper_is_killed_fifty_times(kind: type[Scene], tmp_path: Path) -> None:
    kill_at_random(kind, tmp_path, 50)
