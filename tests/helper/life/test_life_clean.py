"""``clean``: what broken transfers left behind goes, what anybody is at work on stays."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from helper.controller import PUSH, Controller, image_of
from helper.life.test_life_remove import HOLD_LOCK
from helper.life.tree import DAY, Life, Tree, aged, child, sha1

if TYPE_CHECKING:
    from pathlib import Path

OURS = ".0123456789abcdef.staging"


def staging(tree: Tree, name: str = "ours") -> Path:
    path = tree.own / (sha1(name) + OURS)
    path.write_bytes(b"x" * 5000)
    return path


@pytest.mark.row("D14")
def test_a_live_fetch_is_left_alone(tree: Tree, life: Life) -> None:
    data = os.urandom(1 << 20)
    image = image_of(data)
    with Controller() as fetching:
        fetching.open(tree.instances)
        number = fetching.fetch(image, PUSH)
        fetching.event(number, "ready")
        fetching.tell("data", number, data[:1000], size=1000)
        [name] = os.listdir(tree.own)
        assert life.clean(0) == {name: ("kept", "busy")}
        assert life.look()[0][name]["live"] is True
        fetching.process.send_signal(signal.SIGKILL)
        fetching.process.wait()
        assert life.clean(DAY, dry=True) == {name: ("kept", "dry-run")}
        assert life.clean(DAY) == {name: ("removed", None)}
    assert os.listdir(tree.own) == []


@pytest.mark.row("D14")
def test_ours_without_locks_goes_by_age(tree: Tree, shim: Path) -> None:
    path = staging(tree)
    with Life(env={"LD_PRELOAD": str(shim), "FAULT": "lock:1:95"}) as life:
        life.start_on(tree.instances)
        assert life.clean(0) == {path.name: ("kept", "young")}
        assert life.clean(0) == {path.name: ("removed", None)}


def test_other_things_of_ours_stay(tree: Tree, life: Life) -> None:
    base = tree.image("image")
    kept = [tree.manifest(base), tree.own / "storage-id", tree.own / f"{sha1('x')}.xyz.staging"]
    for path in kept[1:]:
        path.write_text("0" * 32)
    (tree.own / (sha1("folder") + OURS)).mkdir()
    (tree.own / (sha1("link") + OURS)).symlink_to(base)
    rows = life.clean(0)
    assert {code for _, code in rows.values()} == {"foreign"}
    assert len(rows) == 2
    assert base.exists()
    assert all(path.exists() for path in kept)


@pytest.mark.row("H19")
def test_the_other_name_of_a_published_final_goes(tree: Tree, life: Life) -> None:
    base = tree.image("image")
    os.link(base, tree.own / (base.name + OURS))
    assert life.clean() == {base.name + OURS: ("removed", None)}
    assert base.read_bytes() == b"x" * 8192
    assert base.stat().st_nlink == 1


@pytest.fixture
def old_parts(tree: Tree) -> list[Path]:
    """Return dead downloads of Nova's, two days old."""
    return [tree.base(sha1("nova") + ending) for ending in (".part", ".converted")]


@pytest.mark.row("D14")
@pytest.mark.row("H16")
def test_novas_own_transfers(tree: Tree, life: Life, old_parts: list[Path]) -> None:
    part, converted = old_parts
    lock = tree.instances / "locks" / f"nova-{part.name[:40]}"
    assert life.clean(3 * DAY) == dict.fromkeys((part.name, converted.name), ("kept", "young"))
    with child(sys.executable, "-c", HOLD_LOCK, lock):
        assert life.clean() == dict.fromkeys((part.name, converted.name), ("kept", "busy"))
    with converted.open("rb"):
        assert life.clean(dry=True) == {
            part.name: ("kept", "dry-run"), converted.name: ("kept", "in-use"),
        }  # fmt: skip
        assert life.clean() == {
            part.name: ("removed", None), converted.name: ("kept", "in-use"),
        }  # fmt: skip
    assert life.clean() == {converted.name: ("removed", None)}
    assert os.listdir(tree.instances / "locks") == [lock.name]


@pytest.mark.row("H16")
def test_a_young_transfer_stays_whatever_is_asked(
    tree: Tree, life: Life, old_parts: list[Path]
) -> None:
    for path in old_parts:
        aged(path, 3500)
    for least in (0, -5, 3599):
        assert {code for _, code in life.clean(least).values()} == {"young"}
    assert all(path.exists() for path in old_parts)


@pytest.mark.row("H13")
def test_a_transfer_from_the_future_stays(tree: Tree, life: Life, old_parts: list[Path]) -> None:
    aged(old_parts[0], -9 * DAY)
    rows, _ = life.rows(life.order("clean", stall_age_s=-99 * DAY, dry=False))
    reasons = {row["name"]: row["reason"] for row in rows}
    assert "in the future" in reasons[old_parts[0].name]
    assert old_parts[0].exists()


@pytest.mark.row("H12")
def test_hostile_shapes_stay(tree: Tree, life: Life) -> None:
    for name in ("x" * 40 + ".part", sha1("a") + ".part.bak", ".part", sha1("a") + ".info"):
        tree.base(name)
    (tree.cache / (sha1("a") + ".part")).symlink_to(tree.image("image"))
    (tree.cache / (sha1("b") + ".converted")).mkdir()
    before = sorted(os.listdir(tree.cache))
    assert set(life.clean(0).values()) == {("kept", "foreign")}
    assert sorted(os.listdir(tree.cache)) == before


@pytest.mark.row("D15")
def test_an_invalid_final_is_only_reported(tree: Tree, life: Life) -> None:
    base = tree.image("image")
    tree.manifest(base)
    base.write_bytes(b"y" * 8192)
    tree.disk(base)
    answer = life.result(life.order("verify", base=base.name, rate=None))
    assert answer["state"] == "damaged"
    assert life.clean(0) == {}
    assert base.exists()
    aged(base, 2 * DAY)
    assert life.remove_one(base) == "in-use"
    (tree.instances / "vm-1/disk").unlink()
    aged(base, 60)
    assert life.remove_one(base, min_age_s=0) == "young"


def test_manifests_without_a_file(tree: Tree, life: Life) -> None:
    lost, pinned, base = tree.image("lost"), tree.image("pinned"), tree.image("there")
    places = [tree.manifest(lost), tree.manifest(pinned, pin="forever"), tree.manifest(base)]
    lost.unlink()
    pinned.unlink()
    life.clean(dry=True)
    assert all(place.exists() for place in places)
    assert life.clean() == {}
    assert [place.exists() for place in places] == [False, True, True]


@pytest.mark.row("H19")
def test_manifests_whose_writer_died(tree: Tree, life: Life) -> None:
    dead, young = (tree.own / f"{sha1(name)}.json.new" for name in ("dead", "young"))
    for path in (dead, young):
        path.write_text('{"version":')
    aged(dead, 3700)
    life.clean(0, dry=True)
    assert dead.exists()
    assert life.clean(0) == {}
    assert (dead.exists(), young.exists()) == (False, True)


def test_a_dry_run_makes_no_lock_files(tree: Tree, life: Life) -> None:
    part = tree.base(f"{sha1('image')}.part")
    (tree.instances / "locks").rmdir()
    assert life.clean(dry=True) == {part.name: ("kept", "dry-run")}
    assert not (tree.instances / "locks").exists()
    assert life.clean() == {part.name: ("removed", None)}
    assert os.listdir(tree.instances / "locks") == [f"nova-{part.stem}"]
