"""Who uses the files of the cache, by every evidence that there is.

Names and inodes both count: a bind mount or a container shows a file elsewhere. Evidence that cannot be read
is a problem, and with a problem nothing may be removed. What a guest can forge (the header of its disk) keeps
files, and does nothing else.
Source: nova ``virt/libvirt/imagecache.py`` (``_age_and_verify_cached_images``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

import collections
import errno
import os
import re
import stat
import time

from . import domains, headers, mounts, processes, sharing, ways
from .core import decode

#: Folders below each other under instances_path. Nova uses two.
_DEPTH = 64
_PROBLEMS = 20
_PROBLEM_CHARS = 450
#: How often a folder is read again because something in it is new or was renamed meanwhile.
_ROUNDS = 50
#: A header is remembered only when its file has been left alone for so long: within one tick of a
#: clock, also another host's, a file can change without looking changed.
_SETTLED_S = 60
#: How often, and after what time, a file is opened again that another run is about to remove.
_LEASE_TRIES = 10
_LEASE_S = 0.01
_GONE = (FileNotFoundError, NotADirectoryError)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
#: Folders and files that hold no disks, and that are often readable for root only.
_NO_DISKS = re.compile(r"lost\+found|console\.log(\.[0-9]+)?")

#: Snapshots of a filer or a file system: read-only old copies, from which nothing runs.
#: At the top of the instances and of the cache, where they are shown, and nowhere else.
SNAPSHOTS = frozenset((".snapshot", ".snapshots", "~snapshot", ".zfs", ".snap"))

#: ``places``: where libvirt's files are, see ``domains.Places``.
Roots = collections.namedtuple("Roots", "proc sys places")
ROOTS = Roots("/proc", "/sys", domains.PLACES)
#: The names that an image needs, and why these may not be all; of what is no image.
_NOTHING = ((), None)


class Usage:
    """Looks for users, as often as asked; remembers headers that did not change meanwhile."""

    def __init__(self, cache, roots=ROOTS):
        self.cache = cache
        self.roots = roots
        self.headers = {}
        self.warm = False
        self.mounts = mounts.Mounts(roots.proc)

    def scan(self, targets, tell=None):
        """Return the ``Scan`` for ``targets``, name -> inode; ``tell`` hears how far it is."""
        scan = Scan(self, targets, tell)
        scan.run()
        # Another host's changes show late, and maybe not at all in size or time.
        local = not mounts.may_be_shared(self.mounts.kind_at(self.cache.instances_path))
        self.headers = scan.headers if local else {}
        self.warm = True
        return scan


class Scan:
    """One look: ``users`` maps a name to the set of its users, ``problems`` says what could not be read."""

    def __init__(self, usage, targets, tell):
        self.cache = usage.cache
        self.roots = usage.roots
        self.known = usage.headers
        self.looked = {}  # inode -> what its header says, in this look
        self.headers = {}
        self.tell = tell
        self.targets = targets
        self.users = {}
        self.problems = []
        self.by_inode = {}  # a name, or a set of them
        self.copies = {}  # an image's base name -> its resized copies
        for name, inode in targets.items():
            other = self.by_inode.get(inode)
            self.by_inode[inode] = name if other is None else {name} | _as_set(other)
            if name[40:41] == "_":
                self.copies.setdefault(name[:40], []).append(name)
        self.paths = {}  # (path, trusted) -> what ``resolve`` found
        self.unread = {}  # of these: why
        self.doubts = []  # (inode, path, why): images that may need a file that they do not name
        self.links = []  # (inode, path, error): what a link leads to, and may not be opened as root
        self.devices = []  # (inode of an image, its path, a device that it names and that nova may not read)
        self.origin = (
            None  # (inode, path) of the image below instances_path whose names are followed
        )
        self.raw = set()  # inodes of files whose content guests write from the first byte on
        self.followed = set()
        self.folders = set()
        self.mounts = usage.mounts
        self.far = usage.mounts.far_from(self.cache.instances_path, self.cache.path)
        self.device = None
        if self.cache.cache_fd is not None:
            self.device = os.fstat(self.cache.cache_fd).st_dev
        self.now = time.time()

    def run(self):
        """Gather all evidence; what other hosts do with a cache that they share cannot be seen."""
        doubt = sharing.Sharing(self.cache, self.mounts).doubt
        if doubt:
            self.problem(doubt)
        self.look_into_cache()
        folder = self.cache.instances_path
        while folder != "/":  # a link upwards leads to nothing of instances
            folder = os.path.dirname(folder)
            self.folders.add(_inode(os.stat(folder)))
        # Opened anew: on NFS that asks the server what is in it now.
        self.enter(".", self.cache.instances_fd, self.cache.instances_path, 0, None)
        with AsRoot():
            found = domains.read(self, self.roots)
            self.look_at_mounts()
            processes.look(self, self.roots.proc, self.roots.sys)
        domains.use(self, found)
        self.settle()

    def settle(self):
        """Report what could not be read, now that it is known what domains name."""
        known = {inode for inode, _, _ in self.paths.values()}
        for inode, path, why in self.doubts:
            if inode not in self.raw:
                self.problem("%s is %s" % (path, why))
        for inode, path, error in self.links:
            if inode not in known:
                self.problem(path, error)
        for inode, path, device in self.devices:
            if inode not in self.raw and (device, True) not in self.paths:
                what = "%s needs the device %s, which only root may read: let libvirt name it"
                self.problem(what % (path, device))

    def look_at_mounts(self):
        """Mark files that are mounted by themselves, in any mount namespace."""
        for name, place in mounts.mounted_files(self.roots.proc):
            if name in self.targets:
                self.mark(name, "the mount " + place)

    # ---- what is found

    def mark(self, name, user):
        """Note a user of a target."""
        self.users.setdefault(name, set()).add(user)

    def seen(self, path, inode, user):
        """Note a file that is in use; ``user`` is asked only when it is a target. By name and by inode."""
        name = path.rpartition("/")[2]
        if name in self.targets:
            self.mark(name, user())
        for name in self.names_of(inode):
            self.mark(name, user())

    def names_of(self, inode):
        """Return the targets that a file, given as (device, inode), is."""
        if inode is None or inode[0] != self.device:
            return set()
        return _as_set(self.by_inode.get(inode[1], set()))

    def seen_mapped(self, path, device, number, user):
        """As ``seen``; btrfs and overlays show a mapped file with another device number than ``stat``."""
        if self.device is not None and not os.major(self.device) and not os.major(device):
            device = self.device
        self.seen(path, (device, number), user)

    def elsewhere(self, path):
        """Whether a path leads to another network storage than ours: asking there may take for ever."""
        return os.path.normpath(path).startswith(self.far)

    def problem(self, what, error=None):
        """Note evidence that could not be read."""
        if len(self.problems) < _PROBLEMS:
            text = what if error is None else "%s: %s" % (what, error.strerror or error)
            text = os.fsencode(text).decode("utf-8", "backslashreplace")
            self.problems.append(text[:_PROBLEM_CHARS])

    # ---- files below instances_path

    def look_into_cache(self):
        """Look at entries that need others: a resized copy may back onto an original."""
        if self.cache.cache_fd is None:
            return
        self.folders.add(_inode(os.fstat(self.cache.cache_fd)))
        if self.cache.own_fd is not None:
            self.folders.add(_inode(os.fstat(self.cache.own_fd)))
        for name in self.names_in(self.cache.cache_fd, self.cache.path):
            if name in SNAPSHOTS:
                continue
            if not name.endswith(
                (".part", ".converted")
            ):  # unverified bytes, never used as they are
                self.look_at(name, self.cache.cache_fd, self.cache.path, 1, "cache entry " + name)

    def names_in(self, fd, path):
        """Return the names in an open folder."""
        try:
            return os.listdir(fd)
        except OSError as error:
            self.problem(path, error)
            return []

    def look_into(self, fd, path, depth, user):
        """Look at everything in an open folder, until nothing in it is new: Nova renames, by the way."""
        self.folders.add(_inode(os.fstat(fd)))
        seen = set()
        for _ in range(_ROUNDS):
            names = self.names_in(fd, path)
            missed = False
            for place, name in enumerate(names):
                if not depth and self.tell:
                    self.tell("inspect", place, len(names))
                if not depth and name in SNAPSHOTS:
                    continue
                if not depth and name == "locks":
                    continue  # opening and closing a lock file of Nova's would let go of our own lock on it
                try:
                    there = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except OSError:
                    there = None
                mark = (name, there and _inode(there))
                if mark in seen:
                    continue
                missed = True
                if self.look_at(name, fd, path, depth, user or name):
                    seen.add(mark)
            if not missed:
                return
        self.problem("%s changes all the time" % path)

    def look_at(self, name, folder_fd, folder, depth, user):
        """Look at one file or folder; return False when it vanished meanwhile."""
        path = "%s/%s" % (folder, name)
        try:
            status = either(os.stat, name, dir_fd=folder_fd)
            if stat.S_ISDIR(status.st_mode):
                if _inode(status) not in self.folders:
                    self.enter(name, folder_fd, path, depth + 1, user)
            elif stat.S_ISBLK(status.st_mode) or (
                stat.S_ISREG(status.st_mode) and status.st_size >= headers.LEAST_BYTES
            ):
                self.look_at_disk(name, folder_fd, path, status, user)
        except _GONE:
            return self.dangles(name, folder_fd, path)
        except OSError as error:
            if not (isinstance(error, PermissionError) and _NO_DISKS.fullmatch(name)):
                self.problem(path, error)
        return True

    def look_at_disk(self, name, folder_fd, path, status, user):
        """Follow what an image in an open folder, or a device that a link there leads to, needs."""
        try:
            names, doubt = self.header(status, self.open_disk, name, folder_fd, path)
        except ways.NotRootsError as error:
            self.links.append((_inode(status), path, error))
            return
        if folder_fd != self.cache.cache_fd:
            for target in self.names_of(_inode(status)):  # by a link, or another name
                self.mark(target, user)
            self.origin = None if _is_noted_raw(name, folder_fd) else (_inode(status), path)
            if doubt and self.origin:
                self.doubts.append((*self.origin, doubt))
        for reference in names:
            self.refer(reference, os.path.dirname(path), user, trusted=False)
        self.origin = None

    def dangles(self, name, folder_fd, path):
        """Whether what could not be found is a link that leads nowhere: a volume may not be mounted.

        Then a disk that we cannot read may need any base file. What really vanished needs none.
        """
        try:
            target = either(os.readlink, name, dir_fd=folder_fd)
        except OSError:
            return False  # it is gone, or was a file
        try:
            either(os.stat, name, dir_fd=folder_fd)
        except _GONE:
            if not _NO_DISKS.fullmatch(name.rpartition("/")[2]):
                text = "%s is a link to %s, which is missing: mount or restore that, or unlink it"
                self.problem(text % (path, target))
            return True
        except OSError:
            return False  # the next look tells
        return False

    def enter(self, name, folder_fd, path, depth, user):
        """Look into a folder, also one that is reached through a link, each once."""
        if depth > _DEPTH:
            self.problem("%s lies more than %d folders deep" % (path, _DEPTH))
            return
        fd = self.open_folder(name, folder_fd, path)
        if fd is None:
            return
        try:
            self.look_into(fd, path, depth, user)
        finally:
            os.close(fd)

    def open_folder(self, name, folder_fd, path):
        """Open a folder; None: it is reached by another way."""
        if os.geteuid() or name == ".":
            try:
                return os.open(name, _FOLDER, dir_fd=folder_fd)
            except PermissionError:
                if os.getuid():
                    raise
        with AsRoot():
            try:
                return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder_fd)
            except (NotADirectoryError, OSError) as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
            if self.below(os.path.realpath(path)) is not None:
                return None  # it is looked at in its own place
            return ways.open_link(name, folder_fd, ways.FOLDER)

    def below(self, real):
        """Return a path without links as one below instances_path; None: it is elsewhere."""
        start = self.cache.instances_path.rstrip("/") + "/"
        return real[len(start) :] if real.startswith(start) else None

    def header(self, status, open_it, *where):
        """Return what the header of a file, opened by ``open_it(*where)``, says: see ``headers``."""
        key = (*_inode(status), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        found = self.looked.get(_inode(status))
        if found is None and stat.S_ISREG(status.st_mode):
            found = self.known.get(key)
        if found is None:
            fd = open_it(*where)
            if fd is None:
                return _NOTHING
            try:
                there = os.fstat(fd)
                found = _NOTHING
                if stat.S_ISREG(there.st_mode) or stat.S_ISBLK(there.st_mode):
                    size = None if stat.S_ISBLK(there.st_mode) else there.st_size
                    found = headers.references(fd, size)
            finally:
                os.close(fd)
        self.looked[_inode(status)] = found
        if stat.S_ISREG(status.st_mode) and status.st_ctime < self.now - _SETTLED_S:
            self.headers[key] = found
        return found

    def open_disk(self, name, folder_fd, path):
        """Open what a name in an open folder of instances is; None: not what it seemed to be.

        Raises:
            NotRootsError: only root may read it, and others may change where the link leads.
        """
        if os.geteuid():
            try:
                return os.open(name, headers.FLAGS, dir_fd=folder_fd)
            except PermissionError:
                if os.getuid():
                    raise
        with AsRoot():
            fd = ways.open_plain(name, folder_fd, ways.DISK)
            if fd is None and stat.S_ISLNK(_lstat(name, folder_fd).st_mode):
                below = self.below(os.path.realpath(path))
                if below is not None:
                    return ways.open_below(self.cache.instances_fd, below)
                return ways.open_link(name, folder_fd, ways.DISK)
            return fd

    def open_named(self, path, trusted):
        """Open what a header or (``trusted``) root's own files name; None: no image.

        Raises:
            PermissionError: it may not be read, or not as root since a guest may have named it.
        """
        if ways.NAMESPACE.match(path):
            with AsRoot():
                return ways.open_roots(path, ways.DISK) if trusted else None
        real = os.path.realpath(path)
        if os.geteuid():
            try:
                return os.open(real, headers.FLAGS | os.O_NOFOLLOW)
            except PermissionError:
                if os.getuid() or not (trusted or self.below(real)):
                    raise
        with AsRoot():
            below = self.below(real)
            if below is not None:
                return ways.open_below(self.cache.instances_fd, below)
            if trusted:
                return ways.open_roots(path, ways.DISK)
            return ways.open_anybodys(real)

    def refer(self, reference, folder, user, trusted):
        """Follow a name found in a file in ``folder``, and the names in the headers that it leads to.

        ``trusted``: no guest can have written it. Another may be forged: where it leads nowhere, or to what
        may not be read, there is nothing to keep. Circles end, since each name is followed once.
        """
        waiting = [(reference, folder, trusted)]
        while waiting:
            reference, folder, trusted = waiting.pop()
            for given in headers.paths_of(reference):
                if "\0" in given or not given:
                    continue
                path = os.path.join(folder, given)
                if (path, user, trusted) in self.followed:
                    continue
                self.followed.add((path, user, trusted))
                inode, names, real = self.resolved(path, trusted)
                if "cache entry " + path.rpartition("/")[2] != user:  # none needs itself
                    self.seen(path, inode, lambda: user)
                waiting += [(name, real, trusted and inode not in self.raw) for name in names]

    def resolved(self, path, trusted):
        """Return (inode or None, names in its header, the folder they are relative to) of a path."""
        key = (path, trusted)
        if key not in self.paths:
            self.paths[key] = self.resolve(path, trusted)
            error = self.unread.get(key)
            if trusted and error is not None and not isinstance(error, _GONE):
                self.problem(path, error)
        return self.paths[key]

    def resolve(self, path, trusted):
        """See ``resolved``."""
        inode = None
        if self.elsewhere(path):
            return inode, (), None
        try:
            status = either(os.stat, path)
            inode = _inode(status)
            if stat.S_ISBLK(status.st_mode) and not trusted:
                return inode, self.behind(path, status), "/"
            if not stat.S_ISBLK(status.st_mode) and not (
                stat.S_ISREG(status.st_mode) and status.st_size >= headers.LEAST_BYTES
            ):
                return inode, (), None
            names, _ = self.header(status, self.open_named, path, trusted)
        except (OSError, ValueError) as error:
            self.unread[path, trusted] = error
            return inode, (), None
        return inode, names, os.path.dirname(path)

    def behind(self, path, status):
        """Return what a device that a header names needs: of others than loops, what nova may read."""
        place = "%s/dev/block/%d:%d/loop/backing_file"
        place %= (self.roots.sys, os.major(status.st_rdev), os.minor(status.st_rdev))
        try:
            with open(place, "rb") as file:
                return (file.read().rstrip(b"\n"),)
        except OSError:
            pass  # it is no loop device
        try:
            return self.header(status, os.open, path, headers.FLAGS)[0] if os.geteuid() else ()
        except PermissionError:
            if self.origin:
                self.devices.append((*self.origin, path))
            return ()


class AsRoot:
    """Be root for a while, where the helper was started as root and works as Nova's user."""

    def __enter__(self):
        self.effective = os.geteuid()
        if os.getuid() == 0 and self.effective:
            os.seteuid(0)

    def __exit__(self, *_):
        if os.geteuid() != self.effective:
            os.seteuid(self.effective)


def either(call, *args, **kwargs):
    """Do something as Nova's user and, where that may not, as root: libvirt owns disks in use."""
    try:
        return patient(call, *args, **kwargs)
    except PermissionError:
        if os.getuid() or not os.geteuid():
            raise
    with AsRoot():
        return patient(call, *args, **kwargs)


def patient(call, *args, **kwargs):
    """Open a file; where another helper has a lease on it, wait for the moment that this lasts."""
    for _ in range(_LEASE_TRIES):
        try:
            return call(*args, **kwargs)
        except BlockingIOError:
            time.sleep(_LEASE_S)
    return call(*args, **kwargs)


def _as_set(names):
    return {names} if isinstance(names, str) else names


def _inode(status):
    return status.st_dev, status.st_ino


def _lstat(name, dir_fd):
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)


def _is_noted_raw(name, folder_fd):
    """Whether Nova notes that a disk is raw: a guest then writes its first bytes.

    Source: nova ``virt/libvirt/imagebackend.py`` (``Image.resolve_driver_format``: ``disk.info``).
    """
    try:
        fd = os.open("disk.info", headers.FLAGS | os.O_NOFOLLOW, dir_fd=folder_fd)
    except OSError:
        return False
    try:
        noted = decode(os.pread(fd, 65536, 0).decode("utf-8"))
        return any(
            path.rpartition("/")[2] == name and kind == "raw" for path, kind in noted.items()
        )
    except (OSError, ValueError, AttributeError):
        return False
    finally:
        os.close(fd)


def usage_of(cache):
    """Return the ``Usage`` of an open cache, the same each time."""
    if getattr(cache, "usage", None) is None:
        cache.usage = Usage(cache)
    return cache.usage
