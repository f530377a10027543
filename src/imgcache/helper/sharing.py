"""Whether other hosts use this host's cache too: which ones, as far as can be known, and on what storage.

Source: nova ``virt/storage_users.py``, ``compute/manager.py`` (``_run_image_cache_manager_pass``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, SIM105 - a Failure's code is a literal; imports are dear on a host

import errno
import hashlib
import os
import random
import time

from . import cache as caches
from . import mounts
from .core import Failure, decode
from .staging import rename_new

#: Nova counts a host as a user of the storage for so long after its last sign.
_RECENT_S = 86400
_ID = "storage-id"
_APART = (
    "%s is on %s, mounted apart from instances_path: who else uses it, and holds Nova's locks on it, cannot"
    " be known; share instances_path as a whole, or give each host a cache of its own"
)
_UNKNOWN = (
    "what file system %s is on, and so whether other hosts use it, cannot be told; let /proc/self/mountinfo"
    " be read there"
)
_NOBODY = (
    "%s is on %s, and %s/compute_nodes names no host of the last day, so those that share it are not known;"
    " let nova-compute's cache manager run ([image_cache] manager_interval): it need not remove anything"
)
#: Nova itself starts with an empty registry then.
_BROKEN = (
    "%s/compute_nodes, where Nova registers them, %s; nova-compute writes it again in the next pass of its"
    " cache manager; remove the file where none runs"
)


class Sharing:
    """What this host sees of those that may use the cache.

    ``kind`` is the cache's type of file system. ``users`` are the hosts that Nova registered of late, this
    one among them; ``doubt`` says why there may be others, or is None.
    """

    def __init__(self, cache, table):
        self.cache = cache
        folder = cache.instances_path if cache.cache_fd is None else cache.path
        self.kind = table.kind_at(folder)
        # Not by device numbers: two NFS folders of one server may have the same.
        self.apart = table.at(folder) != table.at(cache.instances_path)
        self.users, self.doubt = [], None
        try:
            self.users = storage_users(cache)
        except (Failure, OSError) as error:
            self.doubt = "whether other hosts share the cache: %s" % error
        if self.apart and not mounts.may_be_shared(self.kind) and self.kind != mounts.UNKNOWN:
            self.users, self.doubt = (
                [],
                None,
            )  # the instances are shared, each has a cache of its own
        self.others = len(self.users) > 1 or mounts.may_be_shared(self.kind)
        # No other host can have registered on a local disk, whatever name this one had then.
        self.alone = len(self.users) == 1 and not self.others and self.kind != mounts.UNKNOWN
        if cache.cache_fd is not None:
            self.doubt = self.doubt_others()

    def sharers(self, nodename):
        """Return the hosts that use the storage besides this one, which Nova knows by this name."""
        if self.alone:
            return []
        return [host for host in self.users if not same_host(host, nodename)]

    def doubt_others(self):
        """Return why there may be hosts on network storage that nobody names.

        The registry is in ``instances_path``, and so are the instances and Nova's locks: hosts that share
        nothing but the folder of base files are named nowhere, and boot whatever anybody else does.
        """
        if self.kind == mounts.UNKNOWN:
            return _UNKNOWN % self.cache.path
        if not mounts.may_be_shared(self.kind):
            return self.doubt
        if self.apart:
            return _APART % (self.cache.path, self.kind)
        if self.doubt is None and not self.users:
            return _NOBODY % (self.cache.path, self.kind, self.cache.instances_path)
        return self.doubt

    def storage_id(self, mark):
        """Return the word that tells the storage from others, the same on all hosts; None: nobody else's.

        Without ``mark`` nothing is written. Storage that was never marked then has a word made of what all
        hosts find there at that time, if Nova knows of them; else none.
        """
        cache = self.cache
        if cache.cache_fd is None or not self.others:
            return None
        if mark:
            cache.open_folders(create=True)
            return _marked(cache)
        word = None if cache.own_fd is None else _read_id(cache)
        if word is None and len(self.users) > 1 and not self.apart:
            found = "%d %s" % (os.fstat(cache.cache_fd).st_ino, "\n".join(self.users))
            word = "unmarked-" + hashlib.sha256(found.encode("utf-8", "replace")).hexdigest()[:32]
        return word


def same_host(one, other):
    """Whether two names are of one host: a short name is that of any full one that begins with it."""
    short, _, domain = one.lower().rstrip(".").partition(".")
    other_short, _, other_domain = other.lower().rstrip(".").partition(".")
    return short == other_short and (domain == other_domain or not (domain and other_domain))


def _distinct(hosts):
    """Return the hosts, those with two names once, by the longer one."""
    found = []
    for host in sorted(hosts, key=lambda name: (-len(name), name)):
        if not any(same_host(host, other) for other in found):
            found.append(host)
    return sorted(found)


def storage_users(cache):
    """Return the hosts that used this storage of late, by Nova's registry; none when there is no registry."""
    text = b""
    for _ in range(4):
        try:
            fd = os.open(
                "compute_nodes",
                os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK,
                dir_fd=cache.instances_fd,
            )
        except FileNotFoundError:
            return []
        with open(fd, "rb") as file:
            text = file.read(4 << 20)
        try:
            now = time.time()
            seen = decode(text.decode("utf-8")).items()
            return _distinct(str(host)[:255] for host, at in seen if now - float(at) < _RECENT_S)
        except (ValueError, AttributeError, TypeError):
            time.sleep(0.1)  # Nova rewrites it in place
    raise Failure(
        "io", _BROKEN % (cache.instances_path, "holds no JSON object" if text else "is empty")
    )


def _marked(cache):
    """Return the word that is written down in our folder; made when missing."""
    for _ in range(3):
        word = _read_id(cache)
        if word is not None:
            return word
        _make_id(cache)
    raise Failure("io", "%s/.imgcache/%s comes and goes" % (cache.path, _ID))


def _read_id(cache):
    """Return the word that is written down, or None."""
    try:
        fd = os.open(_ID, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=cache.own_fd)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        word = file.read(64).strip().decode("ascii", "replace")
    if len(word) == 32 and not word.strip("0123456789abcdef"):
        return word
    raise Failure("io", "%s/.imgcache/%s is damaged; remove it" % (cache.path, _ID))


def _make_id(cache):
    """Write the file whole under another name first: hosts that come at once agree on one."""
    word = "%032x" % random.SystemRandom().getrandbits(128)
    name = "%s.%s" % (_ID, word)
    fd = os.open(
        name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=cache.own_fd
    )
    try:
        os.fchmod(fd, 0o644)
        os.write(fd, word.encode() + b"\n")
        os.fsync(fd)
        try:
            os.link(
                name, _ID, src_dir_fd=cache.own_fd, dst_dir_fd=cache.own_fd, follow_symlinks=False
            )
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            if error.errno != errno.EEXIST:  # no hard links here
                rename_new(cache.own_fd, name, cache.own_fd, _ID)
    finally:
        os.close(fd)
        try:
            os.unlink(name, dir_fd=cache.own_fd)
        except FileNotFoundError:
            pass


def order_storage(session, order):
    """Tell which storage the cache is on, when other hosts may share it; null: it is this host's own."""
    del order
    cache = caches.opened(session)
    cache.open_folders(create=True)
    return {"storage_id": Sharing(cache, mounts.Mounts("/proc")).storage_id(mark=True)}
