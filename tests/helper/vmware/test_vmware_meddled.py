"""What goes wrong between the helper and vCenter, at the worst moment: a server in between sees to it."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import Controller
from helper.vmware.conftest import Bench
from helper.vmware.disks import content, plain, vmdk
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
