"""Removes from the cache what nobody needs; every guard holds again under Nova's lock, right before.

At every instant a file is there or gone. Doubt keeps.
Source: nova ``virt/libvirt/imagecache.py`` (``_remove_old_enough_file``), ``virt/libvirt/imagebackend.py``
(``Qcow2.create_image``: which locks a boot takes).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, SIM105 - a Failure's code is a literal; imports are dear on a host

import os
import stat
import time

from . import entries, leases, mounts, processes, removable, usage
from .core import Failure, os_failure
from .headers import FLAGS

#: Whatever the policy: a boot from a file touches it, so one that was touched of late may be booting.
_FLOOR_S = 3600
_LOCK_WAIT_S = 10
#: A file that something has open is tried again after these times: it may be a look at its first bytes.
_HELD_WAITS_S = (0, 0.01, 0.05, 0.2)
_HELD = (
    "something has it open that no process or device shows: a descriptor on its way between processes, or"
    " a part of the kernel such as its NFS server"
)
_NO_LOCKS = (
    "the file system under instances_path knows no POSIX locks: Nova cannot be kept from using it"
)


class Kept(Exception):
    """A file stays: a code and the reason."""

    def __init__(self, code, reason):
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Locks:
    """Nova's locks, taken together and let go together: each is opened once.

    A second descriptor of a lock file would, when closed, let go of the lock.
    """

    def __init__(self, cache, work, dry=False):
        self.cache = cache
        self.work = work
        self.dry = dry
        self.held = {}

    def take(self, name, wait_s):
        """Take what keeps a boot from using an entry: its own lock and, of a copy, its original's.

        Raises:
            Kept: ``busy``, or ``lock``.
        """
        for lock in [name[:40], name] if name[40:41] == "_" else [name]:
            if lock in self.held:
                continue
            try:
                fd = self.cache.lock(lock, wait_s, not self.dry, self.work.check)
            except Failure as failure:
                if failure.code == "interrupted":
                    raise
                raise Kept(
                    "busy" if failure.code == "busy" else "lock", failure.message
                ) from failure
            if fd is not None:
                self.held[lock] = fd
            elif not self.dry:  # where there is no lock file, nobody holds the lock
                raise Kept("lock", _NO_LOCKS)

    def release(self):
        """Let go of all."""
        for fd in self.held.values():
            os.close(fd)
        self.held = {}


def check_evidence(scan):
    """Keep everything where not all evidence of use could be read."""
    if scan.problems:
        raise Kept("evidence", "who uses it cannot be told: " + "; ".join(scan.problems[:3]))


def _used_by(users):
    """Return who uses a file, as text; empty when nothing does."""
    if not users:
        return ""
    more = " and %d more" % (len(users) - 3) if len(users) > 3 else ""
    return "used by %s%s" % (", ".join(entries.printable(user) for user in sorted(users)[:3]), more)


class Removal:
    """What ``remove`` and ``clean`` share: a batch of items, each with a guard."""

    def __init__(self, session, order, work):
        self.cache = entries.opened(session)
        self.order = order
        self.work = work
        self.rows = entries.Rows(session, order)
        self.live = frozenset()
        self.holding = []

    def row(self, name, status, state, code=None, reason=None):
        """Send the outcome of one item."""
        self.rows.add(
            {
                "name": entries.printable(name),
                "state": state,
                "code": code,
                "reason": reason and reason[:500],
                "bytes": status.st_blocks * 512 if status else 0,
            }
        )

    def keep(self, item, kept):
        """Send that an item stays."""
        status = None
        if entries.kind_of(item["name"]) != "foreign" and self.cache.cache_fd is not None:
            status = entries.status_of(item["name"], self.cache.cache_fd)
        self.row(item["name"], status, "kept", kept.code, kept.reason)

    def run(self, items):
        """Remove what may be removed of ``items``; those that somebody is at work on are tried again."""
        items = [item for item in items if self.passes(item)]
        if items and not usage.usage_of(self.cache).warm:
            # The first look is the slow one: it must not be the one that makes Nova wait.
            self.look_for_users(items)
        waiting = self.batch(items, 0)
        deadline = time.monotonic() + _LOCK_WAIT_S
        for item, _ in waiting:
            for _, kept in self.batch([item], max(0, deadline - time.monotonic())):
                self.keep(item, kept)
        self.rows.flush()
        return {}

    def passes(self, item):
        """Whether an item is worth a lock; else its row is sent."""
        try:
            return self.look(item) is not None
        except Kept as kept:
            self.keep(item, kept)
            return False

    def batch(self, items, wait_s):
        """Lock, look for users once, remove; return the (item, Kept) that were busy."""
        dry = self.order.get("dry", False)
        locks, locked, busy = Locks(self.cache, self.work, dry), [], []
        deadline = time.monotonic() + wait_s
        try:
            for item in items:
                try:
                    locks.take(self.lock_of(item), max(0, deadline - time.monotonic()))
                    locked.append(item)
                except Kept as kept:
                    if kept.code == "busy":
                        busy.append((item, kept))
                    else:
                        self.keep(item, kept)
            if locked:
                self.remove_all(locked)
        finally:
            locks.release()
            for fd in self.holding:
                os.close(fd)
            self.holding = []
        return busy

    def lock_of(self, item):
        """Return the name of the entry whose lock an item needs."""
        return item["name"]

    def remove_all(self, items):
        """Decide again about items whose locks are held, and remove."""
        scan = self.look_for_users(items)
        self.work.check()
        removed = []
        for wait_s in _HELD_WAITS_S:
            time.sleep(wait_s)
            items = [item for item in items if not self.settle(item, scan, removed)]
            if not items:
                break
        self.keep_held(items)
        reason = self.sync() if removed else None
        for item, status in removed:
            self.forget(item["name"])
            self.row(item["name"], status, "removed", None, reason)

    def settle(self, item, scan, removed):
        """Remove or keep an item; return False when something has it open, maybe for a moment only."""
        try:
            status = self.look(item)
            if status is not None:
                self.check_use(item, scan)
                if not self.unlink(item["name"], status):
                    return False
                removed.append((item, status))
        except FileNotFoundError:
            self.row(item["name"], None, "gone")
        except Kept as kept:
            self.keep(item, kept)
        return True

    def keep_held(self, items):
        """Keep what something has open, and say what, where that shows by now."""
        if not items:
            return
        scanner = usage.usage_of(self.cache)
        scan = usage.Scan(scanner, self.inodes_of(items), None)
        with usage.AsRoot():
            processes.look(scan, scanner.roots.proc, scanner.roots.sys)
        for item in items:
            self.keep(item, Kept("in-use", _used_by(scan.users.get(item["name"])) or _HELD))

    def sync(self):
        """Make removals durable; return None, or why that failed: a power cut may bring the files back."""
        try:
            os.fsync(self.cache.cache_fd)
        except OSError as error:
            return os_failure(error, "removed, but not durably").message
        return None

    def look_for_users(self, items):
        """Gather the evidence once more, now that nobody can begin to use them."""
        return usage.usage_of(self.cache).scan(self.inodes_of(items), self.work.tell)

    def inodes_of(self, items):
        """Return name -> inode of what is there of items."""
        targets = {}
        for item in items:
            status = entries.status_of(item["name"], self.cache.cache_fd)
            if status is not None:
                targets[item["name"]] = status.st_ino
        return targets

    def check_use(self, item, scan):
        """Keep what is used, or may be."""
        check_evidence(scan)
        users = _used_by(scan.users.get(item["name"]))
        if users:
            raise Kept("in-use", users)

    def unlink(self, name, status):
        """Remove the very file that was judged; return False, with nothing done, when something has it open.

        A big one's blocks are freed after the locks are let go.
        """
        fd = None
        try:
            fd = self.open(name)
            now = os.fstat(fd)
            if not os.path.samestat(now, status) or now.st_mtime_ns != status.st_mtime_ns:
                raise Kept("changed", "it was used, renewed or replaced just now")
            return self.unlink_open(fd, name)
        except BlockingIOError:
            return False  # another has a lease on it: that is a way to have it open
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self.cannot(name, status, error) from error
        finally:
            if fd is not None:
                os.close(fd)

    def unlink_open(self, fd, name):
        """Remove an open file, unless something else has it open, too."""
        lease = self.lease(fd)
        if lease is False:
            return False
        try:
            usage.either(os.unlink, name, dir_fd=self.cache.cache_fd)
            self.holding.append(os.dup(fd))
        finally:
            if lease:
                self.give_back(fd)
        return True

    def open(self, name):
        """Open a file; on NFS only that shows what another host did with it just now.

        What is not ours to read is opened for no more than to be told.
        """
        cache_fd = self.cache.cache_fd
        try:
            return usage.either(os.open, name, FLAGS | os.O_NOFOLLOW, dir_fd=cache_fd)
        except (BlockingIOError, FileNotFoundError):
            raise
        except OSError:
            return os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=cache_fd)

    def lease(self, fd):
        """Ask for a lease; True: nothing else has the file open, False: something has, None: no answer."""
        kind = usage.usage_of(self.cache).mounts.kind_at(self.cache.path)
        if mounts.may_be_shared(kind):
            return None
        try:
            return usage.either(leases.take, fd)
        except PermissionError:
            return None

    def give_back(self, fd):
        """End a lease; the kernel does that itself when somebody has waited for its end for too long."""
        try:
            usage.either(leases.give_back, fd)
        except OSError:
            pass

    def cannot(self, name, status, error):
        """Return the ``Kept`` of a file that could not be removed."""
        cache = self.cache
        failure = os_failure(error, "cannot remove %s/%s" % (cache.path, name), cache.cache_fd)
        why = removable.Folder(cache.cache_fd).hindrance(name, status)
        return Kept(failure.code, "%s: %s" % (failure.message, why) if why else failure.message)

    def forget(self, name):
        """Remove the manifest of a file that is gone, and the original that it was converted from."""
        if self.cache.own_fd is not None:
            for ending in (".json", ".original"):
                try:
                    os.unlink(name + ending, dir_fd=self.cache.own_fd)
                except OSError:
                    pass  # without its file it means nothing; ``clean`` will look again


class Remove(Removal):
    """One order ``remove``."""

    def look(self, item):
        """Return what a candidate is; None when it is gone, and its row sent.

        Raises:
            Kept: a guard holds it.
        """
        name, cache = item["name"], self.cache
        if entries.kind_of(name) not in entries.FINALS:
            raise Kept("foreign", "its name is not one of a base file")
        status = None
        if cache.cache_fd is not None:
            status = entries.status_of(name, cache.cache_fd)
        if status is None:
            self.row(name, None, "gone")
            return None
        if not stat.S_ISREG(status.st_mode):
            raise Kept("foreign", "it is no regular file")
        if status.st_nlink != 1:
            raise Kept("foreign", "it has %d names: others need its content" % status.st_nlink)
        if (status.st_ino, status.st_mtime_ns) != (item["inode"], item["mtime_ns"]):
            raise Kept("changed", "it was used, renewed or replaced since it was listed")
        manifest = None
        if cache.own_fd is not None:
            manifest = cache.read_manifest(name)
        self.check_age(item, status, manifest)
        if entries.is_pinned(manifest) and not item["pinned_ok"]:
            raise Kept("pinned", "it is pinned")
        return status

    def check_age(self, item, status, manifest):
        """Keep what is young by this host's clock, and what comes from the future."""
        age = time.time() - status.st_mtime
        least = max(item["min_age_s"], 0)
        ours = manifest is not None and manifest["stored"].get("mtime_ns") == status.st_mtime_ns
        if not (item["ours_ok"] and ours):
            least = max(least, _FLOOR_S)  # whoever touched it may be booting from it
        if age < 0:
            raise Kept("young", "its time lies %.0f s in the future, by this host's clock" % -age)
        if age < least:
            raise Kept("young", "last used or renewed %.0f s ago; must be %.0f s" % (age, least))

    def check_use(self, item, scan):
        """Keep also what one of our own runs is at work on."""
        super().check_use(item, scan)
        if any(name.startswith(item["name"] + ".") for name in self.live):
            raise Kept("busy", "another run of imgcache is fetching this image to this host")

    def look_for_users(self, items):
        """Look for our own live staging files as well."""
        self.live = frozenset(
            name
            for name in entries.staging_names(self.cache)
            if entries.is_live(name, self.cache) is not False
        )
        return super().look_for_users(items)


def order_remove(session, order):
    """Remove finals."""
    if len(order["items"]) > 100:
        raise Failure("protocol", "more than 100 items")
    with entries.Work(session, order) as work:
        return Remove(session, order, work).run(order["items"])
