"""Brings one image into a Hyper-V host's cache.

Order: length, digest, marks and parents, flush, Nova's lock, rename without overwriting, manifest.
Source: compute-hyperv ``nova/imagecache.py``, ``cache_image``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, SIM105 - a Failure's code is a literal; imports are dear on a host

import hashlib
import os
import random
import time

from . import hyperv, vhd, winstore
from .core import Failure, os_failure
from .download import Download, Retry
from .watch import watch as watch_of

_BUFFER_BYTES = 1 << 20
#: Glance's name of a disk format -> what its bytes may be; ``vhd`` may well hold a VHDX, and Nova takes both.
FORMATS = {"vhd": ("vhd", "vhdx"), "vhdx": ("vhd", "vhdx"), "raw": ("vhd", "vhdx"), "iso": ("iso",)}


class Sink:
    """A file on its way and the digest of what went into it; see ``download.Download``."""

    def __init__(self, fd, size, algo):
        self.fd = fd
        self.size = size
        self.algo = algo
        self.count = self.received = 0
        self.origin = None
        self.origins = set()
        self.no_ranges, self.range_failures = False, 0
        self._buffer = bytearray(_BUFFER_BYTES)
        self._digest = new_digest(algo)

    def buffer(self):
        """Lend the buffer."""
        return self._buffer

    def write(self, view, owner=None):
        """Append bytes; at most ``size`` of them ever reach the disk."""
        length = len(view)
        if length:
            self.origins.add(self.origin)
        self.received += length
        if self.count + length > self.size:
            message = "more bytes came than the image has (%d)" % self.size
            raise Failure("size", message, size=self.size)
        self._digest.update(view)
        try:
            rest = memoryview(view)
            while rest:
                rest = rest[os.write(self.fd, rest) :]
        except OSError as error:
            raise os_failure(error, "cannot write the image") from error
        self.count += length

    def restart(self):
        """Forget all bytes."""
        os.lseek(self.fd, 0, os.SEEK_SET)
        os.ftruncate(self.fd, 0)
        self.count = 0
        self.origins = set()
        self._digest = new_digest(self.algo)

    def hexdigest(self):
        """Return the digest of all bytes written."""
        return self._digest.hexdigest()


def new_digest(algo):
    """Return a hash object."""
    try:
        return hashlib.new(algo)
    except ValueError:
        raise Failure("digest", "this host's Python cannot compute %s" % str(algo)[:40]) from None


class Fetch:
    """One order ``hyperv_fetch``, from its checks to its manifest."""

    def __init__(self, session, order):
        self.session = session
        self.order = order
        self.watch = session.watch
        self.store = hyperv.opened(session)
        self.image = order["image"]
        self.id = winstore.check_id(self.image["id"])
        self.size = self.image["size"]
        self.limits = order["limits"]
        self.received = 0
        self.path = self.fd = self.entry = None

    def run(self):
        """Return what ``fetch`` answers."""
        try:
            self.check_order()
            self.store.make()
            found = self.existing() or self.claim()
            if found:
                return found
            self.check_space()
            self.bring()
            extension = self.judge()
            return self.finish(extension)
        finally:
            self.drop()

    # ---- our file

    def create(self):
        """Make our transfer file, known to the watch: whoever ends this process removes it."""
        self.path, self.fd = self.store.new_part(self.id)
        self.entry = (None, self.path)
        self.watch.staging.append(self.entry)

    def drop(self):
        """Remove our file, unless it was published."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
        if self.entry in self.watch.staging:
            try:
                winstore.patient(os.remove, self.path)
            except OSError:
                pass  # the next run finds it, and nobody at work on it
            self.watch.staging.remove(self.entry)

    def claim(self):
        """Be the only one of ours that fetches this image here, or return the answer another's work gives."""
        deadline = time.monotonic() + self.limits["lock_wait_s"]
        while True:
            self.watch.tell("lock", 0, 1)
            self.create()
            if not self.store.live_parts(self.id, (self.path,)):
                return self.existing()  # another run may have published just now
            self.drop()
            self.watch.check()
            if time.monotonic() > deadline:
                raise Failure("busy", "another run of imgcache is fetching this image to this host")
            time.sleep(random.SystemRandom().uniform(0.2, 0.6))
            found = self.existing()
            if found:
                return found

    # ---- before a byte is fetched

    def check_order(self):
        """Refuse an order that cannot be right."""
        declared = self.image["disk_format"]
        if self.size <= 0:
            raise Failure("nodata", "the image has no data")
        if declared not in FORMATS:
            message = "Hyper-V can use images of the formats vhd, vhdx and iso only, not %s"
            raise Failure("format", message % ascii(declared)[:40])

    def existing(self):
        """Return the answer for a final that is there already, renewed; else None."""
        wait = (self.limits["lock_wait_s"], self.watch.check)
        touched = hyperv.touch(self.store, self.id, None, False, wait)
        if touched["state"] == "absent":
            return None
        return self.answer("existing", touched["size"], touched["format"], touched["reason"])

    def answer(self, state, size, stored_format, reason):
        """Return an answer."""
        return {
            "state": state,
            "size": size,
            "stored_format": stored_format,
            "bytes_fetched": self.received,
            "confirmed": state == "cached",
            "reason": reason,
        }

    def check_space(self):
        """Refuse what would not leave the reserve free."""
        have, capacity = hyperv.room(self.store)
        reserve = hyperv.reserve_of(self.limits["reserve"], capacity)
        if self.size + reserve > have:
            message = "%d bytes are needed in %s, beside a reserve of %d; %d are free"
            message %= (self.size, self.store.path, reserve, have)
            raise Failure("space", message, need=self.size, have=have, reserve=reserve)

    # ---- the bytes

    def bring(self):
        """Get the original bytes, all of them and the right ones."""
        sink = Sink(self.fd, self.size, self.image["digest"]["algo"])
        wanted, mismatches = self.image["digest"]["value"].lower(), 0
        try:
            while True:
                try:
                    self.attempt(sink)
                    if sink.hexdigest() == wanted:
                        self.order["source"]["token"] = None
                        return
                    mismatches += 1
                    pushed = sink.origins == {"push"}
                    sink.restart()
                    message = "the bytes do not have the image's " + sink.algo
                    if pushed or mismatches > 1:
                        raise Failure("digest", message)
                    raise Retry("digest", message)
                except Retry as retry:
                    self.ask(retry, sink)
        finally:
            self.received = sink.received

    def attempt(self, sink):
        """Get what is missing from the present source."""
        source = self.order["source"]
        sink.origin = source["kind"]
        if source["kind"] == "push":
            self.take_push(sink)
        elif source["kind"] == "service":
            Download(source, self.limits, sink, self.watch).attempt()
        else:
            raise Failure("protocol", "Hyper-V hosts read from no source of this kind")

    def take_push(self, sink):
        """Take the bytes that the controller sends."""
        self.session.answer(self.order, "ready", offset=sink.count)
        while True:
            self.watch.tell("download", sink.count, sink.size)
            frame = self.watch.next_answer()
            if frame["op"] == "data":
                if not frame["size"]:
                    break
                sink.write(memoryview(frame["raw"]))
        if sink.count != sink.size:
            raise Failure("source", "%d bytes came, the image has %d" % (sink.count, sink.size))

    def ask(self, retry, sink):
        """Tell that the source has failed; wait for the controller to say whether and where to go on."""
        again = self.watch.ask(self.order, retry, sink)
        if again.get("source") is not None:
            self.order["source"] = again["source"]
        if again.get("token") is not None:
            self.order["source"]["token"] = again["token"]

    def judge(self):
        """Return the final's extension by what the verified bytes are, as Nova chooses it."""
        declared = self.image["disk_format"]
        self.watch.tell("inspect", 0, 1)
        if declared == "iso":
            if not vhd.is_iso(self.fd):
                raise Failure("format", "it is declared as iso, and has no file system of a disc")
            return "iso"
        disk = vhd.read(self.fd, self.size)
        if disk is None:
            message = "it is declared as %s, and is neither VHDX nor VHD: Hyper-V cannot use it"
            raise Failure("format", message % declared)
        if disk.differencing:
            raise Failure("format", "it is a differencing disk, which depends on another file")
        if disk.dirty:
            raise Failure("format", "its VHDX log was not replayed: it was not closed properly")
        limit = self.limits["max_virtual_size"]
        if not 0 < disk.virtual_size <= limit:
            message = "its virtual size of %d bytes is not within the limit of %d"
            message %= (disk.virtual_size, limit)
            raise Failure("size", message, size=disk.virtual_size)
        return disk.kind

    # ---- publishing

    def finish(self, extension):
        """Make our file the final, and write its manifest."""
        self.watch.tell("publish", 0, 1)
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise os_failure(error, "cannot make the image durable") from error
        mtime_ns = self.publish(extension)
        if mtime_ns is None:
            found = self.store.final(self.id)
            size, stored = (found.status.st_size, found.format) if found else (0, None)
            reason = "it appeared while ours was being fetched"
            return self.answer("existing", size, stored, reason)
        return self.answer("cached", self.size, extension, self.describe(extension, mtime_ns))

    def publish(self, extension):
        """Give the file its final name, never overwriting; return its mtime, None when one exists.

        It is renamed while it is open, so that no other run takes it for a dead one's, and closed before
        Nova may look for it: Hyper-V opens a parent only when nobody may write to it.
        """
        self.watch.tell("lock", 0, 1)
        target = os.path.join(self.store.path, "%s.%s" % (self.id, extension))
        lock_fd = self.store.lock(self.id, self.limits["lock_wait_s"], self.watch.check)
        try:
            if self.store.final(self.id) is not None:
                return None
            os.utime(self.path)
            try:
                winstore.patient(os.rename, self.path, target)
            except FileExistsError:
                return None
            self.watch.staging.remove(self.entry)
            os.close(self.fd)
            self.fd = None
            return os.lstat(target).st_mtime_ns
        except OSError as error:
            raise os_failure(error, "cannot publish the image") from error
        finally:
            os.close(lock_fd)

    def describe(self, extension, mtime_ns):
        """Write the manifest; return None, or why there is none: the image is cached anyway."""
        digest = self.image["digest"]
        algo, value = digest["algo"], digest["value"].lower()
        now = winstore.utc_now()
        stored = {"algo": algo, "value": value, "size": self.size}
        manifest = {
            "version": 1,
            "image_id": self.id,
            "image_name": self.image["name"],
            "base": self.id,
            "digest": {"algo": algo, "value": value, "weak": algo in ("md5", "sha1")},
            "stored": dict(stored, format=extension, mtime_ns=mtime_ns),
            "disk_format": self.image["disk_format"],
            "source": self.order["source"]["kind"],
            "tool": self.order["tool"],
            "run": self.order["run"],
            "cached_at": now,
            "touched_at": now,
            "verified_at": now,
            "pin": None,
        }

        def replace(old):
            manifest["pin"] = old.get("pin")  # Nova may have removed the final that was pinned
            old.clear()
            old.update(manifest)

        try:
            if self.store.change_manifest(self.id, replace) is None:
                self.store.write_manifest(manifest)
        except (Failure, OSError) as error:
            return "cached, but its manifest is missing: %s" % error
        return None


def order_hyperv_fetch(session, order):
    """Bring one image into the cache."""
    hyperv.opened(session)
    watch = watch_of(session)
    watch.begin(order["id"], order["limits"]["alive_s"])
    try:
        return Fetch(session, order).run()
    finally:
        watch.end()
