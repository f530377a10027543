"""What an image's bytes become on a datastore, and whether they may: judged before they are stored.

Source: nova ``virt/vmwareapi/images.py``, ``constants.py``, ``vm_util.py``; ``objects/image_meta.py`` (older
names of properties); qemu ``block/vmdk.c``. What nova does not check is marked ``stricter``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a warm host

import os
import tempfile

from . import formats
from .core import Failure

ISO, SPARSE, FLAT, STREAM, OVA = "iso", "sparse", "flat", "streamOptimized", "ova"
_FLAT_TYPES = ("preallocated", "thin", "thick", "eagerZeroedThick")
_ADAPTERS = {
    "lsilogic": "lsiLogic",
    "lsisas1068": "lsiLogic",
    "lsilogicsas": "lsiLogic",
    "vmpvscsi": "lsiLogic",
    "paravirtual": "lsiLogic",
    "buslogic": "busLogic",
}
#: As much as an embedded descriptor and the search for a parent may take, and an ISO's mark.
HEAD_BYTES = (1 << 20) + (64 << 10)
TAIL_BYTES = 1536


class Plan:
    """How an image is stored: its kind, its disk's type and adapter, its file's name."""

    def __init__(self, image, properties, container):
        self.format = image["disk_format"]
        self.size = image["size"]
        if self.format not in ("vmdk", "iso"):
            raise Failure(
                "format",
                "Nova's vmwareapi driver takes images of disk format vmdk and iso only, not %s"
                % ascii(self.format)[:40],
            )
        if container not in ("bare", "ova"):
            raise Failure(
                "format", "an image in a container %s cannot be stored" % ascii(container)[:40]
            )
        disk_type = properties.get("hw_disk_type") or properties.get("vmware_disktype")
        self.disk_type = disk_type or "preallocated"
        self.adapter = adapter_of(properties)
        self.kind = self._kind(container)
        self.name = "%s.%s" % (image["id"], self.format)
        self.flat_name = "%s-flat.vmdk" % image["id"]

    def _kind(self, container):
        if container == "ova":
            return OVA
        if self.format == "iso":
            return ISO
        if self.disk_type in _FLAT_TYPES:
            if not self.size or self.size % 1024:
                # stricter: Nova asks for a disk of a fraction of a KiB, which then lacks its end
                raise Failure(
                    "format",
                    "the image has %d bytes; as a disk's plain content they must be whole KiB"
                    % self.size,
                )
            return FLAT
        if self.disk_type in (SPARSE, STREAM):
            return self.disk_type
        raise Failure(
            "format",
            "the disk type %s (vmware_disktype, hw_disk_type) is not one that Nova supports: %s"
            % (ascii(self.disk_type)[:60], ", ".join((*_FLAT_TYPES, SPARSE, STREAM))),
        )

    @property
    def imported(self):
        """Whether its bytes become a disk by an import, and may go to vSAN. Source: nova ``ds_util.py``."""
        return self.kind in (STREAM, OVA)

    @property
    def as_it_is(self):
        """Whether the stored bytes are the image's own."""
        return self.kind in (ISO, FLAT)

    @property
    def content_name(self):
        """The name of the file that holds the image's content."""
        return self.name if self.format == "iso" else self.flat_name


def adapter_of(properties):
    """Return the adapter type that a disk's descriptor names."""
    bus, model = properties.get("hw_disk_bus"), properties.get("hw_scsi_model")
    old = properties.get("vmware_adaptertype")
    if bus is None and old:
        bus, model = ("ide", None) if old.lower() == "ide" else ("scsi", old)
    if bus == "ide":
        return "ide"
    return _ADAPTERS.get((model or "").lower(), "lsiLogic")


class Sample:
    """A file without a name that holds the first and the last bytes of an image that is only passing by."""

    def __init__(self, size):
        self.size = size
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as we are
        self.fd = self.file.fileno()
        self.head_bytes = min(size, HEAD_BYTES)
        os.ftruncate(self.fd, size)

    def keep(self, data, offset):
        """Keep what of ``data`` belongs to the head or the tail."""
        view = memoryview(data)
        end = offset + len(view)
        if offset < self.head_bytes:
            os.pwrite(self.fd, view[: self.head_bytes - offset], offset)
        tail_at = max(self.size - TAIL_BYTES, self.head_bytes)
        if end > tail_at:
            start = max(offset, tail_at)
            os.pwrite(self.fd, view[start - offset :], start)

    def clear(self):
        """Forget all bytes."""
        os.ftruncate(self.fd, 0)
        os.ftruncate(self.fd, self.size)

    def close(self):
        """Let go of it."""
        self.file.close()


def judge_head(plan, sample):
    """Judge an image by its first bytes, before any of them reaches a datastore; return its capacity or None.

    Raises:
        Failure: ``format``.
    """
    content = formats.Content(sample.fd, sample.size)
    matched = _guarded(formats.match, content)
    if plan.kind == ISO:
        if matched != "iso":
            _reject("it is declared iso, but its content is %s" % matched)
        return None
    if plan.kind == FLAT:
        # stricter: Nova would make such a disk, and no instance could boot from it
        if matched not in ("raw", "gpt", "iso"):
            _reject(
                "its disk type %s means a disk's plain content, but it is %s; "
                "see vmware_disktype" % (plan.disk_type, matched)
            )
        return None
    if matched != "vmdk":
        _reject("its disk type %s means a VMDK, but its content is %s" % (plan.disk_type, matched))
    capacity, kind = _guarded(_vmdk_head, content)
    wanted = "monolithicsparse" if plan.kind == SPARSE else "streamoptimized"
    if kind != wanted:
        _reject("its disk type is %s, but the VMDK in it is %s" % (plan.disk_type, kind))
    return capacity


def judge_whole(plan, sample):
    """Judge what only the last bytes tell, before the disk is made of them."""
    if plan.kind in (SPARSE, STREAM):
        formats.inspect(sample.fd, sample.size, "vmdk")


def _vmdk_head(content):
    """Return (capacity in bytes, createType) of a VMDK that names no file but itself."""
    if not content.head.startswith(b"KDMV"):
        _reject("it is a VMDK that is only text and names other files, or an old one")
    fields = formats._vmdk_fields(content.at(0, 512))
    version, capacity, desc_at, desc_sectors, _grain_dir = fields
    if version not in (1, 2, 3) or desc_at != 1 or not 0 < capacity < 1 << 53:
        _reject("its VMDK header is not one that can be trusted")
    length = min(desc_sectors * 512, (1 << 20) - 1)
    text = content.at(512, length).split(b"\0")[0]
    formats._check_descriptor(text)
    if b"parentfilenamehint" in content.at(512, min(content.size - 512, 20 * 512)).lower():
        _reject("it has a parent")
    kind = text.lower().split(b'createtype="')[1].split(b'"')[0].decode("ascii")
    _check_extent(text, capacity)
    return capacity * 512, kind


def _check_extent(text, capacity):
    """Refuse a descriptor whose one extent is not as large as the header says."""
    for line in text.decode("ascii").split("\n"):
        words = line.split()
        if words[:1] == ["RW"] and (len(words) < 2 or words[1] != str(capacity)):
            _reject("its VMDK descriptor contradicts its header")


def _guarded(check, content):
    """Run a check on hostile bytes: whatever they cause is a reject."""
    try:
        return check(content)
    except (Failure, OSError):
        raise
    except Exception as error:  # noqa: BLE001
        _reject("its content could not be judged (%s)" % type(error).__name__)


def _reject(reason):
    raise Failure("format", "the image was refused: " + reason)
