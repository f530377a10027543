"""Disk images of the kinds that Nova's vmwareapi driver takes, made by qemu-img and tarfile."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_OVF = """<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
<!-- made for a test -->
<References><File ovf:id="f2" ovf:href="notes.txt" ovf:size="5"/>
<File ovf:id="f1" ovf:href="disk-0.vmdk" ovf:size="1"/></References>
<DiskSection><Info>disks</Info><Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="1"/></DiskSection>
</Envelope>
"""


@cache
def plain() -> bytes:
    """Return a disk's content."""
    return os.urandom(1_500_000).ljust(2 << 20, b"\0") + b"end".rjust(1024, b"\0")


@cache
def vmdk(subformat: str) -> bytes:
    """Return the VMDK that holds ``plain()``."""
    with TemporaryDirectory() as folder:
        raw, made = Path(folder) / "raw", Path(folder) / "made.vmdk"
        raw.write_bytes(plain())
        subprocess.run(
            ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}",
             str(raw), str(made)],
            check=True,
        )  # fmt: skip
        return made.read_bytes()


@cache
def iso() -> bytes:
    """Return something with an ISO's mark."""
    return bytes(32769) + b"CD001" + os.urandom(700_001)


def ova(disk: bytes | None = None, ovf: str = _OVF) -> bytes:
    """Return an OVA package with that disk, behind some other members."""
    content = vmdk("streamOptimized") if disk is None else disk
    members = {"box.ovf": ovf.encode(), "notes.txt": b"hello", "disk-0.vmdk": content}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as package:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            package.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def kinds() -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Return name -> (bytes, what an order about such an image says besides)."""
    sparse = {"vmware_disktype": "sparse"}
    stream = {"hw_disk_type": "streamOptimized"}
    return {
        "preallocated": (plain(), {}),
        "thin-ide": (plain(), {"properties": {"vmware_disktype": "thin", "hw_disk_bus": "ide"}}),
        "sparse": (vmdk("monolithicSparse"), {"properties": sparse}),
        "streamOptimized": (vmdk("streamOptimized"), {"properties": stream}),
        "ova": (ova(), {"container": "ova"}),
        "iso": (iso(), {"disk_format": "iso"}),
    }


def content(folder: Path, image_id: str) -> bytes:
    """Return the content of a cached disk, as qemu-img reads it by its descriptor."""
    descriptor = folder / f"{image_id}.vmdk"
    raw = folder.parent.parent.parent / f"{image_id}.raw"
    subprocess.run(
        ["qemu-img", "convert", "-f", "vmdk", "-O", "raw", str(descriptor), str(raw)], check=True
    )
    data = raw.read_bytes()
    raw.unlink()
    return data


def sha(data: bytes) -> str:
    """Return the SHA-512 of some bytes."""
    return hashlib.sha512(data).hexdigest()
