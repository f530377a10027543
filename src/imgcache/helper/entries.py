"""What is in the cache: every entry by the shape of its name, and the host's facts.

Source: nova ``virt/libvirt/imagecache.py`` (``_scan_base_images``, ``get_disk_usage``),
``virt/images.py`` (``fetch_to_raw``: ``.part``, ``.converted``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

import errno
import fcntl
import json
import os
import re
import stat
import time

from . import facts, formats, headers, removable, usage
from .core import Failure
from .owners import is_anothers
from .watch import watch as watch_of

#: Stricter than Nova, which takes any 40 characters for a base file, and removes it after a day.
_SHAPES = (
    ("original", re.compile(r"[0-9a-f]{40}")),
    ("resized", re.compile(r"[0-9a-f]{40}_(?:[0-9]+|sm)")),
    ("swap", re.compile(r"swap_[0-9]+")),
    ("ephemeral", re.compile(r"ephemeral_[0-9]+_[0-9A-Za-z]{7}")),
    ("staging", re.compile(r"[0-9a-f]{40}\.(?:part|converted)")),
)
OURS = re.compile(r"([0-9a-f]{40})\.[0-9a-f]{16}\.staging")
#: The kinds of finals: what Nova's manager would remove, and ``remove`` may.
FINALS = ("original", "resized", "swap", "ephemeral")
_FOREIGN = 1000
_FRAME_BYTES = 48 << 10
_ALIVE_S = 15
_RAW = ("raw", "gpt", "iso")
_DIGEST = ("algo", "value", "weak")
_STORED = ("algo", "value", "size", "format", "mtime_ns")
_KEYS = (
    "image_id",
    "image_name",
    "base",
    "disk_format",
    "source",
    "tool",
    "run",
    "cached_at",
    "touched_at",
    "verified_at",
    "pin",
)


def kind_of(name):
    """Return what a name in the cache folder is, as ``EntryKind``."""
    for kind, shape in _SHAPES:
        if shape.fullmatch(name):
            return kind
    return "foreign"


def opened(session):
    """Return the cache that ``open`` opened, also one that must not be filled: it may hold what was there."""
    if session.cache is None:
        raise session.open_failure or Failure("protocol", "the cache was not opened")
    session.cache.open_folders(create=False)
    return session.cache


class Work:
    """An order at work: the controller is listened for, and hears how far it is."""

    def __init__(self, session, order):
        self.watch = watch_of(session)
        self.order = order
        self.check = self.watch.check
        self.before = self.last = 0

    def __enter__(self):
        self.watch.begin(self.order["id"], self.order.get("alive_s", _ALIVE_S))
        return self

    def tell(self, phase, done, total):
        """Note how far it is; a second round goes on where the first one ended."""
        if done < self.last:
            self.before += self.last
        self.last = done
        self.watch.tell(phase, self.before + done, self.before + total)

    def __exit__(self, *_):
        self.watch.end()


class Encoded:
    """JSON text that ``core.encode`` takes as it is."""

    def __init__(self, texts):
        self.texts = texts

    def __repr__(self):
        return "[%s]" % ",".join(self.texts)


class Rows:
    """Sends rows, as many in a frame as fit."""

    def __init__(self, session, order):
        self.session = session
        self.order = order
        self.rows = []
        self.size = 0

    def add(self, row):
        """Send a row, sooner or later."""
        text = json.dumps(row)
        if self.size + len(text) > _FRAME_BYTES:
            self.flush()
        self.rows.append(text)
        self.size += len(text) + 1

    def flush(self):
        """Send what is waiting."""
        if self.rows:
            self.session.answer(self.order, "rows", rows=Encoded(self.rows))
            self.rows, self.size = [], 0


def status_of(name, dir_fd):
    """Return what a name is, never what it points to; None when it is gone."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def printable(name):
    """Return a file's name as valid text."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def header_format(name, dir_fd):
    """Return a file's format by its header; None when it cannot be read, ``unknown`` when it is several."""
    flags = headers.FLAGS | os.O_NOFOLLOW
    try:
        fd = usage.either(os.open, name, flags, dir_fd=dir_fd)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        matched = formats.match(formats.Content(fd, status.st_size))
        return "raw" if matched in _RAW else matched
    except Failure:
        return "unknown"
    except OSError:
        return None
    finally:
        os.close(fd)


def is_live(name, cache):
    """Whether a run of imgcache holds a staging file; None where its lock, or the lack of any, does not tell.

    Takes its lock for a moment: a run that just made the file then makes another.
    """
    try:
        fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=cache.own_fd)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    except OSError as error:
        return True if error.errno in (errno.EACCES, errno.EAGAIN) else None
    finally:
        os.close(fd)
    return None if is_anothers(cache, name) else False


def is_locked(cache, base):
    """Whether somebody holds Nova's lock on a base file; makes no lock file."""
    try:
        fd = cache.lock(base, 0, create=False)
    except Failure:
        return True
    if fd is not None:
        os.close(fd)
    return False


def is_pinned(manifest):
    """Whether a manifest's pin still holds, by this host's clock; an unreadable pin holds."""
    pin = manifest.get("pin") if manifest else None
    if pin is None:
        return False
    return not isinstance(pin, (int, float)) or pin > time.time()


def staging_names(cache):
    """Return the names of our staging files."""
    names = os.listdir(cache.own_fd) if cache.own_fd is not None else ()
    return [name for name in names if OURS.fullmatch(name)]


class Listing:
    """One order ``list``."""

    def __init__(self, session, order, work):
        self.cache = opened(session)
        self.order = order
        self.work = work
        self.rows = Rows(session, order)
        self.manifests = frozenset()
        self.scan = None
        self.folder = None
        self.nova_usage = self.foreign = 0
        self.problems = []

    def run(self):
        """Send the rows and return the host's facts."""
        cache = self.cache
        if cache.own_fd is not None:
            self.manifests = frozenset(
                name[:-5] for name in os.listdir(cache.own_fd) if name.endswith(".json")
            )
        if self.order["use"]:
            self.scan = usage.usage_of(cache).scan(self.targets(), self.work.tell)
            self.problems = list(self.scan.problems)
            if cache.cache_fd is not None:
                self.folder = removable.Folder(cache.cache_fd)
        for name in self.names():
            self.list_entry(name)
        for name in staging_names(cache):
            status = status_of(name, cache.own_fd)
            if status is not None:
                self.send(name, "staging", status, cache.own_fd, is_live(name, cache))
        self.rows.flush()
        return facts.describe(cache, self.nova_usage, self.problems, bool(self.order.get("mark")))

    def names(self):
        """Return the names in the cache folder; not kept, for there may be very many."""
        return os.listdir(self.cache.cache_fd) if self.cache.cache_fd is not None else []

    def targets(self):
        """Return the files whose users are asked for: all that Nova or we may have made."""
        found = {}
        for name in self.names():
            if kind_of(name) != "foreign":
                status = status_of(name, self.cache.cache_fd)
                if status is not None:
                    found[name] = status.st_ino
        return found

    def list_entry(self, name):
        """Send the row of one name in the cache folder."""
        status = status_of(name, self.cache.cache_fd)
        if status is None or name == ".imgcache":
            return
        kind = kind_of(name) if stat.S_ISREG(status.st_mode) else "foreign"
        if stat.S_ISREG(status.st_mode):
            self.nova_usage += status.st_blocks * 512
        if kind == "foreign":
            self.foreign += 1
            if self.foreign > _FOREIGN:
                return
        live = kind == "staging" and (
            is_locked(self.cache, name[:40]) or bool(self.scan and self.scan.users.get(name))
        )
        self.send(name, kind, status, self.cache.cache_fd, live)

    def send(self, name, kind, status, dir_fd, live):
        """Send a row."""
        row = {
            "name": printable(name),
            "kind": kind,
            "size": status.st_size,
            "allocated": status.st_blocks * 512,
            "format": None,
            "mtime_ns": status.st_mtime_ns,
            "age": time.time() - status.st_mtime,
            "inode": status.st_ino,
            "links": status.st_nlink,
            "users": None,
            "used_by": [],
            "live": bool(live),
            "unremovable": None,
            "manifest": None,
        }
        if self.order["formats"] and stat.S_ISREG(status.st_mode):
            row["format"] = header_format(name, dir_fd)
        if self.scan and kind in FINALS:
            users = self.scan.users.get(name, ())
            row["users"] = None if self.problems else len(users)
            row["used_by"] = [printable(user)[:100] for user in sorted(users)[:3]]
            row["unremovable"] = self.folder.hindrance(name, status)
        if name in self.manifests and kind == "original":
            row["manifest"] = slim(self.cache.read_manifest(name))
        self.rows.add(row)


def slim(manifest):
    """Return what others need of a manifest, each field short; None when there is none."""
    if manifest is None:
        return None
    row = {key: _short(manifest.get(key)) for key in _KEYS}
    for part, keys in (("digest", _DIGEST), ("stored", _STORED)):
        given = manifest.get(part)
        given = given if isinstance(given, dict) else {}
        row[part] = {key: _short(given.get(key)) for key in keys}
    return row


def _short(value):
    if isinstance(value, str):
        return value[:300]
    return value if isinstance(value, (int, float)) else None


def order_list(session, order):
    """Send what is in the cache, and return what the host is."""
    with Work(session, order) as work:
        return Listing(session, order, work).run()
