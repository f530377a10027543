"""What is in the caches of a cluster, who uses it, and that nothing in use is ever removed."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import Controller, let_others_reach
from helper.test_helper_touch import NOVA, OTHER, needs_root, system_python
from helper.vmware.conftest import Bench
from helper.vmware.disks import kinds, plain, vmdk
from servers.vcenter import MACHINE

if TYPE_CHECKING:
    from pathlib import Path

    from helper.controller import Frame
    from servers.vcenter import VCenter

pytestmark = [pytest.mark.vcenter, pytest.mark.qemu]
DAY = 86400


@pytest.fixture
def one(bench: Bench) -> Frame:
    """Return the row of the one image that is cached."""
    fields = bench.image(plain())
    assert bench.fetch(fields)["state"] == "cached"
    return bench.list()[fields["image"]["id"]]


def mark(bench: Bench, image_id: str, age_s: float) -> list[Path]:
    """Mark an image as unused since then, as Nova's cache manager does."""
    when = datetime.datetime.fromtimestamp(time.time() - age_s, datetime.UTC)
    made = [folder / f"{when:ts-%Y-%m-%d-%H-%M-%S}" for folder in bench.vcenter.cached(image_id)]
    for path in made:
        path.mkdir()
    return made


def test_a_row_tells_all_about_an_image(bench: Bench, one: Frame) -> None:
    assert one["kind"] == "original"
    assert one["format"] == "vmdk"
    assert one["size"] == len(plain()) == one["manifest"]["stored"]["size"]
    assert one["allocated"] > 2 * one["size"]
    assert (one["users"], one["used_by"], one["live"]) == (0, [], False)
    assert -2 < one["age"] < 60
    mark(bench, one["name"], 5 * DAY)
    assert 5 * DAY - 5 < bench.list()[one["name"]]["age"] < 5 * DAY + 60
    first = bench.vcenter.cached(one["name"])[0]
    first.rename(first.with_name("not an image"))
    rows = bench.list()
    assert rows[one["name"]]["format"] == "vmdk (1 of 2)"
    [foreign] = [row for row in rows.values() if row["kind"] == "foreign"]
    assert foreign["name"].endswith("10.0.0.5_base/not an image")


def test_a_damaged_or_forged_manifest_makes_an_entry_unmanaged(bench: Bench, one: Frame) -> None:
    for number, folder in enumerate(bench.vcenter.cached(one["name"])):
        text = ["{", json.dumps({"image_id": "other", "stored": {}})][number]
        (folder / "imgcache.json").write_text(text)
    row = bench.list()[one["name"]]
    assert row["manifest"] is None
    assert row["kind"] == "original"


@pytest.mark.parametrize(
    "spoil",
    [
        {"pin": float("nan")},
        {"pin": float("-inf")},
        {"source": [[[[[["deep"]]]]]]},
        {"digest": {"algo": 512, "value": "00"}},
        {"stored": {"algo": ["sha512"], "value": None, "size": 1}},
    ],
)
def test_a_manifest_that_json_cannot_tell_makes_an_entry_unmanaged(
    bench: Bench, one: Frame, spoil: Frame
) -> None:
    for folder in bench.vcenter.cached(one["name"]):
        path = folder / "imgcache.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **spoil}))
    row = bench.list()[one["name"]]
    assert row["manifest"] is None
    assert row["kind"] == "original"
    assert verify(bench, one["name"])["state"] == "unmanaged"


def test_a_time_that_nobody_means_fits_into_a_row(bench: Bench, one: Frame) -> None:
    for folder in bench.vcenter.cached(one["name"]):
        path = folder / "imgcache.json"
        noted = dict(json.loads(path.read_text()), touched_at="9999-01-01T00:00:00Z")
        path.write_text(json.dumps(noted))
    assert bench.list()[one["name"]]["mtime_ns"] < 1 << 63


@pytest.mark.row("D5")
@pytest.mark.parametrize("evidence", ["annotation", "parent", "vsan"])
def test_what_a_machine_uses_is_kept(bench: Bench, one: Frame, evidence: str) -> None:
    mark(bench, one["name"], 5 * DAY)
    row = bench.list()[one["name"]]
    said = {
        "annotation": f"name:box\nimageid:{one['name']}\npackage:34\n",
        "parent": f"[LocalDS_1] 10.0.0.5_base/{one['name']}/{one['name']}.20.vmdk",
        "vsan": f"[LocalDS_1] 5a0c2f5b-9d1e/{one['name']}/{one['name']}.vmdk",
    }
    told = "annotation" if evidence == "annotation" else "parent"
    bench.vcenter.ask("machine", name=MACHINE, **{told: said[evidence]})
    listed = bench.list()[one["name"]]
    assert (listed["users"], listed["used_by"]) == (1, [MACHINE])
    answer = bench.remove(row)
    assert (answer["state"], answer["code"]) == ("kept", "in-use")
    bench.vcenter.ask("machine", name=MACHINE)
    assert bench.remove(row)["state"] == "removed"
    assert bench.vcenter.cached(one["name"]) == []


@pytest.mark.row("D6")
def test_without_all_evidence_nothing_goes(bench: Bench, one: Frame) -> None:
    bench.vcenter.ask("machine", name=MACHINE, unreadable=1)
    assert bench.list()[one["name"]]["users"] is None
    answer = bench.remove(one)
    assert (answer["state"], answer["code"]) == ("kept", "evidence")
    assert MACHINE in answer["reason"]
    assert len(bench.vcenter.cached(one["name"])) == 2


@pytest.mark.row("D4")
def test_what_was_used_within_an_hour_is_kept(bench: Bench, one: Frame) -> None:
    mark(bench, one["name"], 3000)
    row = bench.list()[one["name"]]
    assert bench.remove(row, ours_ok=False)["code"] == "young"
    assert bench.remove(row, ours_ok=True)["state"] == "removed"


def test_an_age_is_checked_again(bench: Bench, one: Frame) -> None:
    mark(bench, one["name"], 2 * DAY)
    row = bench.list()[one["name"]]
    assert bench.remove(row, ours_ok=False, min_age_s=3 * DAY)["code"] == "young"
    # only the hour within which nothing goes is less for what imgcache alone has touched
    assert bench.remove(row, ours_ok=True, min_age_s=3 * DAY)["code"] == "young"
    assert bench.remove(row, ours_ok=False, min_age_s=DAY)["state"] == "removed"
    assert bench.remove(row)["state"] == "gone"


def grow_old(bench: Bench, image_id: str, *, noted: bool) -> None:
    """Have an image's files lie there for ten days; ``noted``: by imgcache's own notes."""
    then = time.time() - 10 * DAY
    when = datetime.datetime.fromtimestamp(then, datetime.UTC)
    for folder in bench.vcenter.cached(image_id):
        notes = folder / "imgcache.json"
        if noted:
            text = dict(json.loads(notes.read_text()), touched_at=f"{when:%Y-%m-%dT%H:%M:%SZ}")
            notes.write_text(json.dumps(text))
        else:
            notes.unlink()
        for path in folder.iterdir():
            os.utime(path, (then, then))


@pytest.mark.row("D4")
@pytest.mark.parametrize("noted", [True, False])
def test_what_nova_has_not_marked_as_unused_is_young(bench: Bench, one: Frame, noted: bool) -> None:
    """As minutes after its last instance has gone, or after it was renewed."""
    grow_old(bench, one["name"], noted=noted)
    row = bench.list()[one["name"]]
    assert row["age"] == 0
    answer = bench.remove(row, ours_ok=False, min_age_s=DAY)
    assert (answer["state"], answer["code"]) == ("kept", "young")
    assert "not marked" in answer["reason"]
    mark(bench, one["name"], 2 * DAY)
    row = bench.list()[one["name"]]
    assert bench.remove(row, ours_ok=False, min_age_s=DAY)["state"] == "removed"


@pytest.mark.row("D4")
@pytest.mark.parametrize("more", ["remove_unused_base_images = false", "manager_interval = -1"])
def test_what_was_just_renewed_is_young_where_nova_marks_nothing(
    vcenter: VCenter, tmp_path: Path, more: str
) -> None:
    conf = vcenter.nova_conf(tmp_path, f"[image_cache]\n{more}", cache_prefix="10.0.0.5")
    with Controller() as helper:
        bench = Bench(vcenter, helper, conf)
        assert bench.open()["event"] == "result"
        fields = bench.image(plain())
        assert bench.fetch(fields)["state"] == "cached"
        name = fields["image"]["id"]
        grow_old(bench, name, noted=False)
        assert bench.list()[name]["age"] > 9 * DAY
        assert bench.touch(fields)["touched"] is True
        row = bench.list()[name]
        assert row["age"] < 60
        assert bench.remove(row, ours_ok=False, min_age_s=DAY)["code"] == "young"


@pytest.mark.row("D9")
def test_an_entry_that_changed_since_it_was_looked_at_is_kept(bench: Bench, one: Frame) -> None:
    mark(bench, one["name"], 5 * DAY)
    row = bench.list()[one["name"]]
    assert bench.touch(about(one))["touched"] is True
    assert bench.remove(row)["code"] == "changed"


def answered(bench: Bench, order: int) -> bool:
    """Whether an order has been answered, save with how far it is."""
    frames = [frame for frame in bench.helper.frames if frame.get("id") == order]
    return any(frame["event"] != "progress" for frame in frames)


def about(row: Frame) -> Frame:
    """Return the fields of an order about an image that is there."""
    image = {"id": row["name"], "size": row["size"], "disk_format": "vmdk", "virtual_size": None}
    return {"image": image, "properties": {}, "container": "bare"}


def test_novas_lock_is_waited_for(bench: Bench, one: Frame) -> None:
    locks, names = bench.conf.parent / "locks", list(bench.vcenter.stores)
    with contextlib.ExitStack() as held:
        for name in names:
            path = locks / f"nova-vmware-ts-[{name}] 10.0.0.5_base_{one['name']}"
            fcntl.lockf(held.enter_context(path.open("a")), fcntl.LOCK_EX)
        order = bench.helper.order("vmware_touch", dry=False, reserve=0, **about(one))
        marked = mark(bench, one["name"], 60)
        time.sleep(1)  # for what does not wait: whether it does shows by nothing else
        assert not answered(bench, order)
        assert all(path.exists() for path in marked)
    assert bench.helper.result(order)["touched"] is True
    assert not any(path.exists() for path in marked)


@needs_root
@pytest.mark.row("H23")
@pytest.mark.parametrize(("user", "mode"), [(0, 0o755), (0, 0o777), (OTHER, 0o777)])
def test_locks_that_others_make_do_not_keep_nova_from_booting(
    vcenter: VCenter, tmp_path: Path, user: int, mode: int
) -> None:
    locks, conf = tmp_path / "locks", vcenter.nova_conf(tmp_path)
    os.chown(locks, NOVA, NOVA)
    locks.chmod(mode)
    let_others_reach(tmp_path)
    with Controller(system_python(), user=user or None) as helper:
        bench = Bench(vcenter, helper, conf)
        assert bench.open()["event"] == "result"
        fields = bench.image(plain())
        assert bench.fetch(fields)["state"] == "cached"
        assert bench.touch(fields)["touched"] is True
    made = sorted(map(str, locks.iterdir()))
    assert len(made) == 4  # two of our own, and Nova's of two datastores
    opening = "import sys\nfor path in sys.argv[1:]: open(path, 'a').close()"
    command = [system_python(), "-c", opening, *made]
    subprocess.run(command, user=NOVA, group=NOVA, extra_groups=[], check=True)


def test_a_pin_keeps_an_entry(bench: Bench, one: Frame) -> None:
    def pin(until: object, **more: Any) -> str:
        order = bench.helper.order("vmware_pin", base=one["name"], until=until, **more)
        return str(bench.helper.result(order)["state"])

    later = time.time() + 5000
    assert pin(later) == "pinned"
    assert pin(time.time() + 100, extend=True) == "pinned"
    row = bench.list()[one["name"]]
    assert row["manifest"]["pin"] == later
    assert bench.remove(row)["code"] == "pinned"
    assert pin("forever") == "pinned"
    assert bench.remove(bench.list()[one["name"]])["code"] == "pinned"
    assert pin(None) == "unpinned"
    assert bench.remove(bench.list()[one["name"]])["state"] == "removed"
    assert pin(None) == "absent"


def test_a_pin_waits_for_who_changes_notes_and_is_not_lost(bench: Bench, one: Frame) -> None:
    with (bench.conf.parent / "locks" / "imgcache-vmware-notes").open("a") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        order = bench.helper.order("vmware_pin", base=one["name"], until="forever")
        time.sleep(1)  # for what does not wait
        assert not answered(bench, order)
    assert bench.helper.result(order)["state"] == "pinned"


def test_renewing_takes_novas_mark_away(bench: Bench, one: Frame) -> None:
    marked = mark(bench, one["name"], 20 * 3600)
    order = bench.helper.order("vmware_renew", base=one["name"], dry=True)
    assert bench.helper.result(order)["state"] == "existing"
    assert all(path.exists() for path in marked)
    order = bench.helper.order("vmware_renew", base=one["name"], dry=False)
    assert bench.helper.result(order)["touched"] is True
    assert not any(path.exists() for path in marked)
    assert bench.list()[one["name"]]["age"] < 60


def verify(bench: Bench, name: str, **more: Any) -> Frame:
    """Return what ``vmware_verify`` answers."""
    return bench.helper.result(bench.helper.order("vmware_verify", base=name, rate=None, **more))


def test_verifying_reads_all_copies(bench: Bench, one: Frame) -> None:
    assert verify(bench, one["name"])["state"] == "intact"
    second = bench.vcenter.cached(one["name"])[1] / f"{one['name']}-flat.vmdk"
    data = bytearray(plain())
    data[1000] ^= 1
    second.write_bytes(data)
    answer = verify(bench, one["name"])
    assert answer["state"] == "damaged"
    assert "sha512" in answer["reason"]
    second.write_bytes(data[:-1024])
    assert "bytes instead of" in verify(bench, one["name"])["reason"]
    assert verify(bench, "00000000-0000-4000-8000-00000000dead")["state"] == "absent"


def test_what_vsphere_made_is_proven_from_its_first_look_on(bench: Bench) -> None:
    fields = bench.image(vmdk("monolithicSparse"), properties={"vmware_disktype": "sparse"})
    bench.fetch(fields)
    name = fields["image"]["id"]
    shown = verify(bench, name, dry=True)
    assert (shown["state"], "would be noted" in shown["reason"]) == ("unmanaged", True)
    first = verify(bench, name)
    assert (first["state"], "noted from now on" in first["reason"]) == ("unmanaged", True)
    assert verify(bench, name)["state"] == "intact"
    flat = bench.vcenter.cached(name)[0] / f"{name}-flat.vmdk"
    flat.write_bytes(b"\1" + plain()[1:])
    assert verify(bench, name)["state"] == "damaged"


@pytest.mark.row("T14")
def test_a_disk_on_vsan_is_never_called_damaged(bench: Bench) -> None:
    for name in bench.vcenter.stores:
        bench.vcenter.ask("store", name=name, type="vsan")
    bench.open()
    data = vmdk("streamOptimized")
    fields = bench.image(data, properties={"vmware_disktype": "streamOptimized"})
    assert bench.fetch(fields)["state"] == "cached"
    name = fields["image"]["id"]
    for folder in bench.vcenter.cached(name):
        (folder / f"{name}-flat.vmdk").unlink()  # it is an object there
    row = bench.list()[name]
    assert row["size"] == row["manifest"]["stored"]["size"] == len(plain())
    answer = verify(bench, name)
    assert (answer["state"], "vSAN" in answer["reason"]) == ("unmanaged", True)
    assert bench.touch(fields)["state"] == "existing"


def test_what_nova_fetched_is_adopted_when_it_is_the_images(bench: Bench, one: Frame) -> None:
    for folder in bench.vcenter.cached(one["name"]):
        (folder / "imgcache.json").unlink()
    image = dict(bench.image(plain())["image"], id=one["name"])
    adopt = {"image": image, "tool": "imgcache test", "run": "run-2"}
    other = dict(adopt, image=dict(image, digest={"algo": "sha512", "value": "0" * 128}))
    assert verify(bench, one["name"])["state"] == "unmanaged"
    assert verify(bench, one["name"], adopt=other)["state"] == "unmanaged"
    assert bench.list()[one["name"]]["manifest"] is None
    assert verify(bench, one["name"], adopt=adopt)["state"] == "adopted"
    assert verify(bench, one["name"])["state"] == "intact"


def test_all_kinds_are_listed_and_removed(bench: Bench) -> None:
    for data, more in kinds().values():
        bench.fetch(bench.image(data, **more))
    rows = bench.list()
    assert len(rows) == len(kinds())
    assert {bench.remove(row)["state"] for row in rows.values()} == {"removed"}
    assert bench.list() == {}
