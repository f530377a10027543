"""Caches that hosts share, over real sshd: what is removed, what is told, what is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from imgcache.operations.selection import Selection
from scenarios.life_rig import IDS, Rig, words
from servers.network_storage import mounting

if TYPE_CHECKING:
    from pathlib import Path

    from imgcache.plan import HostStatus
    from servers.fleet_fixtures import Fleet

pytestmark = pytest.mark.sshd


@pytest.fixture
def rig(fleet: Fleet) -> Rig:
    return Rig(fleet)


def mount(rig: Rig, host: int, **mounts: Path) -> None:
    """Let a host see these mounts, type -> place."""
    name = rig.fleet.names[host]
    start = mounting(rig.fleet.folder / name / "mounts", **mounts)
    rig.fleet.overrides[name]["python"] = " ".join(start)


def tree(rig: Rig) -> dict[str, int]:
    folders = rig.fleet.folder.glob("edge1-*/instances/**/*")
    return {str(path): path.lstat().st_mtime_ns for path in folders}


def room(rig: Rig, *hosts: str) -> dict[str, HostStatus]:
    rig.selection = Selection(hosts=hosts) if hosts else Selection(all=True)
    return {status.host[-2:]: status for status in rig.status().hosts}


@pytest.mark.row("H14")
@pytest.mark.row("D11")
def test_nothing_is_removed_from_a_base_folder_alone_on_nfs(rig: Rig) -> None:
    """Its other users have their instances, and so their disks, elsewhere: they may well run from it."""
    rig.precache("img0", "img1")
    rig.selection = Selection(hosts=("edge1-01",))
    base, broken = (rig.fleet.final("edge1-01", IDS[number]) for number in range(2))
    broken.write_bytes(b"not what was fetched")
    for path in (base, broken):
        rig.aged(path, 3 * 86400.0)
    mount(rig, 0, nfs4=base.parent)
    for report in (rig.prune(), rig.delete("img0", "img1")):
        assert words(report) == {
            ("01", ""): ("error", "evidence"),
            ("01", "img0"): ("kept", "evidence"),
            ("01", "img1"): ("kept", "evidence"),
        }
        assert f"{base.parent} is on nfs4" in (report.outcomes[0].reason or "")
        assert report.exit_code() == 1
    assert words(rig.clean(invalid=True))["01", ""] == ("error", "evidence")
    assert words(rig.verify(repair=True))["01", "img1"] == ("damaged", "evidence")
    assert base.exists()
    assert broken.read_bytes() == b"not what was fetched"


@pytest.mark.row("H14")
def test_looking_at_a_shared_cache_writes_nothing_there(rig: Rig) -> None:
    base = rig.base(0, 0)
    shared = rig.share()
    for number in range(3):
        mount(rig, number, nfs4=shared)
    before = tree(rig)
    rig.list()
    assert {status.storage_id for status in rig.status().hosts} != {None}
    shown = rig.prune(dry_run=True)
    rig.delete("img0", dry_run=True)
    rig.verify(dry_run=True)
    assert tree(rig) == before
    done = rig.prune()
    assert {word for word, _ in words(shown).values()} == {"skipped"}
    assert words(shown).keys() == words(done).keys()
    assert words(done)["01", "img0"] == ("removed", None)
    assert not base.exists()


@pytest.mark.row("H14")
def test_one_host_that_shares_the_base_folder_alone_keeps_all_of_it(rig: Rig) -> None:
    """Nova's registry names all hosts of the others' storage, and still not all that use the cache."""
    base = rig.base(0, 0)
    shared = rig.share()
    mount(rig, 0, nfs4=shared)
    mount(rig, 1, nfs4=base.parent)
    mount(rig, 2, nfs4=shared)
    assert {status.reclaimable_bytes for status in rig.status().hosts} == {0}
    report = rig.prune()
    assert words(report)["01", ""] == ("error", "evidence")
    assert "edge1-02" in (report.outcomes[0].reason or "")
    assert base.exists()


@pytest.mark.row("H14")
def test_status_promises_only_what_prune_would_free_on_shared_storage(rig: Rig) -> None:
    base = rig.base(0, 0)
    rig.share()
    found = room(rig)
    size = base.stat().st_blocks * 512
    assert {status.reclaimable_bytes for status in found.values()} == {size}

    found = room(rig, "edge1-[01-02]")
    assert {status.reclaimable_bytes for status in found.values()} == {0}
    assert all("edge1-03" in status.evidence_problems[0] for status in found.values())

    # One host's policy holds for all that share the storage.
    rig.conf("edge1-02", "host=edge1-02\n", "remove_unused_base_images=false\n")
    found = room(rig)
    assert {status.reclaimable_bytes for status in found.values()} == {0}
    assert words(rig.prune())["01", "img0"] == ("kept", "policy")
    assert base.exists()
