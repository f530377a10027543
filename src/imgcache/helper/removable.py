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


class Folder:
    """An open folder; what stands against removals from it is found out once."""

    def __init__(self, dir_fd):
        self.dir_fd = dir_fd
        self.status = os.fstat(dir_fd)
        with usage.AsRoot():
            self.why = _in_folder(dir_fd)

    def hindrance(self, name, status):
        """Return why nobody who we can be may remove a file, or None."""
        if self.why:
            return self.why
        owners = (self.status.st_uid, status.st_uid)
        root = not (os.getuid() and os.geteuid())
        if self.status.st_mode & stat.S_ISVTX and not root and os.geteuid() not in owners:
            return "it is another user's, in a folder with the sticky bit"
        return _attribute_of(name, self.dir_fd)


def _in_folder(dir_fd):
    if os.fstatvfs(dir_fd).f_flag & os.ST_RDONLY:
        return "its file system is mounted read-only"
    attribute = _attribute(dir_fd)
    if attribute:
        return "its folder is %s (chattr)" % attribute
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=dir_fd, effective_ids=True):
        return "its folder is not ours to write to"
    return None


def _attribute_of(name, dir_fd):
    try:
        fd = usage.either(os.open, name, FLAGS | os.O_NOFOLLOW, dir_fd=dir_fd)
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
