"""What is in a Hyper-V host's cache, and what the orders about its life share.

Source: compute-hyperv ``nova/imagecache.py`` (``_list_base_images``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

import json
import os
import time

from . import hyperv, hyperv_use, vhd, winstore
from .core import Failure
from .watch import watch as watch_of

_FRAME_BYTES = 48 << 10
_FOREIGN = 1000
_ALIVE_S = 15
#: Name, its section and option in nova.conf, Nova's default. Source: nova ``conf/{imagecache,compute}.py``.
_POLICY = (
    ("remove_unused", "image_cache", "remove_unused_base_images", "true"),
    ("original_min_age_s", "image_cache", "remove_unused_original_minimum_age_seconds", "86400"),
    ("manager_interval_s", "image_cache", "manager_interval", "2400"),
    ("reserved_host_disk_mb", "DEFAULT", "reserved_host_disk_mb", "0"),
)


class Work:
    """An order at work: the controller is listened for, and hears how far it is."""

    def __init__(self, session, order):
        self.watch = watch_of(session)
        self.order = order
        self.check = self.watch.check
        self.tell = self.watch.tell

    def __enter__(self):
        self.watch.begin(self.order["id"], self.order.get("alive_s", _ALIVE_S))
        return self

    def __exit__(self, *_):
        self.watch.end()


class _Encoded:
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
            self.session.answer(self.order, "rows", rows=_Encoded(self.rows))
            self.rows, self.size = [], 0


def printable(name):
    """Return a file's name as valid text."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def is_pinned(manifest):
    """Whether a manifest's pin still holds, by this host's clock; an unreadable pin holds."""
    pin = manifest.get("pin") if manifest else None
    if pin is None:
        return False
    return not isinstance(pin, (int, float)) or pin > time.time()


# ---- list


class Listing:
    """One order ``hyperv_list``: an original is told by its image's id, a copy without its ending."""

    def __init__(self, session, order, work):
        self.store = hyperv.opened(session)
        self.order = order
        self.work = work
        self.rows = Rows(session, order)
        self.scan = None
        self.usage = self.foreign = 0

    def run(self):
        """Send the rows and return the host's facts."""
        if self.order["use"]:
            self.scan = hyperv_use.Scan(self.store, self.work.tell).run()
        for name in sorted(self.store.names()):
            self.list_name(name)
        self.rows.flush()
        free, capacity = hyperv.room(self.store)
        return {
            "filesystem": "hyperv",
            "size": capacity,
            "free": free,
            "own_filesystem": False,
            "nova_usage": self.usage,
            "problems": [text[:400] for text in self.scan.problems] if self.scan else [],
            "storage_id": None,
            "shares_with": [],
            "nodename": os.environ.get("COMPUTERNAME", ""),
            "policy": policy_of(self.store.settings),
        }

    def list_name(self, name):
        """Send the row of one name in the cache folder."""
        path = os.path.join(self.store.path, name)
        status = winstore.status_of(path)
        if status is None or name == winstore.OWN_FOLDER or is_lock(name):
            return
        kind, shown, live = self.kind_of(name, path, status)
        if winstore.is_plain(status):
            self.usage += status.st_size
        if kind == "foreign":
            self.foreign += 1
            if self.foreign > _FOREIGN:
                return
        self.rows.add(self.row(name, (kind, shown, live), status))

    def kind_of(self, name, path, status):
        """Return (kind, name as told, whether somebody is at work on it)."""
        plain = winstore.is_plain(status)
        if plain and winstore.OURS.fullmatch(name):
            return "staging", name, self.store.is_live(path)
        if plain and winstore.ID.fullmatch(name):
            return "staging", name + winstore.DOWNLOAD, self.store.is_locked(name)
        if plain and winstore.RESIZED.fullmatch(name):
            return "resized", name.rpartition(".")[0], self.store.is_locked(name)
        original = winstore.ORIGINAL.fullmatch(name)
        if plain and original and self.is_used(name, original.group(1)):
            return "original", original.group(1), False
        return "foreign", name, False

    def is_used(self, name, image_id):
        """Whether Nova uses this file of an image: of two it sees the first only."""
        try:
            final = self.store.final(image_id)
        except Failure:
            return False
        return final is not None and final.name == name

    def row(self, name, told, status):
        """Return a row."""
        kind, shown, live = told
        row = {
            "name": printable(shown),
            "kind": kind,
            "size": status.st_size,
            "allocated": status.st_size,
            "format": None,
            "mtime_ns": status.st_mtime_ns,
            "age": time.time() - status.st_mtime,
            "inode": winstore.inode_of(status),
            "links": max(status.st_nlink, 1),
            "users": None,
            "used_by": [],
            "live": bool(live),
            "manifest": None,
        }
        if self.order["formats"] and kind in ("original", "resized"):
            row["format"] = header_format(os.path.join(self.store.path, name))
        if self.scan and kind in ("original", "resized"):
            users = sorted(self.users_of(name))
            row["users"] = None if self.scan.problems else len(users)
            row["used_by"] = [printable(user)[-150:] for user in users[:3]]
        if kind == "original":
            row["manifest"] = slim(self.store.read_manifest(shown))
        return row

    def users_of(self, name):
        """Return who needs a file, or a copy that was made of it: Nova renews them together."""
        return users_of(self.scan, name)


def header_format(path):
    """Return a file's format by its header, ``raw`` when it has none; None when it cannot be read."""
    try:
        fd = winstore.open_shared(path)
    except (OSError, Failure):
        return None
    try:
        kind = vhd.kind_of(fd, os.fstat(fd).st_size)
        return kind or ("iso" if vhd.is_iso(fd) else "raw")
    except OSError:
        return None
    finally:
        os.close(fd)


def users_of(scan, name):
    """Return the disks that need a file of the cache, or one of its resized copies."""
    found = set(scan.users.get(name.lower(), ()))
    original = winstore.ORIGINAL.fullmatch(name)
    if original:
        for used, users in scan.users.items():
            if used.startswith(original.group(1) + "_"):
                found |= users
    return found


def is_lock(name):
    """Whether a name is of a lock file of Nova's."""
    return name.startswith("nova-") and name.endswith("-cache.lock")


def slim(manifest):
    """Return what others need of a manifest; None when there is none."""
    if manifest is None or len(json.dumps(manifest)) > 8192:
        return None
    return manifest


def policy_of(given):
    """Return what nova.conf says about the life of the cache; Nova's defaults where it cannot be read."""
    said = {}
    try:
        paths = given.get("nova_conf") or hyperv.nova_confs()
        read = hyperv.conf.Conf(paths) if paths else None
    except Failure:
        read = None
    for name, section, option, default in _POLICY:
        found = read.lookup([(section, option), ("DEFAULT", option)]) if read else None
        said[name] = found[0] if found else default
    try:
        policy = {name: int(said[name]) for name in said if name != "remove_unused"}
    except ValueError:
        policy = {name: int(default) for name, _, _, default in _POLICY[1:]}
    policy["remove_unused"] = said["remove_unused"].lower() in ("true", "1", "on", "yes")
    # Nova ages copies as it ages originals, and reserves nothing for the cache.
    return dict(policy, resized_min_age_s=policy["original_min_age_s"], reserves_cache=False)


def order_hyperv_list(session, order):
    """Send what is in the cache, and return what the host is."""
    with Work(session, order) as work:
        return Listing(session, order, work).run()
