"""Small images for the demo's image service: a raw one and a real qcow2."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024
CLUSTER_BYTES = 64 * 1024

RAW_ID = "5c0f2f6e-0b6e-4b1e-9d4d-6a3c1f0e7a11"
QCOW2_ID = "9a1c7d52-3f6b-4e0a-8a55-0d2b7e4c9f22"


def make_images(folder: Path) -> None:
    """Write ``images.yaml`` and two images: 24 MiB raw, and a qcow2 of 64 MiB with 12 MiB in it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = random.Random(1)
    (folder / "rescue.raw").write_bytes(content.randbytes(24 * MIB))
    disk = content.randbytes(12 * MIB)
    if shutil.which("qemu-img"):
        _convert(folder, disk)
    else:
        (folder / "debian-12.qcow2").write_bytes(qcow2_of(disk, 64 * MIB))
    (folder / "images.yaml").write_text(
        "images:\n"
        f"  - {{id: {RAW_ID}, name: rescue, file: rescue.raw, disk_format: raw}}\n"
        f"  - {{id: {QCOW2_ID}, name: debian-12, file: debian-12.qcow2, disk_format: qcow2}}\n"
    )


def _convert(folder: Path, disk: bytes) -> None:
    plain = folder / "disk.tmp"
    plain.write_bytes(disk)
    with plain.open("r+b") as file:
        file.truncate(64 * MIB)
    target = folder / "debian-12.qcow2"
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(plain), str(target)], check=True
    )
    plain.unlink()


def qcow2_of(disk: bytes, virtual_size_bytes: int) -> bytes:
    """Return a qcow2 (version 2) that starts with ``disk`` and is empty after it.

    Clusters in order: header, refcount table, refcount block, L1 table, L2 table, data. One L2 table
    reaches for 512 MiB and one refcount block for 2 GiB, which is enough here.
    Source: QEMU's docs/interop/qcow2.txt.
    """
    data = [disk[at : at + CLUSTER_BYTES] for at in range(0, len(disk), CLUSTER_BYTES)]
    copied = 1 << 63  # the cluster is ours alone: its reference count is one
    header = struct.pack(
        ">4sIQIIQIIQQIIQ",
        *(b"QFI\xfb", 2),  # magic, version
        *(0, 0),  # no backing file
        *(16, virtual_size_bytes, 0),  # cluster bits, size, no encryption
        *(1, 3 * CLUSTER_BYTES),  # L1: entries, offset
        *(CLUSTER_BYTES, 1),  # refcount table: offset, clusters
        *(0, 0),  # no snapshots
    )
    l2_table = [(5 + index) * CLUSTER_BYTES | copied for index in range(len(data))]
    parts = [
        header,
        struct.pack(">Q", 2 * CLUSTER_BYTES),
        struct.pack(f">{5 + len(data)}H", *[1] * (5 + len(data))),
        struct.pack(">Q", 4 * CLUSTER_BYTES | copied),
        struct.pack(f">{len(l2_table)}Q", *l2_table),
        *data,
    ]
    return b"".join(part.ljust(CLUSTER_BYTES, b"\0") for part in parts)
