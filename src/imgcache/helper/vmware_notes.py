"""What we note about an image, beside it on the datastore; anybody may have written what is read."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a warm host

import json
import math

from .core import Failure
from .vmware import MANIFEST
from .vmware_files import Broken, read_small, upload_to

_MAX_DEPTH = 4


def read_manifest(cluster, store, image_id):
    """Return the manifest in an image's folder; None: there is none that can be used."""
    data = read_small(cluster, store, "%s/%s/%s" % (cluster.base, image_id, MANIFEST))
    try:
        manifest = json.loads(data.decode("utf-8")) if data else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict) or not _plain(manifest):
        return None
    for name in ("digest", "stored"):
        part = manifest.get(name)
        if not isinstance(part, dict) or not _texts(part.get("algo"), part.get("value")):
            return None
    if str(manifest.get("image_id")).lower() != image_id.lower():
        return None
    return manifest


def _plain(value, depth=0):
    """Whether it is nested as ours are at most, and has no number that JSON cannot tell."""
    if isinstance(value, (dict, list)):
        items = value.values() if isinstance(value, dict) else value
        return depth < _MAX_DEPTH and all(_plain(item, depth + 1) for item in items)
    return not isinstance(value, float) or math.isfinite(value)


def _texts(*values):
    return all(value is None or isinstance(value, str) for value in values)


def write_manifest(cluster, store, folder, manifest):
    """Write the manifest of the image in a folder."""
    data = json.dumps(manifest, sort_keys=True).encode("utf-8")
    try:
        upload = upload_to(cluster, store, "%s/%s" % (folder, MANIFEST), len(data))
        upload.write(data)
        upload.finish()
    except Broken as error:
        text = "cannot write %s: %s" % (store.path(folder, MANIFEST), error)
        raise Failure("io", text) from error
