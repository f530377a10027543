"""Removes from a Hyper-V host's cache what nobody needs, and what broken transfers left behind.

Every guard holds again under both of Nova's locks, right before. Doubt keeps.
Source: compute-hyperv ``nova/imagecache.py`` (``_remove_old_image``: which lock it takes).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a host

import os
import time

from . import hyperv, hyperv_use, winstore
from . import hyperv_life as life
from .core import Failure, os_failure

#: A boot from a file touches it, so one that was touched of late may be booting.
_FLOOR_S = 3600


class Kept(Exception):
    """A file stays: a code and the reason."""

    def __init__(self, code, reason):
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Remove:
    """One order ``hyperv_remove``."""

    def __init__(self, session, order, work):
        self.store = hyperv.opened(session)
        self.order = order
        self.work = work
        self.rows = life.Rows(session, order)
        self.held = set()

    def run(self):
        """Remove what may be removed: both of Nova's locks, then one look for users, then each item."""
        locks, locked = [], []
        deadline = time.monotonic() + self.order.get("lock_wait_s", winstore.LOCK_WAIT_S)
        try:
            for item in self.order["items"]:
                self.work.check()
                if self.attempt(item, lambda one: self.lock(one, locks, deadline)):
                    locked.append(item)
            scan = hyperv_use.Scan(self.store, self.work.tell).run() if locked else None
            patience = time.monotonic() + self.order.get("sharing_s", winstore.SHARING_S)
            for item in locked:
                self.work.check()
                if self.attempt(item, lambda one: self.remove(one, scan, patience)):
                    self.forget(item["name"])
        finally:
            for fd in locks:
                os.close(fd)
        self.rows.flush()
        return {}

    def attempt(self, item, step):
        """Take one step with an item; return whether it is still to be removed, else its row is sent."""
        try:
            if step(item):
                return True
            self.row(item["name"], 0, "gone")
        except Kept as kept:
            self.row(item["name"], self.size_of(item["name"]), "kept", kept.code, kept.reason)
        return False

    def size_of(self, name):
        """Return an entry's size, 0 when that cannot be told."""
        try:
            final = self.find(name)
        except Kept:
            return 0
        return final.status.st_size if final else 0

    def lock(self, item, locks, deadline):
        """Take Nova's locks of an item: that of its image, and that of removing its file."""
        final = self.find(item["name"])
        if final is None:
            return False
        self.judge(item, final)
        for name in (final.name[:36], final.name):
            if name in self.held:
                continue
            try:
                wait_s = max(0, deadline - time.monotonic())
                locks.append(self.store.lock(name, wait_s, self.work.check))
            except Failure as failure:
                if failure.code == "interrupted":
                    raise
                raise Kept(failure.code, failure.message) from failure
            self.held.add(name)
        return True

    def row(self, name, size, state, code=None, reason=None):
        """Send the outcome of one item."""
        row = {"name": name, "state": state, "code": code, "reason": reason and reason[:500]}
        self.rows.add(dict(row, bytes=size))

    def find(self, name):
        """Return the ``Final`` that an entry's name means; None when it is gone."""
        try:
            if winstore.ID.fullmatch(name):
                return self.store.final(name)
            for extension in ("vhd", "vhdx"):
                file_name = "%s.%s" % (name, extension)
                if winstore.RESIZED.fullmatch(file_name) and self.store.file(file_name):
                    return self.store.file(file_name)
        except Failure as failure:
            raise Kept(failure.code, failure.message) from failure
        if not winstore.RESIZED.fullmatch(name + ".vhd"):
            raise Kept("foreign", "its name is not one of an image's file")
        return None

    def judge(self, item, final):
        """Keep what is not, or no more, what was to be removed."""
        status = final.status
        if status.st_nlink > 1:
            raise Kept("foreign", "it has %d names: others need its content" % status.st_nlink)
        if (winstore.inode_of(status), status.st_mtime_ns) != (item["inode"], item["mtime_ns"]):
            raise Kept("changed", "it was used, renewed or replaced since it was listed")
        manifest = self.store.read_manifest(final.name[:36])
        age, least = time.time() - status.st_mtime, max(item["min_age_s"], 0)
        ours = manifest is not None and manifest["stored"].get("mtime_ns") == status.st_mtime_ns
        if not (item["ours_ok"] and ours):
            least = max(least, _FLOOR_S)  # whoever touched it may be booting from it
        if age < 0:
            raise Kept("young", "its time lies %.0f s in the future, by this host's clock" % -age)
        if age < least:
            raise Kept("young", "last used or renewed %.0f s ago; must be %.0f s" % (age, least))
        if life.is_pinned(manifest) and not item["pinned_ok"]:
            raise Kept("pinned", "it is pinned")

    def check_use(self, final, scan):
        """Keep what is used, or may be."""
        if scan.problems:
            raise Kept("evidence", "who uses it cannot be told: " + "; ".join(scan.problems[:3]))
        users = sorted(life.users_of(scan, final.name))
        if users:
            more = " and %d more" % (len(users) - 3) if len(users) > 3 else ""
            shown = ", ".join(life.printable(user) for user in users[:3])
            raise Kept("in-use", "used by %s%s" % (shown, more))
        image_id = final.name[:36]
        for name in self.store.parts(image_id):
            if self.store.is_live(os.path.join(self.store.path, name)):
                raise Kept("busy", "another run of imgcache is fetching this image to this host")

    def remove(self, item, scan, patience):
        """Decide again about an item whose locks are held, and remove it; False when it is gone."""
        final = self.find(item["name"])
        if final is None:
            return False
        self.judge(item, final)
        self.check_use(final, scan)
        try:
            winstore.patient(os.remove, final.path, seconds=patience - time.monotonic())
        except FileNotFoundError:
            return False
        except OSError as error:
            if winstore.in_use(error):
                raise Kept("in-use", "somebody has it open: Hyper-V, or a scanner") from error
            failure = os_failure(error, "cannot remove " + final.path)
            raise Kept(failure.code, failure.message) from error
        self.row(item["name"], final.status.st_size, "removed")
        return True

    def forget(self, name):
        """Remove the manifest of an original that is gone."""
        if winstore.ID.fullmatch(name):
            self.store.forget(name)


def order_hyperv_remove(session, order):
    """Remove finals."""
    if len(order["items"]) > 100:
        raise Failure("protocol", "more than 100 items")
    with life.Work(session, order) as work:
        return Remove(session, order, work).run()


# ---- clean


class Clean:
    """One order ``hyperv_clean``."""

    def __init__(self, session, order, work):
        self.store = hyperv.opened(session)
        self.order = order
        self.work = work
        self.rows = life.Rows(session, order)

    def run(self):
        """Remove dead transfer files, ours and Nova's, and manifests without a file."""
        for name in sorted(self.store.names()):
            self.work.check()
            if winstore.OURS.fullmatch(name):
                self.attempt(name, name, self.check_ours, None)
            elif winstore.ID.fullmatch(name):
                self.attempt(name, name + winstore.DOWNLOAD, self.check_age, name)
        if not self.order["dry"] and self.store.exists() and self.store.has_own():
            self.forget_lost()
        self.rows.flush()
        return {}

    def attempt(self, name, shown, check, lock):
        """Remove one file that ``check`` lets go, under Nova's lock when it has one."""
        path = os.path.join(self.store.path, name)
        status = winstore.status_of(path)
        row = {"name": shown, "state": "removed", "code": None, "reason": None, "bytes": 0}
        if status is None:
            return
        row["bytes"] = status.st_size
        try:
            self.remove(path, status, check, lock)
        except Kept as kept:
            row.update(state="kept", code=kept.code, reason=kept.reason[:500])
        except FileNotFoundError:
            row.update(state="gone", bytes=0)
        self.rows.add(row)

    def remove(self, path, status, check, lock):
        """Remove a file or raise ``Kept``."""
        if not winstore.is_plain(status):
            raise Kept("foreign", "it is no regular file")
        check(path, status)
        if self.order["dry"]:
            raise Kept("dry-run", "it would be removed")
        fd = None
        try:
            fd = self.store.lock(lock, 0) if lock else None
            winstore.patient(os.remove, path)
        except FileNotFoundError:
            raise
        except Failure as failure:
            raise Kept(failure.code, failure.message) from failure
        except OSError as error:
            found = os_failure(error, "cannot remove " + path)
            code = "busy" if winstore.in_use(error) else found.code
            raise Kept(code, found.message) from error
        finally:
            if fd is not None:
                os.close(fd)

    def check_ours(self, path, status):
        """Keep what a run is writing."""
        if self.store.is_live(path):
            raise Kept("busy", "a run of imgcache is at work on it")

    def check_age(self, path, status):
        """Keep a download of Nova's that is young, or that Nova holds the lock of."""
        age, least = time.time() - status.st_mtime, max(self.order["stall_age_s"], _FLOOR_S)
        if self.store.is_locked(os.path.basename(path)):
            raise Kept("busy", "Nova is at work on it")
        if age < least:
            raise Kept("young", "last written %.0f s ago; must be %.0f s" % (age, least))

    def forget_lost(self):
        """Remove manifests of finals that Nova removed, a pin excepted, and such that were never finished."""
        for name in os.listdir(self.store.own_path):
            path = os.path.join(self.store.own_path, name)
            image_id, _, rest = name.partition(".json")
            if not winstore.ID.fullmatch(image_id):
                continue
            status = winstore.status_of(path)
            if rest.endswith(".new") and status and time.time() - status.st_mtime > _FLOOR_S:
                _remove_quietly(path)
            elif not rest and not life.is_pinned(self.store.read_manifest(image_id)):
                self.forget_one(image_id)

    def forget_one(self, image_id):
        """Remove a manifest whose final is gone, unless somebody is at work on that."""
        try:
            fd = self.store.lock(image_id, 0)
        except Failure:
            return
        try:
            if self.store.final(image_id) is None:
                self.store.forget(image_id)
        except Failure:
            return
        finally:
            os.close(fd)


def _remove_quietly(path):
    try:
        os.remove(path)
    except OSError:
        return


def order_hyperv_clean(session, order):
    """Remove dead transfer files."""
    with life.Work(session, order) as work:
        return Clean(session, order, work).run()
