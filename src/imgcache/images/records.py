"""From Glance's image record to an image that may be cached, or to what is wrong with it."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from imgcache.errors import Problem
from imgcache.model import BACKEND_PROPERTIES, CACHEABLE_DISK_FORMATS, Digest, Image, ImageId
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

#: ``compressed`` and ``ova`` hold something else than a disk; Nova cannot boot them, except from an ``ova``
#: with a VMDK on vSphere.
CACHEABLE_CONTAINER_FORMATS = frozenset({"bare", "ami", "ari", "aki"})

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)

_STATUS_HINTS = {
    "queued": "upload its data first",
    "saving": "wait until its upload has ended",
    "uploading": "wait until its upload has ended",
    "importing": "wait until its import has ended",
    "deactivated": "an administrator has blocked it: openstack image set --activate",
}


def is_image_id(text: str) -> bool:
    """Tell whether ``text`` is a UUID in its usual form, and so may stand in a path."""
    return _UUID.fullmatch(text) is not None


def digest_algorithm(name: str) -> str | None:
    """Return the name under which every Python has this algorithm, or None.

    SHAKE is left out: its digests have no length of their own.
    """
    algo = name.lower()
    return algo if algo in hashlib.algorithms_guaranteed and not algo.startswith("shake") else None


def digest_from(algo: str, value: object) -> Digest | None:
    """Return the digest, or None when ``value`` cannot be one of that algorithm."""
    if not isinstance(value, str) or not _HEX.fullmatch(value.lower()):
        return None
    right_length = len(value) == hashlib.new(algo, usedforsecurity=False).digest_size * 2
    return Digest(algo=algo, value=value.lower()) if right_length else None


def image_from_record(where: str, record: Mapping[str, Any]) -> Image | Problem:
    """Return the image that a record describes, or one problem that names all that is wrong.

    ``where`` is the image as the user named it. Whether it can be read is not known from a record.
    """
    faults = _faults(record)
    digest = _digest(record)
    if digest is None and not faults:
        faults.append(_digest_fault(record))
    image_id, size = record.get("id"), record.get("size")
    if not isinstance(image_id, str) or not is_image_id(image_id):
        faults.append(("has an id that is no UUID", None))
    if faults or digest is None:
        return Problem(
            where=printable(where),
            what=_label(where, record) + "; ".join(what for what, _ in faults),
            hint="; ".join(dict.fromkeys(hint for _, hint in faults if hint)) or None,
        )
    virtual = record.get("virtual_size")
    return Image(
        id=ImageId(str(image_id)),
        name=_text(record, "name") or str(image_id),
        size_bytes=int(size or 0),
        disk_format=_text(record, "disk_format"),
        container_format=_text(record, "container_format"),
        digest=digest,
        virtual_size_bytes=virtual if _is_count(virtual) else None,
        properties={key: text for key in BACKEND_PROPERTIES if (text := _text(record, key))},
    )


def _label(where: str, record: Mapping[str, Any]) -> str:
    image_id = _text(record, "id")
    return f"image {printable(image_id)} " if image_id and image_id != where else ""


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    return value if isinstance(value, str) else ""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _faults(record: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    if _is_volume_snapshot(record):
        what = (
            "is a snapshot of a server that runs on volumes: its data are in Cinder, not in Glance"
        )
        return [(what, "leave it out: Nova boots it from a volume, and no host caches it")]
    return [*_state_faults(record), *_content_faults(record)]


def _is_volume_snapshot(record: Mapping[str, Any]) -> bool:
    """Whether an image names volumes instead of having data.

    Source: nova ``compute/api.py`` (``snapshot_volume_backed``): an image of size 0 with the property
    ``block_device_mapping``, a list, which Glance keeps as JSON text.
    """
    mapping = record.get("block_device_mapping")
    named = mapping not in (None, "", [], "[]")
    return named and _text(record, "status") == "active" and record.get("size") in (0, None)


def _digest_fault(record: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return why it is refused: only a digest shows that bytes are wrong or cut off."""
    algo = _text(record, "os_hash_algo")
    hint = "upload its data again (openstack image create --file), so that Glance computes os_hash_value"
    if algo or _text(record, "checksum"):
        return f"has no digest that can be checked (os_hash_algo {printable(algo or 'none')})", hint
    what = "has no digest (it was registered by its location): wrong or missing bytes would not be noticed"
    return what, hint


def _state_faults(record: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    status = _text(record, "status")
    if status != "active":
        return [
            (f"is not active but {printable(status) or 'in no state'}", _STATUS_HINTS.get(status))
        ]
    if record.get("size") == 0:
        return [("is empty (0 bytes)", "upload its data again")]
    if not _is_count(record.get("size")):
        return [("has no size", None)]
    return []


def _content_faults(record: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    faults: list[tuple[str, str | None]] = []
    disk_format = _text(record, "disk_format")
    if disk_format not in CACHEABLE_DISK_FORMATS:
        allowed = ", ".join(sorted(CACHEABLE_DISK_FORMATS))
        faults.append(
            (f"has disk format {printable(disk_format) or 'none'}", f"cacheable are {allowed}")
        )
    container = _text(record, "container_format")
    package = (container, disk_format) == ("ova", "vmdk")
    if container not in CACHEABLE_CONTAINER_FORMATS and not package:
        faults.append(
            (f"has container format {printable(container) or 'none'}", "Nova boots bare images")
        )
    given = {key for key, value in record.items() if value not in (None, "")}
    if any(key.startswith("img_signature") for key in given):
        faults.append(("is signed, and Nova would not check the signature of a cached file", None))
    if any(key.startswith("os_encrypt_") for key in given):
        faults.append(("is encrypted", None))
    if "cinder_encryption_key_id" in given:
        # Source: nova compute/api.py, _detect_nonbootable_image_from_properties: such an image was made
        # from an encrypted volume, and Nova refuses to boot it; a cached copy would help nobody.
        faults.append(("was made from an encrypted volume, and Nova does not boot it", None))
    return faults


def _digest(record: Mapping[str, Any]) -> Digest | None:
    algo = digest_algorithm(_text(record, "os_hash_algo"))
    if algo and record.get("os_hash_value"):
        return digest_from(algo, record["os_hash_value"])
    return digest_from("md5", record.get("checksum"))
