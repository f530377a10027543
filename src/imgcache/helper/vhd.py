"""What VHD and VHDX files say about themselves: format, size, and the files they depend on.

A guest may have written the disk, never these headers; still everything read here is bounded.
Source: Microsoft, "Virtual Hard Disk Image Format Specification" 1.0 (VHD) and [MS-VHDX];
os-win ``vhdutils.get_vhd_format``: the marks that Nova goes by.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a host

import os
import struct
import uuid

from .core import Failure

FOOTER_BYTES = 512
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_METADATA_REGION = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_FILE_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_DISK_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_PARENT_LOCATOR = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
_HAS_PARENT = 2
_HEADERS = (64 << 10, 128 << 10)
_REGION_TABLES = (192 << 10, 256 << 10)
_REGION_BYTES = 64 << 10
_METADATA_BYTES = 64 << 10
_MOST_ENTRIES = 2047
_LOCATOR_BYTES = 64 << 10
_PATH_KEYS = ("relative_path", "volume_path", "absolute_win32_path")
_ISO_MARKS = (b"CD001", b"BEA01", b"NSR02", b"NSR03")
_ISO_AT = 32769


class Disk:
    """What a file's header says."""

    def __init__(self, kind, virtual_size, differencing=False, parents=(), dirty=False):
        self.kind = kind
        self.virtual_size = virtual_size
        #: Whether a reader would have to replay its log first, which may change all the rest.
        self.dirty = dirty
        self.differencing = differencing
        #: Paths that the parent may be at, as the header has them; absolute or relative to the file.
        self.parents = tuple(parents)


def pread(fd, size, offset):
    """Return at most ``size`` bytes at ``offset``; Windows has no ``os.pread``."""
    if offset >= 1 << 62:
        return b""  # a header may say any number of 64 bits; no file goes so far
    os.lseek(fd, offset, os.SEEK_SET)
    found = b""
    while len(found) < size:
        part = os.read(fd, size - len(found))
        if not part:
            break
        found += part
    return found


def kind_of(fd, size):
    """Return ``vhdx`` or ``vhd`` by the marks that Nova goes by, else None."""
    if pread(fd, 8, 0) == b"vhdxfile":
        return "vhdx"
    if size >= FOOTER_BYTES and pread(fd, 8, size - FOOTER_BYTES) == b"conectix":
        return "vhd"
    return None


def is_iso(fd):
    """Whether a file begins as ISO 9660 or UDF do."""
    return pread(fd, 5, _ISO_AT) in _ISO_MARKS


def read(fd, size):
    """Return a file's ``Disk``, or None when it is neither VHD nor VHDX.

    Raises:
        Failure: ``format``: its header makes no sense.
    """
    kind = kind_of(fd, size)
    try:
        if kind == "vhdx":
            return _read_vhdx(fd)
        return _read_vhd(fd, size) if kind else None
    except (struct.error, UnicodeDecodeError) as error:
        raise Failure("format", "its %s header is cut off or damaged" % kind) from error


# ---- VHD


def _read_vhd(fd, size):
    footer = pread(fd, FOOTER_BYTES, size - FOOTER_BYTES)
    (header_at,) = struct.unpack(">Q", footer[16:24])
    (virtual_size,) = struct.unpack(">Q", footer[48:56])
    kind, checksum = struct.unpack(">II", footer[60:68])
    if ~sum(footer[:64] + footer[68:]) & 0xFFFFFFFF != checksum:
        raise Failure("format", "the checksum of its VHD footer is wrong")
    if kind == _FIXED:
        return Disk("vhd", virtual_size)
    if kind not in (_DYNAMIC, _DIFFERENCING):
        raise Failure("format", "its VHD footer names the unknown disk type %d" % kind)
    if header_at > size - 1024:
        raise Failure("format", "its VHD header lies outside the file")
    header = pread(fd, 1024, header_at)
    if header[:8] != b"cxsparse":
        raise Failure("format", "its VHD header has a wrong mark")
    named = any(header[64:576]) or any(header[40:56])
    differencing = kind == _DIFFERENCING or named
    return Disk("vhd", virtual_size, differencing, _vhd_parents(fd, header) if differencing else ())


def _vhd_parents(fd, header):
    found = [header[64:576].decode("utf-16-be", "replace").split("\0")[0]]
    for at in range(576, 768, 24):
        code, _, length, _, offset = struct.unpack(">4sIIIQ", header[at : at + 24])
        if code in (b"W2ku", b"W2ru") and 0 < length <= _LOCATOR_BYTES:
            found.append(pread(fd, length, offset).decode("utf-16-le", "replace").split("\0")[0])
    return [path for path in found if path]


# ---- VHDX


def _read_vhdx(fd):
    metadata_at = _metadata_region(fd)
    table = pread(fd, _METADATA_BYTES, metadata_at)
    (count,) = struct.unpack("<H", table[10:12])
    if table[:8] != b"metadata" or count > _MOST_ENTRIES:
        raise Failure("format", "its VHDX metadata table has a wrong mark or count")
    items = {}
    for at in range(32, 32 + 32 * count, 32):
        offset, length = struct.unpack("<II", table[at + 16 : at + 24])
        if table[at : at + 16] in items:
            raise Failure("format", "its VHDX metadata names an item twice")
        items[table[at : at + 16]] = (metadata_at + offset, min(length, _LOCATOR_BYTES))
    if _FILE_PARAMETERS not in items or _DISK_SIZE not in items:
        raise Failure("format", "its VHDX metadata lacks an item that every disk has")
    _, flags = struct.unpack("<II", pread(fd, 8, items[_FILE_PARAMETERS][0]))
    (virtual_size,) = struct.unpack("<Q", pread(fd, 8, items[_DISK_SIZE][0]))
    differencing = bool(flags & _HAS_PARENT) or _PARENT_LOCATOR in items
    parents = ()
    if _PARENT_LOCATOR in items:
        at, length = items[_PARENT_LOCATOR]
        parents = _vhdx_parents(pread(fd, length, at))
    return Disk("vhdx", virtual_size, differencing, parents, _has_log(fd))


def _has_log(fd):
    headers = [pread(fd, 64, at) for at in _HEADERS]
    return any(header[:4] == b"head" and any(header[48:64]) for header in headers)


def _metadata_region(fd):
    """Return where the metadata region begins, by whichever region table can be read.

    Both copies are looked at when both are valid: a parent in either counts, so they must agree.
    """
    found = set()
    for table_at in _REGION_TABLES:
        table = pread(fd, _REGION_BYTES, table_at)
        if table[:4] != b"regi":
            continue
        (count,) = struct.unpack("<I", table[8:12])
        for at in range(16, 16 + 32 * min(count, _MOST_ENTRIES), 32):
            if table[at : at + 16] == _METADATA_REGION:
                found.add(struct.unpack("<Q", table[at + 16 : at + 24])[0])
    if len(found) != 1:
        raise Failure("format", "its VHDX region tables name no metadata, or two")
    return found.pop()


def _vhdx_parents(locator):
    (count,) = struct.unpack("<H", locator[18:20])
    found = []
    for at in range(20, 20 + 12 * count, 12):
        key_at, value_at, key_bytes, value_bytes = struct.unpack("<IIHH", locator[at : at + 12])
        key = locator[key_at : key_at + key_bytes].decode("utf-16-le", "replace")
        if key in _PATH_KEYS:
            value = locator[value_at : value_at + value_bytes]
            found.append(value.decode("utf-16-le", "replace").split("\0")[0])
    return [path for path in found if path]
