"""Prune and delete over real sshd: several hosts, shared storage, broken contact."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from imgcache.errors import ExitCode
from imgcache.events import HostEnded
from imgcache.model import PIN_FOREVER
from imgcache.operations.removal import PlanRefusedError
from imgcache.operations.selection import Selection
from imgcache.policy import Amount, PrunePolicy
from scenarios.life_rig import DAY, IDS, Rig, words

if TYPE_CHECKING:
    from pathlib import Path

    from servers.fleet_fixtures import Fleet

pytestmark = pytest.mark.sshd


@pytest.fixture
def rig(fleet: Fleet) -> Rig:
    return Rig(fleet)


def tree(rig: Rig) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for path in rig.fleet.folder.glob("edge1-*/instances/**/*")
        if path.is_file()
    }


@pytest.mark.row("D1")
@pytest.mark.row("D4")
@pytest.mark.row("D5")
def test_prune_takes_what_is_old_and_unused_on_each_host_and_says_why_for_all(rig: Rig) -> None:
    used = rig.base(0, 0)
    rig.boot(0, used)
    rig.base(1, 0)
    rig.base(2, 0, age_s=23 * 3600)
    resized = rig.base(2, 1)
    resized = rig.aged(resized.rename(f"{resized}_5"), 2 * 3600)
    swap = rig.aged(rig.base(2, 2).rename(resized.with_name("swap_512")), 9 * DAY)
    before = tree(rig)

    shown = rig.prune(dry_run=True)
    assert tree(rig) == before
    assert words(shown)["02", "img0"] == ("skipped", "dry-run")
    assert shown.exit_code() is ExitCode.OK

    done = rig.prune()
    assert words(done) == {
        ("01", "img0"): ("kept", "in-use"),
        ("02", "img0"): ("removed", None),
        ("03", "img0"): ("kept", "young"),
        ("03", "img1"): ("removed", None),  # its resized copy
        ("03", "swap_512"): ("kept", "template"),
    }
    assert set(before) - set(tree(rig)) == {
        str(rig.fleet.final("edge1-02", IDS[0])),
        str(resized),
    }
    assert swap.exists()
    assert done.exit_code() is ExitCode.OK
    assert done.bytes_freed == shown.bytes_freed > 0
    assert any("vm-1" in (one.reason or "") for one in done.outcomes)


def test_a_hosts_own_conf_decides_unless_told_otherwise(rig: Rig) -> None:
    age = "remove_unused_original_minimum_age_seconds"
    rig.conf("edge1-01", "host=edge1-01", "remove_unused_base_images = false\n")
    rig.conf("edge1-02", "host=edge1-02", f"{age} = {int(9 * DAY)}\n")
    for host in range(3):
        rig.base(host, 0)
    report = rig.prune(policy=PrunePolicy())
    assert words(report) == {
        ("01", "img0"): ("kept", "policy"),
        ("02", "img0"): ("kept", "young"),
        ("03", "img0"): ("removed", None),
    }
    report = rig.prune(policy=PrunePolicy(min_age_s=DAY, override_host=True))
    assert words(report)["01", "img0"] == ("removed", None)
    assert words(report)["02", "img0"] == ("removed", None)


@pytest.mark.row("D3")
def test_over_the_ceiling_nothing_is_removed_anywhere_and_the_plan_is_shown(rig: Rig) -> None:
    for image in range(3):
        rig.base(0, image)
    rig.base(1, 0)
    before = tree(rig)
    with pytest.raises(PlanRefusedError) as refused:
        rig.prune(policy=PrunePolicy(max_delete=Amount(count=2)))
    assert refused.value.exit_code is ExitCode.REFUSED
    assert tree(rig) == before
    assert set(words(refused.value.report).values()) == {("skipped", "max-delete")}
    assert "edge1-01" in refused.value.message


@pytest.mark.row("D6")
def test_where_evidence_cannot_be_read_nothing_is_removed_and_the_others_go_on(rig: Rig) -> None:
    for host in range(2):
        rig.base(host, 0)
    (rig.fleet.instances("edge1-01") / "compute_nodes").write_text("not json")
    report = rig.prune()
    assert words(report) == {
        ("01", ""): ("error", "evidence"),
        ("01", "img0"): ("kept", "evidence"),
        ("02", "img0"): ("removed", None),
    }
    assert report.exit_code() is ExitCode.ITEMS_FAILED


@pytest.mark.row("D6")
@pytest.mark.row("D9")
def test_evidence_that_is_lost_before_removing_is_an_error(rig: Rig) -> None:
    final = rig.base(0, 0)
    rig.base(1, 0)
    rig.blind("edge1-01", from_start=2)
    report = rig.prune()
    assert words(report) == {
        ("01", ""): ("error", "evidence"),
        ("01", "img0"): ("kept", "evidence"),
        ("02", "img0"): ("removed", None),
    }
    assert "container" in next(str(one.reason) for one in report.outcomes if not one.entry)
    assert report.exit_code() is ExitCode.ITEMS_FAILED
    assert final.exists()


def test_gone_and_keep(rig: Rig) -> None:
    rig.selection = Selection(hosts=("edge1-01",))
    rig.precache("img0", "img1", "img2")
    for image in range(3):
        rig.aged(rig.fleet.final("edge1-01", IDS[image]), (2 if image == 0 else 48) * 3600)
    listing = rig.fleet.folder / "images/images.yaml"
    listing.write_text(listing.read_text().replace(IDS[0], IDS[0][:-1] + "9"))
    assert words(rig.prune(gone=True, keep=("img1",))) == {
        ("01", "img0"): ("removed", None),
        ("01", "img1"): ("kept", "keep"),
        ("01", "img2"): ("removed", None),
    }


# ---- shared storage


@pytest.mark.row("D11")
@pytest.mark.row("H14")
def test_a_shared_storage_is_pruned_once_and_only_with_all_hosts_in_view(rig: Rig) -> None:
    base = rig.base(0, 0)
    rig.share()
    rig.selection = Selection(hosts=("edge1-[01-02]",))
    report = rig.prune()
    assert words(report) == {
        ("01", ""): ("error", "shared"),
        ("01", "img0"): ("kept", "shared"),
        ("02", ""): ("skipped", "shared"),
    }
    assert "edge1-03" in (report.outcomes[0].reason or "")
    assert base.exists()

    rig.selection = Selection(all=True)
    report = rig.prune()
    assert words(report) == {
        ("01", "img0"): ("removed", None),
        ("02", ""): ("skipped", "shared"),
        ("03", ""): ("skipped", "shared"),
    }
    assert not base.exists()
    assert report.exit_code() is ExitCode.OK


@pytest.mark.row("D11")
def test_a_dead_host_of_a_shared_storage_keeps_all_of_it(rig: Rig) -> None:
    base = rig.base(0, 0)
    rig.share()
    rig.fleet.overrides["edge1-03"]["port"] = 1
    report = rig.prune()
    assert words(report)["01", ""] == ("error", "shared")
    assert words(report)["03", ""] == ("error", "connect")
    assert base.exists()
    assert words(rig.delete("img0"))["01", "img0"] == ("kept", "shared")


@pytest.mark.row("H14")
def test_a_shared_storage_is_filled_once(rig: Rig) -> None:
    rig.share()
    report = rig.precache("img0", "img1")
    outcomes = [(one.outcome.value, one.bytes_fetched) for one in report.outcomes]
    size = len(rig.content) + 1
    assert sorted(outcomes) == [("cached", size)] * 2 + [("existing", 0)] * 4


# ---- broken contact

KILLER = """\
import os, signal, subprocess, sys, time
base, least, marker = {base!r}, {least}, {marker!r}
if not os.path.exists(marker):
    # Kills the helper, which this process becomes, once so few base files are left.
    child = os.fork()
    if child == 0:
        os.closerange(0, 256)
        helper = os.getppid()
        while os.getppid() == helper:
            if len(os.listdir(base)) - 1 <= least:
                open(marker, "w").close()
                os.kill(helper, signal.SIGKILL)
            time.sleep(0.0005)
        os._exit(0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def fill(rig: Rig, count: int) -> Path:
    folder = rig.base(0, 0).parent
    for number in range(count - 1):
        rig.aged(_new(folder / f"{number:040x}"), 3 * DAY)
    killer = rig.fleet.folder / "killer.py"
    killer.write_text(
        KILLER.format(base=str(folder), least=count // 2, marker=str(rig.fleet.folder / "killed"))
    )
    rig.fleet.overrides["edge1-01"]["python"] = f"{sys.executable} {killer}"
    rig.selection = Selection(hosts=("edge1-01",))
    (folder / ".imgcache").mkdir()
    return folder


def _new(path: Path) -> Path:
    path.write_bytes(b"x" * 600)
    return path


@pytest.mark.row("D13")
@pytest.mark.row("D12")
def test_a_helper_killed_in_mid_prune_leaves_each_file_there_or_gone_and_the_rerun_is_right(
    rig: Rig,
) -> None:
    folder = fill(rig, 250)
    report = rig.prune()
    found = [one.outcome.value for one in report.outcomes if one.entry]
    left = {path.name for path in folder.iterdir() if path.is_file()}
    assert set(found) == {"removed", "unknown"}
    assert report.exit_code() is ExitCode.ITEMS_FAILED
    told = {one.entry for one in report.outcomes if one.outcome == "removed"}
    assert not told & left
    again = rig.prune()
    assert {one.entry for one in again.outcomes} == left
    assert set(words(again).values()) == {("removed", None)}
    assert [path.name for path in folder.iterdir()] == [".imgcache"]
    # A lock file is Nova's business; none may be held.
    assert os.listdir(rig.fleet.instances("edge1-01") / "locks")


@pytest.mark.row("D13")
def test_with_repetitions_a_killed_helper_costs_nothing(rig: Rig) -> None:
    folder = fill(rig, 250)
    report = rig.prune(retries=2)
    assert {one.outcome.value for one in report.outcomes} == {"removed"}
    assert len(report.outcomes) == 250
    assert any("contact was lost" in (one.reason or "") for one in report.outcomes)
    assert [path.name for path in folder.iterdir()] == [".imgcache"]


@pytest.mark.row("C1")
def test_interrupted_between_looking_and_removing_it_removes_nothing_and_says_so(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for host in range(3):
        rig.base(host, 0)
    before = tree(rig)
    ended: list[str] = []

    def interrupt_at_the_end(event: object) -> None:
        if isinstance(event, HostEnded):
            ended.append(event.host)
            if len(ended) == 3:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(rig, "emit", interrupt_at_the_end)
    report = rig.prune()
    assert report.exit_code() is ExitCode.INTERRUPTED
    assert tree(rig) == before
    found = words(report)
    assert {found[host, "img0"] for host in ("01", "02", "03")} == {("skipped", "interrupted")}


# ---- delete


def test_delete_takes_named_images_with_their_copies_and_fails_on_what_it_must_keep(
    rig: Rig,
) -> None:
    rig.boot(0, rig.base(0, 0))
    for image in (0, 1):
        rig.base(1, image)
    copy = rig.base(1, 0)
    copy.rename(f"{copy}_5")
    rig.aged(rig.base(1, 0).with_name(f"{copy.name}_5"), 2 * DAY)
    report = rig.delete("img0")
    assert words(report) == {
        ("01", "img0"): ("kept", "in-use"),
        ("02", "img0"): ("removed", None),
        ("02", f"{copy.name}_5"): ("removed", None),
        ("03", "img0"): ("absent", "absent"),
    }
    assert report.exit_code() is ExitCode.ITEMS_FAILED
    assert rig.fleet.final("edge1-02", IDS[1]).exists()


def test_what_imgcache_itself_cached_last_may_go_at_once_unless_nova_touched_it(rig: Rig) -> None:
    rig.selection = Selection(hosts=("edge1-[01-02]",))
    rig.precache("img0")
    os.utime(rig.fleet.final("edge1-02", IDS[0]))
    rig.base(0, 1, age_s=60)
    assert words(rig.delete("img0", IDS[1])) == {
        ("01", "img0"): ("removed", None),
        ("01", "img1"): ("kept", "young"),
        ("02", "img0"): ("kept", "young"),
        ("02", "img1"): ("absent", "absent"),
    }
    manifests = rig.fleet.final("edge1-01", IDS[0]).parent / ".imgcache"
    assert not list(manifests.glob("*.json"))


def test_pinned_images_stay_until_unpinned(rig: Rig) -> None:
    rig.selection = Selection(hosts=("edge1-01",))
    rig.precache("img0")
    assert words(rig.pin("img0", until=PIN_FOREVER)) == {("01", "img0"): ("pinned", None)}
    rig.aged(rig.fleet.final("edge1-01", IDS[0]), 9 * DAY)
    assert words(rig.prune()) == {("01", "img0"): ("kept", "pinned")}
    assert words(rig.delete("img0")) == {("01", "img0"): ("kept", "pinned")}
    assert words(rig.pin("img0", until=None)) == {("01", "img0"): ("unpinned", None)}
    assert words(rig.prune()) == {("01", "img0"): ("removed", None)}
