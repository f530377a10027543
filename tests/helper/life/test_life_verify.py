"""``verify``, ``pin`` and ``adopt``."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import PUSH, image_of
from helper.life.test_life_remove import HOLD_LOCK
from helper.life.tree import Life, Tree, child, sha1

if TYPE_CHECKING:
    from pathlib import Path

    from helper.controller import Frame

DATA = os.urandom(3 << 20)


def verify(life: Life, path: Path, **fields: Any) -> Frame:
    order: Frame = {"base": path.name, "rate": None, **fields}
    answer = life.result(life.order("verify", **order))
    return {key: answer[key] for key in ("state", "reason", "algo", "value", "size")}


def read(place: Path) -> Frame:
    manifest: Frame = json.loads(place.read_text())
    return manifest


def test_intact(tree: Tree, life: Life) -> None:
    path = tree.image("image", DATA)
    place = tree.manifest(path)
    mtime = path.stat().st_mtime_ns
    value = hashlib.sha512(DATA).hexdigest()
    assert verify(life, path) == {
        "state": "intact", "reason": None, "algo": "sha512", "value": value, "size": len(DATA),
    }  # fmt: skip
    assert read(place)["verified_at"].startswith("20")
    assert path.stat().st_mtime_ns == mtime


def test_a_dry_run_notes_nothing_and_makes_no_lock_file(tree: Tree, life: Life) -> None:
    path = tree.image("image", DATA)
    place = tree.manifest(path)
    before = place.read_bytes(), place.stat().st_mtime_ns
    (tree.instances / "locks").rmdir()
    assert verify(life, path, dry=True)["state"] == "intact"
    assert (place.read_bytes(), place.stat().st_mtime_ns) == before
    assert not (tree.instances / "locks").exists()


@pytest.mark.parametrize("damage", ["one bit", "shorter", "longer", "hole"])
def test_damaged(damage: str, tree: Tree, life: Life) -> None:
    path = tree.image("image", DATA)
    place = tree.manifest(path)
    data = {
        "one bit": DATA[:-1] + bytes([DATA[-1] ^ 1]), "shorter": DATA[:-1], "longer": DATA + b"\0",
        "hole": DATA[:4096] + bytes(4096) + DATA[8192:],
    }[damage]  # fmt: skip
    path.write_bytes(data)
    answer = verify(life, path)
    assert (answer["state"], answer["size"]) == ("damaged", len(data))
    assert (answer["value"] is None) == (
        len(data) != len(DATA)
    )  # what has the wrong size is not read
    assert read(place)["verified_at"] is None


def test_unmanaged_and_absent(tree: Tree, life: Life) -> None:
    path = tree.image("image", DATA)
    assert verify(life, path)["value"] is None
    answer = verify(life, path, algo="sha256")
    assert (answer["state"], answer["value"]) == ("unmanaged", hashlib.sha256(DATA).hexdigest())
    assert verify(life, tree.cache / sha1("none"))["state"] == "absent"
    (tree.cache / sha1("link")).symlink_to(path)
    error = life.error(life.order("verify", base=sha1("link"), rate=None))
    assert error["code"] == "foreign"


def unhashed(tree: Tree, path: Path, **changes: Any) -> Path:
    """Write the manifest of a run that was cut off while it hashed the file it had converted."""
    place = tree.manifest(path, **changes)
    manifest = read(place)
    manifest["stored"]["value"] = None
    place.write_text(json.dumps(manifest))
    return place


def test_what_was_cut_off_while_it_was_hashed_is_told_and_its_size_compared(
    tree: Tree, life: Life
) -> None:
    path = tree.image("image", DATA)
    place = unhashed(tree, path)
    before = place.read_bytes()
    answer = verify(life, path)
    assert (answer["state"], answer["value"]) == ("unmanaged", None)
    assert "cut off" in answer["reason"]
    answer = verify(life, path, algo="sha256")
    assert (answer["state"], answer["value"]) == ("unmanaged", hashlib.sha256(DATA).hexdigest())
    path.write_bytes(DATA[:-1])
    for algo in (None, "sha256"):
        answer = verify(life, path, algo=algo)
        assert (answer["state"], answer["value"]) == ("damaged", None)
        assert f"{len(DATA) - 1} bytes" in answer["reason"]
    assert place.read_bytes() == before


def test_holes_are_not_read(tree: Tree, life: Life) -> None:
    """Half a TiB of nothing would take minutes to read; hashing it is bounded by stopping."""
    path = tree.cache / sha1("image")
    with path.open("wb") as file:
        file.write(b"x" * 65536)
        file.truncate(256 << 20)
        file.write(b"")
    value = hashlib.sha512(path.read_bytes()).hexdigest()
    with open(f"/proc/{life.process.pid}/io") as lines:
        before = int(lines.readline().split()[1])
    assert verify(life, path, algo="sha512")["value"] == value
    with open(f"/proc/{life.process.pid}/io") as lines:
        assert int(lines.readline().split()[1]) - before < 1 << 20


def test_rate(tree: Tree, life: Life) -> None:
    path = tree.image("image", DATA)
    tree.manifest(path)
    began = time.monotonic()
    number = life.order("verify", base=path.name, rate=1 << 20)
    progress = life.event(number, "progress")
    assert (progress["phase"], progress["total"]) == ("hash", len(DATA))
    assert life.result(number)["state"] == "intact"
    assert time.monotonic() - began > 2.4


def test_stopped(tree: Tree, life: Life) -> None:
    path = tree.image("image", DATA)
    tree.manifest(path)
    number = life.order("verify", base=path.name, rate=1)
    life.event(number, "progress")
    life.tell("stop", number)
    assert life.error(number)["code"] == "interrupted"
    assert verify(life, path)["state"] == "intact"


def test_lowest_priority_in_its_own_thread(tree: Tree, life: Life) -> None:
    path = tree.image("image", DATA)
    number = life.order("verify", base=path.name, rate=1 << 20, algo="sha512")
    life.event(number, "progress")
    tasks = f"/proc/{life.process.pid}/task"
    nice = []
    for task in os.listdir(tasks):
        with open(f"{tasks}/{task}/stat") as file:
            nice.append(int(file.read().rpartition(")")[2].split()[16]))
    assert sorted(nice) == [0] * (len(nice) - 1) + [19]
    life.result(number)
    with open(f"/proc/{life.process.pid}/stat") as file:
        assert int(file.read().rpartition(")")[2].split()[16]) == 0


@pytest.mark.row("R26")
def test_waits_for_whoever_writes_in_place(tree: Tree, life: Life) -> None:
    path = tree.image("image", b"half")
    lock = tree.instances / "locks" / f"nova-{path.name}"
    with child(sys.executable, "-c", HOLD_LOCK, lock) as nova:
        number = life.order("verify", base=path.name, rate=None, algo="sha512")
        time.sleep(0.3)  # nothing to wait for: that nothing comes is what is tested
        path.write_bytes(DATA)
        assert nova.stdin
        nova.stdin.write(b"\n")
        nova.stdin.flush()
        assert life.result(number)["value"] == hashlib.sha512(DATA).hexdigest()


@pytest.mark.row("R26")
def test_exchanged_meanwhile(tree: Tree, life: Life) -> None:
    path = tree.image("image", DATA)
    tree.manifest(path)
    number = life.order("verify", base=path.name, rate=1 << 20)
    life.event(number, "progress")
    path.unlink()
    tree.image("image", DATA)
    assert life.error(number)["code"] == "changed"


def test_pin(tree: Tree, life: Life) -> None:
    path = tree.image("image")

    def pin(until: object) -> str:
        state: str = life.result(life.order("pin", base=path.name, until=until))["state"]
        return state

    assert pin("forever") == "unmanaged"
    place = tree.manifest(path)
    assert pin("forever") == "pinned"
    assert read(place)["pin"] == "forever"
    assert pin(1e10) == "pinned"
    assert read(place)["pin"] == 1e10
    assert pin(None) == "unpinned"
    assert read(place)["pin"] is None
    assert life.error(life.order("pin", base=path.name, until="soon"))["code"] == "protocol"
    path.unlink()
    assert pin("forever") == "absent"


def test_pins_and_touches_at_once(tree: Tree, life: Life) -> None:
    """Two helpers change the same manifest: neither undoes what the other wrote."""
    path = tree.image("image")
    place = tree.manifest(path)
    with Life() as second:
        second.start_on(tree.instances)
        stop = threading.Event()

        def touch() -> None:
            while not stop.is_set():
                order = second.order("touch", base=path.name, sizes=[], dry=False)
                assert second.result(order)["touched"]

        thread = threading.Thread(target=touch)
        thread.start()
        try:
            for number in range(100):
                life.result(life.order("pin", base=path.name, until=number))
                assert read(place)["pin"] == number
        finally:
            stop.set()
            thread.join()
    assert read(place)["stored"]["mtime_ns"] == path.stat().st_mtime_ns
    assert os.listdir(tree.own) == [place.name]


def test_a_pin_outlives_novas_purge(tree: Tree, life: Life) -> None:
    image = image_of(DATA)
    path = tree.image(image["id"], DATA)
    place = tree.manifest(path, pin="forever")
    path.unlink()
    number = life.fetch(image, PUSH)
    life.event(number, "ready")
    life.push(number, DATA)
    assert life.result(number)["state"] == "cached"
    assert read(place)["pin"] == "forever"
    assert read(place)["stored"]["mtime_ns"] == path.stat().st_mtime_ns


def test_adopt_only_what_was_just_read(tree: Tree, life: Life) -> None:
    path = tree.image("image", DATA)
    stored = {"algo": "sha512", "value": hashlib.sha512(DATA).hexdigest()}
    image = {"id": "image", "name": "n", "disk_format": "raw", "digest": stored}

    def adopt(**changes: Any) -> Frame:
        order: Frame = {
            "base": path.name,
            "image": image,
            "stored": stored,
            "tool": "t",
            "run": "r",
            **changes,
        }
        return life.answer(life.order("adopt", **order))

    assert adopt()["state"] == "changed"  # nobody read it
    verify(life, path, algo="sha512")
    assert adopt(stored={**stored, "value": "0" * 128})["state"] == "changed"
    assert adopt(image={**image, "id": "another"})["code"] == "protocol"
    path.unlink()
    assert adopt()["state"] == "absent"
    tree.image("image", DATA)
    assert adopt()["state"] == "changed"  # another file
    verify(life, path, algo="sha512")
    assert adopt()["state"] == "adopted"
    assert verify(life, path)["state"] == "intact"
    manifest = read(tree.own / f"{path.name}.json")
    assert (manifest["stored"]["format"], manifest["stored"]["mtime_ns"]) == ("raw", None)
