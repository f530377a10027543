"""What a host says about its cache as a whole: file system, sharing, Nova's accounting and policy.

Source: nova ``conf/imagecache.py``, ``virt/storage_users.py``, ``virt/libvirt/imagecache.py``
(``get_disk_usage``); Linux ``Documentation/filesystems/proc.rst`` (``mountinfo``, ``fdinfo``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, SIM105 - a Failure's code is a literal; imports are dear on a host

import errno
import os
import random
import socket
import time

from . import cache as caches
from . import conf, mounts
from .core import Failure, decode
from .staging import rename_new

_AGE = "remove_unused_%s_minimum_age_seconds"
conf.OPTIONS.update(
    {
        "remove_unused": (
            (
                ("image_cache", "remove_unused_base_images"),
                ("DEFAULT", "remove_unused_base_images"),
            ),
            "true",
        ),
        "original_min_age_s": (
            (("image_cache", _AGE % "original"), ("DEFAULT", _AGE % "original")),
            "86400",
        ),
        "resized_min_age_s": (
            (("image_cache", _AGE % "resized"), ("libvirt", _AGE % "resized")),
            "3600",
        ),
        "manager_interval_s": (
            (("image_cache", "manager_interval"), ("DEFAULT", "image_cache_manager_interval")),
            "2400",
        ),
        "reserved_host_disk_mb": ((("DEFAULT", "reserved_host_disk_mb"),), "0"),
        "reserves_cache": (
            (("workarounds", "reserve_disk_resource_for_image_cache"),),
            "false",
        ),
    }
)
_SWITCHES = ("remove_unused", "reserves_cache")
_NUMBERS = (
    "original_min_age_s",
    "resized_min_age_s",
    "reserved_host_disk_mb",
    "manager_interval_s",
)
#: Nova counts a host as a user of the storage for so long after its last sign.
_RECENT_S = 86400
_ID = "storage-id"


def policy(cache, problems):
    """Return (the policy, the name that Nova has for this host); what cannot be read becomes a problem."""
    values, found, nodename = {}, None, ""
    try:
        found = conf.Conf(cache.nova_conf or conf.find_files())
        named = found.lookup((("DEFAULT", "host"),))
        nodename = found.substitute(named[0], "DEFAULT", "host", 0) if named else ""
    except Failure as failure:
        problems.append(failure.message)
    for name in _SWITCHES + _NUMBERS:
        default = conf.OPTIONS[name][1]
        read = conf._boolean if name in _SWITCHES else _number
        try:
            values[name] = read(name, *(found.get(name) if found else (default, "default")))
        except Failure as failure:
            problems.append(failure.message)
            values[name] = read(name, default, "default")
    return values, nodename or socket.gethostname()


def _number(setting, value, origin):
    try:
        return int(value)
    except ValueError:
        raise Failure(
            "config", "%s: %s must be a number, not %r" % (origin, setting, value[:60])
        ) from None


def storage_users(cache):
    """Return the hosts that used this storage of late, by Nova's registry; none when there is no registry."""
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
            return sorted(str(host)[:255] for host, at in seen if now - float(at) < _RECENT_S)
        except (ValueError, AttributeError, TypeError):
            time.sleep(0.1)  # Nova rewrites it in place
    raise Failure("io", "%s/compute_nodes holds no JSON object" % cache.instances_path)


def storage_id(cache):
    """Return the word that tells this storage from others, the same on all hosts; made when missing."""
    if cache.cache_fd is None:
        return None
    cache.open_folders(create=True)
    for _ in range(3):
        try:
            fd = os.open(_ID, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=cache.own_fd)
        except FileNotFoundError:
            _make_storage_id(cache)
            continue
        with open(fd, "rb") as file:
            word = file.read(64).strip().decode("ascii", "replace")
        if len(word) == 32 and not word.strip("0123456789abcdef"):
            return word
        raise Failure("io", "%s/.imgcache/%s is damaged; remove it" % (cache.path, _ID))
    raise Failure("io", "%s/.imgcache/%s comes and goes" % (cache.path, _ID))


def _make_storage_id(cache):
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


def describe(cache, nova_usage, problems):
    """Return the host's facts, as ``list`` ends with them."""
    folder_fd = cache.instances_fd if cache.cache_fd is None else cache.cache_fd
    room = os.fstatvfs(folder_fd)
    own = os.fstat(folder_fd).st_dev != os.fstat(cache.instances_fd).st_dev
    values, nodename = policy(cache, problems)
    folder = cache.instances_path if cache.cache_fd is None else cache.path
    kind, sharing, word = mounts.Mounts("/proc").kind_at(folder), [], None
    try:
        sharing = storage_users(cache)
        if mounts.may_be_shared(kind) or len(sharing) > 1:
            word = storage_id(cache)
    except (Failure, OSError) as error:
        problems.append("whether other hosts share the cache: %s" % error)
    return {
        "filesystem": kind,
        "size": room.f_blocks * room.f_frsize,
        "free": room.f_bavail * room.f_frsize,
        "own_filesystem": own,
        "nova_usage": 0 if own else nova_usage,
        "problems": problems,
        "storage_id": word,
        "shares_with": [host for host in sharing if host != nodename],
        "nodename": nodename,
        "policy": values,
    }


def order_storage(session, order):
    """Tell which storage the cache is on, when other hosts may share it; null: it is this host's own."""
    del order
    cache = caches.opened(session)
    word = None
    if mounts.may_be_shared(mounts.Mounts("/proc").kind_at(cache.instances_path)) or (
        len(storage_users(cache)) > 1
    ):
        cache.open_folders(create=True)
        word = storage_id(cache)
    return {"storage_id": word}
