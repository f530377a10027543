"""What dead runs left of an image: continued when a journal says that it is the same one, else removed.

A journal is trusted for nothing but the choice of a file: the digest over all bytes decides in the end.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: SIM105 - imports are dear on a warm host

import os
import stat

from .cache import utc_now
from .core import decode, encode, os_failure
from .owners import is_anothers, may_share
from .staging import JOURNAL, SUFFIX, Sink, Staging, lock_first_byte, new_name

#: Less is not worth keeping; what is kept counts in whole ones, since a power cut may spoil the end.
UNIT_BYTES = 1 << 20
_MAX_JOURNAL_BYTES = 4096
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK


class Arrival:
    """The bytes of one staging file as they come: what is worth keeping is kept, and others may read it."""

    def __init__(self, session, order, staging):
        self.order = order
        self.staging = staging
        self.watch = session.watch
        image, own_fd = order["image"], staging.cache.own_fd
        self.sink = Sink(staging.fd, own_fd, image["size"], image["digest"]["algo"])
        self.sink.on_count, self.sink.on_restart = self._note_count, self._note_restart
        self.offer = None
        serve = order.get("serve")
        if serve and session.relay:
            self.offer = session.relay.offer(serve["name"], serve["key"], staging.fd, image["size"])

    def begin(self):
        """Take over what an earlier run brought, or prepare for a later one."""
        if self.staging.taken_bytes:
            count = self.staging.taken_bytes // UNIT_BYTES * UNIT_BYTES
            self._tell(0, count)
            self.sink.resume(count, lambda done: self._tell(done, count))
        elif self.order.get("keep_partial"):
            write(self.staging, self.order["image"], self.order["run"])

    def complete(self):
        """All bytes are there, and right."""
        if self.offer:
            self.offer.complete()
            self.offer = None

    def close(self):
        """End the hashing; return how many bytes came, and how many were there from an earlier run."""
        if self.offer:
            self.offer.fail()
        self.sink.close()
        return self.sink.received, self.sink.resumed

    def _tell(self, done, count):
        self.watch.check()
        self.watch.tell("hash", done, count)

    def _note_count(self, count):
        """So many bytes are in the file: enough to stay when this run ends early, and for others to read."""
        useless = self.sink.no_ranges and self.sink.origin == "service"
        if count >= UNIT_BYTES and not useless:
            self.staging.hold(True)
        if self.offer:
            self.offer.advance(count)

    def _note_restart(self):
        self.staging.hold(False)
        if self.offer:
            self.offer.restart()


def write(staging, image, run):
    """Write the journal of a staging file that is still empty, durably: another run may continue it."""
    cache = staging.cache
    about = dict(_about(staging.base, image), run=run, started_at=utc_now())
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = os.open(staging.add_journal(), flags, 0o600, dir_fd=cache.own_fd)
        try:
            os.write(fd, encode(about).encode("ascii") + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        os.fsync(cache.own_fd)
    except OSError as error:
        raise os_failure(
            error, "cannot write a journal in %s/.imgcache" % cache.path, cache.own_fd
        ) from error


def take(cache, base, watch, image):
    """Return the longest dead staging file that may be continued, locked; or None."""
    found = []
    for name in os.listdir(cache.own_fd):
        if _is_staging(name, base) and _is_of(cache, name, image) and not is_anothers(cache, name):
            status = _status_of(cache, name)
            if status is not None and _may_continue(status, image):
                found.append((status.st_size, name))
    for _, name in sorted(found, reverse=True):
        fd = _locked(cache, name, image)
        mine = name
        if fd is not None and may_share(cache):
            os.close(fd)
            mine = _renamed(cache, name)
            fd = mine and _locked(cache, mine, image)
        if fd is not None:
            return Staging(cache, base, watch, (mine, fd))
    return None


def sweep(staging, image):
    """Remove what else dead runs left of a base file; return the names that stay: live ones, or longer."""
    cache, base, stay = staging.cache, staging.base, []
    size = os.fstat(staging.fd).st_size
    for name in os.listdir(cache.own_fd):
        if _is_orphan(cache, name, base):
            _unlink(cache, name)
        if not _is_staging(name, base) or name == staging.name:
            continue
        try:
            fd = os.open(name, _WRITE, dir_fd=cache.own_fd)
        except OSError:
            continue
        try:
            longer = os.fstat(fd).st_size > size and _is_of(cache, name, image)
            locked = lock_first_byte(fd, unknown=None)
            if locked is None or (locked and is_anothers(cache, name)):
                continue  # whether its run lives cannot be told: clean goes by its age
            if not locked:
                stay.append(name)
            elif longer and _may_continue(os.fstat(fd), image) and _is_at(cache, name, fd):
                stay.append(name)  # another run let go of it just now
            else:
                _unlink(cache, name + JOURNAL)
                os.unlink(name, dir_fd=cache.own_fd)
        except OSError:
            pass
        finally:
            os.close(fd)
    return stay


def _about(base, image):
    digest = image["digest"]
    return {
        "version": 1,
        "image_id": image["id"],
        "base": base,
        "size": image["size"],
        "digest": {"algo": digest["algo"], "value": digest["value"].lower()},
    }


def _is_staging(name, base):
    return name.startswith(base + ".") and name.endswith(SUFFIX)


def _is_orphan(cache, name, base):
    """Whether a name is a journal without its file, which is made before it and removed after it."""
    owner = name[: -len(JOURNAL)]
    return (
        name.endswith(SUFFIX + JOURNAL)
        and _is_staging(owner, base)
        and _status_of(cache, owner) is None
    )


def _is_of(cache, name, image):
    """Whether a staging file's journal, one of ours, names this very image."""
    try:
        fd = os.open(name + JOURNAL, _READ, dir_fd=cache.own_fd)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        if not _is_ours(status) or status.st_size > _MAX_JOURNAL_BYTES:
            return False
        known = decode(os.pread(fd, _MAX_JOURNAL_BYTES, 0).decode("utf-8"))
        wanted = _about(name[:40], image)
        return {key: known.get(key) for key in wanted} == wanted
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return False
    finally:
        os.close(fd)


def _is_ours(status):
    """Whether nobody but our own user can have written a file, or can now."""
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_uid == os.geteuid()
        and status.st_nlink == 1
        and not status.st_mode & 0o022
    )


def _may_continue(status, image):
    """Whether a file may be part of an image; one with another name is a final."""
    return _is_ours(status) and UNIT_BYTES <= status.st_size <= image["size"]


def _locked(cache, name, image):
    """Return a descriptor of a staging file that nobody holds and that was not published; or None."""
    try:
        fd = os.open(name, _WRITE, dir_fd=cache.own_fd)
    except OSError:
        return None
    try:
        # Where there are no locks, nobody can be told to be dead.
        locked = lock_first_byte(fd, unknown=False)
        if locked and _is_at(cache, name, fd) and _may_continue(os.fstat(fd), image):
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def _renamed(cache, name):
    """Give a file that is to be continued, with its journal, a new name; return that, or None.

    Should its owner live after all, on a host that is taken for this one, it can publish nothing any more;
    and what it has published just now shows a second name.
    """
    mine = new_name(name[:40])
    try:
        for ending in ("", JOURNAL):
            os.rename(
                name + ending, mine + ending, src_dir_fd=cache.own_fd, dst_dir_fd=cache.own_fd
            )
    except OSError:
        return None  # another run took it, or it stays for the next one
    return mine


def _is_at(cache, name, fd):
    there = _status_of(cache, name)
    return there is not None and os.path.samestat(there, os.fstat(fd))


def _status_of(cache, name):
    try:
        return os.stat(name, dir_fd=cache.own_fd, follow_symlinks=False)
    except OSError:
        return None


def _unlink(cache, name):
    try:
        os.unlink(name, dir_fd=cache.own_fd)
    except OSError:
        pass
