"""Disk images as Hyper-V has them, made by hand or by qemu-img."""

from __future__ import annotations

import struct

_SECTOR = 512


def footer(size: int, kind: int = 2, *, header_at: int = 0xFFFFFFFFFFFFFFFF) -> bytes:
    """Return the last 512 bytes of a VHD; ``kind``: 2 fixed, 3 dynamic, 4 differencing."""
    fields = struct.pack(
        ">8sIIQI4sI4sQQI", b"conectix", 2, 0x10000, header_at, 0, b"imgc", 1, b"Wi2k", size, size, 0
    )
    body = (fields + struct.pack(">I", kind)).ljust(_SECTOR, b"\0")
    total = sum(body[:64]) + sum(body[68:])
    return body[:64] + struct.pack(">I", ~total & 0xFFFFFFFF) + body[68:]


def fixed_vhd(data: bytes) -> bytes:
    """Return a fixed VHD as long as the data, whose end it overwrites; at least one sector and a footer."""
    if len(data) < 2 * _SECTOR:
        data = data.ljust(2 * _SECTOR, b"\0")
    return data[:-_SECTOR] + footer(len(data) - _SECTOR)


def differencing_vhd(parent: str) -> bytes:
    """Return a differencing VHD that names this path, absolute, as its parent."""
    header = bytearray(1024)
    header[:8] = b"cxsparse"
    header[40:56] = bytes(range(16))
    name = parent.rpartition("\\")[2].encode("utf-16-be")
    header[64 : 64 + len(name)] = name
    path = parent.encode("utf-16-le")
    header[576:600] = struct.pack(">4sIIIQ", b"W2ku", 512, len(path), 0, 2048)
    last = footer(1 << 20, 4, header_at=512)
    return last + bytes(header).ljust(1536, b"\0") + path.ljust(512, b"\0") + last
