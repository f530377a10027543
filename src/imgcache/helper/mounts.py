"""Which file systems this host has mounted, and which of them other hosts may see.

Source: Linux ``Documentation/filesystems/proc.rst`` (``mountinfo``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

import os
import re

#: All of FUSE may be a network's, save FUSE on a local disk (``fuseblk``).
_SHARED = frozenset((
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "ocfs2", "gfs",
    "gfs2", "afs", "pvfs2", "orangefs", "panfs", "wekafs", "quobyte", "9p", "virtiofs", "fuse",
))  # fmt: skip
#: The type of what is not in the list, or when there is none to read.
UNKNOWN = "unknown"
_OCTAL = re.compile(r"\\([0-7]{3})")


def may_be_shared(kind):
    """Whether other hosts may see a file system of this type."""
    return kind in _SHARED or kind.startswith("fuse.")


class Mounts:
    """The mounts of this process: (path with a slash at its end, type), the later above the earlier."""

    def __init__(self, proc):
        self.all = []
        try:
            with open(proc + "/self/mountinfo", errors="surrogateescape") as lines:
                for line in lines:
                    before, _, after = line.rpartition(" - ")
                    path = _OCTAL.sub(_character, before.split(" ")[4])
                    self.all.append((path.rstrip("/") + "/", after.split()[0]))
        except (OSError, IndexError):
            self.all = [("/", UNKNOWN)]

    def at(self, path):
        """Return the mount that an existing folder, links resolved, is on: something to compare."""
        path = path.rstrip("/") + "/"
        found = (0, 0, UNKNOWN)
        for number, (at, kind) in enumerate(self.all):
            if path.startswith(at):
                found = max(found, (len(at), number, kind))
        return found

    def kind_at(self, path):
        """Return the type of the file system that an existing folder, links resolved, is on."""
        return self.at(path)[2]

    def far_from(self, *paths):
        """Return where network storage and automounts begin that none of ``paths`` is on."""
        return tuple(
            at
            for at, kind in self.all
            if (may_be_shared(kind) or kind == "autofs")
            and not any((path.rstrip("/") + "/").startswith(at) for path in paths)
        )


def _character(match):
    return chr(int(match.group(1), 8))


def mounted_files(proc):
    """Yield (name of what is mounted, where) of each mount that does not begin at its file system's root.

    Of every mount namespace that a process is in, as far as it may be looked at.
    """
    seen = set()
    for pid in ["self", *(name for name in os.listdir(proc) if name.isdigit())]:
        path = "%s/%s" % (proc, pid)
        try:
            namespace = os.stat(path + "/ns/mnt").st_ino
            if namespace in seen:
                continue
            seen.add(namespace)
            with open(path + "/mountinfo", errors="surrogateescape") as lines:
                mounted = [line.split(" ", 5)[3:5] for line in lines]
        except (OSError, IndexError):
            continue  # it is gone; or nova may not look, who sees no open files either
        for root, place in mounted:
            if root != "/":
                yield _OCTAL.sub(_character, root).rpartition("/")[2], place
