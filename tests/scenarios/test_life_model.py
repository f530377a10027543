"""Histories of a host: instances come and go while prune runs; nothing that is in use is ever removed."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from imgcache import guards
from scenarios.life_world import Hurt, World, entries, removal, usage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEPS = 40


def run_histories(tmp_path: Path, seeds: range) -> int:
    """Live these histories; return how many entries prune removed."""
    removed = 0
    for seed in seeds:
        root = tmp_path / str(seed)
        root.mkdir()
        world = World(root, seed)
        try:
            world.live(STEPS)
        finally:
            world.close()
        removed += world.removed
        shutil.rmtree(root)
    return removed


@pytest.mark.row("D1")
@pytest.mark.row("D5")
@pytest.mark.row("D9")
@pytest.mark.row("H17")
def test_prune_never_removes_what_is_in_use(tmp_path: Path) -> None:
    assert run_histories(tmp_path, range(100)) > 20


@pytest.mark.long
@pytest.mark.row("D9")
@pytest.mark.parametrize("part", range(10))
def test_prune_never_removes_what_is_in_use_in_thousands_of_histories(
    part: int, tmp_path: Path
) -> None:
    assert run_histories(tmp_path, range(1000 + part * 500, 1500 + part * 500)) > 100


@pytest.mark.row("D5")
def test_an_instance_that_is_renamed_whenever_the_helper_looks_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, 1)
    world.boot()
    while world.boots:
        world.step_boot()
    world.pass_time()
    for path in world.base.iterdir():
        if path.is_file():
            os.utime(path, (0, 0))
    monkeypatch.setattr(world, "act", lambda *_: world.rename())
    try:
        for _ in range(3):
            world.prune()
            world.check()
    finally:
        world.close()
    assert not world.removed
    assert len([line for line in world.log if line.startswith("rename")]) > 3


def _blind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage.Scan, "mark", lambda *_: None)


def _names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is asked before the lock counts."""
    monkeypatch.setattr(removal.Remove, "check_use", lambda *_: None)


def _no_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """A touched base counts as unused: the helper forgets the item's time, and both forget the floor."""
    look = removal.Remove.look

    def careless(self: Any, item: dict[str, object]) -> object:
        status = (self.cache and entries.status_of(item["name"], self.cache.cache_fd)) or None
        if status is not None:
            item = {**item, "inode": status.st_ino, "mtime_ns": status.st_mtime_ns}
        return look(self, item)

    monkeypatch.setattr(removal.Remove, "look", careless)
    monkeypatch.setattr(removal.Remove, "check_age", lambda *_: None)


def _no_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "is_pinned", lambda *_: False)
    monkeypatch.setattr(guards, "is_pinned", lambda *_: False)


@pytest.mark.parametrize("mutant", [_blind, _names_only, _no_age, _no_pins])
def test_a_planted_fault_is_found(
    mutant: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    with pytest.raises(Hurt):
        run_histories(tmp_path, range(300))
