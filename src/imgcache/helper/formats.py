"""Judges an image's bytes before any other program sees them.

All matchers look at every image, whatever it is declared: what the content is must equal what was declared.
Every read is bounded, no length from the image becomes an allocation, any surprise is a reject.
Source: oslo.utils ``imageutils/format_inspector.py``; nova ``virt/images.py`` (``do_image_deep_inspection``);
qemu ``block/{qcow2,vmdk,vhdx,vdi}.c``. Rules stricter than those are marked ``stricter``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a warm host

import os
import struct

from .core import Failure

ALLOWED = ("raw", "qcow2", "vmdk", "vhdx", "vdi", "iso", "ami", "ari", "aki")
#: Declared formats whose bytes are used as they are; qemu calls them raw.
RAW_FAMILY = ("raw", "iso", "ami", "ari", "aki")
_AMAZON = ("ami", "ari", "aki")
_TEXT = frozenset(range(0x20, 0x7F)) | frozenset(range(0x09, 0x0E)) | frozenset(range(0x1C, 0x20))
_DESCRIPTOR_BYTES = (1 << 20) - 1
_MAX_L1_BYTES = 32 << 20
_VMDK_PARENT_BYTES = 20 * 512
_GD_AT_END = 0xFFFFFFFFFFFFFFFF
_ISO_WORDS = (b"CD001", b"NSR02", b"NSR03")
_VHDX_REGIONS = 192 << 10
_VHDX_TABLE_BYTES = 64 << 10
_VHDX_METADATA = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")
_VHDX_SIZE = bytes.fromhex("2442a52f1bcd7648b2115dbed83bf4b8")
_VHDX_PARAMETERS = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")


class Content:
    """The bytes to judge; ``at`` reads exactly what is asked for, or rejects."""

    def __init__(self, fd, size):
        self.fd = fd
        self.size = size
        self.head = os.pread(fd, 512, 0)

    def at(self, offset, length):
        """Return ``length`` bytes, at most 1 MiB of them."""
        data = os.pread(self.fd, min(length, 1 << 20), offset) if 0 <= offset < 1 << 62 else b""
        if len(data) != length:
            _reject("its structures point beyond its end")
        return data

    def number(self, code, offset):
        """Return one unsigned number; ``code`` as for ``struct``."""
        return struct.unpack(code, self.at(offset, struct.calcsize(code)))[0]


def inspect(fd, size, declared):
    """Return (what the content is, its virtual size in bytes or None).

    Raises:
        Failure: code ``format``; nothing else, whatever the bytes.
    """
    if declared not in ALLOWED:
        _reject("the disk format %s cannot be cached" % ascii(declared)[:40])
    try:
        content = Content(fd, size)
        matched = match(content)
        check = _CHECKS.get(matched)
        virtual_size = check(content) if check else size
    except Failure:
        raise
    except OSError:
        raise  # the disk, not the image
    except Exception as error:  # noqa: BLE001 - hostile bytes: whatever they cause is a reject
        _reject("its content could not be judged (%s)" % type(error).__name__)
    # stricter: of the others qemu-img says that they are not raw, and it may be missing here
    amazon = declared in _AMAZON and matched in ("raw", "gpt", "iso")
    if not (matched == declared or amazon or (declared, matched) == ("raw", "gpt")):
        _reject("it is declared %s, but its content is %s" % (declared, matched))
    return matched, virtual_size


def match(content):
    """Return the one format whose marks the content bears."""
    head, whole = content.head, content.size >= 512
    marks = {
        # stricter: also when shorter than a sector; qemu reads zeros behind the end, and takes it
        "qcow2": head.startswith(b"QFI\xfb"),
        "qed": head.startswith(b"QED\0"),
        "vhd": head.startswith(b"conectix"),
        "vhdx": head.startswith(b"vhdxfile"),
        "vmdk": head.startswith((b"KDMV", b"COWD")) or _is_text_descriptor(content),
        "vdi": head[0x40:0x44] == b"\x7f\x10\xda\xbe",
        "iso": content.size >= 34 << 10 and os.pread(content.fd, 5, 32769) in _ISO_WORDS,
        "gpt": whole
        and head[510:512] == b"\x55\xaa"
        and not (head[0x10] == 2 and head[0x15] == 0xF8),
        "luks": head.startswith(b"LUKS\xba\xbe"),
    }
    found = sorted(name for name, matches in marks.items() if matches)
    if found == ["gpt", "iso"]:
        return "iso"
    if len(found) > 1:
        _reject("its content is several formats at once: " + ", ".join(found))
    return found[0] if found else "raw"


def _is_text_descriptor(content):
    """Whether qemu or Nova would take the content for a VMDK that is only text."""
    if not content.head:
        return False
    for line in [part.strip() for part in content.head.split(b"\n")]:
        if line and not line.startswith(b"#"):
            # stricter: the word alone decides, wherever createType comes
            if line.lower().startswith((b"version=1", b"version=2", b"version=3")):
                return True
            break
    if not _TEXT.issuperset(content.head):
        return False
    return b'createtype="' in os.pread(content.fd, _DESCRIPTOR_BYTES, 0).split(b"\0")[0].lower()


def _check_qcow2(content):
    version, backing = struct.unpack(">IQ", content.at(4, 12))
    if version not in (2, 3):
        _reject("qcow2 version %d is unknown" % version)
    if backing:
        _reject("it has a backing file")
    features = content.number(">Q", 72)
    if features & 4:
        _reject("it keeps its data in another file")
    if version == 3 and features & ~0xF:
        _reject("it needs qcow2 features that are unknown (0x%x)" % features)
    if version == 3 and features & 2:
        _reject("it is marked as corrupt")  # stricter
    cluster_bits, size, crypt, l1_entries, l1_offset = struct.unpack(">IQIIQ", content.at(20, 28))
    # stricter: all of these
    if crypt:
        _reject("it is encrypted")
    if not 9 <= cluster_bits <= 21:
        _reject("its cluster size is out of range")
    if l1_entries * 8 > _MAX_L1_BYTES or l1_offset + l1_entries * 8 > content.size:
        _reject("its first table does not fit")
    return size


def _check_vmdk(content):
    if not content.head.startswith(b"KDMV"):
        _reject("it is a VMDK that is only text and names other files, or an old one")  # stricter
    header = content.at(0, 512)
    version, capacity, desc_at, desc_sectors, grain_dir = _vmdk_fields(header)
    if version not in (1, 2, 3):
        _reject("VMDK version %d is unknown" % version)
    if desc_at != 1:
        _reject("its VMDK descriptor is not where it must be")
    if not 0 < capacity < 1 << 53:
        _reject("it states no size of its own")  # stricter: qemu would follow the descriptor
    length = min(desc_sectors * 512, _DESCRIPTOR_BYTES)
    _check_descriptor(content.at(512, length).split(b"\0")[0])
    # stricter: qemu looks for a parent up to there, whatever length is stated
    if (
        b"parentfilenamehint"
        in os.pread(content.fd, _VMDK_PARENT_BYTES, 512).split(b"\0")[0].lower()
    ):
        _reject("it has a parent")
    if grain_dir == _GD_AT_END:
        _check_footer(content, version, desc_sectors)
    return capacity * 512


def _vmdk_fields(header):
    version, _flags, capacity, _grain, desc_at, desc_sectors, _entries, _rgd, grain_dir = (
        struct.unpack("<IIQQQQIQQ", header[4:64])
    )
    return version, capacity, desc_at, desc_sectors, grain_dir


def _check_descriptor(raw):
    try:
        text = raw.decode("ascii").lower()
    except UnicodeDecodeError:
        _reject("its VMDK descriptor is not ASCII")
    types = [part.partition('"')[0] for part in text.split('createtype="')[1:]]
    lines = [part.strip() for part in text.split("\n")]
    # stricter: exactly one createType; comments and ddb lines may have the word, and mean nothing by it
    declared = [line for line in lines if line.startswith("createtype")]
    if types not in (["monolithicsparse"], ["streamoptimized"]) or len(declared) != 1:
        _reject("its VMDK sub-format is not allowed")
    extents = []
    for line in lines:
        if not line or line.startswith(("#", "ddb")):
            continue
        if "=" in line and " " not in line.split("=")[0]:
            continue
        if line.split(" ")[0] not in ("rw", "rdonly", "noaccess"):
            _reject("its VMDK descriptor has an unknown line")
        extents.append(line)
    # stricter: exactly one extent, of this kind
    if len(extents) != 1 or extents[0].split()[2:3] != ["sparse"]:
        _reject("its VMDK descriptor does not name exactly one sparse extent")
    if "/" in extents[0]:
        _reject("its VMDK extent names a path")


def _check_footer(content, version, desc_sectors):
    tail = content.at(content.size - 1536, 1536)
    size, kind = struct.unpack("<II", tail[8:16])
    f_version, _capacity, f_desc_at, f_desc_sectors, f_grain_dir = _vmdk_fields(tail[512:])
    if (size, kind) != (0, 3) or any(tail[16:512]):
        _reject("its VMDK footer marker is wrong")
    if not tail[512:].startswith(b"KDMV") or (f_version, f_desc_at, f_desc_sectors) != (
        version,
        1,
        desc_sectors,
    ):
        _reject("its VMDK footer contradicts its header")
    if f_grain_dir == _GD_AT_END or any(tail[1024:]):
        _reject("its VMDK footer is not the end")


def _check_vhdx(content):
    table = content.at(_VHDX_REGIONS, _VHDX_TABLE_BYTES)
    if not table.startswith(b"regi"):
        _reject("its VHDX region table is missing")
    start = 0
    for entry in _vhdx_entries(table, 16, struct.unpack("<I", table[8:12])[0]):
        if entry[:16] == _VHDX_METADATA:
            start = struct.unpack("<Q", entry[16:24])[0]
            break
    if start < _VHDX_REGIONS + _VHDX_TABLE_BYTES:
        _reject("its VHDX metadata are missing")
    table = content.at(start, _VHDX_TABLE_BYTES)
    if not table.startswith(b"metadata"):
        _reject("its VHDX metadata table is missing")
    size = None
    for entry in _vhdx_entries(table, 32, struct.unpack("<H", table[10:12])[0]):
        offset = start + struct.unpack("<I", entry[16:20])[0]
        if entry[:16] == _VHDX_SIZE and size is None:
            size = content.number("<Q", offset)
        # stricter: qemu refuses a parent as well
        if entry[:16] == _VHDX_PARAMETERS and content.number("<I", offset + 4) & 2:
            _reject("it has a parent")
    if size is None:
        _reject("its VHDX size is missing")
    return size


def _vhdx_entries(table, first, count):
    if count >= 2048:
        _reject("its VHDX tables are too long")
    return [
        table[at : at + 32] for at in range(first, min(first + count * 32, len(table) - 31), 32)
    ]


def _check_gpt(content):
    entries = [content.head[446 + 16 * i : 462 + 16 * i] for i in range(4)]
    if any(entry[0] not in (0x00, 0x80) for entry in entries):
        _reject("its partition table has a wrong boot flag")
    used = [number for number, entry in enumerate(entries) if entry[4]]
    if not used:
        _reject("its partition table is empty")
    for entry in entries:
        if entry[4] == 0xEE and (
            entry[1:4] != b"\0\2\0" or entry[8:12] != b"\1\0\0\0" or used != [0]
        ):
            _reject("its protective partition entry is wrong")
    return content.size


def _check_vdi(content):
    kind = content.number("<I", 0x4C)
    if kind not in (1, 2) or any(content.at(0x1A8, 32)):
        _reject("its VDI kind is not allowed, or it has a parent")  # stricter
    return content.number("<Q", 0x170)


def _refuse(content):
    _reject("its content is of a format that cannot be cached")


_CHECKS = {
    "qcow2": _check_qcow2,
    "vmdk": _check_vmdk,
    "vhdx": _check_vhdx,
    "vdi": _check_vdi,
    "gpt": _check_gpt,
    "qed": _refuse,
    "vhd": _refuse,
    "luks": _refuse,
}


def _reject(reason):
    raise Failure("format", "the image was refused: " + reason)
