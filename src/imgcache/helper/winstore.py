r"""The image cache of a Hyper-V host: names, Nova's locks, files that Windows shares or does not, manifests.

Everything lies in ``<instances_path>\_base``. Names are only ever made from an image's id.
Source: compute-hyperv ``nova/imagecache.py``, nova ``virt/hyperv/imagecache.py`` (26); fasteners
``process_lock.py``; Win32 ``CreateFileW``, ``GetFileInformationByHandle``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# mypy: disable-error-code="attr-defined,unused-ignore"
# ruff: noqa: EM101, SIM105, PLC0415 - a Failure's code is a literal; imports are dear on a host

import ctypes
import errno
import os
import random
import re
import stat
import time

from . import vhd
from .core import Failure, decode, encode, os_failure

#: In the order in which Nova looks.
EXTENSIONS = ("vhd", "vhdx", "iso")
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UUID = ID.pattern
ORIGINAL = re.compile(r"(%s)\.(vhd|vhdx|iso)" % _UUID)
RESIZED = re.compile(r"(%s)_[0-9]{1,9}\.(vhd|vhdx)" % _UUID)
OURS = re.compile(r"(%s)\.imgcache-[0-9a-f]{16}\.part" % _UUID)
OWN_FOLDER = ".imgcache"
#: What follows the name of Nova's own unfinished download, which is the image's id, where it is told.
DOWNLOAD = " (download)"
LOCK_WAIT_S = 10
#: How long a file that a scanner or a backup holds open is waited for.
SHARING_S = 5.0
_IN_USE = (32, 33)
_REPARSE_POINT = 0x400
_GENERIC_READ, _GENERIC_WRITE, _DELETE = 0x80000000, 0x40000000, 0x10000
_SHARE_READ, _SHARE_WRITE, _SHARE_DELETE = 1, 2, 4
_CREATE_NEW, _OPEN_EXISTING = 1, 3
_OPEN_REPARSE_POINT = 0x200000


def in_use(error):
    """Whether an ``OSError`` is a sharing violation: somebody has the file open, and does not share it."""
    return getattr(error, "winerror", None) in _IN_USE


def patient(work, *args, seconds=SHARING_S, codes=_IN_USE):
    """Call ``work``; again for some seconds while the file is open elsewhere."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return work(*args)
        except OSError as error:
            if getattr(error, "winerror", None) not in codes or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _open(path, access, share, disposition):
    import msvcrt

    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel32.CreateFileW.restype = ctypes.c_void_p
    handle = kernel32.CreateFileW(
        ctypes.c_wchar_p(path), access, share, None, disposition, _OPEN_REPARSE_POINT, None
    )
    if handle == ctypes.c_void_p(-1).value:
        code = ctypes.get_last_error()
        raise OSError(None, ctypes.FormatError(code).strip(), path, code)
    flags = os.O_BINARY | (0 if access & _GENERIC_WRITE else os.O_RDONLY)
    return msvcrt.open_osfhandle(handle, flags | os.O_NOINHERIT)


def open_shared(path):
    """Return a descriptor to read a regular file, which hinders nobody: also not who removes it.

    Raises:
        OSError, Failure: ``foreign``.
    """
    fd = _open(path, _GENERIC_READ, _SHARE_READ | _SHARE_WRITE | _SHARE_DELETE, _OPEN_EXISTING)
    if not is_plain(os.fstat(fd)) or not is_plain(os.lstat(path)):
        os.close(fd)
        raise Failure("foreign", "%s is no regular file; it was left alone" % path)
    return fd


def create_private(path):
    """Return a descriptor of a new file that nobody else can open to write while we live."""
    return _open(
        path, _GENERIC_READ | _GENERIC_WRITE | _DELETE, _SHARE_READ | _SHARE_DELETE, _CREATE_NEW
    )


def is_plain(status):
    """Whether a stat result is of a regular file that points nowhere else."""
    return stat.S_ISREG(status.st_mode) and not is_link(status)


def is_link(status):
    """Whether a stat result is of a symlink, junction or another reparse point."""
    return bool(getattr(status, "st_file_attributes", 0) & _REPARSE_POINT)


def status_of(path):
    """Return what a path is, never what it points to; None when it is gone."""
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def inode_of(status):
    """Return a file's number as JSON and the controller hold it."""
    return status.st_ino & (1 << 64) - 1


def check_id(image_id):
    """Refuse what is no image's id: file names are made of it."""
    if not ID.fullmatch(image_id):
        raise Failure("protocol", "not an image's id")
    return image_id


class Final:
    """A file of the cache that is there."""

    def __init__(self, path, status):
        self.path = path
        self.status = status
        self.name = os.path.basename(path)
        self.format = self.name.rpartition(".")[2]


class Store:
    """One host's cache, opened."""

    def __init__(self, instances_path):
        self.instances_path = os.path.abspath(instances_path)
        drive, rest = os.path.splitdrive(instances_path)
        if not drive or not rest.startswith(("\\", "/")) or not os.path.isdir(instances_path):
            message = "instances_path %s is not a folder on this host" % instances_path
            raise Failure("nopath", message, path=instances_path)
        self.path = os.path.join(self.instances_path, "_base")
        self.own_path = os.path.join(self.path, OWN_FOLDER)

    # ---- folders

    def exists(self):
        """Whether the cache folder is there; a link in its place is refused."""
        _is_folder(self.own_path)
        return _is_folder(self.path)

    def has_own(self):
        """Whether our own folder is there."""
        return _is_folder(self.own_path)

    def make(self):
        """Make the cache folder, and ours in it; both take their parents' permissions."""
        for path in (self.path, self.own_path):
            try:
                os.mkdir(path)
            except FileExistsError:
                _is_folder(path)
            except OSError as error:
                raise os_failure(error, "cannot make " + path) from error

    def names(self):
        """Return the names in the cache folder."""
        return os.listdir(self.path) if self.exists() else []

    # ---- finals

    def final(self, image_id):
        """Return the ``Final`` that Nova would use for an image, or None.

        Raises:
            Failure: ``foreign``: what is there is no regular file.
        """
        check_id(image_id)
        for extension in EXTENSIONS:
            found = self.file("%s.%s" % (image_id, extension))
            if found is not None:
                return found
        return None

    def file(self, name):
        """Return a ``Final`` by its file name, or None."""
        if not self.exists():
            return None
        path = os.path.join(self.path, name)
        status = status_of(path)
        if status is None:
            return None
        if not is_plain(status):
            raise Failure("foreign", "%s is no regular file; it was left alone" % path)
        return Final(path, status)

    def renew(self, final):
        """Set a file's times to now; return its new mtime in nanoseconds."""
        try:
            os.utime(final.path)
            return os.lstat(final.path).st_mtime_ns
        except FileNotFoundError:
            raise
        except OSError as error:
            raise os_failure(error, "cannot renew " + final.path) from error

    # ---- Nova's locks

    def lock(self, name, wait_s, check=None, create=True):
        """Take Nova's lock of a name; return its descriptor, whose closing releases it.

        None: it has no file, and shall not get one; so nobody holds it.

        Raises:
            Failure: ``busy``, ``lock``.
        """
        path = os.path.join(self.path, "nova-%s-cache.lock" % name)
        if not create and status_of(path) is None:
            return None
        fd = _take_lock(path, wait_s, check)
        if fd is None:
            raise Failure("busy", "Nova, or another tool, holds " + path, waited_s=wait_s)
        return fd

    def is_locked(self, name):
        """Whether somebody holds Nova's lock of a name; makes no lock file."""
        path = os.path.join(self.path, "nova-%s-cache.lock" % name)
        if status_of(path) is None:
            return False
        fd = _take_lock(path, 0, None)
        if fd is not None:
            os.close(fd)
        return fd is None

    # ---- our own files on the way

    def new_part(self, image_id):
        """Return (path, descriptor) of a new transfer file; Nova ignores names that end so."""
        check_id(image_id)
        while True:
            number = random.SystemRandom().getrandbits(64)
            path = os.path.join(self.path, "%s.imgcache-%016x.part" % (image_id, number))
            try:
                return path, create_private(path)
            except FileExistsError:
                continue
            except OSError as error:
                raise os_failure(error, "cannot make a file in " + self.path) from error

    def is_live(self, path):
        """Whether a run writes a transfer file: it shares it with no other writer."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_BINARY)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        os.close(fd)
        return False

    def parts(self, image_id=None):
        """Return the names of transfer files of ours, of one image or all."""
        found = [OURS.fullmatch(name) for name in self.names()]
        return sorted(one.group(0) for one in found if one and image_id in (None, one.group(1)))

    def live_parts(self, image_id, but=()):
        """Remove what dead runs left of an image; return the names that live runs write."""
        live = []
        for name in self.parts(image_id):
            path = os.path.join(self.path, name)
            if path in but:
                continue
            status = status_of(path)
            if status is None or not is_plain(status):
                continue
            if self.is_live(path):
                live.append(name)
                continue
            try:
                os.remove(path)
            except OSError:
                pass  # a scanner has it open: the next run finds it again
        return live

    # ---- manifests

    def _manifest_path(self, image_id):
        return os.path.join(self.own_path, check_id(image_id) + ".json")

    def read_manifest(self, image_id):
        """Return an image's manifest as a dict, or None when there is none, or a damaged one."""
        try:
            fd = open_shared(self._manifest_path(image_id))
        except (OSError, Failure):
            return None
        try:
            manifest = decode(vhd.pread(fd, 65536, 0).decode("utf-8"))
            good = manifest["version"] == 1 and manifest["stored"]["size"] >= 0
            return manifest if good and manifest["base"] == image_id else None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        finally:
            os.close(fd)

    def change_manifest(self, image_id, change):
        """Have ``change`` alter a manifest while no other helper does; return it, or None without one."""
        if self.read_manifest(image_id) is None:
            return None
        fd = _take_lock(os.path.join(self.own_path, "manifests.lock"), LOCK_WAIT_S, None)
        if fd is None:
            raise Failure("busy", "another run of imgcache holds the manifests in " + self.own_path)
        try:
            manifest = self.read_manifest(image_id)
            if manifest is not None:
                change(manifest)
                self.write_manifest(manifest)
            return manifest
        finally:
            os.close(fd)

    def write_manifest(self, manifest):
        """Replace a manifest: at every instant the old or the new one is there."""
        path = self._manifest_path(manifest["base"])
        new = "%s.%016x.new" % (path, random.SystemRandom().getrandbits(64))
        with open(new, "wb") as file:
            file.write(encode(manifest).encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            # Older Windows answers "access denied" while somebody reads what is to be replaced.
            patient(os.replace, new, path, codes=(5, *_IN_USE))
        except OSError:
            os.remove(new)
            raise

    def forget(self, image_id):
        """Remove the manifest of a file that is gone."""
        try:
            patient(os.remove, self._manifest_path(image_id))
        except OSError:
            pass  # without its file it means nothing


def _is_folder(path):
    """Whether a folder is there.

    Raises:
        Failure: ``symlink``: something else is.
    """
    status = status_of(path)
    if status is None:
        return False
    if is_link(status) or not stat.S_ISDIR(status.st_mode):
        raise Failure("symlink", "%s is a link or no folder" % path, path=path)
    return True


def _take_lock(path, wait_s, check):
    """Lock a file as fasteners does; return its descriptor, None when another holds it too long.

    It is opened to append and stays empty: what is locked is the byte at its end, which is the first.
    """
    import msvcrt

    deadline = time.monotonic() + wait_s
    status = status_of(path)
    if status is not None and not is_plain(status):
        raise Failure("lock", path + " is no regular file")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_BINARY | os.O_NOINHERIT)
    except OSError as error:
        raise os_failure(error, "cannot open " + path) from error
    try:
        while True:
            try:
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
                held, fd = fd, None
                return held
            except OSError as error:
                # With other threads about, the C library's word may be lost before Python reads it.
                if error.errno not in (errno.EACCES, errno.EDEADLK, 0):
                    raise os_failure(error, "cannot lock " + path) from error
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.05)
            if check:
                check()
    finally:
        if fd is not None:
            os.close(fd)


def utc_now():
    """Return the host's time as manifests hold it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
