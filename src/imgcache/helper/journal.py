"""What dead runs left of an image: continued when a journal says that it is the same one, else removed.

A journal is trusted for nothing but the choice of a file: the digest over all bytes decides in the end.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: SIM105 - imports are dear on a warm host

import os
import stat

from .cache import utc_now
from .core import decode, encode, os_failure
from .staging import JOURNAL, SUFFIX, Staging, lock_first_byte

#: Less is not worth keeping; what is kept counts in whole ones, since a power cut may spoil the end.
UNIT_BYTES = 1 << 20
_MAX_JOURNAL_BYTES = 4096
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK


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
        if _is_staging(name, base) and _is_of(cache, name, image):
            status = _status_of(cache, name)
            if status is not None and _may_continue(status, image):
                found.append((status.st_size, name))
    for _, name in sorted(found, reverse=True):
        fd = _locked(cache, name, image)
        if fd is not None:
            return Staging(cache, base, watch, (name, fd))
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
            if locked is False:
                stay.append(name)
            elif (
                locked and longer and _may_continue(os.fstat(fd), image) and _is_at(cache, name, fd)
            ):
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
