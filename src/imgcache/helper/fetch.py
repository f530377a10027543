"""Brings one image into the cache: stage, verify, judge, convert, publish.

Nothing parses bytes that were not verified; at every instant the final is absent, or complete and durable.
Source: nova ``virt/images.py`` (``fetch_to_raw``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, SIM105 - a Failure's code is a literal; imports are dear on a warm host

import os
import random
import time

from . import cache as caches
from . import formats, journal, qemu
from .core import Failure, os_failure
from .sources import Bringing
from .staging import Staging, hash_sparse, new_digest
from .watch import watch as watch_of

_RESERVE_BYTES = 10 << 30


class Fetch:
    """One order ``fetch``, from its checks to its manifest."""

    def __init__(self, session, order):
        self.session = session
        self.order = order
        self.watch = session.watch
        self.cache = session.cache
        self.base = order["base"]
        self.image = order["image"]
        self.limits = order["limits"]
        self.size = self.image["size"]
        self.received = self.resumed = 0
        self.mtime_ns = None
        self.confirmed = False
        self.stagings = []

    def run(self):
        """Return what ``fetch`` answers."""
        keep = False
        try:
            self.check_order()
            self.cache.open_folders(create=True)
            found = self.existing() or self.claim()
            if found:
                return found
            original = self.stagings[0]
            self.cache.check_lock(self.base)
            self.check_space_before(self.size - original.taken_bytes)
            self.bring(original)
            virtual_size = self.judge(original)
            final, stored_format = original, self.image["disk_format"]
            if self.converts():
                final, stored_format = self.convert(original, virtual_size), "raw"
            elif self.image["disk_format"] in formats.RAW_FAMILY:
                stored_format = "raw"
            return self.finish(final, stored_format)
        except Failure as failure:
            keep = failure.code == "interrupted"
            raise
        finally:
            for staging in self.stagings:
                staging.close(keep)

    # ---- before a byte is fetched

    def check_order(self):
        """Refuse an order that cannot be right."""
        if name_of(self.image["id"]) != self.base:
            raise Failure("protocol", "the base file's name does not belong to the image's id")
        if self.size <= 0:
            raise Failure("nodata", "the image has no data")
        if self.image["disk_format"] not in formats.ALLOWED:
            raise Failure(
                "format",
                "the disk format %s cannot be cached" % ascii(self.image["disk_format"])[:40],
            )
        self.qemu = qemu.find()
        if self.qemu is None and self.image["disk_format"] not in formats.RAW_FAMILY:
            raise Failure(
                "qemu",
                "this host has no qemu-img, which %s images need" % self.image["disk_format"],
            )

    def converts(self):
        """Whether the original must become raw."""
        return (
            self.cache.values["force_raw_images"]
            and self.image["disk_format"] not in formats.RAW_FAMILY
        )

    def existing(self):
        """Return the answer for a final that is there already, renewed; else None."""
        touched = self.cache.touch(
            self.base, [], False, self.limits["lock_wait_s"], self.watch.check
        )
        return (
            self.answer_existing(touched["size"], touched["reason"])
            if touched["state"] == "existing"
            else None
        )

    def answer_existing(self, size, reason):
        """Return the answer ``existing``."""
        return {
            "state": "existing",
            "size": size,
            "stored_format": None,
            "bytes_fetched": self.received,
            "resumed": self.resumed,
            "confirmed": False,
            "reason": reason,
        }

    def claim(self):
        """Be the only one of ours that fetches this image here, or return the answer another's work gives."""
        deadline = time.monotonic() + self.limits["lock_wait_s"]
        while True:
            self.watch.tell("lock", 0, 1)
            staging = journal.take(self.cache, self.base, self.watch, self.image)
            if staging is None:
                staging = Staging(self.cache, self.base, self.watch)
            if not journal.sweep(staging, self.image):
                self.stagings.append(staging)
                return self.existing()  # another run may have published just now
            staging.close(keep=True)
            self.watch.check()
            if time.monotonic() > deadline:
                message = (
                    "another run of imgcache is fetching this image to this host: run again later"
                )
                raise Failure("busy", message)
            time.sleep(random.SystemRandom().uniform(0.2, 0.6))
            found = self.existing()
            if found:
                return found

    def check_space_before(self, missing):
        """Refuse what cannot fit; how much data a conversion unpacks is not known before it is here."""
        converted = (
            min(self.size, self.image["virtual_size"] or self.size) if self.converts() else 0
        )
        counted = "%d to fetch" % missing
        if converted:
            counted += " and at least %d to convert it" % converted
        self.check_space(missing + converted, counted)

    def check_space(self, need, counted):
        """Refuse what would not leave the reserve free; ``counted`` says what the number is made of."""
        room = os.fstatvfs(self.cache.own_fd)
        have = room.f_bavail * room.f_frsize
        reserve = self.reserve(room)
        if need + reserve > have:
            message = "%d bytes are needed in %s (%s), beside a reserve of %d; %d are free" % (
                need,
                self.cache.path,
                counted,
                reserve,
                have,
            )
            raise Failure("space", message, need=need, have=have, reserve=reserve)
        if room.f_files and room.f_favail < 4:
            raise Failure("inodes", "no inodes are left in " + self.cache.path)

    def reserve(self, room):
        """Return how many bytes must remain free; ``room`` is the file system's statvfs result."""
        reserve = self.limits["reserve"]
        return (
            max(room.f_blocks * room.f_frsize // 20, _RESERVE_BYTES) if reserve is None else reserve
        )

    # ---- the bytes

    def bring(self, staging):
        """Get the original bytes, all of them and the right ones."""
        arrival = journal.Arrival(self.session, self.order, staging)
        try:
            arrival.begin()
            Bringing(self.session, self.order, arrival.sink).run()
            arrival.complete()
        finally:
            self.received, self.resumed = arrival.close()

    # ---- judging and converting

    def judge(self, staging):
        """Inspect the verified bytes, by ourselves and with qemu-img; return the virtual size."""
        declared = self.image["disk_format"]
        self.watch.tell("inspect", 0, 1)
        staging.check_name()  # by which qemu-img will find it
        _, virtual_size = formats.inspect(staging.fd, self.size, declared)
        self.check_virtual_size(virtual_size)
        if self.qemu:
            answer = qemu.info(self.qemu, staging.path, self.watch)
            qemu.check(answer, "raw" if declared in formats.RAW_FAMILY else declared)
            virtual_size = answer["virtual-size"]
            self.check_virtual_size(virtual_size)
            self.confirmed = True
        return virtual_size

    def check_virtual_size(self, virtual_size):
        """Refuse a disk beyond the operator's limit, and one that is empty."""
        limit = self.limits["max_virtual_size"]
        if virtual_size > limit:
            message = "its virtual size of %d bytes is beyond the limit of %d" % (
                virtual_size,
                limit,
            )
            raise Failure("size", message, size=virtual_size)
        if virtual_size <= 0:
            raise Failure(
                "size", "the disk in it is empty: its virtual size is 0", size=virtual_size
            )

    def convert(self, original, virtual_size):
        """Return a new staging file with the raw form of ``original``, which is removed."""
        declared = self.image["disk_format"]
        self.check_space_to_convert(original, virtual_size)
        staging = Staging(self.cache, self.base, self.watch)
        self.stagings.append(staging)
        self.watch.tell("convert", 0, virtual_size)
        try:
            qemu.convert(
                self.qemu, original.path, declared, staging, virtual_size, guard=self.check_reserve
            )
        except Failure:
            self.check_space_left(virtual_size, staging)
            raise
        status = os.fstat(staging.fd)
        if status.st_size != virtual_size or not status.st_nlink:
            raise Failure(
                "qemu",
                "the conversion gave %d bytes instead of %d" % (status.st_size, virtual_size),
            )
        if not self.order.get("keep_original"):
            original.close()
        qemu.check(qemu.info(self.qemu, staging.path, self.watch), "raw")
        return staging

    def check_space_to_convert(self, original, virtual_size):
        """Refuse a conversion without room for its data; the rest of the virtual size becomes holes."""
        try:
            self.check_space(virtual_size, "its virtual size, to convert it")
        except Failure as failure:
            if failure.code != "space":
                raise
            declared = self.image["disk_format"]
            data = qemu.measure(self.qemu, original.path, declared, self.watch)
            if data is None or data >= virtual_size:
                raise
            counted = "its data, to convert it; its virtual size is %d" % virtual_size
            self.check_space(data, counted)

    def check_reserve(self):
        """Stop a conversion that eats up half of what must remain free, be it ours or others that write."""
        room = os.fstatvfs(self.cache.own_fd)
        have, reserve = room.f_bavail * room.f_frsize, self.reserve(room)
        if have < reserve // 2:
            message = "%s filled up while converting: %d bytes are free, of a reserve of %d"
            raise Failure(
                "space", message % (self.cache.path, have, reserve), have=have, reserve=reserve
            )

    def check_space_left(self, virtual_size, staging):
        """Say ``space`` when that is why a conversion failed."""
        room = os.fstatvfs(self.cache.own_fd)
        have = room.f_bavail * room.f_frsize
        need = virtual_size - os.fstat(staging.fd).st_blocks * 512
        if have < min(need, 1 << 20):
            raise Failure(
                "space",
                "the disk of %s filled up while converting" % self.cache.path,
                need=need,
                have=have,
            )

    # ---- publishing

    def finish(self, staging, stored_format):
        """Make the staging file the final, and write its manifest."""
        self.watch.tell("publish", 0, 1)
        size = os.fstat(staging.fd).st_size
        self.mtime_ns = self.dress(staging)
        if not self.publish(staging, size):
            found = self.cache.find(self.base)
            return self.answer_existing(
                found.st_size if found else 0, "it appeared while ours was being fetched"
            )
        reason = self.describe(staging, stored_format, size) or self.keep_original(staging)
        return {
            "state": "cached",
            "size": size,
            "stored_format": stored_format,
            "bytes_fetched": self.received,
            "resumed": self.resumed,
            "confirmed": self.confirmed,
            "reason": reason,
        }

    def dress(self, staging):
        """Give the file the owner, mode and age that Nova would have given it, durably; return its mtime."""
        owner = os.fstat(self.cache.cache_fd)
        mine = os.fstat(staging.fd)
        try:
            if (mine.st_uid, mine.st_gid) != (owner.st_uid, owner.st_gid):
                try:
                    os.fchown(staging.fd, owner.st_uid, owner.st_gid)
                except PermissionError:
                    pass  # we are neither root nor Nova's user: readable for all it is anyway
            os.fchmod(staging.fd, 0o644)
            os.utime(staging.fd)
            os.fsync(staging.fd)
            mtime_ns = os.fstat(staging.fd).st_mtime_ns
        except OSError as error:
            raise os_failure(error, "cannot make the image durable", self.cache.own_fd) from error
        return mtime_ns

    def publish(self, staging, size):
        """Give the file its final name; False when that exists. Under Nova's lock, and never overwriting."""
        self.watch.tell("lock", 0, 1)
        lock_fd = self.cache.lock(self.base, self.limits["lock_wait_s"], check=self.watch.check)
        try:
            if self.cache.find(self.base) is not None:
                return False
            now = os.fstat(staging.fd)
            if (now.st_size, now.st_mtime_ns) != (size, self.mtime_ns):
                message = "somebody else wrote to %s, so it was not published: run again"
                raise Failure("changed", message % staging.path)
            if not staging.publish():
                return False
            staging.drop()
            os.fsync(self.cache.cache_fd)
        finally:
            if lock_fd is not None:
                os.close(lock_fd)
        return True

    def describe(self, staging, stored_format, size):
        """Write the manifest; return None, or why there is none: the image is cached anyway."""
        manifest = self.manifest(stored_format, size)
        stored = manifest["stored"]

        def renew(old):
            manifest["pin"] = old.get("pin")  # Nova may have purged the final that was pinned
            old.clear()
            old.update(manifest)

        def complete(known):
            if known["run"] == manifest["run"]:
                known["stored"]["value"] = stored["value"]

        try:
            if self.cache.change_manifest(self.base, renew) is None:
                self.cache.write_manifest(manifest)
            if stored["value"] is None:
                stored["value"] = self.hash_stored(staging.fd, size, stored["algo"])
                self.cache.change_manifest(self.base, complete)
            os.fsync(self.cache.own_fd)
        except (Failure, OSError) as error:
            return "cached, but its manifest is incomplete: %s" % error
        return None

    def keep_original(self, final):
        """Keep the original of a converted image, if that was asked for; return None, or why it is lost."""
        original = self.stagings[0]
        if original is final or not self.order.get("keep_original"):
            return None
        try:
            self.dress(original)
            original.rename(self.base + ".original")
        except (Failure, OSError) as error:
            return "cached, but its original was not kept: %s" % error
        return None

    def manifest(self, stored_format, size):
        """Return the manifest; of a converted file it holds no digest yet, which takes its time."""
        times = dict.fromkeys(("cached_at", "touched_at", "verified_at"), caches.utc_now())
        algo, value = self.image["digest"]["algo"], self.image["digest"]["value"].lower()
        digest = {"algo": algo, "value": value, "weak": algo in ("md5", "sha1")}
        stored = {"algo": algo, "value": value, "size": size, "format": stored_format}
        if self.converts():
            stored.update(algo="sha512" if digest["weak"] else algo, value=None)
        about = {
            "version": 1,
            "image_id": self.image["id"],
            "image_name": self.image["name"],
            "base": self.base,
            "digest": digest,
            "stored": dict(stored, mtime_ns=self.mtime_ns),
            "disk_format": self.image["disk_format"],
            "source": self.order["source"]["kind"],
            "tool": self.order["tool"],
            "run": self.order["run"],
            "pin": None,
        }
        return dict(about, **times)

    def hash_stored(self, fd, size, algo):
        """Return the digest of the published file, read through the descriptor it was written with."""
        digest = new_digest(algo)
        for done in hash_sparse(fd, size, digest):
            self.watch.check()
            self.watch.tell("hash", done, size)
        return digest.hexdigest()


def name_of(image_id):
    """Return the name of an image's base file, as nova's ``virt/libvirt/imagecache.py`` does."""
    digest = new_digest("sha1")
    digest.update(image_id.encode("utf-8"))
    return digest.hexdigest()


def order_fetch(session, order):
    """Bring one image into the cache."""
    caches.opened(session)
    watch = watch_of(session)
    watch.begin(order["id"], order["limits"]["alive_s"])
    try:
        return Fetch(session, order).run()
    finally:
        watch.end()
