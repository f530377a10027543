"""What a disk image's header says about other files.

A guest writes the first bytes of a raw disk: what is read here is bounded, and a name can only keep files.
An image that may need another file, and does not let its name be read, is *doubtful*.
Source: qemu ``docs/interop/qcow2.txt``, ``docs/interop/qed_spec.txt``, ``block/{qcow,vmdk,vdi}.c``,
``block.c`` (``bdrv_get_full_backing_filename``); VMware, "Virtual Disk Format 1.1"; [MS-VHDX].
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

import os
import re
import struct

from .core import Failure, decode

#: Smaller files are no disk images.
LEAST_BYTES = 512
#: Opens what is there without waiting for, or becoming part of, anything else.
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
_HEAD_BYTES = 4096
#: QEMU refuses longer names.
_NAME_BYTES = 1023
#: QEMU writes five.
_EXTENSIONS = 256
_DATA_FILE = 0x44415441
_VMDK_BYTES = 1 << 20
_VMDK_TEXT = b"# Disk DescriptorFile"
_VMDK_NAMES = re.compile(
    rb'^\s*parentFileNameHint\s*=\s*"([^"\r\n]*)"|^\s*(?:RW|RDONLY|NOACCESS)\s[^"\r\n]*"([^"\r\n]*)"',
    re.IGNORECASE | re.MULTILINE,
)
_VDI_MARK = 0xBEDA107F
_VDI_DIFFERENCING = 4
_TEXT_PREFIXES = ("file://", "file:")
#: ``driver:rest``, as in ``host_device:/dev/vg/lv``.
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+_.-]*:")


def references(fd, size):
    """Return (names of the files that an image needs as its header has them, why that is doubtful or None).

    ``size``: of the file; None for a device.
    """
    head = os.pread(fd, _HEAD_BYTES, 0)
    for mark, read in _READERS:
        if head.startswith(mark):
            names, doubt = read(fd, head)
            break
    else:
        names, doubt = _by_other_marks(fd, head, size)
    return tuple(name.split(b"\0")[0] for name in names if name.split(b"\0")[0]), doubt


def _qcow(fd, head):
    if len(head) < 72:
        return [], None
    version, offset, size = struct.unpack(">IQI", head[4:20])
    found = []
    if 0 < offset < 1 << 62 and size:
        found.append(os.pread(fd, min(size, _NAME_BYTES), offset))
    doubt = None
    if version >= 2:
        more, doubt = _data_files(fd, head, version)
        found.extend(more)
    return found, doubt


def _data_files(fd, head, version):
    """Return the name of the external data file, when the header has one, as ``references`` does."""
    at = 72
    if version >= 3 and len(head) >= 104:
        if not head[79] & 4:
            return [], None
        at = struct.unpack(">I", head[100:104])[0]
    for _ in range(_EXTENSIONS):
        entry = os.pread(fd, 8 + _NAME_BYTES, at)
        if len(entry) < 8:
            return [], None
        kind, length = struct.unpack(">II", entry[:8])
        if kind == _DATA_FILE:
            return [entry[8 : 8 + min(length, _NAME_BYTES)]], None
        if not kind:
            return [], None
        at += 8 + (length + 7 & ~7)
    return [], "a qcow2 image with more than %d header extensions" % _EXTENSIONS


def _qed(fd, head):
    features, offset, size = struct.unpack("<Q32xII", head[16:64])
    if not features & 1:
        return [], None
    return [os.pread(fd, min(size, _NAME_BYTES), offset)], None


def _vmdk_sparse(fd, head):
    at, size = (512 * number for number in struct.unpack("<QQ", head[28:44]))
    if not at or not size:
        return [], None  # an extent: its descriptor is a file of its own
    if size > _VMDK_BYTES or at >= 1 << 62:
        return [], "a VMDK image whose descriptor has %d bytes" % size
    return _vmdk_names(os.pread(fd, size, at)), None


def _vmdk_text(fd, head):
    del head
    text = os.pread(fd, _VMDK_BYTES + 1, 0)
    doubt = "a VMDK descriptor without an end" if len(text) > _VMDK_BYTES else None
    return _vmdk_names(text), doubt


def _vmdk_names(text):
    return [match.group(1) or match.group(2) or b"" for match in _VMDK_NAMES.finditer(text)]


def _vmdk_old(fd, head):
    """VMware's older sparse format: QEMU knows it without parents; its flag says that there is one."""
    del fd
    flags = struct.unpack("<I", head[8:12])[0]
    return [], None if flags & 1 else "a COWD image with a parent"


def _cow(fd, head):
    """QEMU's first format, which QEMU no longer opens."""
    return [os.pread(fd, 1024, 8)] if len(head) > 8 else [], None


_READERS = (
    (b"QFI\xfb", _qcow),
    (b"QED\0", _qed),
    (b"KDMV", _vmdk_sparse),
    (_VMDK_TEXT, _vmdk_text),
    (b"COWD", _vmdk_old),
    (b"OOOM", _cow),
)


def _by_other_marks(fd, head, size):
    """Return the same for formats that need another look: VHDX, VHD (whose mark is at the end), VDI."""
    if len(head) >= 80 and struct.unpack("<I", head[64:68])[0] == _VDI_MARK:
        kind = struct.unpack("<I", head[76:80])[0]
        return (
            [],
            "a differencing VDI image, which names no file" if kind == _VDI_DIFFERENCING else None,
        )
    if not (head.startswith((b"vhdxfile", b"conectix"))):
        return [], None
    from . import vhd  # noqa: PLC0415 - rare

    try:
        disk = vhd.read(fd, size or os.lseek(fd, 0, os.SEEK_END))
    except (Failure, OSError, ValueError) as error:
        return [], "a VHD or VHDX image whose parent cannot be told: %s" % error
    if disk is None or not disk.differencing:
        return [], None
    names = [path.replace("\\", "/").encode("utf-8", "surrogatepass") for path in disk.parents]
    return names, None if names else "a differencing VHD or VHDX image that names no parent"


def paths_of(name):
    """Return the paths that a name in a header may mean: plain, ``file:``, ``driver:`` or ``json:``."""
    text = os.fsdecode(name)
    if text.startswith("json:"):
        try:
            return _file_names(decode(text[5:]))
        except Exception:  # noqa: BLE001 - hostile bytes; qemu could not read this name either
            return []
    for prefix in _TEXT_PREFIXES:
        if text.startswith(prefix):
            return [text[len(prefix) :]]
    match = _PROTOCOL.match(text)
    return [text, text[match.end() :]] if match else [text]


def _file_names(value):
    found, rest = [], [value]
    while rest:
        item = rest.pop()
        if isinstance(item, dict):
            for key, inner in item.items():
                if isinstance(inner, (dict, list)):
                    rest.append(inner)
                elif isinstance(inner, str) and key.endswith("filename"):
                    found.extend(
                        paths_of(inner.encode("utf-8", "replace")) if inner[:5] != "json:" else ()
                    )
        elif isinstance(item, list):
            rest.extend(item)
    return found
