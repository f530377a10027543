"""Whether the system would let us remove a file; so that what is announced can be done, and says why not.

Source: Linux ``fs/namei.c`` (``may_delete``), ``include/uapi/linux/fs.h`` (``FS_IOC_GETFLAGS``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

import fcntl
import os
import stat
import struct

from . import usage
from .headers import FLAGS

#: ``_IOR('f', 1, long)``; these machines number the direction otherwise.
_READ = 1 << 30 if os.uname().machine.startswith(("ppc", "mips", "sparc", "alpha")) else 2 << 30
_GET_FLAGS = _READ | struct.calcsize("l") << 16 | ord("f") << 8 | 1
_IMMUTABLE = 0x10
_APPEND_ONLY = 0x20


def hindrance(name, status, dir_fd):
    """Return why nobody who we can be may remove a file from a folder, or None."""
    with usage.AsRoot():
        return _in_folder(dir_fd, status) or _attribute_of(name, dir_fd)


def _in_folder(dir_fd, status):
    if os.fstatvfs(dir_fd).f_flag & os.ST_RDONLY:
        return "its file system is mounted read-only"
    folder = os.fstat(dir_fd)
    attribute = _attribute(dir_fd)
    if attribute:
        return "its folder is %s (chattr)" % attribute
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=dir_fd, effective_ids=True):
        return "its folder is not ours to write to"
    owners = (0, folder.st_uid, status.st_uid)
    if folder.st_mode & stat.S_ISVTX and os.geteuid() not in owners:
        return "it is another user's, in a folder with the sticky bit"
    return None


def _attribute_of(name, dir_fd):
    try:
        fd = os.open(name, FLAGS | os.O_NOFOLLOW, dir_fd=dir_fd)
    except OSError:
        return None  # it can be removed all the same
    try:
        attribute = _attribute(fd)
    finally:
        os.close(fd)
    return attribute and "it is %s (chattr)" % attribute


def _attribute(fd):
    """Return what attribute of an open file or folder forbids removals; None: none, or none that shows."""
    try:
        flags = struct.unpack("I", fcntl.ioctl(fd, _GET_FLAGS, bytes(8))[:4])[0]
    except OSError:
        return None
    if flags & _IMMUTABLE:
        return "immutable"
    return "append-only" if flags & _APPEND_ONLY else None
