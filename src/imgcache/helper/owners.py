"""Whose a staging file is, where hosts share a cache and may not share its locks.

NFS mounted with nolock or local_lock, and some FUSE, grant a lock to one process of every host. So what such
a lock tells is true of this host's own files alone. Another's are neither continued nor removed: ``clean``
goes by their age.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from . import mounts, sharing
from .staging import host_tag


def may_share(cache):
    """Whether other hosts may see this cache."""
    if getattr(cache, "may_share", None) is None:
        seen = sharing.Sharing(cache, mounts.Mounts("/proc"))
        cache.may_share = seen.others or seen.doubt is not None
    return cache.may_share


def is_anothers(cache, name):
    """Whether a staging file may be another host's."""
    return name[41:49] != host_tag() and may_share(cache)
