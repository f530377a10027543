"""Who uses the files of the cache, by every evidence that there is.

Names and inodes both count: a bind mount or a container shows a file elsewhere. Evidence that cannot be read
is a problem, and with a problem nothing may be removed. What a guest can forge (the header of its disk) keeps
files, and does nothing else.
Source: nova ``virt/libvirt/imagecache.py`` (``_age_and_verify_cached_images``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

import collections
import os
import re
import stat
import time

from . import domains, headers, mounts, processes, sharing

#: Below instances_path: an instance's folder, and what Nova or an operator put into it.
_DEPTH = 3
_CHAIN = 16
_PROBLEMS = 20
_PROBLEM_CHARS = 450
#: How often a folder is read again because something in it is new or was renamed meanwhile.
_ROUNDS = 50
#: A header is remembered only when its file has been left alone for so long: within one tick of a
#: clock, also another host's, a file can change without looking changed.
_SETTLED_S = 60
#: How often, and after what time, a file is opened again that another run is about to remove.
_LEASE_TRIES = 20
_LEASE_S = 0.01
_GONE = (FileNotFoundError, NotADirectoryError)
#: Folders and files that hold no disks, and that are often readable for root only.
_NO_DISKS = re.compile(r"lost\+found|console\.log(\.[0-9]+)?")

#: Snapshots of a filer or a file system: read-only old copies, from which nothing runs.
#: At the top of the instances and of the cache, where they are shown, and nowhere else.
SNAPSHOTS = frozenset((".snapshot", ".snapshots", "~snapshot", ".zfs", ".snap"))

Roots = collections.namedtuple("Roots", "proc sys libvirt")
ROOTS = Roots("/proc", "/sys", ("/etc/libvirt/qemu", "/run/libvirt/qemu"))


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
        self.paths = {}
        self.unread = {}  # of these paths: why
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
            found = domains.read(self, self.roots.libvirt)
            processes.look(self, self.roots.proc, self.roots.sys)
        domains.tell(self, found)

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
                if depth < _DEPTH and _inode(status) not in self.folders:
                    self.enter(name, folder_fd, path, depth + 1, user)
            elif stat.S_ISREG(status.st_mode) and status.st_size >= headers.LEAST_BYTES:
                for reference in self.header(name, folder_fd, status):
                    self.refer(reference, folder, user, 0)
        except _GONE:
            return self.dangles(name, folder_fd, path)
        except OSError as error:
            if not (isinstance(error, PermissionError) and _NO_DISKS.fullmatch(name)):
                self.problem(path, error)
        return True

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
        fd = either(os.open, name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder_fd)
        try:
            self.look_into(fd, path, depth, user)
        finally:
            os.close(fd)

    def header(self, name, folder_fd, status, flags=0):
        """Return what a regular file's header refers to."""
        key = (*_inode(status), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        found = self.known.get(key)
        if found is None:
            fd = either(os.open, name, headers.FLAGS | flags, dir_fd=folder_fd)
            try:
                regular = stat.S_ISREG(os.fstat(fd).st_mode)
                found = headers.references(fd) if regular else ()
            finally:
                os.close(fd)
        if status.st_ctime < self.now - _SETTLED_S:
            self.headers[key] = found
        return found

    def refer(self, reference, folder, user, depth):
        """Follow a name found in a header of a file in ``folder``.

        It may be forged: where it leads nowhere, or to what we may not read, there is nothing to keep.
        """
        for given in headers.paths_of(reference):
            if "\0" in given or not given:
                continue
            path = os.path.join(folder, given)
            if (path, user) in self.followed:
                continue
            self.followed.add((path, user))
            if path not in self.paths:
                self.paths[path] = self.resolve(path)
            inode, further, real = self.paths[path]
            if "cache entry " + path.rpartition("/")[2] != user:  # none needs itself
                self.seen(path, inode, lambda: user)
            if depth < _CHAIN:
                for name in further:
                    self.refer(name, real, user, depth + 1)

    def resolve(self, path):
        """Return (inode or None, names in its header, the folder they are relative to) of a path."""
        inode = None
        if self.elsewhere(path):
            return inode, (), None
        try:
            status = either(os.stat, path)
            inode = _inode(status)
            if not stat.S_ISREG(status.st_mode) or status.st_size < headers.LEAST_BYTES:
                return inode, (), None
            real = os.path.realpath(path)
            return inode, self.header(real, None, status, os.O_NOFOLLOW), os.path.dirname(path)
        except (OSError, ValueError) as error:
            self.unread[path] = error
            return inode, (), None


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


def usage_of(cache):
    """Return the ``Usage`` of an open cache, the same each time."""
    if getattr(cache, "usage", None) is None:
        cache.usage = Usage(cache)
    return cache.usage
