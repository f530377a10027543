"""Fetching to datastores: every kind of image, published whole on each; and nothing at all when it fails."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import from_service
from helper.vmware.disks import content, iso, kinds, ova, plain, vmdk
from servers.misbehaving_http import HttpServer, flip_bit, reset_after, serve

if TYPE_CHECKING:
    from helper.vmware.conftest import Bench

pytestmark = [pytest.mark.vcenter, pytest.mark.qemu]


@pytest.mark.parametrize("kind", list(kinds()))
def test_each_kind_is_stored_on_every_datastore_as_nova_would(bench: Bench, kind: str) -> None:
    data, more = kinds()[kind]
    fields = bench.image(data, **more)
    image_id = fields["image"]["id"]
    assert bench.touch(fields)["state"] == "absent"
    answer = bench.fetch(fields)
    assert (answer["event"], answer.get("state")) == ("result", "cached"), answer
    assert answer["bytes_fetched"] == len(data)
    folders = bench.vcenter.cached(image_id)
    assert len(folders) == 2
    for folder in folders:
        if kind == "iso":
            assert (folder / f"{image_id}.iso").read_bytes() == data
        else:
            assert content(folder, image_id) == plain()
            adapter = "ide" if kind == "thin-ide" else "lsilogic"
            assert f'adapterType = "{adapter}"' in (folder / f"{image_id}.vmdk").read_text()
        assert json.loads((folder / "imgcache.json").read_text())["image_id"] == image_id
        assert len(list(folder.iterdir())) == (2 if kind == "iso" else 3)
    assert bench.vcenter.leftovers() == []
    assert bench.touch(fields)["state"] == "existing"


@pytest.mark.parametrize("kind", ["preallocated", "sparse", "streamOptimized", "ova", "iso"])
@pytest.mark.row("T8")
def test_wrong_bytes_are_never_published(bench: Bench, kind: str) -> None:
    data, more = kinds()[kind]
    fields = bench.image(data, **more)
    wrong = bytearray(data)
    wrong[len(wrong) // 2] ^= 1
    answer = bench.fetch(fields, bytes(wrong))
    assert (answer["event"], answer.get("code")) == ("error", "digest"), answer
    assert bench.vcenter.cached(fields["image"]["id"]) == []
    assert bench.vcenter.leftovers() == []
    assert bench.rows("vmware_clean", stall_age_s=0, dry=False) == []


REFUSED: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "a qcow2": (b"QFI\xfb" + bytes(5000), {"disk_format": "qcow2"}, "vmdk and iso only"),
    "a raw": (plain(), {"disk_format": "raw"}, "vmdk and iso only"),
    "half a KiB": (plain()[:-512], {}, "whole KiB"),
    "an unknown disk type": (
        plain(), {"properties": {"vmware_disktype": "curly"}}, "not one that Nova supports"
    ),
    "a sparse disk as plain content": (vmdk("monolithicSparse"), {}, "see vmware_disktype"),
    "a qcow2 as plain content": (b"QFI\xfb" + bytes(5116), {}, "see vmware_disktype"),
    "a text descriptor as sparse": (
        vmdk("monolithicFlat").ljust(4096, b"\0"),
        {"properties": {"vmware_disktype": "sparse"}}, "only text",
    ),
    "a text descriptor as plain content": (
        vmdk("monolithicFlat").ljust(4096, b"\0"), {}, "see vmware_disktype"
    ),
    "plain content as sparse": (
        plain(), {"properties": {"vmware_disktype": "sparse"}}, "its content is raw"
    ),
    "a streamOptimized as sparse": (
        vmdk("streamOptimized"), {"properties": {"vmware_disktype": "sparse"}},
        "the VMDK in it is streamoptimized",
    ),
    "a disk with a parent": (
        vmdk("monolithicSparse").replace(b"# Extent desc", b'parentFileNameHint="/etc/passwd"\n#'),
        {"properties": {"vmware_disktype": "sparse"}}, "refused",
    ),
    "an extent elsewhere": (
        vmdk("monolithicSparse").replace(b'SPARSE "made.vmdk"', b'SPARSE "../x.vmdk"'),
        {"properties": {"vmware_disktype": "sparse"}}, "refused",
    ),
    "no ISO": (plain(), {"disk_format": "iso"}, "its content is raw"),
    "an OVA without a disk": (
        ova(ovf="<Envelope/>"), {"container": "ova"}, "names no disk"
    ),
    "an OVA that is none": (b"x" * 4096, {"container": "ova"}, "no OVA"),
    "an OVA with declarations": (
        ova(ovf='<!DOCTYPE x [<!ENTITY a "b">]><Envelope/>'), {"container": "ova"}, "declarations"
    ),
    "an OVA with a sparse disk": (
        ova(vmdk("monolithicSparse")), {"container": "ova"}, "the VMDK in it is monolithicsparse"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.row("R1")
def test_what_is_not_what_it_should_be_never_reaches_a_datastore(bench: Bench, what: str) -> None:
    data, more, reason = REFUSED[what]
    fields = bench.image(data, **more)
    answer = bench.fetch(fields)
    assert (answer["event"], answer.get("code")) == ("error", "format"), answer
    assert reason in answer["message"]
    assert int(bench.vcenter.ask("uploads")) == 0
    assert bench.vcenter.cached(fields["image"]["id"]) == []
    assert bench.vcenter.leftovers() == []


@pytest.mark.parametrize("kind", ["preallocated", "iso"])
@pytest.mark.row("T14")
def test_what_a_datastore_lost_is_noticed(bench: Bench, kind: str) -> None:
    data, more = kinds()[kind]
    fields = bench.image(data, **more)
    bench.vcenter.ask("fault", op="put", name="short")
    answer = bench.fetch(fields)
    assert (answer["event"], answer["code"]) == ("error", "size"), answer
    assert bench.vcenter.cached(fields["image"]["id"]) == []
    assert bench.vcenter.leftovers() == []


def test_progress_never_goes_back(bench: Bench) -> None:
    sparse = bench.image(vmdk("monolithicSparse"), properties={"vmware_disktype": "sparse"})
    bench.vcenter.ask("slow", seconds=2)
    order = bench.begin(sparse)
    bench.helper.push_when_ready(order, vmdk("monolithicSparse"))
    assert bench.helper.result(order, timeout_s=60)["state"] == "cached"
    told: dict[str, list[int]] = {}
    for frame in bench.helper.frames:
        if frame.get("id") == order and frame["event"] == "progress":
            assert frame["done"] <= frame["total"]
            told.setdefault(frame["phase"], []).append(frame["done"])
    assert all(done == sorted(done) for done in told.values()), told
    assert max(told["convert"]) >= 100  # both datastores' copies were told of


def test_a_download_goes_on_where_it_broke_off(bench: Bench) -> None:
    fields = bench.image(plain())
    with HttpServer() as server:
        url = server.route("/v2/images/x/file", plain(), reset_after(1_300_000), serve())
        order = bench.begin(fields, from_service(url))
        retry = bench.helper.event(order, "retry")
        assert retry["code"] == "download"
        assert 0 < retry["offset"] <= 1_300_000
        bench.helper.tell("again", order, token=None)
        answer = bench.helper.result(order)
    assert answer["state"] == "cached"
    assert {content(folder, fields["image"]["id"]) for folder in cached(bench, fields)} == {plain()}


def test_wrong_bytes_from_the_service_are_fetched_once_more(bench: Bench) -> None:
    data = vmdk("streamOptimized")
    fields = bench.image(data, properties={"vmware_disktype": "streamOptimized"})
    with HttpServer() as server:
        url = server.route("/v2/images/x/file", data, flip_bit(80_000), serve())
        order = bench.begin(fields, from_service(url))
        assert bench.helper.event(order, "retry")["code"] == "digest"
        bench.helper.tell("again", order, token=None)
        assert bench.helper.result(order)["state"] == "cached"
    assert len(cached(bench, fields)) == 2
    assert bench.vcenter.leftovers() == []


def test_stop_leaves_nothing_behind(bench: Bench) -> None:
    fields = bench.image(plain())
    order = bench.begin(fields)
    bench.helper.event(order, "ready")
    bench.helper.tell("data", order, plain()[:200_000], size=200_000)
    bench.helper.tell("stop", order)
    assert bench.helper.error(order)["code"] == "interrupted"
    assert bench.vcenter.leftovers() == []


def test_a_datastore_that_has_it_lends_it_to_the_others(bench: Bench) -> None:
    fields = bench.image(plain())
    bench.fetch(fields)
    first, second = cached(bench, fields)
    for path in sorted(second.iterdir()):
        path.unlink()
    second.rmdir()
    assert bench.touch(fields)["state"] == "absent"
    answer = bench.helper.result(bench.begin(fields))
    assert (answer["state"], answer["bytes_fetched"], answer["copied"]) == ("cached", 0, True)
    assert content(second, fields["image"]["id"]) == content(first, fields["image"]["id"])


def test_what_nova_fetched_itself_is_not_copied_unproven(bench: Bench) -> None:
    fields = bench.image(iso(), disk_format="iso")
    image_id = fields["image"]["id"]
    theirs = bench.vcenter.stores["LocalDS_0"] / "10.0.0.5_base" / image_id
    theirs.mkdir(parents=True)
    (theirs / f"{image_id}.iso").write_bytes(b"another")
    answer = bench.fetch(fields)
    assert (answer["state"], answer["copied"]) == ("cached", False)
    assert answer["datastores"] == ["LocalDS_1"]
    assert (theirs / f"{image_id}.iso").read_bytes() == b"another"


def test_a_folder_without_the_image_is_filled(bench: Bench) -> None:
    fields = bench.image(plain())
    for store in bench.vcenter.stores.values():
        (store / "10.0.0.5_base" / fields["image"]["id"] / "ts-2026-01-01-00-00-00").mkdir(
            parents=True
        )
    assert bench.fetch(fields)["state"] == "cached"
    assert len(cached(bench, fields)) == 2
    assert bench.touch(fields)["state"] == "existing"


@pytest.mark.row("H10")
def test_a_folder_of_somebody_elses_is_left_alone(bench: Bench) -> None:
    fields = bench.image(plain())
    for store in bench.vcenter.stores.values():
        folder = store / "10.0.0.5_base" / fields["image"]["id"]
        folder.mkdir(parents=True)
        (folder / "precious.txt").write_text("mine")
    answer = bench.fetch(fields)
    assert (answer["event"], answer["code"]) == ("error", "foreign")
    assert [path.name for folder in cached(bench, fields) for path in folder.iterdir()] == [
        "precious.txt"
    ] * 2
    assert bench.vcenter.leftovers() == []


@pytest.mark.row("H5")
def test_too_little_room_is_told_before_a_byte_is_fetched(bench: Bench) -> None:
    fields = bench.image(plain())
    answer = bench.helper.answer(bench.begin(fields, reserve=1 << 60))
    assert (answer["event"], answer["code"]) == ("error", "space")
    assert not any(frame["event"] == "ready" for frame in bench.helper.frames)


@pytest.mark.row("H5")
def test_many_images_of_a_run_leave_the_reserve_free(bench: Bench) -> None:
    """What was free when the run began is not what is free when its next image comes."""

    def free(count: int) -> None:
        for name in bench.vcenter.stores:
            bench.vcenter.ask("store", name=name, free=count)

    size = len(plain())
    first, second = bench.image(plain()), bench.image(plain())
    free(3 * size)
    bench.open()
    assert bench.fetch(first, reserve=size)["state"] == "cached"
    answer = bench.fetch(second, reserve=size + 1)  # vCenter shows new numbers late
    assert (answer["event"], answer["code"]) == ("error", "space"), answer
    free(9 * size)
    bench.open()
    free(size)
    answer = bench.fetch(second, reserve=1)  # others fill it, too
    assert (answer["event"], answer["code"]) == ("error", "space"), answer
    assert cached(bench, second) == []


def large(sectors: int) -> bytes:
    """Return a small sparse VMDK that says to be a disk of so many sectors."""
    data = vmdk("monolithicSparse")
    was = len(plain()) // 512
    line, fresh = b"RW %d SPARSE" % was, b"RW %d SPARSE" % sectors
    head = data[:12] + struct.pack("<Q", sectors) + data[20:512]
    text = data[512 : 21 * 512].replace(line, fresh)
    assert fresh in text
    return head + text[: 20 * 512] + data[21 * 512 :]


@pytest.mark.row("R1")
@pytest.mark.parametrize(("size", "code"), [(3 << 40, "size"), (1 << 40, "space")])
def test_a_small_file_that_is_a_huge_disk_is_not_made_one(
    bench: Bench, size: int, code: str
) -> None:
    """CVE-2013-2096 and its like: what the record does not tell, the header does."""
    for name in bench.vcenter.stores:
        bench.vcenter.ask("store", name=name, free=1 << 39)
    bench.open()
    fields = bench.image(large(size // 512), properties={"vmware_disktype": "sparse"})
    answer = bench.fetch(fields)
    assert (answer["event"], answer.get("code")) == ("error", code), answer
    assert int(bench.vcenter.ask("uploads")) == 0
    assert bench.vcenter.leftovers() == []


def test_a_folder_with_nothing_but_our_notes_lends_no_image(bench: Bench) -> None:
    """As a run leaves it that is killed between its notes and the image."""
    fields = bench.image(plain())
    bench.fetch(fields)
    first, second = cached(bench, fields)
    for path in [*sorted(first.glob("*.vmdk")), *sorted(second.iterdir())]:
        path.unlink()
    second.rmdir()
    full, other = first.parents[1].name, second.parents[1]
    [name] = [name for name, path in bench.vcenter.stores.items() if path.name == full]
    bench.vcenter.ask("store", name=name, free=0)
    bench.open()
    answer = bench.fetch(fields)
    assert (answer["event"], answer["code"]) == ("error", "space"), answer
    assert "it is on the others" in answer["message"]
    assert content(second, fields["image"]["id"]) == plain(), other


@pytest.mark.row("H6")
def test_a_datastore_that_fills_up_is_an_error_and_the_other_keeps_it(bench: Bench) -> None:
    data = vmdk("monolithicSparse")
    fields = bench.image(data, properties={"vmware_disktype": "sparse"})
    bench.vcenter.ask("fault", op="put", name="full")
    answer = bench.fetch(fields)
    assert (answer["event"], answer["code"]) == ("error", "space"), answer
    assert cached(bench, fields) == []
    assert bench.vcenter.leftovers() == []
    bench.vcenter.ask("fault", op="copyVirtualDisk", name="NoDiskSpace")
    answer = bench.fetch(fields)
    assert (answer["event"], answer["code"]) == ("error", "space"), answer
    assert "NoDiskSpace" in answer["message"]
    assert bench.vcenter.leftovers() == []
    assert bench.fetch(fields)["state"] == "cached"


def test_an_upload_that_breaks_is_tried_again_with_a_download(bench: Bench) -> None:
    fields = bench.image(plain())
    bench.vcenter.ask("fault", op="put", name="cut")
    with HttpServer() as server:
        url = server.route("/v2/images/x/file", plain(), serve(), serve())
        order = bench.begin(fields, from_service(url))
        retry = bench.helper.event(order, "retry")
        assert (retry["code"], retry["offset"]) == ("io", 0)
        bench.helper.tell("again", order, token=None)
        assert bench.helper.result(order)["state"] == "cached"


def cached(bench: Bench, fields: dict) -> list:  # type: ignore[type-arg]
    """Return the folders of an image."""
    return bench.vcenter.cached(fields["image"]["id"])
