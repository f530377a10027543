"""Compares stored files with their manifests, adopts files that are an image's, pins; on Hyper-V hosts."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a host

import os
import time

from . import hyperv, winstore
from . import hyperv_life as life
from .core import Failure, os_failure
from .hyperv_fetch import new_digest

#: A rate below this would look like a host that hangs.
_LEAST_RATE = 64 << 10
_BLOCK_BYTES = 1 << 20
#: The last unmanaged file that this helper has hashed: path, file number, size, mtime, algorithm, digest.
_PROVEN = [None]


def _answer(state, reason=None, algo=None, value=None, size=None):
    return {"state": state, "reason": reason, "algo": algo, "value": value, "size": size}


def _open_settled(store, image_id, dry):
    """Return (``Final``, descriptor) of a final that nobody is writing any more, or None."""
    if store.final(image_id) is None:
        return None
    lock_fd = store.lock(image_id, winstore.LOCK_WAIT_S, create=not dry)
    try:
        final = store.final(image_id)
        if final is None:
            return None
        return final, winstore.patient(winstore.open_shared, final.path)
    except FileNotFoundError:
        return None
    except OSError as error:
        if winstore.in_use(error):
            raise Failure("busy", final.path + " is open elsewhere, and cannot be read") from error
        raise os_failure(error, "cannot read " + final.path) from error
    finally:
        if lock_fd is not None:
            os.close(lock_fd)


def _hash(fd, size, algo, rate, work):
    """Return a file's digest, read no faster than ``rate``."""
    digest, done = new_digest(algo), 0
    rate = rate and max(rate, _LEAST_RATE)
    due = time.monotonic()
    os.lseek(fd, 0, os.SEEK_SET)
    work.tell("hash", 0, size)
    while done < size:
        block = os.read(fd, min(_BLOCK_BYTES, size - done))
        if not block:
            raise Failure("changed", "the file became shorter")
        digest.update(block)
        done += len(block)
        work.check()
        work.tell("hash", done, size)
        if rate:
            due = max(due, time.monotonic() - 1) + len(block) / rate
            while due > time.monotonic():
                work.check()
                time.sleep(min(0.5, max(0, due - time.monotonic())))
    return digest.hexdigest()


def _signature(status):
    return (winstore.inode_of(status), status.st_size, status.st_mtime_ns)


def _verify(store, order, work):
    image_id = winstore.check_id(order["base"])
    dry = order.get("dry", False)
    opened = _open_settled(store, image_id, dry)
    if opened is None:
        return _answer("absent")
    final, fd = opened
    try:
        size = os.fstat(fd).st_size
        manifest = store.read_manifest(image_id)
        stored = manifest["stored"] if manifest else {}
        managed = bool(stored.get("value") and stored.get("algo"))
        if stored and stored["size"] != size:
            reason = "it has %d bytes instead of %d" % (size, stored["size"])
            return _answer("damaged", reason, size=size)
        algo = stored["algo"] if managed else order.get("algo")
        if not algo:
            return _answer("unmanaged", "nothing is written down about it", size=size)
        value = _hash(fd, size, algo, order["rate"], work)
    finally:
        os.close(fd)
    again = store.final(image_id)
    if again is None or _signature(again.status)[:2] != _signature(final.status)[:2]:
        raise Failure("changed", final.path + " was exchanged while it was read")
    if not managed:
        _PROVEN[0] = (final.path, _signature(again.status), algo, value)
        return _answer("unmanaged", "nothing is written down about it", algo, value, size)
    if value != stored["value"]:
        return _answer("damaged", "its %s is not the one written down" % algo, algo, value, size)
    reason = None if dry else _note_intact(store, image_id)
    return _answer("intact", reason, algo, value, size)


def _note_intact(store, image_id):
    try:
        store.change_manifest(image_id, lambda it: it.update(verified_at=winstore.utc_now()))
    except (OSError, Failure) as error:
        return "intact, but that could not be written down: %s" % error
    return None


def order_hyperv_verify(session, order):
    """Compare a stored file with its manifest."""
    store = hyperv.opened(session)
    with life.Work(session, order) as work:
        return _verify(store, order, work)


def _is_time(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def order_hyperv_pin(session, order):
    """Pin a final until a time, for ever, or no more."""
    store, image_id, until = hyperv.opened(session), order["base"], order["until"]
    if not (until is None or until == "forever" or _is_time(until)):
        raise Failure("protocol", "not a time to pin until")
    if store.final(image_id) is None:
        return {"state": "absent"}

    def note(manifest):
        held = manifest.get("pin") if order.get("extend") else None
        if held is None or (_is_time(held) and (until == "forever" or until > held)):
            manifest["pin"] = until

    if store.change_manifest(image_id, note) is None:
        return {"state": "unmanaged"}
    return {"state": "unpinned" if until is None else "pinned"}


def order_hyperv_adopt(session, order):
    """Write the manifest of a final whose bytes are an image's, as ``hyperv_verify`` found just before."""
    store, image, stored = hyperv.opened(session), order["image"], order["stored"]
    image_id = winstore.check_id(order["base"])
    final = store.final(image_id)
    if final is None:
        return {"state": "absent"}
    algo, value = stored["algo"], stored["value"].lower()
    if _PROVEN[0] != (final.path, _signature(final.status), algo, value):
        return {"state": "changed"}
    if image["id"] != image_id:
        raise Failure("protocol", "the entry's name is not the image's id")
    store.make()
    digest, now = image["digest"], winstore.utc_now()
    weak = digest["algo"] in ("md5", "sha1")
    manifest = {
        "version": 1,
        "image_id": image_id,
        "image_name": image["name"],
        "base": image_id,
        "digest": {"algo": digest["algo"], "value": digest["value"].lower(), "weak": weak},
        "stored": {"algo": algo, "value": value, "size": final.status.st_size},
        "disk_format": image["disk_format"],
        "source": "adopted",
        "tool": order["tool"],
        "run": order["run"],
        "cached_at": now,
        "touched_at": None,
        "verified_at": now,
        "pin": None,
    }
    manifest["stored"].update(format=final.format, mtime_ns=None)

    def replace(old):
        manifest["pin"] = old.get("pin")
        old.clear()
        old.update(manifest)

    if store.change_manifest(image_id, replace) is None:
        store.write_manifest(manifest)
    return {"state": "adopted"}
