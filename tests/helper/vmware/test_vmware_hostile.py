"""Bytes that somebody made up: whatever they are, the answer is yes, or the one declared refusal."""

# mypy: allow-untyped-calls, allow-untyped-defs

from __future__ import annotations

import random
import tarfile
from typing import Any

import pytest

from helper.vmware.disks import ova, vmdk
from imgcache.helper import soap
from imgcache.helper import vmware_names as names
from imgcache.helper.core import Failure
from imgcache.helper.vmware_image import Plan, Sample, judge_head, judge_whole
from imgcache.helper.vmware_import import OvaTarget, first_disk

pytestmark = pytest.mark.qemu

IMAGE_ID = "5e5e0000-0000-4000-8000-0000000000aa"


def plan_of(data: bytes, disk_type: str, container: str = "bare") -> Plan:
    image = {"id": IMAGE_ID, "size": len(data), "disk_format": "vmdk"}
    return Plan(image, {"vmware_disktype": disk_type}, container)


def spoiled(data: bytes, chance: random.Random, below: int) -> bytes:
    """Return the bytes with some others among the first ones, and at the end."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        end = min(below, len(changed)) - 1
        at = chance.randint(0, end) if chance.random() < 0.8 else -chance.randint(1, 1500)
        changed[at] = chance.choice((0, 1, 0x20, 0x22, 0x2F, 0x7F, 0xFF, chance.randint(0, 255)))
    return bytes(changed)


@pytest.mark.row("R1")
@pytest.mark.parametrize("subformat", ["monolithicSparse", "streamOptimized"])
def test_spoiled_disks_are_judged_or_refused(subformat: str) -> None:
    chance = random.Random(subformat)
    whole = vmdk(subformat)
    kind = "sparse" if subformat == "monolithicSparse" else "streamOptimized"
    codes: list[str] = []
    for _ in range(300):
        data = spoiled(whole, chance, 1200)
        sample = Sample(len(data))
        try:
            sample.keep(data, 0)
            plan = plan_of(data, kind)
            capacity = judge_head(plan, sample)
            judge_whole(plan, sample)
        except Failure as failure:
            codes.append(failure.code)
        else:
            assert 0 < capacity < 1 << 62
        finally:
            sample.close()
    assert len(codes) > 20
    assert set(codes) == {"format"}


class Nowhere:
    """An upload that goes nowhere."""

    def write(self, data: bytes) -> None:
        del data

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


class Unpacked(OvaTarget):
    """A package's disk, as far as it can be told without vSphere."""

    def begin(self) -> Any:
        return Nowhere()


def unpack(data: bytes, chance: random.Random) -> None:
    target = Unpacked(None, None, plan_of(data, "streamOptimized", "ova"))
    try:
        at = 0
        while at < len(data):
            step = chance.choice((1, 511, 512, 513, 70_000, 1 << 20))
            target.write(data[at : at + step])
            at += step
        target.all_sent()
    finally:
        target.close()


@pytest.mark.row("R1")
def test_spoiled_packages_are_unpacked_or_refused() -> None:
    chance = random.Random(7)
    whole = ova()
    unpack(whole, chance)
    codes: list[str] = []
    for _ in range(120):
        try:
            unpack(spoiled(whole, chance, 4096), chance)
        except Failure as failure:
            codes.append(failure.code)
    assert len(codes) > 60
    assert set(codes) == {"format"}


@pytest.mark.parametrize("size", [-1, -512, 1 << 40])
def test_a_member_of_impossible_size_is_refused(size: int) -> None:
    member = tarfile.TarInfo("box.ovf")
    member.size = size
    data = member.tobuf(tarfile.GNU_FORMAT) + bytes(4096)
    with pytest.raises(Failure, match="do not fit"):
        unpack(data, random.Random(1))


@pytest.mark.parametrize(
    "text", ["", "<", "<a/>", "<a>\0</a>", "\xff\xfe", "<Envelope><References/></Envelope>"]
)
def test_descriptors_without_a_disk_are_refused(text: str) -> None:
    with pytest.raises(Failure) as caught:
        first_disk(text.encode("latin-1"))
    assert caught.value.code == "format"


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "' + "a" * 1000 + '">]>'
    "<Envelope><DiskSection><Disk fileRef='1'/></DiskSection>"
    "<References><File id='1' href='&a;&a;&a;'/></References></Envelope>"
)


@pytest.mark.row("R1")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
def test_entities_are_refused_in_whatever_encoding(encoding: str) -> None:
    with pytest.raises(Failure) as caught:
        first_disk(BOMB.encode(encoding))
    assert caught.value.code == "format"
    body = f"<Envelope><Body>{BOMB.partition(']>')[2]}</Body></Envelope>"
    with pytest.raises(ValueError, match=r"XML|codec"):
        soap.parse((BOMB.partition("]>")[0] + "]>" + body).encode(encoding))


@pytest.mark.row("D14")
def test_names_that_only_begin_like_ours_are_nobodys() -> None:
    mine = names.work_name()
    assert names.is_ours(mine)
    assert names.owner_of(mine) == "alive"
    for other in (
        "imgcache-web",
        "imgcache-web-1-2-3",
        f"{mine} (0b5c)",
        mine + "-flat",
        mine[:-1],
    ):
        assert not names.is_ours(other)
        assert names.owner_of(other) == "unknown"


@pytest.mark.row("D14")
def test_a_transfer_whose_process_is_hidden_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = names.work_name()
    monkeypatch.setattr(names, "_started", lambda pid: None)  # as with hidepid=2
    assert names.owner_of(mine) == "unknown"
