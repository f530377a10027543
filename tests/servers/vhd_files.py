"""Disk images as Hyper-V has them, made by hand or by qemu-img."""

from __future__ import annotations

import struct
import uuid

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


def _metadata_at(vhdx: bytes) -> int:
    region = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
    found = vhdx.index(region, 192 << 10)
    return int(struct.unpack("<Q", vhdx[found + 16 : found + 24])[0])


def vhdx_with_parent(vhdx: bytes, parent: str, key: str = "absolute_win32_path") -> bytes:
    """Return a VHDX with a parent locator that names this path."""
    data = bytearray(vhdx)
    at = _metadata_at(vhdx)
    (count,) = struct.unpack("<H", data[at + 10 : at + 12])
    names = [text.encode("utf-16-le") for text in (key, parent)]
    head = uuid.UUID("b04aefb7-d19e-4a81-b789-25b8e9445913").bytes_le + struct.pack("<HH", 0, 1)
    entry = struct.pack("<IIHH", 32, 32 + len(names[0]), len(names[0]), len(names[1]))
    locator = head + entry + b"".join(names)
    place = 512 << 10
    data[at + place : at + place + len(locator)] = locator
    item = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
    row = item + struct.pack("<IIII", place, len(locator), 4, 0)
    data[at + 32 + 32 * count : at + 64 + 32 * count] = row
    data[at + 10 : at + 12] = struct.pack("<H", count + 1)
    return bytes(data)


def vhdx_with_log(vhdx: bytes) -> bytes:
    """Return a VHDX whose log has not been replayed."""
    data = bytearray(vhdx)
    data[(64 << 10) + 48 : (64 << 10) + 64] = bytes(range(16))
    return bytes(data)


def vhdx_with_pending_log(vhdx: bytes) -> bytes:
    """Return a VHDX with a log entry, of no changes, that a writer has to replay before anybody reads.

    Source: [MS-VHDX] 2.2.2 and 2.3.1; qemu ``block/vhdx-log.c`` (``vhdx_parse_log``).
    """
    data = bytearray(vhdx)
    guid = bytes(range(1, 17))
    for at in (64 << 10, 128 << 10):
        head = data[at : at + 4096]
        if head[:4] != b"head":
            continue
        head[48:64] = guid
        length, log_at = struct.unpack("<IQ", head[68:80])
        data[at : at + 4096] = _with_checksum(head)
        entry = struct.pack("<4sIIIQII", b"loge", 0, 4096, 0, 1, 0, 0) + guid
        entry += struct.pack("<QQ", len(data), len(data))
        data[log_at : log_at + 4096] = _with_checksum(bytearray(entry.ljust(4096, b"\0")))
        assert length >= 4096
    return bytes(data)


def _with_checksum(block: bytearray) -> bytearray:
    """Return a block whose second word is its CRC-32C."""
    block[4:8] = bytes(4)
    value = 0xFFFFFFFF
    for byte in block:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    block[4:8] = struct.pack("<I", value ^ 0xFFFFFFFF)
    return block
