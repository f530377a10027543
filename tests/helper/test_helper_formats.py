"""Format inspection: what is refused, never less than what oslo.utils and qemu-img refuse."""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgcache.helper import formats, qemu
from imgcache.helper.core import Failure

ROOT = Path(__file__).parents[2]
OSLO_PYTHON = ROOT / ".venv-openstack/bin/python"
ORACLE = Path(__file__).parent / "oslo_oracle.py"
MIB = 1 << 20
Inspect = Callable[[bytes, str], tuple[str, int]]


@pytest.fixture
def inspect(tmp_path: Path) -> Inspect:
    """Return a function that inspects bytes as a declared format."""
    return lambda data, declared: _inspect(tmp_path / "image", data, declared)


def _inspect(path: Path, data: bytes, declared: str) -> tuple[str, int]:
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        found: tuple[str, int] = formats.inspect(fd, len(data), declared)
        return found
    finally:
        os.close(fd)


def refused(inspect: Inspect, data: bytes, declared: str) -> str:
    with pytest.raises(Failure) as caught:
        inspect(data, declared)
    assert caught.value.code == "format"
    return str(caught.value.message)


# ---- small images made by hand


def qcow2(size: int = MIB, **changes: int) -> bytes:
    """Return a qcow2 header with room for its L1 table; ``changes`` by field name."""
    fields = {
        "version": 3, "backing": 0, "backing_length": 0, "cluster_bits": 16, "size": size, "crypt": 0,
        "l1_entries": 1, "l1_offset": 4096, "refcount_offset": 8192, "refcount_clusters": 1, "snapshots": 0,
        "snapshots_offset": 0, "incompatible": 0, "compatible": 0, "autoclear": 0, "refcount_order": 4,
        "header_length": 104, **changes,
    }  # fmt: skip
    head = b"QFI\xfb" + struct.pack(">IQIIQIIQQIIQQQQII", *fields.values())
    return head.ljust(16384, b"\0")


def vmdk(descriptor: str | None = None, **changes: int) -> bytes:
    """Return a sparse VMDK's header and descriptor; a footer when the grain directory says so."""
    if descriptor is None:
        descriptor = '# Disk DescriptorFile\nversion=1\nCID=1\ncreateType="monolithicSparse"\n\n'
        descriptor += 'RW 2048 SPARSE "a.vmdk"\n'
    fields = {
        "version": 1, "flags": 3, "capacity": 2048, "grain": 128, "desc_at": 1, "desc_sectors": 20,
        "entries": 512, "rgd": 21, "gd": 26, **changes,
    }  # fmt: skip
    head = b"KDMV" + struct.pack("<IIQQQQIQQ", *fields.values())
    data = (
        head.ljust(512, b"\0") + descriptor.encode("latin-1").ljust(20 * 512, b"\0") + bytes(65536)
    )
    if fields["gd"] == 0xFFFFFFFFFFFFFFFF:
        footer = b"KDMV" + struct.pack("<IIQQQQIQQ", *{**fields, "gd": 26}.values())
        data += (
            struct.pack("<QII", 1, 0, 3).ljust(512, b"\0") + footer.ljust(512, b"\0") + bytes(512)
        )
    return data


def vmdk_text(more: str) -> str:
    return f'createType="monolithicSparse"\nRW 2048 SPARSE "a.vmdk"\n{more}'


def mbr(*entries: bytes, size: int = MIB) -> bytes:
    """Return a disk with a partition table."""
    table = b"".join(entries).ljust(64, b"\0")
    return (bytes(446) + table + b"\x55\xaa").ljust(size, b"\0")


def partition(boot: int = 0x80, kind: int = 0x83, start: bytes = b"\0\2\0", lba: int = 1) -> bytes:
    return bytes([boot]) + start + bytes([kind]) + b"\xff\xff\xff" + struct.pack("<II", lba, 100)


def iso(front: bytes = b"") -> bytes:
    """Return the bones of an ISO 9660 file system."""
    return front.ljust(32768, b"\0") + b"\1CD001\1".ljust(2048, b"\0") + bytes(30000)


def vdi(kind: int = 1, parent: bytes = b"") -> bytes:
    data = bytearray(4096)
    data[0x40:0x44] = b"\x7f\x10\xda\xbe"
    data[0x4C:0x50] = struct.pack("<I", kind)
    data[0x170:0x178] = struct.pack("<Q", MIB)
    data[0x1B8 : 0x1B8 + len(parent)] = parent
    return bytes(data)


TEXT_VMDK = (
    b'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 1 FLAT "/etc/passwd" 0\n'
)

ACCEPTED = [
    ("raw", bytes(MIB), "raw", MIB),
    ("raw", b"x", "raw", 1),
    ("raw", mbr(partition()), "gpt", MIB),
    ("raw", mbr(partition(boot=0, kind=0xEE)), "gpt", MIB),
    ("raw", b"\x1f\x8b" + os.urandom(5000), "raw", 5002),
    ("qcow2", qcow2(), "qcow2", MIB),
    ("qcow2", qcow2(version=2, incompatible=0), "qcow2", MIB),
    ("qcow2", qcow2(incompatible=1 | 8), "qcow2", MIB),
    ("vmdk", vmdk(), "vmdk", MIB),
    # What Nova takes, too: names that are no paths, and words that declare nothing.
    ("vmdk", vmdk('createType="monolithicSparse"\nRW 2048 SPARSE "web..v2.vmdk"\n'), "vmdk", MIB),
    ("vmdk", vmdk('createType="monolithicSparse"\nRW 2048 SPARSE ".."\n'), "vmdk", MIB),
    ("vmdk", vmdk('createType="monolithicSparse"\nRW 2048 SPARSE "C:\\a.vmdk"\n'), "vmdk", MIB),
    ("vmdk", vmdk(vmdk_text('ddb.comment = "the createType is sparse"\n')), "vmdk", MIB),
    ("vmdk", vmdk("# createType follows\n" + vmdk_text("")), "vmdk", MIB),
    ("vmdk", vmdk(gd=0xFFFFFFFFFFFFFFFF), "vmdk", MIB),
    ("vdi", vdi(), "vdi", MIB),
    ("iso", iso(), "iso", None),
    ("iso", iso(mbr(partition(), size=512)), "iso", None),
    ("ami", bytes(5000), "raw", 5000),
    ("aki", iso(), "iso", None),
]


@pytest.mark.row("R4")
@pytest.mark.parametrize("declared, data, matched, size", ACCEPTED)  # noqa: PT006
def test_accepted(
    inspect: Inspect, declared: str, data: bytes, matched: str, size: int | None
) -> None:
    assert inspect(data, declared) == (matched, len(data) if size is None else size)


REFUSED = [
    ("R2", "raw", qcow2()),
    ("R2", "raw", iso()),
    ("R2", "raw", iso(mbr(partition(), size=512))),
    ("R2", "raw", vmdk()),
    ("R2", "raw", vdi()),
    ("R2", "raw", b"LUKS\xba\xbe\0\1".ljust(4096, b"\0")),
    ("R2", "raw", b"QED\0".ljust(4096, b"\0")),
    ("R2", "raw", b"conectix".ljust(4096, b"\0")),
    ("R2", "raw", b"vhdxfile".ljust(4096, b"\0")),
    ("R2", "raw", TEXT_VMDK),
    ("R2", "raw", (b"# note\n" * 30 + b"version=1\n").ljust(1000, b"#") + b"\nRW 1 FLAT \"x\" 0\n"),
    ("R2", "raw", b"#\n  version=3\n" + bytes(4096)),
    ("R2", "qcow2", bytes(MIB)),
    ("R2", "iso", bytes(MIB)),
    ("R2", "iso", iso(qcow2()[:512])),
    ("R2", "ami", qcow2()[:512] + iso()[512:]),
    ("R2", "raw", mbr()),
    ("R2", "raw", mbr(partition(boot=0x12))),
    ("R2", "raw", mbr(partition(boot=0, kind=0xEE), partition())),
    ("R2", "raw", mbr(partition(boot=0, kind=0xEE, lba=2))),
    ("R2", "raw", mbr(partition(boot=0, kind=0xEE, start=b"\0\1\0"))),
    ("R4", "luks", b"LUKS\xba\xbe\0\1".ljust(4096, b"\0")),
    ("R4", "vhd", b"conectix".ljust(4096, b"\0")),
    ("R4", "qed", b"QED\0".ljust(4096, b"\0")),
    ("R4", "ploop", bytes(4096)),
    ("R4", "gpt", mbr(partition())),
    ("R4", "../raw", bytes(4096)),
    ("R1", "qcow2", qcow2(incompatible=4)),
    ("R1", "qcow2", qcow2(version=2, incompatible=4)),
    ("R1", "qcow2", qcow2(backing=104, backing_length=0)),
    ("R1", "qcow2", qcow2(incompatible=16)),
    ("R1", "qcow2", qcow2(incompatible=1 << 60)),
    ("R1", "qcow2", qcow2(incompatible=2)),
    ("R1", "qcow2", qcow2(version=1)),
    ("R1", "qcow2", qcow2(version=4)),
    ("R1", "qcow2", qcow2(crypt=1)),
    ("R1", "qcow2", qcow2(cluster_bits=8)),
    ("R1", "qcow2", qcow2(cluster_bits=22)),
    ("R1", "qcow2", qcow2(l1_entries=(32 << 20) // 8 + 1)),
    ("R1", "qcow2", qcow2(l1_offset=1 << 62)),
    ("R1", "qcow2", qcow2()[:300]),
    ("R1", "raw", qcow2(incompatible=4)[:300]),
    ("R2", "raw", b"QFI\xfb\0\0\0\1".ljust(60, b"\0")),
    ("R2", "raw", b"QED\0".ljust(60, b"\0")),
    ("R2", "raw", vdi()[:100]),
    ("R2", "ami", qcow2()),
    ("R2", "raw", b"COWD".ljust(4096, b"\0")),
    ("R3", "raw", b"# a\rb\n" + TEXT_VMDK + b"\xff"),
    ("R3", "raw", b"# a\rb\xff\n\t\r\n" + TEXT_VMDK),
    ("R3", "iso", iso(b"# a\rb\n" + TEXT_VMDK)),
    ("R3", "vmdk", vmdk(vmdk_text('parentFileNameHint="/etc/passwd"\n'))),
    ("R3", "vmdk", vmdk(vmdk_text("#".ljust(512) + '\nparentFileNameHint="x"\n'), desc_sectors=1)),
    ("R3", "vmdk", TEXT_VMDK),
    ("R3", "vmdk", vmdk(version=4)),
    ("R3", "vmdk", vmdk(desc_at=2)),
    ("R3", "vmdk", vmdk(capacity=0)),
    ("R3", "vmdk", vmdk(capacity=1 << 60)),
    ("R3", "vmdk", vmdk('createType="monolithicFlat"\nRW 1 FLAT "a" 0\n')),
    ("R3", "vmdk", vmdk('createType="monolithicSparse"\ncreateType="monolithicFlat"\nRW 1 SPARSE "a"\n')),
    ("R3", "vmdk", vmdk('createType="monolithicSparse"\nCREATETYPE="monolithicSparse"\nRW 1 SPARSE "a"\n')),
    ("R3", "vmdk", vmdk('createType="monolithicSparse"\n')),
    ("R3", "vmdk", vmdk('createType="monolithicSparse"\nRW 1 SPARSE "/etc/passwd"\n')),
    ("R3", "vmdk", vmdk('createType="monolithicSparse"\nRW 1 SPARSE "../a"\n')),
    ("R3", "vmdk", vmdk(vmdk_text('# createType="monolithicFlat"\n'))),
    ("R3", "vmdk", vmdk('ddb.comment = "createType=\\"monolithicSparse\\""\nRW 1 SPARSE "a"\n')),
    ("R3", "vmdk", vmdk('createType="monolithicSparse"\nRW 1 FLAT "a" 0\n')),
    ("R3", "vmdk", vmdk('createType="monolithicSparse"\nRW 1 SPARSE "a"\nRW 1 SPARSE "b"\n')),
    ("R3", "vmdk", vmdk('createType="monolithicSparse"\nRW 1 SPARSE "a"\nwhat is this\n')),
    ("R3", "vmdk", vmdk('createType="monolithicSparse"\nRW 1 SPARSE "\xe4"\n')),
    ("R3", "vmdk", vmdk(gd=0xFFFFFFFFFFFFFFFF)[:-512]),
    ("R3", "vmdk", vmdk(gd=0xFFFFFFFFFFFFFFFF)[:-1] + b"x"),
    ("R3", "vmdk", vmdk()[:100]),
    ("R3", "vdi", vdi(kind=4)),
    ("R3", "vdi", vdi(parent=b"x")),
    ("R3", "vhdx", b"vhdxfile".ljust(MIB, b"\0")),
    ("R3", "vhdx", b"vhdxfile"),
]  # fmt: skip


@pytest.mark.parametrize(
    "declared, data",  # noqa: PT006
    [
        pytest.param(declared, data, marks=pytest.mark.row(row), id=f"{number}-{declared}")
        for number, (row, declared, data) in enumerate(REFUSED)
    ],
)
def test_refused(inspect: Inspect, declared: str, data: bytes) -> None:
    message = refused(inspect, data, declared)
    assert "could not be judged" not in message  # each case is refused by a rule, not by accident


def test_a_fat_file_system_is_raw(inspect: Inspect) -> None:
    data = bytearray(mbr())
    data[0x10], data[0x15] = 2, 0xF8
    assert inspect(bytes(data), "raw")[0] == "raw"


# ---- against the originals


class Oracle:
    """oslo.utils in a child process."""

    def __init__(self) -> None:
        self.child = subprocess.Popen(
            [OSLO_PYTHON, "-W", "ignore", ORACLE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def accepts(self, path: Path, declared: str) -> tuple[bool, str]:
        assert self.child.stdin
        assert self.child.stdout
        self.child.stdin.write(f"{declared} {path}\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline().split()
        assert answer, "the oracle died"
        return answer[0] == "accept", " ".join(answer)


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    probe = [str(OSLO_PYTHON), "-c", "import oslo_utils.imageutils.format_inspector"]
    if (
        not OSLO_PYTHON.exists()
        or subprocess.run(probe, capture_output=True, check=False).returncode
    ):
        pytest.skip("no oslo.utils: the OpenStack test environment was not set up")
    found = Oracle()
    yield found
    found.child.communicate("")


def _accepts(path: Path, declared: str) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        formats.inspect(fd, path.stat().st_size, declared)
    except Failure:
        return False
    finally:
        os.close(fd)
    return True


def _qemu_accepts(path: Path, declared: str) -> bool:
    command = ["qemu-img", "info", "--output=json", str(path)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    if done.returncode:
        return False
    try:
        qemu.check(json.loads(done.stdout), "raw" if declared in formats.RAW_FAMILY else declared)
    except Failure:
        return False
    return True


@pytest.mark.openstack
@pytest.mark.row("R2")
def test_never_accepts_what_oslo_utils_rejects(oracle: Oracle, tmp_path: Path) -> None:
    path = tmp_path / "image"
    contents = [data for _, _, data in REFUSED] + [data for _, data, _, _ in ACCEPTED]
    disagreements = []
    for data in contents:
        path.write_bytes(data)
        for declared in formats.ALLOWED:
            theirs, why = oracle.accepts(path, declared)
            if _accepts(path, declared) and not theirs:
                disagreements.append((declared, data[:64], why))
    assert disagreements == []


@pytest.mark.openstack
def test_accepts_what_oslo_utils_accepts_of_the_good_ones(oracle: Oracle, tmp_path: Path) -> None:
    path = tmp_path / "image"
    for declared, data, _, _ in ACCEPTED:
        path.write_bytes(data)
        assert oracle.accepts(path, declared)[0], (declared, data[:64])


REAL = [
    ("qcow2", ["-f", "qcow2"]),
    ("qcow2", ["-f", "qcow2", "-o", "compat=0.10"]),
    ("qcow2", ["-f", "qcow2", "-o", "cluster_size=2M,lazy_refcounts=on"]),
    ("vmdk", ["-f", "vmdk"]),
    ("vmdk", ["-f", "vmdk", "-o", "subformat=streamOptimized"]),
    ("vdi", ["-f", "vdi"]),
    ("vdi", ["-f", "vdi", "-o", "static=on"]),
    ("vhdx", ["-f", "vhdx"]),
    ("vhdx", ["-f", "vhdx", "-o", "subformat=fixed"]),
    ("raw", ["-f", "raw"]),
]
FOREIGN = [
    ("qed", ["-f", "qed"]),
    ("vpc", ["-f", "vpc"]),
    ("qcow2", ["-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k"]),
    ("qcow2", ["-f", "qcow2", "-o", "data_file=DATA"]),
    ("qcow2", ["-f", "qcow2", "-o", "backing_file=BACK,backing_fmt=raw"]),
    ("vmdk", ["-f", "vmdk", "-o", "subformat=monolithicFlat"]),
    ("vmdk", ["-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"]),
    ("parallels", ["-f", "parallels"]),
    ("qcow", ["-f", "qcow"]),
]


def _make(tmp_path: Path, options: list[str]) -> Path:
    (tmp_path / "BACK").write_bytes(bytes(MIB))
    path = tmp_path / "image"
    subprocess.run(
        ["qemu-img", "create", "-q", *options, str(path), "1M"], check=True, cwd=tmp_path
    )
    return path


@pytest.mark.qemu
@pytest.mark.parametrize("declared, options", REAL)  # noqa: PT006
def test_accepts_real_images(tmp_path: Path, declared: str, options: list[str]) -> None:
    path = _make(tmp_path, options)
    fd = os.open(path, os.O_RDONLY)
    assert formats.inspect(fd, path.stat().st_size, declared) == (declared, MIB)
    os.close(fd)
    for other in formats.ALLOWED:
        assert _accepts(path, other) is (
            other == declared or (declared == "raw" and other in {"ami", "ari", "aki"})
        ), other


@pytest.mark.qemu
@pytest.mark.row("R3")
@pytest.mark.parametrize("kind, options", FOREIGN)  # noqa: PT006
def test_refuses_real_images_of_other_kinds(tmp_path: Path, kind: str, options: list[str]) -> None:
    path = _make(tmp_path, options)
    for declared in formats.ALLOWED:
        # What no inspector knows (parallels, qcow) is qemu-img's to refuse.
        assert not (_accepts(path, declared) and _qemu_accepts(path, declared)), (kind, declared)


# ---- hostile bytes

SEEDS = [data for _, data, _, _ in ACCEPTED] + [data for _, _, data in REFUSED]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Bytes near a real image: cut, extended, some fields overwritten."""
    data = bytearray(draw(st.sampled_from(SEEDS))[: 1 << 17])
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, min(len(data), 1024)))
        patch = draw(
            st.one_of(
                st.binary(max_size=16), st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff" * 4])
            )
        )
        data[at : at + len(patch)] = patch
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


FUZZ = settings(
    max_examples=400, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                           HealthCheck.data_too_large],
)  # fmt: skip


@FUZZ
@given(data=damaged(), declared=st.sampled_from(formats.ALLOWED))
def test_only_the_declared_exception_and_bounded_time(
    tmp_path: Path, data: bytes, declared: str
) -> None:
    began = time.monotonic()
    try:
        _inspect(tmp_path / "image", data, declared)
    except Failure as failure:
        said = failure
        assert (said.code, len(said.message) < 300) == ("format", True)
    assert time.monotonic() - began < 5


@pytest.mark.openstack
@pytest.mark.qemu
@FUZZ
@given(data=damaged(), declared=st.sampled_from(formats.ALLOWED))
def test_damaged_images_are_never_accepted_alone(
    oracle: Oracle, tmp_path: Path, data: bytes, declared: str
) -> None:
    path = tmp_path / "image"
    path.write_bytes(data)
    if data and _accepts(path, declared):
        theirs, why = oracle.accepts(path, declared)
        assert theirs, why
