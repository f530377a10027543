"""What goes wrong between the helper and vCenter, at the worst moment: a server in between sees to it."""

from __future__ import annotations

import fcntl
import re
import shutil
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import Controller
from helper.vmware.conftest import Bench
from helper.vmware.disks import content, plain, vmdk
from servers.vcenter import MACHINE
from servers.vcenter_front import Answer, Front, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from servers.vcenter import VCenter

pytestmark = [pytest.mark.vcenter, pytest.mark.qemu]


class Meddled:
    """A bench behind a front; ``meddle`` may be set at any time."""

    def __init__(self, vcenter: VCenter, folder: Path, helper: Controller) -> None:
        self.meddle: Callable[[Request, Callable[[], Answer]], Answer] = lambda _, go: go()
        self.front = Front(vcenter, self._meddle)
        conf = vcenter.nova_conf(folder, host_port=self.front.port)
        self.bench = Bench(vcenter, helper, conf)

    def _meddle(self, request: Request, go: Callable[[], Answer]) -> Answer:
        return self.meddle(request, go)


@pytest.fixture
def meddled(vcenter: VCenter, tmp_path: Path) -> Iterator[Meddled]:
    """Return a helper that is logged in, through a front."""
    with Controller() as helper:
        made = Meddled(vcenter, tmp_path, helper)
        with made.front:
            assert made.bench.open()["event"] == "result"
            yield made


def deletes_temp(request: Request) -> bool:
    """Whether a request deletes one of the helper's folders in ``vmware_temp``."""
    found = re.search(rb"vmware_temp/imgcache-[^/<]*</name>", request.body)
    return request.calls("DeleteDatastoreFile_Task") and found is not None


@pytest.mark.row("H20")
def test_half_a_disk_never_gets_the_final_name(meddled: Meddled) -> None:
    """Contact is lost in the very moment in which the folder is moved."""
    bench, deleting = meddled.bench, threading.Event()

    def meddle(request: Request, go: Callable[[], Answer]) -> Answer:
        if request.calls("MoveDatastoreFile_Task"):
            threading.Thread(target=bench.helper.end).start()
            deleting.wait(3)
            return go()
        if deletes_temp(request) and not deleting.is_set():
            for path in bench.vcenter.leftovers():
                for flat in path.rglob("*-flat.vmdk"):
                    flat.unlink()  # as far as the deletion is when the other begins
            deleting.set()
            time.sleep(1)
        return go()

    fields = bench.image(plain())
    meddled.meddle = meddle
    order = bench.begin(fields)
    bench.helper.push_when_ready(order, plain())
    assert bench.helper.process.wait(30) == 0
    time.sleep(1)  # what vCenter was asked for goes on without us
    image_id = fields["image"]["id"]
    for folder in bench.vcenter.cached(image_id):
        assert content(folder, image_id) == plain()


@pytest.mark.row("H20")
def test_what_is_given_up_is_not_published_any_more(meddled: Meddled) -> None:
    """Contact is lost just before the folder is moved."""
    bench, deleting, moved = meddled.bench, threading.Event(), threading.Event()

    def meddle(request: Request, go: Callable[[], Answer]) -> Answer:
        if request.calls("MakeDirectory") and request.body.count(b"10.0.0.5_base</name>"):
            threading.Thread(target=bench.helper.end).start()
            deleting.wait(5)
        if deletes_temp(request):
            deleting.set()
            moved.wait(2)
        if request.calls("MoveDatastoreFile_Task"):
            moved.set()
        return go()

    fields = bench.image(plain())
    meddled.meddle = meddle
    order = bench.begin(fields)
    bench.helper.push_when_ready(order, plain())
    assert bench.helper.process.wait(30) == 0
    assert deleting.is_set()
    assert not moved.is_set()
    assert bench.vcenter.cached(fields["image"]["id"]) == []


@pytest.mark.row("H20")
def test_a_move_whose_end_is_not_known_is_not_deleted_under(meddled: Meddled) -> None:
    """The connection breaks while vCenter moves: it goes on, and the helper cannot see how far it is."""
    bench, seen = meddled.bench, []
    moving = threading.Event()

    def meddle(request: Request, go: Callable[[], Answer]) -> Answer:
        if request.calls("MoveDatastoreFile_Task"):
            moving.set()
            raise ConnectionResetError
        if moving.is_set() and deletes_temp(request):
            seen.append(request)
        return go()

    meddled.meddle = meddle
    answer = bench.fetch(bench.image(plain()))
    assert (answer["event"], answer["code"]) == ("error", "io"), answer
    assert seen == []


def test_a_disk_without_its_content_is_not_called_existing(meddled: Meddled) -> None:
    bench = meddled.bench
    fields = bench.image(plain())
    assert bench.fetch(fields)["state"] == "cached"
    image_id = fields["image"]["id"]
    (bench.vcenter.cached(image_id)[0] / f"{image_id}-flat.vmdk").unlink()
    answer = bench.touch(fields)
    assert (answer["event"], answer["code"]) == ("error", "damaged"), answer
    assert f"{image_id}-flat.vmdk" in answer["message"]


def test_half_a_disk_on_one_datastore_does_not_keep_the_others_from_theirs(
    meddled: Meddled,
) -> None:
    bench = meddled.bench
    fields = bench.image(plain())
    assert bench.fetch(fields)["state"] == "cached"
    image_id = fields["image"]["id"]
    half, whole = bench.vcenter.cached(image_id)
    (half / f"{image_id}-flat.vmdk").unlink()
    mark = whole / "ts-2026-01-01-00-00-00"
    mark.mkdir()
    answer = bench.touch(fields)
    assert (answer["event"], answer["code"]) == ("error", "damaged"), answer
    assert not mark.exists()
    shutil.rmtree(whole)
    answer = bench.fetch(fields)
    assert (answer["event"], answer["code"]) == ("error", "damaged"), answer
    assert "it is on the others" in answer["message"]
    assert (whole / f"{image_id}-flat.vmdk").stat().st_size == len(plain())
    assert not (half / f"{image_id}-flat.vmdk").exists()


def test_a_disk_that_was_stored_without_its_content_is_not_published(meddled: Meddled) -> None:
    bench = meddled.bench

    def meddle(request: Request, go: Callable[[], Answer]) -> Answer:
        answer = go()
        if request.method == "PUT" and "-flat.vmdk" in request.path:
            for path in bench.vcenter.leftovers():
                for flat in path.rglob("*-flat.vmdk"):
                    flat.unlink()
        return answer

    meddled.meddle = meddle
    fields = bench.image(plain())
    answer = bench.fetch(fields)
    assert (answer["event"], answer["code"]) == ("error", "io"), answer
    assert "flat.vmdk is not there" in answer["message"]
    assert bench.vcenter.cached(fields["image"]["id"]) == []
    assert bench.vcenter.leftovers() == []


def verify(bench: Bench, name: str, **more: Any) -> dict[str, Any]:
    """Return how ``vmware_verify`` ends."""
    return bench.helper.answer(bench.helper.order("vmware_verify", base=name, rate=None, **more))


def cut_flat(request: Request, go: Callable[[], Answer]) -> Answer:
    """Break off reading a disk's content half-way."""
    return go().cut() if request.method == "GET" and "-flat.vmdk" in request.path else go()


@pytest.mark.row("T14")
def test_a_read_that_breaks_off_is_no_verdict(meddled: Meddled) -> None:
    bench = meddled.bench
    fields = bench.image(plain())
    assert bench.fetch(fields)["state"] == "cached"
    image_id = fields["image"]["id"]
    meddled.meddle = cut_flat
    answer = verify(bench, image_id)
    assert (answer["event"], answer.get("code")) == ("error", "io"), answer
    meddled.meddle = lambda _, go: go()
    assert verify(bench, image_id)["state"] == "intact"


@pytest.mark.row("T14")
def test_half_a_content_is_never_noted_as_all_of_it(meddled: Meddled) -> None:
    bench = meddled.bench
    fields = bench.image(vmdk("monolithicSparse"), properties={"vmware_disktype": "sparse"})
    assert bench.fetch(fields)["state"] == "cached"
    image_id = fields["image"]["id"]
    meddled.meddle = cut_flat
    answer = verify(bench, image_id)
    assert (answer["event"], answer.get("code")) == ("error", "io"), answer
    assert bench.list()[image_id]["manifest"]["stored"]["value"] is None
    meddled.meddle = lambda _, go: go()
    assert verify(bench, image_id)["state"] == "unmanaged"
    assert verify(bench, image_id)["state"] == "intact"


@pytest.mark.row("D4")
def test_a_pin_whose_note_breaks_off_still_holds(meddled: Meddled) -> None:
    bench = meddled.bench
    fields = bench.image(plain())
    assert bench.fetch(fields)["state"] == "cached"
    image_id = fields["image"]["id"]
    row = bench.list()[image_id]
    bench.helper.result(bench.helper.order("vmware_pin", base=image_id, until="forever"))
    pinned = bench.list()[image_id]

    def meddle(request: Request, go: Callable[[], Answer]) -> Answer:
        answer = go()
        return answer.cut() if request.method == "GET" else answer

    meddled.meddle = meddle
    answer = bench.remove(dict(row, inode=pinned["inode"], mtime_ns=pinned["mtime_ns"]))
    assert (answer["state"], answer["code"]) == ("kept", "io"), answer
    assert len(bench.vcenter.cached(image_id)) == 2


def test_what_goes_while_it_is_read_is_absent(meddled: Meddled) -> None:
    bench = meddled.bench
    fields = bench.image(plain())
    assert bench.fetch(fields)["state"] == "cached"
    image_id = fields["image"]["id"]

    def meddle(request: Request, go: Callable[[], Answer]) -> Answer:
        if request.method == "GET" and "-flat.vmdk" in request.path:
            for folder in bench.vcenter.cached(image_id):
                folder.rename(folder.with_name("away"))  # Nova's own aging
        return go()

    meddled.meddle = meddle
    assert verify(bench, image_id)["state"] == "absent"


def told(bench: Bench, order: int) -> list[dict[str, Any]]:
    """Return what was told of an order's progress so far."""
    frames = list(bench.helper.frames)
    return [one for one in frames if one.get("id") == order and one["event"] == "progress"]


def wait_until(condition: Callable[[], object], timeout_s: float = 15) -> bool:
    """Return whether it came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


@pytest.mark.parametrize("op", ["fetch", "touch", "renew"])
def test_a_host_that_waits_for_a_lock_does_not_fall_silent(meddled: Meddled, op: str) -> None:
    bench = meddled.bench
    fields = bench.image(plain())
    image_id = fields["image"]["id"]
    name = f"imgcache-vmware-10.0.0.5_base_{image_id}"
    if op != "fetch":
        assert bench.fetch(fields)["state"] == "cached"
        store = max(bench.vcenter.stores)
        name = f"nova-vmware-ts-[{store}] 10.0.0.5_base_{image_id}"
    with (bench.conf.parent / "locks" / name).open("a") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        if op == "fetch":
            order = bench.begin(fields, lock_wait_s=30)
        elif op == "touch":
            order = bench.helper.order("vmware_touch", dry=False, reserve=0, **fields)
        else:
            order = bench.helper.order("vmware_renew", dry=False, base=image_id)
        assert wait_until(lambda: len(told(bench, order)) > 1, 6)
    if op == "fetch":
        bench.helper.push_when_ready(order, plain())
    bench.helper.result(order)
    done = [frame["done"] for frame in told(bench, order) if frame["phase"] == "inspect"]
    assert done == sorted(done)


def test_a_host_whose_vcenter_makes_a_disk_does_not_fall_silent(meddled: Meddled) -> None:
    bench = meddled.bench

    def meddle(request: Request, go: Callable[[], Answer]) -> Answer:
        if request.calls("CreateVirtualDisk_Task"):
            time.sleep(3)  # as with terabytes of zeros
        return go()

    meddled.meddle = meddle
    fields = bench.image(plain(), properties={"vmware_disktype": "eagerZeroedThick"})
    order = bench.begin(fields)
    bench.helper.event(order, "ready")
    assert len(told(bench, order)) > 1
    bench.helper.push(order, plain())
    bench.helper.result(order)


@pytest.mark.row("D5")
def test_a_machine_that_comes_while_others_are_read_keeps_its_image(meddled: Meddled) -> None:
    bench = meddled.bench
    fields = bench.image(plain())
    assert bench.fetch(fields)["state"] == "cached"
    image_id = fields["image"]["id"]
    row = bench.list()[image_id]
    bench.vcenter.ask("machine", name=MACHINE, annotation=f"imageid:{image_id}\n")
    seen: list[bytes] = []

    def meddle(request: Request, go: Callable[[], Answer]) -> Answer:
        answer = go()
        machines = re.findall(
            rb"<ManagedObjectReference[^>]*VirtualMachine\">[^<]*</[^>]*>", answer.body
        )
        if b"<pathSet>vm</pathSet>" in request.body and not seen:
            # When the list was made only those were there that do not use it.
            body = answer.body
            for machine in set(machines):
                number = re.search(rb">([^<]*)<", machine)
                assert number
                if number[1] in users:
                    body = body.replace(machine, b"")
            seen.append(body)
            assert body != answer.body
            return replace(answer, body=body)
        return answer

    users = machines_called(meddled, MACHINE)
    meddled.meddle = meddle
    answer = bench.remove(row)
    assert seen
    assert (answer["state"], answer["code"]) == ("kept", "in-use"), answer
    assert len(bench.vcenter.cached(image_id)) == 2


def machines_called(meddled: Meddled, name: str) -> set[bytes]:
    """Return the ids of the machines of a name, as vCenter tells them when all are looked at."""
    found: set[bytes] = set()

    def meddle(request: Request, go: Callable[[], Answer]) -> Answer:
        answer = go()
        if b"config.annotation" in request.body:
            for part in answer.body.split(b"<objects>")[1:]:
                number = re.search(rb"VirtualMachine\">([^<]*)<", part)
                assert number
                if b">" + name.encode() + b"</val>" in part:
                    found.add(number[1])
        return answer

    meddled.meddle = meddle
    meddled.bench.list()
    assert found
    return found


def test_removing_many_tells_of_each_of_them(meddled: Meddled) -> None:
    bench = meddled.bench
    rows = []
    for _ in range(2):
        fields = bench.image(plain())
        assert bench.fetch(fields)["state"] == "cached"
        rows.append(bench.list()[fields["image"]["id"]])

    def meddle(request: Request, go: Callable[[], Answer]) -> Answer:
        if request.calls("DeleteDatastoreFile_Task"):
            time.sleep(1.2)
        return go()

    meddled.meddle = meddle
    items = [
        {"name": row["name"], "inode": row["inode"], "mtime_ns": row["mtime_ns"],
         "min_age_s": 0, "ours_ok": True, "pinned_ok": False}
        for row in rows
    ]  # fmt: skip
    order = bench.helper.order("vmware_remove", items=items)
    bench.helper.result(order)
    done = {frame["done"] for frame in told(bench, order)}
    assert max(done) >= 1000, done


@pytest.mark.parametrize("setting", [{"cluster_name": "other"}, {"datastore_regex": "nas.*"}])
def test_a_session_that_leads_nowhere_is_ended(
    meddled: Meddled, vcenter: VCenter, tmp_path: Path, setting: dict[str, str]
) -> None:
    with Controller() as helper:
        conf = vcenter.nova_conf(tmp_path, host_port=meddled.front.port, **setting)
        before = len(meddled.front.requests)
        assert Bench(vcenter, helper, conf).open()["event"] == "error"
        calls = meddled.front.requests[before:]
        assert [one.calls("Login") for one in calls].count(True) == 1
        assert [one.calls("Logout") for one in calls].count(True) == 1


@pytest.mark.parametrize("kind", ["VMFS", "vsan"])
@pytest.mark.row("T14")
def test_a_disk_of_novas_never_bears_our_digest(meddled: Meddled, kind: str) -> None:
    """Nova has its own disk there in the moment in which ours is to be moved."""
    bench = meddled.bench
    for name in bench.vcenter.stores:
        bench.vcenter.ask("store", name=name, type=kind)
    bench.open()
    properties = {"vmware_disktype": "streamOptimized"}
    fields = bench.image(vmdk("streamOptimized"), properties=properties)
    image_id = fields["image"]["id"]
    folders = [store / "10.0.0.5_base" / image_id for store in bench.vcenter.stores.values()]
    if kind == "VMFS":
        for folder in folders:
            folder.mkdir(parents=True)  # as a broken transfer left it

    def meddle(request: Request, go: Callable[[], Answer]) -> Answer:
        if request.calls("MoveVirtualDisk_Task") and b"10.0.0.5_base" in request.body:
            for folder in folders:
                (folder / f"{image_id}.vmdk").write_text("Nova's own")
                (folder / f"{image_id}-flat.vmdk").write_bytes(b"other bytes")
        return go()

    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    meddled.meddle = meddle
    bench.fetch(fields)
    for folder in folders:
        assert (folder / f"{image_id}.vmdk").read_text() == "Nova's own"
    assert bench.list()[image_id]["manifest"] is None


def test_a_browser_that_hides_the_files_of_disks_makes_none_damaged(meddled: Meddled) -> None:
    bench = meddled.bench

    def meddle(request: Request, go: Callable[[], Answer]) -> Answer:
        answer = go()
        hidden = rb"<file(?: [^>]*)?><path>[^<]*-flat\.vmdk</path>.*?</file>"
        return replace(answer, body=re.sub(hidden, b"", answer.body))

    meddled.meddle = meddle
    for data, properties in (
        (plain(), {}),
        (vmdk("monolithicSparse"), {"vmware_disktype": "sparse"}),
    ):
        fields = bench.image(data, properties=properties)
        assert bench.fetch(fields)["state"] == "cached"
        image_id = fields["image"]["id"]
        assert bench.touch(fields)["state"] == "existing"
        row = bench.list()[image_id]
        assert row["size"] == row["manifest"]["stored"]["size"] == len(plain())
        verify(bench, image_id)
        assert verify(bench, image_id).get("state") == "intact"
        assert bench.remove(row)["state"] == "removed"
