"""Names of what is at work on a datastore: whose it is, and whether he lives, can be told from them."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

import hashlib
import os
import random
import re

from .vmware import PREFIX

_WORK = re.compile(
    PREFIX + r"([0-9a-f]{12})-([1-9][0-9]{0,8})-([0-9]{1,20})-[0-9a-f]{8}\Z", re.ASCII
)


def machine_tag():
    """Return a word for this boot of this machine, and for this view of its processes."""
    words = []
    for path in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"):
        try:
            with open(path) as file:
                words.append(file.read().strip())
        except OSError:
            words.append("")
    try:
        words.append(str(os.stat("/proc/self/ns/pid").st_ino))
    except OSError:
        words.append("")
    return hashlib.sha256("\n".join(words).encode("utf-8")).hexdigest()[:12]


def work_name():
    """Return a new name for a folder of ours: who works on it can be told from it."""
    return "%s%s-%d-%s-%08x" % (
        PREFIX,
        machine_tag(),
        os.getpid(),
        _started(os.getpid()) or "0",
        random.SystemRandom().getrandbits(32),
    )


def is_ours(name):
    """Whether a name is one that ``work_name`` makes; operators' own may begin as ours do."""
    return _WORK.match(name) is not None


def owner_of(name):
    """Return whether the one who works on a folder of ours is ``alive``, ``dead``, or ``unknown``."""
    match = _WORK.match(name)
    if match is None or match.group(1) != machine_tag():
        return "unknown"
    started = _started(int(match.group(2)))
    if started is None:
        # /proc may hide the processes of others (hidepid); a signal tells who is there all the same.
        return "unknown" if _answers(int(match.group(2))) else "dead"
    return "alive" if started == match.group(3) else "dead"


def _answers(pid):
    """Whether there is a process, maybe another user's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _started(pid):
    """Return when a process began, in the kernel's own count; None: there is none."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode("ascii")
    except (OSError, IndexError):
        return None
