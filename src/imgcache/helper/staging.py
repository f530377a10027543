"""Files of ours on the way to become finals: written, hashed, locked while we live, published."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, SIM105 - a Failure's code is a literal; imports are dear on a warm host

import ctypes
import errno
import fcntl
import hashlib
import os
import queue
import random
import threading

from .core import Failure, os_failure

SUFFIX = ".staging"
#: What the name of a staging file's journal has besides.
JOURNAL = ".json"
_BUFFER_BYTES = 1 << 20
_BUFFERS = 4
#: Steps of a buffer, or pushed blocks, that may wait to be hashed.
_STEPS = 16
#: After this many bytes the kernel is asked to write them out, so that the final sync finds little to do.
_WRITE_OUT_BYTES = 16 << 20
_RENAME_NOREPLACE = 1
#: What file systems without hard links answer.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def host_tag():
    """Return the word for this host in its files' names: the same after a reboot, another on each host.

    Machine ids alone are not enough, since hosts that were made from one image may share theirs.
    """
    try:
        with open("/etc/machine-id", "rb") as file:
            machine = file.read(64).strip()
    except OSError:
        machine = b""
    digest = new_digest("sha256")
    digest.update(b"imgcache\0" + machine + b"\0" + os.fsencode(os.uname().nodename))
    return digest.hexdigest()[:8]


def new_name(base):
    """Return a name that no staging file of a base file ever had."""
    return "%s.%s%08x%s" % (base, host_tag(), random.SystemRandom().getrandbits(32), SUFFIX)


class Staging:
    """A file of ours on the way to become a final: locked while we live, known to the watch.

    ``taken``: name and locked descriptor of a dead run's, with a journal, that is to be continued.
    """

    def __init__(self, cache, base, watch, taken=None):
        self.cache = cache
        self.base = base
        self.watch = watch
        self.names = []
        self.taken_bytes = 0
        self.held = False
        if taken is not None:
            self.name, self.fd = taken
            self.names = [self.name, self.name + JOURNAL]
            self.taken_bytes = os.fstat(self.fd).st_size
            self.held = True
            return
        while True:
            self.name = new_name(base)
            self.add(self.name)
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                self.fd = os.open(self.name, flags, 0o600, dir_fd=cache.own_fd)
            except OSError as error:
                self.forget(self.name)
                raise os_failure(
                    error, "cannot make a staging file in %s/.imgcache" % cache.path, cache.own_fd
                ) from error
            # Between the two calls another helper may have taken it for a dead one's.
            if lock_first_byte(self.fd) and os.fstat(self.fd).st_nlink:
                break
            self.drop()

    def add(self, name):
        """Have a name removed at the helper's end, however that comes."""
        self.names.append(name)
        self.watch.staging.append((self.cache.own_fd, name))

    def forget(self, name):
        """Take it for removed."""
        self.names.remove(name)
        if (self.cache.own_fd, name) in self.watch.staging:
            self.watch.staging.remove((self.cache.own_fd, name))

    def add_journal(self):
        """Return the name of its journal, which is now to be made."""
        self.add(self.name + JOURNAL)
        return self.name + JOURNAL

    def hold(self, held):
        """Have it stay, with its journal, when this run ends early; or not any more."""
        if held == self.held or len(self.names) < 2:
            return
        self.held = held
        for name in self.names:
            entry = (self.cache.own_fd, name)
            self.watch.staging.remove(entry) if held else self.watch.staging.append(entry)

    @property
    def path(self):
        """Its absolute path, for qemu-img."""
        return "%s/.imgcache/%s" % (self.cache.path, self.name)

    def check_name(self):
        """Refuse to go on with a file that has its name no more: another run took it, or ended it."""
        try:
            there = os.stat(self.name, dir_fd=self.cache.own_fd, follow_symlinks=False)
        except FileNotFoundError:
            there = None
        if there is None or not os.path.samestat(there, os.fstat(self.fd)):
            message = "%s was taken over or removed by another run of imgcache: run again"
            raise Failure("busy", message % self.path)

    def publish(self):
        """Give it the final's name, never overwriting; False when that exists."""
        cache = self.cache
        self.drop_journal()
        try:
            os.link(
                self.name,
                self.base,
                src_dir_fd=cache.own_fd,
                dst_dir_fd=cache.cache_fd,
                follow_symlinks=False,
            )
        except FileExistsError:
            return False
        except OSError as error:
            self.check_name()
            if error.errno not in _NO_LINKS:
                raise os_failure(error, "cannot publish the image", cache.cache_fd) from error
            return rename_new(cache.own_fd, self.name, cache.cache_fd, self.base)
        return True

    def drop(self):
        """Remove it, unless it was published, and its journal, which goes first; idempotent."""
        for name in reversed(self.names[:]):
            try:
                os.unlink(name, dir_fd=self.cache.own_fd)
            except FileNotFoundError:
                pass
            self.forget(name)

    def drop_journal(self):
        """Remove its journal: it is not to be continued any more."""
        self.hold(False)
        if len(self.names) > 1:
            try:
                os.unlink(self.names[1], dir_fd=self.cache.own_fd)
            except FileNotFoundError:
                pass
            self.forget(self.names[1])

    def rename(self, name):
        """Give it a name that stays, in our folder, in place of what had it."""
        self.drop_journal()
        own_fd = self.cache.own_fd
        os.rename(self.name, name, src_dir_fd=own_fd, dst_dir_fd=own_fd)
        self.forget(self.name)

    def close(self, keep=False):
        """Let go of its lock, and remove it, unless it is held and to be kept."""
        if self.fd is not None:
            if not (keep and self.held):
                self.drop()
            os.close(self.fd)
            self.fd = None


def lock_first_byte(fd, unknown=True):
    """Lock one byte only: qemu-img locks others of the same file for itself.

    ``unknown``: what to return where locks are unknown.
    """
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    except OSError as error:
        return False if error.errno in (errno.EACCES, errno.EAGAIN) else unknown
    return True


def rename_new(source_fd, source, target_fd, target):
    """Rename without overwriting, for file systems without hard links; False when the target exists."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        raise Failure(
            "io", "the file system knows no hard links, and this host no rename without overwriting"
        ) from None
    if renameat2(source_fd, source.encode(), target_fd, target.encode(), _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EEXIST:
        return False
    raise os_failure(OSError(number, os.strerror(number)), "cannot publish the image", target_fd)


def new_digest(algo):
    """Return a hash object; MD5 also on hosts whose policy forbids it for security."""
    try:
        return hashlib.new(algo)
    except ValueError:
        try:
            return hashlib.new(algo, usedforsecurity=False)
        except (TypeError, ValueError):
            raise Failure(
                "digest", "this host's Python cannot compute %s" % str(algo)[:40]
            ) from None


class Sink:
    """A staging file and the digest of what went into it; hashing runs beside reading and writing."""

    def __init__(self, fd, dir_fd, size, algo):
        self.fd = fd
        self.dir_fd = dir_fd
        self.size = size
        self.algo = algo
        self.count = 0
        self.received = 0
        self.resumed = 0
        #: Called with the count of bytes in the file whenever that has grown, and before it is cut to none.
        self.on_count = self.on_restart = None
        self.origin = None
        self.origins = set()
        #: Whether the service was found not to go on in the middle; how often it has just failed to.
        self.no_ranges, self.range_failures = False, 0
        self._digest = new_digest(algo)
        self._written_out = 0
        self._free = queue.Queue()
        self._todo = queue.Queue(_STEPS)
        for _ in range(_BUFFERS):
            self._free.put(bytearray(_BUFFER_BYTES))
        self._thread = threading.Thread(target=self._hash, daemon=True)
        self._thread.start()

    def buffer(self):
        """Lend a buffer; ``write`` with it as ``owner`` gives it back."""
        return self._free.get()

    def write(self, view, owner=None):
        """Append bytes; at most ``size`` of them ever reach the disk.

        Raises:
            Failure: ``size``, or what the file system says.
        """
        length = len(view)
        self.received += length
        if self.count + length > self.size:
            raise Failure(
                "size", "more bytes came than the image has (%d)" % self.size, size=self.size
            )
        if length:
            self.origins.add(self.origin)
        self._todo.put((view, owner))
        try:
            rest = view
            while rest:
                rest = rest[os.write(self.fd, rest) :]
        except OSError as error:
            raise os_failure(error, "cannot write the image", self.dir_fd) from error
        self.count += length
        if self.on_count:
            self.on_count(self.count)
        if self.count - self._written_out >= _WRITE_OUT_BYTES:
            os.posix_fadvise(
                self.fd, self._written_out, self.count - self._written_out, os.POSIX_FADV_DONTNEED
            )
            self._written_out = self.count

    def resume(self, count, tell):
        """Take over the first ``count`` bytes that are in the file, and cut the rest; ``tell`` how far it is.

        Raises:
            Failure: what the file system says.
        """
        try:
            os.ftruncate(self.fd, count)
            os.lseek(self.fd, 0, os.SEEK_SET)
            at = 0
            while at < count:
                owner = self.buffer()
                view = memoryview(owner)[: count - at]
                got = os.readv(self.fd, [view])
                if not got:
                    raise OSError(errno.EIO, "the file became shorter")
                self._todo.put((view[:got], owner))
                at += got
                tell(at)
        except OSError as error:
            raise os_failure(
                error, "cannot read what an earlier run brought", self.dir_fd
            ) from error
        self.count = self.resumed = self._written_out = count
        self.origins = {"earlier"}
        if self.on_count:
            self.on_count(count)

    def restart(self):
        """Forget all bytes."""
        if self.on_restart:
            self.on_restart()
        self._todo.join()
        os.ftruncate(self.fd, 0)
        os.lseek(self.fd, 0, os.SEEK_SET)
        self.count = self.resumed = self._written_out = 0
        self.origins = set()
        self._digest = new_digest(self.algo)

    def hexdigest(self):
        """Return the digest of all bytes written."""
        self._todo.join()
        return self._digest.hexdigest()

    def close(self):
        """End the hashing thread."""
        self._todo.put(None)

    def _hash(self):
        while True:
            item = self._todo.get()
            if item is not None:
                view, owner = item
                self._digest.update(view)
                if owner is not None:
                    self._free.put(owner)
            self._todo.task_done()
            if item is None:
                return


def hash_sparse(fd, size, digest):
    """Hash a file without reading its holes; yield how many bytes are done."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    zeros = bytes(_BUFFER_BYTES)
    at = 0
    while at < size:
        try:
            data_at = min(os.lseek(fd, at, os.SEEK_DATA), size)
        except OSError as error:
            data_at = size if error.errno == errno.ENXIO else at
        while at < data_at:
            step = min(_BUFFER_BYTES, data_at - at)
            digest.update(zeros if step == _BUFFER_BYTES else zeros[:step])
            at += step
            yield at
        try:
            hole_at = min(os.lseek(fd, at, os.SEEK_HOLE), size) if at < size else size
        except OSError:
            hole_at = size
        os.lseek(fd, at, os.SEEK_SET)
        while at < hole_at:
            got = os.readv(fd, [buffer[: min(_BUFFER_BYTES, hole_at - at)]])
            if not got:
                raise OSError(errno.EIO, "the file became shorter")
            digest.update(buffer[:got])
            at += got
            yield at
