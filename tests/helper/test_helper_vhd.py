"""What VHD and VHDX headers tell: of qemu-img's files, of made-up ones, and of damaged ones."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import uuid
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from imgcache.helper import vhd
from imgcache.helper.core import Failure
from servers.vhd_files import (
    differencing_vhd,
    fixed_vhd,
    footer,
    vhdx_with_log,
    vhdx_with_parent,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Reader: TypeAlias = "Callable[[bytes], Any]"
PARENT = "C:\\Instances\\_base\\parent.vhdx"


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    """Return what reads the header of these bytes."""
    inspect: Any = vhd.read

    def read(data: bytes) -> Any:
        path = tmp_path / "disk"
        path.write_bytes(data)
        fd = os.open(path, os.O_RDONLY)
        try:
            return inspect(fd, len(data))
        finally:
            os.close(fd)

    return read


@pytest.fixture(scope="module")
def vhdx(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a VHDX of 32 MiB as qemu-img makes it."""
    if not shutil.which("qemu-img"):
        pytest.skip("qemu-img is not installed")
    path = tmp_path_factory.mktemp("vhdx") / "disk.vhdx"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", str(path), "32M"], check=True)
    return path.read_bytes()


@pytest.mark.qemu
@pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_qemus_vhds_are_whole_disks(tmp_path: Path, read: Reader, subformat: str) -> None:
    path = tmp_path / "disk.vhd"
    options = f"subformat={subformat},force_size=on"
    command = ["qemu-img", "create", "-q", "-f", "vpc", "-o", options, str(path), "4M"]
    subprocess.run(command, check=True)
    disk = read(path.read_bytes())
    assert vars(disk) == {
        "kind": "vhd", "virtual_size": 4 << 20, "differencing": False, "parents": (), "dirty": False,
    }  # fmt: skip


@pytest.mark.qemu
def test_qemus_vhdx_is_a_whole_disk(vhdx: bytes, read: Reader) -> None:
    disk = read(vhdx)
    assert (disk.kind, disk.virtual_size) == ("vhdx", 32 << 20)
    assert (disk.differencing, disk.dirty) == (False, False)


@pytest.mark.qemu
def test_a_vhdx_tells_its_parent_and_its_log(vhdx: bytes, read: Reader) -> None:
    disk = read(vhdx_with_parent(vhdx, PARENT))
    assert (disk.differencing, disk.parents) == (True, (PARENT,))
    disk = read(vhdx_with_parent(vhdx, "..\\_base\\x.vhdx", "relative_path"))
    assert disk.parents == ("..\\_base\\x.vhdx",)
    # A locator of another kind is still one.
    disk = read(vhdx_with_parent(vhdx, PARENT, "parent_linkage"))
    assert (disk.differencing, disk.parents) == (True, ())
    assert read(vhdx_with_log(vhdx)).dirty


def test_a_vhd_tells_its_parent(read: Reader) -> None:
    disk = read(differencing_vhd(PARENT))
    assert disk.differencing
    assert disk.parents == ("parent.vhdx", PARENT)


def test_a_parent_counts_also_where_the_type_says_dynamic(read: Reader) -> None:
    data = differencing_vhd(PARENT)
    assert read(data[:-512] + footer(1 << 20, 3, header_at=512)).differencing


@pytest.mark.parametrize(
    "data",
    [
        fixed_vhd(b"")[:-500] + b"\x01" + fixed_vhd(b"")[-499:],
        fixed_vhd(b"")[:-512] + footer(1 << 20, 7),
        fixed_vhd(b"")[:-512] + footer(1 << 20, 3, header_at=1 << 40),
        fixed_vhd(b"")[:-512] + footer(1 << 20, 3, header_at=0),
        b"vhdxfile",
        b"vhdxfile" + bytes(1 << 20),
    ],
    ids=["checksum", "type", "outside", "no-header", "short", "zeros"],
)
def test_damaged_headers_are_refused(read: Reader, data: bytes) -> None:
    with pytest.raises(Failure) as caught:
        read(data)
    assert caught.value.code == "format"


@pytest.mark.row("R1")
@pytest.mark.parametrize("where", ["metadata", "parent"])
def test_a_place_beyond_any_file_is_refused_and_breaks_no_helper(
    vhdx: bytes, read: Reader, where: str
) -> None:
    far = (1 << 64) - 4096
    if where == "metadata":
        region = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
        data = vhdx
        for table in (192 << 10, 256 << 10):
            at = data.index(region, table) + 16
            data = data[:at] + struct.pack("<Q", far) + data[at + 8 :]
        with pytest.raises(Failure) as caught:
            read(data)
        assert caught.value.code == "format"
    else:
        data = differencing_vhd(PARENT)
        at = 512 + 576 + 16
        disk = read(data[:at] + struct.pack(">Q", far) + data[at + 8 :])
        assert disk.differencing


def test_other_files_are_none(read: Reader) -> None:
    for data in (b"", b"x", bytes(511), os.urandom(4096)):
        assert read(data) is None


@pytest.mark.qemu
def test_whatever_a_header_holds_reading_it_ends_well(vhdx: bytes, read: Reader) -> None:
    luck = random.Random(7)
    places = [*range(64 << 10, (64 << 10) + 80), *range(192 << 10, (192 << 10) + 100)]
    places += [*range(2 << 20, (2 << 20) + 256)]
    whole = [vhdx_with_parent(vhdx[: 4 << 20], PARENT), differencing_vhd(PARENT)]
    for _ in range(150):
        data = bytearray(luck.choice(whole))
        for _ in range(luck.randint(1, 8)):
            place = luck.choice(places) if len(data) > 8192 else luck.randrange(len(data))
            data[place % len(data)] = luck.randrange(256)
        try:
            read(bytes(data))
        except Failure as failure:
            assert failure.code == "format"  # noqa: PT017 - either way is fine, another error is not
