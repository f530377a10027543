"""Who uses a file of a Hyper-V host's cache: disks whose parent it is, by their headers.

A running instance's disk cannot be read; Windows is asked for its parent, and what it does not tell makes
the evidence incomplete. Where Hyper-V itself has a file open, removing it fails: the last guard.
Source: [MS-VHDX] 2.6.2.6 (parent locators), Win32 ``OpenVirtualDisk``, ``GetVirtualDiskInformation``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="attr-defined,unused-ignore"
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a host

import ctypes
import os
import stat
import uuid

from . import vhd, winstore
from .core import Failure

#: What instances' disks and checkpoints are called.
_DISKS = (".vhd", ".vhdx", ".avhd", ".avhdx")
_MOST_PROBLEMS = 20
_MOST_PARENTS = 64
_VENDOR = uuid.UUID("ec984aec-a0f9-47e9-901f-71415a66345b").bytes_le
_GET_INFO, _NO_PARENTS, _PARENT_LOCATION = 0x80000, 1, 3
_INFO_BYTES = 64 << 10
#: ERROR_VHD_INVALID_TYPE: it has no parent to ask for.
_NOT_DIFFERENCING = 0xC03A001B
_UNTOLD = "it is in use, and Windows does not tell its parent"


class Scan:
    """What was found out: file name in the cache, lower case -> paths of the disks that need it."""

    def __init__(self, store, tell=None):
        self.store = store
        self.tell = tell
        self.users = {}
        self.problems = []
        self.seen = 0

    def run(self):
        """Look at every disk below the instances folder; return self."""
        self.walk(self.store.instances_path, top=True)
        return self

    def problem(self, text):
        """Note evidence that could not be read."""
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(text)

    def walk(self, folder, top=False):
        """Look at the disks in a folder and in those below."""
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        except OSError as error:
            self.problem("%s: %s" % (folder, error.strerror))
            return
        for entry in entries:
            if top and entry.name.lower() == "_base":
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                self.problem("%s: %s" % (entry.path, error.strerror))
                continue
            if winstore.is_link(status):
                self.problem("%s is a link; what lies behind it was not looked at" % entry.path)
            elif stat.S_ISDIR(status.st_mode):
                self.walk(entry.path)
            elif entry.name.lower().endswith(_DISKS):
                self.look(entry.path)

    def look(self, path):
        """Note which file of the cache a disk needs, if any."""
        self.seen += 1
        if self.tell:
            self.tell("inspect", self.seen, self.seen)
        try:
            parents = parents_of(path)
        except FileNotFoundError:
            return
        except (OSError, Failure) as error:
            reason = getattr(error, "strerror", None) or error
            self.problem("whose child %s is cannot be told: %s" % (path, reason))
            return
        for parent in parents:
            name = self.name_in_cache(path, parent)
            if name:
                self.users.setdefault(name, set()).add(path)

    def name_in_cache(self, child, parent):
        """Return the name in the cache that a parent's path means, lower case, or None.

        The last two parts decide: the same folder may be reached by a drive, a share or a volume's number.
        """
        whole = os.path.normpath(os.path.join(os.path.dirname(child), parent)).lower()
        folder, name = os.path.split(whole)
        return name if os.path.basename(folder) == "_base" else None

    def users_of(self, final):
        """Return the paths of the disks that need a file; of a resized copy's also for its original."""
        return self.users.get(final.name.lower(), set())


def parents_of(path):
    """Return the paths at which a disk's parent may be; none: it depends on no other file.

    Raises:
        OSError, Failure: that cannot be told.
    """
    try:
        fd = winstore.open_shared(path)
    except OSError as error:
        if not winstore.in_use(error):
            raise
        return _ask_windows(path)
    try:
        disk = vhd.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)
    if disk is None or not disk.differencing:
        return ()
    if not disk.parents:
        raise Failure("format", "it is a differencing disk that does not name its parent")
    return disk.parents[:_MOST_PARENTS]


class _StorageType(ctypes.Structure):
    _fields_ = (("device", ctypes.c_uint32), ("vendor", ctypes.c_ubyte * 16))


def _ask_windows(path):
    """Return the parents of a disk that is attached to a running instance."""
    try:
        virtdisk = ctypes.WinDLL("virtdisk")
    except OSError:
        raise Failure("evidence", _UNTOLD) from None
    virtdisk.OpenVirtualDisk.restype = ctypes.c_uint32
    virtdisk.GetVirtualDiskInformation.restype = ctypes.c_uint32
    device = 3 if path.lower().endswith("x") else 2
    kind = _StorageType(device, (ctypes.c_ubyte * 16)(*_VENDOR))
    handle = ctypes.c_void_p()
    code = virtdisk.OpenVirtualDisk(
        ctypes.byref(kind),
        ctypes.c_wchar_p(path),
        _GET_INFO,
        _NO_PARENTS,
        None,
        ctypes.byref(handle),
    )
    if code:
        raise Failure("evidence", "%s (error %d)" % (_UNTOLD, code))
    try:
        # Version, a gap, whether the parent was found, its paths: each ends with a zero, all with two.
        buffer = ctypes.create_string_buffer(_INFO_BYTES)
        ctypes.c_uint32.from_buffer(buffer).value = _PARENT_LOCATION
        size = ctypes.c_uint32(_INFO_BYTES)
        code = virtdisk.GetVirtualDiskInformation(handle, ctypes.byref(size), buffer, None)
    finally:
        ctypes.WinDLL("kernel32").CloseHandle(handle)
    if code == _NOT_DIFFERENCING:
        return ()
    if code:
        raise Failure("evidence", "%s (error %d)" % (_UNTOLD, code))
    text = buffer.raw[12 : size.value].decode("utf-16-le", "replace")
    found = [part for part in text.split("\0\0")[0].split("\0") if part]
    if not found:
        raise Failure("evidence", _UNTOLD)
    return tuple(found)
