"""Compares stored files with their manifests, adopts files that were proven, pins.

Reads at a bounded rate and at the lowest priority: instances read their disks from the same device.
Source: Linux ``ioprio_set(2)``; its number: ``arch/*/entry/syscalls``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, SIM105 - a Failure's code is a literal; imports are dear on a host

import ctypes
import os
import platform
import sys
import threading
import time

from . import cache as caches
from . import entries, headers, usage
from .core import Failure, os_failure
from .staging import hash_sparse, new_digest

_LOCK_WAIT_S = 10
#: A rate below this would look like a host that hangs.
_LEAST_RATE = 64 << 10
_IOPRIO_SET = {
    "x86_64": 251,
    "aarch64": 30,
    "riscv64": 30,
    "loongarch64": 30,
    "ppc64le": 273,
    "ppc64": 273,
    "s390x": 282,
    "i686": 289,
    "armv7l": 314,
}
_IOPRIO_IDLE = 3 << 13
_LOWEST = 19
_NOTHING = "nothing is written down about it"
#: Whoever converts an image publishes it first and hashes it then, so that a boot need not wait for that.
_UNHASHED = (
    "imgcache was cut off before it had written down its digest: only its size could be compared"
)
#: The last file that this helper has hashed and nobody manages: its open descriptor, so that no other file
#: can get its inode's number, and (cache, base, algorithm, digest).
_PROVEN = [None, None]


class Paced:
    """A digest that is fed no faster than ``rate`` bytes read per second; holes are not read."""

    def __init__(self, algo, rate, check):
        self.digest = new_digest(algo)
        self.rate = rate and max(rate, _LEAST_RATE)
        self.check = check
        self.due = time.monotonic()

    def update(self, data):
        """Take bytes; wait until they were allowed."""
        self.digest.update(data)
        if self.rate and isinstance(data, memoryview):
            # What a slow disk missed is not made up for in a burst.
            self.due = max(self.due, time.monotonic() - 1) + len(data) / self.rate
            while self.due > time.monotonic():
                self.check()
                time.sleep(min(0.5, max(0, self.due - time.monotonic())))


class Hashing:
    """Hashes an open file in a thread of the lowest priority, which ends with it."""

    def __init__(self, fd, size, algo, rate, work):
        self.fd = fd
        self.size = size
        self.paced = Paced(algo, rate, work.check)
        self.work = work
        self.error = None

    def run(self):
        """Return the digest."""
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        thread.join()
        if self.error is not None:
            raise self.error
        return self.paced.digest.hexdigest()

    def _work(self):
        try:
            _step_back()
            self.work.tell("hash", 0, self.size)
            for done in hash_sparse(self.fd, self.size, self.paced):
                self.work.check()
                self.work.tell("hash", done, self.size)
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is waited for
            self.error = error


def _step_back():
    """Give this thread the lowest priority there is, for the disk and for the processor."""
    number = _IOPRIO_SET.get(platform.machine())
    if sys.platform == "linux" and number is not None and sys.maxsize > 1 << 32:
        ctypes.CDLL(None).syscall(number, 1, 0, _IOPRIO_IDLE)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _LOWEST)  # on Linux: of the calling thread
    except OSError:
        pass


def open_settled(cache, base, dry=False):
    """Return a descriptor of a final that nobody is writing any more, or None.

    Nova downloads some images straight into the final, holding the lock: whoever gets the lock sees it whole.
    ``dry``: make no lock file; where there is none, nobody holds it.
    """
    if cache.find(base) is None:
        return None
    lock_fd = cache.lock(base, _LOCK_WAIT_S, not dry)
    try:
        if cache.find(base) is None:
            return None
        return usage.either(os.open, base, headers.FLAGS | os.O_NOFOLLOW, dir_fd=cache.cache_fd)
    except OSError as error:
        raise os_failure(error, "cannot read %s/%s" % (cache.path, base), cache.cache_fd) from error
    finally:
        if lock_fd is not None:
            os.close(lock_fd)


def _answer(state, reason=None, algo=None, value=None, size=None):
    return {"state": state, "reason": reason, "algo": algo, "value": value, "size": size}


def _verify(cache, order, work):
    base, dry = order["base"], order.get("dry", False)
    fd = open_settled(cache, base, dry)
    if fd is None:
        return _answer("absent")
    try:
        before = os.fstat(fd)
        size = before.st_size
        manifest = cache.read_manifest(base) if cache.own_fd is not None else None
        stored = manifest["stored"] if manifest else {}
        managed = bool(stored.get("value") and stored.get("algo"))
        algo = stored["algo"] if managed else order.get("algo")
        wrong = _size_fault(size, stored, algo)
        if wrong:
            return _answer("damaged", wrong, size=size)
        lack = _UNHASHED if stored else _NOTHING
        if not algo:
            return _answer("unmanaged", lack, size=size)
        value = Hashing(fd, size, algo, order["rate"], work).run()
        check_unchanged(cache, base, before)
        if not managed:
            note_proven(cache, base, fd, algo, value)
    finally:
        os.close(fd)
    if not managed:
        return _answer("unmanaged", lack, algo, value, size)
    if value != stored["value"]:
        return _answer("damaged", "its %s is not the one written down" % algo, algo, value, size)
    return _answer("intact", None if dry else _note_intact(cache, base), algo, value, size)


def _size_fault(size, stored, algo):
    """Return why a final of this size cannot be whole, or None; where there is a digest, it decides."""
    if stored and stored["size"] != size:
        return "it has %d bytes instead of %d" % (size, stored["size"])
    if stored or algo or size >= headers.LEAST_BYTES:
        return None
    return "it has %d bytes, less than a sector, as no disk has" % size if size else "it is empty"


def _note_intact(cache, base):
    """Note when a final was verified; return None, or why that was not possible."""
    try:
        cache.change_manifest(base, lambda it: it.update(verified_at=caches.utc_now()))
    except (OSError, Failure) as error:
        return "intact, but that could not be written down: %s" % error
    return None


def note_proven(cache, base, fd, algo, value):
    """Remember the digest of a final that none was noted of, read through ``fd``: it can be adopted now."""
    if _PROVEN[0] is not None:
        os.close(_PROVEN[0])
    _PROVEN[:] = [os.dup(fd), (cache.path, base, algo, value)]


def _is_same(found, before):
    return os.path.samestat(found, before) and found.st_size == before.st_size


def check_unchanged(cache, base, before):
    """Raise ``Failure`` ``changed`` when the final is not the file any more that it was."""
    found = cache.find(base)
    if found is None or not _is_same(found, before):
        raise Failure("changed", "%s/%s was exchanged while it was read" % (cache.path, base))


def order_verify(session, order):
    """Compare a stored file with its manifest."""
    cache = entries.opened(session)
    with entries.Work(session, order) as work:
        return _verify(cache, order, work)


def _is_time(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def order_pin(session, order):
    """Pin a final until a time, for ever, or no more."""
    cache, base = entries.opened(session), order["base"]
    until = order["until"]
    if not (until is None or until == "forever" or _is_time(until)):
        raise Failure("protocol", "not a time to pin until")
    if cache.find(base) is None:
        return {"state": "absent"}

    def note(manifest):
        held = manifest.get("pin") if order.get("extend") else None
        if held is None or (_is_time(held) and (until == "forever" or until > held)):
            manifest["pin"] = until

    if cache.own_fd is None or cache.change_manifest(base, note) is None:
        return {"state": "unmanaged"}
    return {"state": "unpinned" if until is None else "pinned"}


def order_adopt(session, order):
    """Write the manifest of a final whose content was proven to be an image's, by ``verify`` just before."""
    cache, base, image = entries.opened(session), order["base"], order["image"]
    found, stored = cache.find(base), order["stored"]
    if found is None:
        return {"state": "absent"}
    proven = (cache.path, base, stored["algo"], stored["value"].lower())
    if _PROVEN[1] != proven or not _is_same(found, os.fstat(_PROVEN[0])):
        return {"state": "changed"}
    name = new_digest("sha1")
    name.update(image["id"].encode("utf-8"))
    if name.hexdigest() != base:
        raise Failure("protocol", "the base file's name does not belong to the image's id")
    cache.open_folders(create=True)
    manifest = _adopted(order, found.st_size, entries.header_format(base, cache.cache_fd))

    def replace(other):
        manifest["pin"] = other.get("pin")
        other.clear()
        other.update(manifest)

    if cache.change_manifest(base, replace) is None:
        cache.write_manifest(manifest)
    return {"state": "adopted"}


def _adopted(order, size, stored_format):
    """Return the manifest of a final whose content was proven."""
    image, stored, now = order["image"], order["stored"], caches.utc_now()
    digest = image["digest"]
    return {
        "version": 1,
        "image_id": image["id"],
        "image_name": image["name"],
        "base": order["base"],
        "digest": {
            "algo": digest["algo"],
            "value": digest["value"].lower(),
            "weak": digest["algo"] in ("md5", "sha1"),
        },
        "stored": {
            "algo": stored["algo"],
            "value": stored["value"].lower(),
            "size": size,
            "format": stored_format,
            "mtime_ns": None,
        },
        "disk_format": image["disk_format"],
        "source": "adopted",
        "tool": order["tool"],
        "run": order["run"],
        "cached_at": now,
        "touched_at": None,
        "verified_at": now,
        "pin": None,
    }
