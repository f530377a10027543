"""Removes what broken transfers left behind, ours and Nova's; what anybody is at work on stays.

Where not all evidence of use can be read, no file is removed at all, not even one of our own that no
instance has ever seen: what holds on a host then needs no exception that somebody would have to know.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, SIM105 - a Failure's code is a literal; imports are dear on a host

import os
import stat
import time

from . import entries, removable
from .core import os_failure
from .removal import Kept, Locks, Removal, check_evidence
from .staging import JOURNAL, lock_first_byte

#: A pre-caching by Nova's own API holds no lock while it downloads: so no file of Nova's that is younger.
_FLOOR_S = 3600
#: What the name of an original that was kept has besides its base file's.
_ORIGINAL = ".original"


class Clean(Removal):
    """One order ``clean``."""

    def __init__(self, session, order, work):
        super().__init__(session, order, work)
        self.evidence = None

    def run_all(self):
        """Remove all dead staging files, and manifests without a file."""
        cache = self.cache
        if cache.own_fd is not None:
            self.clean_ours()
        if cache.cache_fd is None:
            self.rows.flush()
            return {}
        items = []
        for name in sorted(os.listdir(cache.cache_fd)):
            if entries.kind_of(name) == "staging":
                status = entries.status_of(name, cache.cache_fd)
                if status is not None:
                    items.append({"name": name, "seen": _signature(status)})
        for start in range(0, len(items), 100):
            self.run(items[start : start + 100])
        if cache.own_fd is not None:
            self.clean_originals()
            if not self.order["dry"] and not (self.evidence and self.evidence.problems):
                self.forget_lost()
                self.forget_journals()
        self.rows.flush()
        return {}

    def look_for_users(self, items):
        """Gather the evidence once more; what could not be read once keeps all that is left."""
        before, self.evidence = self.evidence, super().look_for_users(items)
        self.evidence.problems = (before and before.problems) or self.evidence.problems
        return self.evidence

    def check_host(self):
        """Keep everything on a host that does not tell all about use; looked at once something may go."""
        if self.evidence is None:
            self.look_for_users([])
        check_evidence(self.evidence)

    # ---- ours

    def clean_ours(self):
        """A staging file of ours is dead when nobody holds its lock."""
        own_fd = self.cache.own_fd
        for name in sorted(entries.staging_names(self.cache)):
            status = entries.status_of(name, own_fd)
            if status is None:
                continue
            try:
                self.check_ours(name, status)
                self.check_host()
                if self.order["dry"]:
                    raise _announced(name, status, own_fd)
                self.unlink_ours(name)
                self.row(name, status, "removed")
            except Kept as kept:
                self.row(name, status, "kept", kept.code, kept.reason)
            except FileNotFoundError:
                self.row(name, None, "gone")
            except OSError as error:
                failure = os_failure(error, "cannot remove .imgcache/" + name, own_fd)
                self.row(name, status, "kept", failure.code, failure.message)

    def check_ours(self, name, status):
        """Keep what is no file, and what a run holds."""
        if not stat.S_ISREG(status.st_mode):
            raise Kept("foreign", "it is no regular file")
        live = entries.is_live(name, self.cache)
        if live:
            raise Kept("busy", "a run of imgcache is at work on it")
        if live is None:  # no locks here, or not for all hosts: age must do
            _check_age(status, max(self.order["stall_age_s"], _FLOOR_S))
        elif entries.status_of(name + JOURNAL, self.cache.own_fd):  # another run may go on with it
            _check_age(status, self.order["stall_age_s"])

    def unlink_ours(self, name):
        """Remove a dead staging file and its journal; a fetch may be about to go on with it."""
        own_fd = self.cache.own_fd
        fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=own_fd)
        try:
            if not lock_first_byte(fd):
                raise Kept("busy", "a run of imgcache has just taken it over")
            try:
                os.unlink(name + JOURNAL, dir_fd=own_fd)
            except OSError:
                pass  # there is none, or none of ours
            os.unlink(name, dir_fd=own_fd)
        finally:
            os.close(fd)

    def forget_journals(self):
        """Remove journals whose file is gone; a run makes them after it, and removes them before it."""
        own_fd = self.cache.own_fd
        for name in os.listdir(own_fd):
            owner = name[: -len(JOURNAL)]
            if (
                name.endswith(JOURNAL)
                and entries.OURS.fullmatch(owner)
                and entries.status_of(owner, own_fd) is None
            ):
                try:
                    os.unlink(name, dir_fd=own_fd)
                except OSError:
                    pass  # it does no harm

    def clean_originals(self):
        """Remove originals that were kept, and whose final is gone."""
        cache = self.cache
        for name in sorted(os.listdir(cache.own_fd)):
            base = name[: -len(_ORIGINAL)]
            if not name.endswith(_ORIGINAL) or entries.kind_of(base) != "original":
                continue
            status = entries.status_of(name, cache.own_fd)
            if status is None or entries.status_of(base, cache.cache_fd) is not None:
                continue
            locks = Locks(cache, self.work)
            try:
                self.clean_original(locks, name, base, status)
            except Kept as kept:
                self.row(name, status, "kept", kept.code, kept.reason)
            except OSError as error:
                failure = os_failure(error, "cannot remove .imgcache/" + name, cache.own_fd)
                self.row(name, status, "kept", failure.code, failure.message)
            finally:
                locks.release()

    def clean_original(self, locks, name, base, status):
        """Remove one, while nobody can publish its final."""
        cache = self.cache
        if not stat.S_ISREG(status.st_mode):
            raise Kept("foreign", "it is no regular file")
        self.check_host()
        if self.order["dry"]:
            raise _announced(name, status, cache.own_fd)
        locks.take(base, 0)
        if entries.status_of(base, cache.cache_fd) is not None:
            raise Kept("busy", "its image was cached again just now")
        os.unlink(name, dir_fd=cache.own_fd)
        self.row(name, status, "removed")

    def forget_lost(self):
        """Remove manifests of finals that Nova removed; a pin stays known."""
        cache = self.cache
        for name in os.listdir(cache.own_fd):
            base = name[:-5]
            if name.endswith(".new"):
                self.drop_unwritten(name)
            if not name.endswith(".json") or entries.kind_of(base) != "original":
                continue
            if entries.status_of(base, cache.cache_fd) or entries.is_pinned(
                cache.read_manifest(base)
            ):
                continue
            try:
                lock_fd = cache.lock(base, 0)
            except Exception:  # noqa: BLE001, S112 - somebody is at work on it: another time
                continue
            if lock_fd is not None:
                try:
                    if entries.status_of(base, cache.cache_fd) is None:
                        self.forget(base)
                finally:
                    os.close(lock_fd)

    def drop_unwritten(self, name):
        """Remove a manifest whose writer died before it had its name."""
        status = entries.status_of(name, self.cache.own_fd)
        if status and stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime >= _FLOOR_S:
            try:
                os.unlink(name, dir_fd=self.cache.own_fd)
            except OSError:
                pass  # it does no harm

    # ---- Nova's

    def lock_of(self, item):
        """Nova writes a part while it holds the base file's lock."""
        return item["name"][:40]

    def look(self, item):
        """Return what a file of Nova's is; None when it is gone, and its row sent."""
        status = entries.status_of(item["name"], self.cache.cache_fd)
        if status is None:
            self.row(item["name"], None, "gone")
            return None
        if not stat.S_ISREG(status.st_mode):
            raise Kept("foreign", "it is no regular file")
        if _signature(status) != item["seen"]:
            raise Kept("busy", "it changed while it was looked at")
        _check_age(status, max(self.order["stall_age_s"], _FLOOR_S))
        return status

    def unlink(self, name, status):
        """Remove, or say that it would be."""
        if self.order["dry"]:
            raise _announced(name, status, self.cache.cache_fd)
        return super().unlink(name, status)

    def forget(self, name):
        """Remove a manifest; a staging file of Nova's has none."""
        if entries.kind_of(name) == "original":
            super().forget(name)


def _signature(status):
    return (status.st_ino, status.st_size, status.st_blocks, status.st_mtime_ns, status.st_ctime_ns)


def _announced(name, status, dir_fd):
    """Return what a dry run says of a file that may go."""
    why = removable.Folder(dir_fd).hindrance(name, status)
    if why:
        return Kept("permission", "it could not be removed: " + why)
    return Kept("dry-run", "it would be removed")


def _check_age(status, least):
    age = time.time() - status.st_mtime
    if age < 0:
        raise Kept("young", "its time lies %.0f s in the future, by this host's clock" % -age)
    if age < least:
        raise Kept("young", "last written %.0f s ago; must be %.0f s" % (age, least))


def order_clean(session, order):
    """Remove dead staging files."""
    with entries.Work(session, order) as work:
        return Clean(session, order, work).run_all()
