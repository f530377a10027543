"""Compares what datastores hold with what was noted about it, and notes what was proven.

Contents are read back through vCenter, at a bounded rate. Of disks that vSphere made of an image (sparse,
streamOptimized, OVA) the digest is not known when they are stored: the first look notes it.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a host

import http.client
import time

from . import vmware_files as files
from . import vmware_notes as notes
from .core import Failure
from .staging import new_digest
from .vmware import is_image_id, opened
from .vmware_entry import Look, Work, change_manifest, utc_now

_BLOCK_BYTES = 1 << 20
_LEAST_RATE = 64 << 10


class Hashing:
    """Reads an image's content on one datastore and hashes it."""

    def __init__(self, cluster, rate, watch):
        self.cluster = cluster
        self.rate = rate and max(rate, _LEAST_RATE)
        self.watch = watch
        self.done = self.total = 0
        self.kept_at = time.monotonic()

    def keep_session(self):
        """Note that we are at work; reading for long must not end the session with vCenter."""
        self.watch.check()
        if time.monotonic() - self.kept_at > files.KEEP_SESSION_S:
            self.kept_at = time.monotonic()
            self.cluster.now()

    def run(self, store, path, algo, expected):
        """Return (digest, bytes read); None: it is gone. ``expected``: bytes, where vCenter does not say."""
        response, connection = files.download(self.cluster, store, path)
        if response is None:
            return None
        length = files.length_of(response)
        digest, size, due = new_digest(algo), 0, time.monotonic()
        try:
            while True:
                block = response.read(_BLOCK_BYTES)
                if not block:
                    break
                digest.update(block)
                size += len(block)
                self.keep_session()
                self.watch.tell("hash", self.done + size, max(self.total, self.done + size))
                due = max(due, time.monotonic() - 1) + (len(block) / self.rate if self.rate else 0)
                while due > time.monotonic():
                    self.watch.check()
                    time.sleep(min(0.5, max(0, due - time.monotonic())))
        except (OSError, http.client.HTTPException) as error:
            raise Failure("io", "cannot read %s: %s" % (store.path(path), error)) from error
        finally:
            connection.close()
        length = expected if length is None else length
        if size != length:
            raise files.broken_off(store, path, size, length)
        self.done += size
        return digest.hexdigest(), size


def _answer(state, reason=None, algo=None, value=None, size=None):
    return {"state": state, "reason": reason, "algo": algo, "value": value, "size": size}


class Verify:
    """One order ``vmware_verify``: all copies of an image; the worst of them speaks."""

    def __init__(self, cluster, order, watch):
        self.cluster = cluster
        self.order = order
        self.image_id = order["base"]
        self.adopt = order.get("adopt")
        self.dry = order.get("dry", False)
        self.hashing = Hashing(cluster, order["rate"], watch)

    def run(self):
        """Return what ``vmware_verify`` answers."""
        copies = self.copies()
        if not copies:
            return _answer("absent")
        self.hashing.total = sum(copy.size for copy in copies)
        answers = [self.one(copy) for copy in copies]
        for state in ("damaged", "unmanaged", "absent", "adopted", "intact"):
            for answer in answers:
                if answer["state"] == state:
                    return answer
        raise Failure("io", "no copy could be looked at")

    def copies(self):
        """Return what the datastores have of it now."""
        return Look(self.cluster, self.image_id).copies.get(self.image_id, [])

    def one(self, copy):
        """Judge one copy."""
        if copy.hidden:
            reason = "on datastore %s, a vSAN, a disk is no file: it cannot be verified"
            return _answer("unmanaged", reason % copy.store.name, size=copy.size)
        stored = copy.manifest["stored"] if copy.manifest else {}
        where = "on datastore %s " % copy.store.name
        if stored and stored.get("size") != copy.size:
            reason = "%sit has %d bytes instead of %s" % (where, copy.size, stored.get("size"))
            return _answer("damaged", reason, size=copy.size)
        algo = stored.get("algo") or (self.adopt and self.adopt["image"]["digest"]["algo"])
        if not algo:
            return _answer("unmanaged", where + "nothing is noted about it", size=copy.size)
        path = "%s/%s/%s" % (self.cluster.base, self.image_id, content_name(copy))
        found = self.hashing.run(copy.store, path, algo, copy.size)
        if found is None:
            if not any(one.store is copy.store for one in self.copies()):
                return _answer("absent")  # removed in this moment
            return _answer("damaged", where + "its content is missing", size=0)
        return self.judge(copy, stored, algo, found, where)

    def judge(self, copy, stored, algo, found, where):
        """Compare a digest with what was noted."""
        value, size = found
        if not stored:
            return self.adopted(copy, algo, value, size)
        if stored.get("value") is None:
            self.note(copy, lambda known: known["stored"].update(algo=algo, value=value))
            reason = where + "vSphere made it of the image; its %s %s" % (
                algo,
                "would be noted" if self.dry else "is noted from now on",
            )
            return _answer("unmanaged", reason, algo, value, size)
        if value != stored["value"]:
            reason = "%sits %s is not the one that was noted" % (where, algo)
            return _answer("damaged", reason, algo, value, size)
        self.note(copy, lambda known: known.update(verified_at=utc_now()))
        return _answer("intact", None, algo, value, size)

    def note(self, copy, change):
        """Change what is noted about a copy, unless in a dry run."""
        if not self.dry:
            change_manifest(self.cluster, copy.store, self.image_id, change)

    def adopted(self, copy, algo, value, size):
        """Note a copy as the image's, when its bytes are."""
        image = self.adopt and self.adopt["image"]
        if not image or value != image["digest"]["value"].lower() or image["id"] != self.image_id:
            return _answer("unmanaged", "nothing is noted about it", algo, value, size)
        now, digest = utc_now(), image["digest"]
        manifest = {
            "version": 1,
            "image_id": image["id"],
            "image_name": image["name"],
            "base": image["id"],
            "digest": {
                "algo": algo,
                "value": value,
                "weak": digest["algo"] in ("md5", "sha1"),
            },
            "stored": {
                "algo": algo,
                "value": value,
                "size": size,
                "format": copy.format,
                "mtime_ns": None,
            },
            "disk_format": image["disk_format"],
            "disk_type": "preallocated",
            "source": "adopted",
            "tool": self.adopt["tool"],
            "run": self.adopt["run"],
            "cached_at": now,
            "touched_at": None,
            "verified_at": now,
            "pin": None,
        }
        folder = "%s/%s" % (self.cluster.base, self.image_id)
        notes.write_manifest(self.cluster, copy.store, folder, manifest)
        return _answer("adopted", None, algo, value, size)


def content_name(copy):
    """Return the name of the file that holds a copy's content."""
    if copy.format == "iso":
        return copy.name
    return files.flat_of(copy.name)


def order_vmware_verify(session, order):
    """Compare an image's copies with what was noted about them."""
    cluster = opened(session)
    if not is_image_id(order["base"]):
        raise Failure("protocol", "not an image's id")
    with Work(session, order) as work:
        return Verify(cluster, order, work.watch).run()
