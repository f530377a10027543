"""What the datastores have of images, when Nova used them last, and how that is renewed.

An entry is an image, whichever datastores have it: Nova may choose any of them for the next boot.
Source: nova ``virt/vmwareapi/imagecache.py`` (timestamps), ``vmops.py`` (what counts as there).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a warm host

import calendar
import hashlib
import os
import time

from . import vmware_files as files
from . import vmware_notes as notes
from .core import Failure
from .vmware import MANIFEST, TIMESTAMP, is_image_id, opened
from .vmware_image import Plan
from .watch import watch as watch_of

_ALIVE_S = 15
_LOCK_WAIT_S = 60
_RESERVE_BYTES = 10 << 30
#: Clocks that differ by less are the same: vCenter tells whole seconds.
_SAME_S = 3.0
_MAX_FOREIGN = 1000
_FORMATS = ("vmdk", "iso")
#: Times after it nobody means.
_LATEST = float(1 << 33)
_MARK = TIMESTAMP + "%Y-%m-%d-%H-%M-%S"


def utc_now():
    """Return the time as manifests have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def find(cluster, store, image_id, image_format):
    """Return the files of an image's folder when the image is there, by Nova's measure; else None."""
    found = cluster.search(store, "%s/%s" % (cluster.base, image_id))
    wanted = "%s.%s" % (image_id, image_format)
    if found is None or not any(file.name == wanted and not file.folder for file in found):
        return None
    return found


def is_there(cluster, store, image_id, image_format):
    """Whether an image is there, as far as its files' names tell.

    Raises:
        Failure: ``damaged``: Nova would take it, and no instance could boot from it.
    """
    found = find(cluster, store, image_id, image_format)
    if found is None:
        return False
    folder, wanted = "%s/%s" % (cluster.base, image_id), "%s.%s" % (image_id, image_format)
    if files.lacks_content(cluster, store, folder, found, wanted):
        text = "%s is there without its content %s: no instance can boot from it; remove the folder"
        path = store.path(folder, wanted)
        raise Failure("damaged", text % (path, files.flat_of(wanted)))
    return True


def touch(cluster, store, image_id, image_format, wait_s):
    """Take the timestamp away by which Nova would count an image as unused; None: it is not there.

    Returns whether something was changed, or could have been: None is for an image that is gone.
    """
    lock_fd = cluster.lock(store, image_id, wait_s)
    try:
        found = find(cluster, store, image_id, image_format)
        if found is None:
            return None
        folder = "%s/%s" % (cluster.base, image_id)
        for file in found:
            if file.folder and file.name.startswith(TIMESTAMP):
                files.delete(cluster, store, folder, file.name)
        noted = any(file.name == MANIFEST for file in found) and change_manifest(
            cluster, store, image_id, lambda known: known.update(touched_at=utc_now())
        )
        if not noted and not cluster.settings.marks:
            # Nova will not, and its files' times are those of the image: nothing else would tell.
            mark = time.strftime(_MARK, time.gmtime())
            files.make_folder(cluster, store, folder, mark)
    finally:
        if lock_fd is not None:
            os.close(lock_fd)
    return True


def change_manifest(cluster, store, image_id, change):
    """Change an image's manifest on one datastore; False: there is none that can be used.

    No other helper on this host changes one meanwhile: else a pin could be lost to a verification.
    """
    lock_fd = _notes_lock(cluster)
    try:
        manifest = notes.read_manifest(cluster, store, image_id)
        if manifest is None:
            return False
        change(manifest)
        notes.write_manifest(cluster, store, "%s/%s" % (cluster.base, image_id), manifest)
        return True
    finally:
        if lock_fd is not None:
            os.close(lock_fd)


def _notes_lock(cluster):
    try:
        return cluster.lock_file("imgcache-vmware-notes", _LOCK_WAIT_S)
    except Failure as failure:
        if failure.code in ("lock", "permission"):
            return None  # where Nova's locks cannot be taken either, nothing is lost by noting
        raise


def content_size(found, name):
    """Return the size of the file that holds an image's content; 0: it is not shown."""
    sizes = {file.name: file.size for file in found if not file.folder}
    if name.endswith(".vmdk"):
        return sizes.get(files.flat_of(name), sizes.get(name, 0))
    return sizes.get(name, 0)


class Copy:
    """What one datastore has of an image."""

    def __init__(self, cluster, store, image_id, found):
        self.store = store
        self.format = None
        names = {file.name for file in found if not file.folder}
        for image_format in _FORMATS:
            if "%s.%s" % (image_id, image_format) in names:
                self.format = image_format
        self.name = "%s.%s" % (image_id, self.format)
        self.size = content_size(found, self.name)
        self.allocated = sum(file.size for file in found if not file.folder)
        self.manifest = None
        if MANIFEST in names and self.format:
            self.manifest = notes.read_manifest(cluster, store, image_id)
        #: On vSAN a disk's content is an object: no file of it is shown, nor can it be read.
        self.hidden = store.kind == "vsan" and self.format == "vmdk"
        if self.format == "vmdk" and files.flat_of(self.name) not in names:
            # Not every browser of datastores shows it: what cannot be seen is no damage.
            noted = self.manifest["stored"].get("size") if self.manifest else None
            self.size = noted if type(noted) is int and 0 <= noted < 1 << 62 else self.size
        self.marked_at = None
        for file in found:
            if file.folder and file.name.startswith(TIMESTAMP):
                self.marked_at = marked_at(file.name)
        self.used_at = self.marked_at
        self.by_vcenter = self.marked_at is None
        #: In use, or just renewed, or new: in the next round of its manager Nova would mark it otherwise.
        self.unmarked = self.marked_at is None and cluster.settings.marks
        if self.by_vcenter:
            times = [file.mtime for file in found if file.name != MANIFEST]
            self.used_at = max([touched_at(self.manifest), *times])
        self.used_at = min(self.used_at, _LATEST)

    def age(self, now, offset_s):
        """Return how long ago it was used, as far as that is known; vCenter's clock may be another."""
        if self.unmarked:
            return 0.0
        return now - self.used_at + (offset_s if self.by_vcenter else 0.0)

    @property
    def damage(self):
        """Whether its size is not the one that was noted."""
        return self.manifest is not None and self.manifest["stored"].get("size") != self.size


def marked_at(name):
    """Return when Nova marked an image as unused, in seconds of the epoch; None: the name does not tell."""
    try:
        return float(calendar.timegm(time.strptime(name, _MARK)))
    except ValueError:
        return None


def touched_at(manifest):
    """Return when imgcache itself set an entry's time last; 0.0: never."""
    try:
        return float(
            calendar.timegm(time.strptime(manifest.get("touched_at"), "%Y-%m-%dT%H:%M:%SZ"))
        )
    except (AttributeError, TypeError, ValueError):
        return 0.0


class Look:
    """All caches of a cluster at one moment."""

    def __init__(self, cluster, only=None, tell=lambda done, total: None):
        self.cluster = cluster
        self.now = time.time()
        self.offset_s = cluster.now() - self.now
        if abs(self.offset_s) < _SAME_S:
            self.offset_s = 0.0
        self.copies = {}
        self.foreign = []
        self.there = []
        for store in cluster.stores:
            if only is None:
                folders = cluster.tree(store, cluster.base)
            else:
                found = cluster.search(store, "%s/%s" % (cluster.base, only))
                folders = {} if found is None else {only: found}
            if folders is not None:
                self.there.append(store)
            for number, (name, found) in enumerate(sorted((folders or {}).items())):
                tell(number, len(folders))
                copy = Copy(cluster, store, name, found) if is_image_id(name) else None
                if copy is not None and copy.format:
                    self.copies.setdefault(name, []).append(copy)
                else:
                    size = sum(file.size for file in found)
                    self.foreign.append((store.path(cluster.base, name), size))

    def row(self, image_id, use):
        """Return the row of one image."""
        copies = self.copies[image_id]
        shown = sorted(copies, key=lambda copy: (not copy.damage, copy.manifest is None))[0]
        used_at = max(copy.used_at for copy in copies)
        users = use.of(image_id) if use else None
        count, all_count = len(copies), len(self.cluster.stores)
        manifest = shown.manifest and dict(shown.manifest, pin=self.pin(copies))
        return {
            "name": image_id,
            "kind": "original",
            "size": shown.size,
            "allocated": sum(copy.allocated for copy in copies),
            "format": shown.format
            if count == all_count
            else "%s (%d of %d)" % (shown.format, count, all_count),
            "mtime_ns": int(used_at * 1e9),
            "age": self.age(copies),
            "inode": self.identity(copies),
            "links": 1,
            "partial": count < all_count,
            "users": None if use is None or use.problems else len(users),
            "used_by": (users or [])[:3],
            "live": False,
            "manifest": manifest,
        }

    def age(self, copies):
        """Return how long ago an image was used, in seconds, as far as that is known."""
        return min(copy.age(self.now, self.offset_s) for copy in copies)

    @staticmethod
    def pin(copies):
        """Return the longest pin of an image's copies."""
        pins = [copy.manifest.get("pin") for copy in copies if copy.manifest]
        if "forever" in pins:
            return "forever"
        ends = [pin for pin in pins if isinstance(pin, (int, float)) and not isinstance(pin, bool)]
        return max(ends) if ends else None

    @staticmethod
    def identity(copies):
        """Return a number that changes when the copies are others."""
        words = sorted(
            "%s %s %d %s" % (copy.store.ref.value, copy.name, copy.size, touched_at(copy.manifest))
            for copy in copies
        )
        return int(hashlib.sha256("\n".join(words).encode("utf-8")).hexdigest()[:15], 16)

    def foreign_rows(self):
        """Yield the rows of what is no image."""
        for name, size in self.foreign[:_MAX_FOREIGN]:
            yield {
                "name": name,
                "kind": "foreign",
                "size": size,
                "allocated": size,
                "format": None,
                "mtime_ns": 0,
                "age": 0.0,
                "inode": 0,
                "links": 1,
                "users": 0,
                "used_by": [],
                "live": False,
                "manifest": None,
            }


class Work:
    """An order at work: the controller is listened for, and told that we are alive."""

    def __init__(self, session, order):
        self.watch = watch_of(session)
        self.order = order

    def __enter__(self):
        self.watch.begin(self.order["id"], self.order.get("alive_s", _ALIVE_S))
        self.tell(0, 1)
        return self

    def tell(self, done, total):
        """Note how far it is."""
        self.watch.tell("inspect", done, total)

    def __exit__(self, *_):
        self.watch.end()


def order_vmware_touch(session, order):
    """Renew an image that every datastore has; what one lacks is for ``vmware_fetch``."""
    cluster = opened(session)
    plan = Plan(order["image"], order["properties"], order["container"])
    stores = suited(cluster, plan)
    with Work(session, order) as work:
        return _touched(cluster, order, plan, stores, work.tell)


def _touched(cluster, order, plan, stores, tell):
    """Return what ``vmware_touch`` answers."""
    image_id, missing, damaged = order["image"]["id"], [], None
    for number, store in enumerate(stores):
        tell(number, 2 * len(stores))
        try:
            if not is_there(cluster, store, image_id, plan.format):
                missing.append(store)
        except Failure as failure:
            if failure.code != "damaged":
                raise
            damaged = failure  # told when the others have been renewed
    answer = {
        "missing": [store.name for store in missing],
        "short": None,
        "reason": None,
        "touched": False,
    }
    if missing:
        short = [room_problem(store, plan, order["image"], order["reserve"]) for store in missing]
        short = [failure.message for failure in short if failure is not None]
        return dict(answer, state="absent", short="; ".join(short) or None)
    if not order["dry"]:
        for number, store in enumerate(stores):
            tell(len(stores) + number, 2 * len(stores))
            try:
                if touch(cluster, store, image_id, plan.format, _LOCK_WAIT_S) is None:
                    return dict(answer, state="absent", missing=[store.name])
            except Failure as failure:
                return dict(answer, state="existing", reason=failure.message)
    if damaged is not None:
        raise damaged
    return dict(answer, state="existing", touched=not order["dry"])


def reserve_of(store, given):
    """Return how many bytes a datastore must keep free."""
    return max(store.capacity // 20, _RESERVE_BYTES) if given is None else given


def room_problem(store, plan, image, reserve, capacity=0):
    """Return the ``Failure`` of a datastore that would not keep its reserve free, or None.

    ``capacity``: what the disk's own header says; an image's record may know nothing of it.
    """
    need = image["size"]
    if not plan.as_it_is:
        need += max(image["virtual_size"] or image["size"], capacity)
    reserve = reserve_of(store, reserve)
    if need + reserve <= store.free:
        return None
    message = "datastore %s: %d bytes are needed, beside a reserve of %d; %d are free"
    return Failure("space", message % (store.name, need, reserve, store.free))


def suited(cluster, plan):
    """Return the datastores that an image of this kind can go to, or fail."""
    stores = [store for store in cluster.stores if plan.imported or store.kind != "vsan"]
    if not stores:
        raise Failure(
            "backend",
            "all datastores are vSAN, to which Nova puts streamOptimized images only; this one is %s"
            % plan.kind,
        )
    return stores


def order_vmware_renew(session, order):
    """Renew an image wherever it is."""
    cluster, image_id = opened(session), order["base"]
    with Work(session, order) as work:
        copies = Look(cluster, image_id).copies.get(image_id) if is_image_id(image_id) else None
        if not copies:
            return {"state": "absent", "touched": False, "reason": None}
        if not order["dry"]:
            for number, copy in enumerate(copies):
                work.tell(number, len(copies))
                touch(cluster, copy.store, image_id, copy.format, _LOCK_WAIT_S)
    return {"state": "existing", "touched": not order["dry"], "reason": None}
