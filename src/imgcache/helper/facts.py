"""What a host says about its cache as a whole: file system, sharing, Nova's accounting and policy.

Source: nova ``conf/imagecache.py``, ``virt/libvirt/imagecache.py`` (``get_disk_usage``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal

import os
import socket

from . import conf, mounts, sharing
from .core import Failure

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


def describe(cache, nova_usage, problems, mark):
    """Return the host's facts, as ``list`` ends with them; ``mark``: see ``Sharing.storage_id``."""
    folder_fd = cache.instances_fd if cache.cache_fd is None else cache.cache_fd
    room = os.fstatvfs(folder_fd)
    own = os.fstat(folder_fd).st_dev != os.fstat(cache.instances_fd).st_dev
    values, nodename = policy(cache, problems)
    shared, word = sharing.Sharing(cache, mounts.Mounts("/proc")), None
    try:
        word = shared.storage_id(mark)
    except (Failure, OSError) as error:
        problems.append("whether other hosts share the cache: %s" % error)
    return {
        "filesystem": shared.kind,
        "size": room.f_blocks * room.f_frsize,
        "free": room.f_bavail * room.f_frsize,
        "own_filesystem": own,
        "nova_usage": 0 if own else nova_usage,
        "problems": problems,
        "storage_id": word,
        "shares_with": shared.sharers(nodename),
        "nodename": nodename,
        "policy": values,
    }
