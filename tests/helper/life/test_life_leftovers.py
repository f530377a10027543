"""What early ends leave on purpose, and what is kept for others: who removes it, and when."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from helper.controller import PUSH, Controller, image_of
from helper.life.test_life_remove import HOLD_LOCK
from helper.life.tree import DAY, aged, child, sha1

if TYPE_CHECKING:
    from pathlib import Path

    from helper.life.tree import Life, Tree

OURS = ".0123456789abcdef.staging"
MIB = 1 << 20


def partial(tree: Tree, name: str = "ours", age: float = DAY + 60) -> tuple[Path, Path]:
    """Make a dead run's file and its journal."""
    path = tree.own / (sha1(name) + OURS)
    journal = tree.own / (path.name + ".json")
    path.write_bytes(b"x" * 5000)
    journal.write_text("{}")
    return aged(path, age), journal


@pytest.mark.row("D14")
def test_what_may_be_continued_stays_for_the_stall_age(tree: Tree, life: Life) -> None:
    path, journal = partial(tree)
    young, young_journal = partial(tree, "young", DAY - 60)
    future, _ = partial(tree, "future", -DAY)
    assert life.clean(DAY, dry=True) == {
        path.name: ("kept", "dry-run"), young.name: ("kept", "young"), future.name: ("kept", "young"),
    }  # fmt: skip
    assert journal.exists()
    rows = life.clean(DAY)
    assert rows[path.name] == ("removed", None)
    assert {rows[young.name], rows[future.name]} == {("kept", "young")}
    assert not path.exists()
    assert not journal.exists()
    assert young.exists()
    assert young_journal.exists()
    assert life.clean(0)[young.name] == ("removed", None)


@pytest.mark.row("D14")
def test_of_a_live_run_nothing_goes(tree: Tree, life: Life) -> None:
    data = os.urandom(2 * MIB)
    with Controller() as fetching:
        fetching.open(tree.instances)
        number = fetching.fetch(image_of(data), PUSH, more={"keep_partial": True})
        fetching.event(number, "ready")
        [name] = [name for name in os.listdir(tree.own) if name.endswith(".staging")]
        aged(tree.own / name, 9 * DAY)
        assert life.clean(0) == {name: ("kept", "busy")}
        assert sorted(os.listdir(tree.own)) == [name, name + ".json"]
        assert list(life.look()[0]) == [name]
        fetching.push(number, data)
        assert fetching.result(number)["state"] == "cached"


@pytest.mark.row("D14")
@pytest.mark.row("H12")
def test_journals_without_their_file_go(tree: Tree, life: Life) -> None:
    _, journal = partial(tree)
    lost = tree.own / (sha1("lost") + OURS + ".json")
    strange = tree.own / f"{sha1('x')}.xyz.staging.json"
    for path in (lost, strange):
        path.write_text("{}")
    life.clean(9 * DAY, dry=True)
    assert lost.exists()
    assert life.clean(9 * DAY) == {journal.name[:-5]: ("kept", "young")}
    assert (journal.exists(), lost.exists(), strange.exists()) == (True, False, True)


def test_a_journal_that_is_no_file_keeps_nothing(tree: Tree, life: Life) -> None:
    path, journal = partial(tree)
    journal.unlink()
    journal.mkdir()
    assert life.clean(DAY) == {path.name: ("removed", None)}
    assert journal.is_dir()


def original(tree: Tree, name: str) -> Path:
    path = tree.own / f"{sha1(name)}.original"
    path.write_bytes(b"q" * 5000)
    return path


@pytest.mark.row("D1")
def test_the_kept_original_goes_with_its_final(tree: Tree, life: Life) -> None:
    base, other = tree.image("image"), tree.image("other")
    kept = [original(tree, "image"), original(tree, "other"), tree.manifest(base)]
    assert life.remove_one(base) is None
    assert [path.exists() for path in kept] == [False, True, False]
    assert other.exists()


def test_a_kept_original_without_its_final_goes(tree: Tree, life: Life) -> None:
    lost, kept = original(tree, "lost"), original(tree, "image")
    tree.image("image")
    other = tree.own / "not-a-base.original"
    other.write_text("x")
    assert life.clean(dry=True) == {lost.name: ("kept", "dry-run")}
    assert lost.exists()
    lock = tree.instances / "locks" / f"nova-{sha1('lost')}"
    with child(sys.executable, "-c", HOLD_LOCK, lock):
        assert life.clean() == {lost.name: ("kept", "busy")}
    assert life.clean() == {lost.name: ("removed", None)}
    assert (lost.exists(), kept.exists(), other.exists()) == (False, True, True)


@pytest.mark.row("H10")
@pytest.mark.row("H12")
def test_what_only_looks_like_a_kept_original_stays(tree: Tree, life: Life) -> None:
    target = tree.image("image")
    link = tree.own / f"{sha1('link')}.original"
    link.symlink_to(target)
    folder = tree.own / f"{sha1('folder')}.original"
    folder.mkdir()
    assert set(life.clean().values()) == {("kept", "foreign")}
    assert link.is_symlink()
    assert folder.is_dir()
    assert target.exists()
