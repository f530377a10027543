"""What a disk image's header says about other files. A claim that can only keep files, never more.

A guest writes its disk, also the first bytes of it: everything read here is bounded, and nothing believed.
Source: qemu ``docs/interop/qcow2.txt``, ``block/qcow.c``, ``block.c`` (``bdrv_get_full_backing_filename``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

import os
import struct

from .core import decode

#: Smaller files are no disk images.
LEAST_BYTES = 512
#: Opens what is there without waiting for, or becoming part of, anything else.
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
_MAGIC = b"QFI\xfb"
_NAME_BYTES = 1023
_HEAD_BYTES = 4096
_EXTENSIONS_BYTES = 64 << 10
_DATA_FILE = 0x44415441


def references(fd):
    """Return the names of files that a qcow or qcow2 file needs, as its header has them; else nothing."""
    head = os.pread(fd, _HEAD_BYTES, 0)
    if not head.startswith(_MAGIC) or len(head) < 72:
        return ()
    version, offset, size = struct.unpack(">IQI", head[4:20])
    found = []
    if 0 < offset < 1 << 62 and size:
        found.append(os.pread(fd, min(size, _NAME_BYTES), offset))
    if version >= 2:
        found.extend(_data_files(fd, head, version))
    return tuple(name.split(b"\0")[0] for name in found if name.split(b"\0")[0])


def _data_files(fd, head, version):
    """Return the name of the external data file, when the header has one."""
    at = 72
    if version >= 3 and len(head) >= 104:
        if not head[79] & 4:
            return []
        at = struct.unpack(">I", head[100:104])[0]
    area = os.pread(fd, _EXTENSIONS_BYTES, 0)
    for _ in range(64):
        if at + 8 > len(area):
            break
        kind, length = struct.unpack(">II", area[at : at + 8])
        if kind == _DATA_FILE:
            return [area[at + 8 : at + 8 + min(length, _NAME_BYTES)]]
        if not kind:
            break
        at += 8 + (length + 7 & ~7)
    return []


def paths_of(name):
    """Return the paths that a name in a header may mean: plain, ``file:`` or ``json:``."""
    text = os.fsdecode(name)
    if text.startswith("json:"):
        try:
            return _file_names(decode(text[5:]))
        except Exception:  # noqa: BLE001 - hostile bytes; qemu could not read this name either
            return []
    for prefix in ("file://", "file:"):
        if text.startswith(prefix):
            return [text[len(prefix) :]]
    return [text]


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
