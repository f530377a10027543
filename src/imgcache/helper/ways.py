"""Opens files as root where another user may have changed the way to them meanwhile, or what is there.

First a descriptor that reads nothing (``O_PATH``), then a look at what it is, then the very file by
``/proc/self/fd``. So no device, pipe or file outside is ever opened for a moment only.
Source: Linux ``open(2)``, ``path_resolution(7)``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

import errno
import os
import re
import stat

from .cache import walk
from .headers import FLAGS

_LOOK = os.O_PATH | os.O_NOFOLLOW
#: The root of another mount namespace, and a path in it: the link there leads nowhere as text.
NAMESPACE = re.compile("(/proc/[0-9]+/root)(/.*)")
#: What may be opened: regular files always.
DISK, FOLDER = frozenset((stat.S_IFBLK,)), frozenset((stat.S_IFDIR,))


class NotRootsError(PermissionError):
    """Others than root may change where a path leads."""


def open_plain(name, dir_fd=None, more=frozenset()):
    """Open a regular file for reading, or a type of ``more``; None: it is something else."""
    fd = os.open(name, _LOOK, dir_fd=dir_fd)
    try:
        return _reopened(fd, more)
    finally:
        os.close(fd)


def _reopened(fd, more):
    """Open what an ``O_PATH`` descriptor is, if it is of the right type."""
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    if kind != stat.S_IFREG and kind not in more:
        return None
    return os.open("/proc/self/fd/%d" % fd, FLAGS)


def open_anybodys(path):
    """Open a regular file that everybody may reach and read.

    Raises:
        PermissionError: not everybody may.
    """

    def check(folder, _):
        if not folder.st_mode & stat.S_IXOTH:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    fd = walk(path, check)
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and not status.st_mode & stat.S_IROTH:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return _reopened(fd, ())
    finally:
        os.close(fd)


def open_below(folder_fd, path):
    """As ``open_plain`` for a relative path below an open folder, through no link."""
    *folders, name = path.split("/")
    fd = os.dup(folder_fd)
    try:
        for part in folders:
            below = os.open(part, _LOOK | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        return open_plain(name, fd)
    finally:
        os.close(fd)


def open_roots(path, more=frozenset()):
    """As ``open_plain`` for an absolute path, through links, that root alone may change.

    Raises:
        NotRootsError: others than root may change where it leads.
    """

    def check(folder, entry):
        sticky = folder.st_mode & stat.S_ISVTX and not entry.st_uid
        if folder.st_uid or (folder.st_mode & 0o022 and not sticky):
            raise _not_roots(path)
        if stat.S_ISLNK(entry.st_mode) and entry.st_uid:
            raise _not_roots(path)

    match = NAMESPACE.match(path)
    root, inside = match.groups() if match else ("/", path)
    fd = walk(inside, check, root)
    try:
        return _reopened(fd, more)
    finally:
        os.close(fd)


def open_link(name, dir_fd, more=frozenset()):
    """As ``open_roots`` for what a link of root's leads to, in a folder that others may change.

    Raises:
        NotRootsError: it is no such link.
    """
    fd = os.open(name, _LOOK, dir_fd=dir_fd)
    try:
        status = os.fstat(fd)
        target = os.readlink("", dir_fd=fd) if stat.S_ISLNK(status.st_mode) else ""
    finally:
        os.close(fd)
    if status.st_uid or not target.startswith("/"):
        raise _not_roots(name)
    return open_roots(target, more)


def _not_roots(path):
    return NotRootsError(errno.EACCES, "others than root may change where it leads", path)
