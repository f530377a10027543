"""Makes an image's files on one datastore: prepared in ``vmware_temp``, checked, moved as a folder.

So Nova, for whom a file of the right name is the image, never finds half of one.
Source: nova ``virt/vmwareapi/vmops.py`` (``_fetch_image_if_missing`` and what it calls).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a warm host

import contextlib

from . import vmware_files as files
from . import vmware_notes as notes
from .core import Failure
from .soap import Fault
from .vmware import MANIFEST, TIMESTAMP
from .vmware_bring import Carrying, FileTarget, Sink
from .vmware_entry import is_there, room_problem, utc_now
from .vmware_image import FLAT, ISO, OVA, SPARSE
from .vmware_import import ImportTarget, OvaTarget


class Making:
    """The part of a ``Fetch`` that works on one datastore."""

    #: Of vSphere's tasks, in percent of one.
    told = 0

    def is_there(self, store):
        """Whether a datastore has the image; see ``vmware_entry.is_there``."""
        return is_there(self.cluster, store, self.image["id"], self.plan.format)

    @contextlib.contextmanager
    def telling(self):
        """Have one task of vSphere's told as progress: with a big disk it takes its time.

        In an order, progress of a phase never goes back: each task adds its hundred.
        """
        self.told += 100
        best = [self.told - 100]

        def tell(percent):
            best[0] = max(best[0], self.told - 100 + min(100, percent))
            self.watch.tell("convert", best[0], self.told)

        tell(0)
        self.cluster.vim.tell = tell
        try:
            yield
        finally:
            self.cluster.vim.tell = None

    def create(self, store, path):
        """Create an empty disk; vSphere zeroes some kinds of them."""
        with self.telling():
            files.create_disk(self.cluster, store, path, self.plan)

    # ---- the first datastore

    def fetch(self, store):
        """Bring the image's bytes to one datastore, and publish them there."""
        temp = files.Temp(self.cluster, store, self.image["id"])
        made = "%s/%s" % (temp.inner, self.plan.name)
        try:
            if self.plan.imported:
                imported = self.bring_disk(store)
                if store.kind == "vsan":
                    made = imported
                elif not files.move_disk(self.cluster, store, imported, made):
                    raise Failure("io", "the imported disk could not be moved to " + temp.inner)
            else:
                self.bring_file(store, temp)
            self.watch.tell("publish", 0, 1)
            self.check_stored(store, temp.inner)
            self.publish(store, temp, self.manifest(store, temp.inner), made)
        finally:
            temp.drop()
            files.drop_imports(self.cluster, store)

    def admit(self, store, capacity):
        """Refuse a disk that is larger than any may be, or than there is room for: its header tells first."""
        if self.plan.as_it_is:
            return
        limit = self.limits["max_virtual_size"]
        if capacity > limit:
            message = "its virtual size of %d bytes is not within the limit of %d"
            raise Failure("size", message % (capacity, limit), size=capacity)
        reserve = self.limits["reserve"]
        failure = room_problem(store, self.plan, self.image, reserve, capacity)
        if failure is not None:
            raise failure

    def bring(self, target):
        """Take all bytes, verified."""
        digest = self.image["digest"]
        target.admit = self.admit
        sink = Sink(target, self.image["size"], digest["algo"])
        try:
            Carrying(self.session, self.order, sink).run()
            target.judge()
        finally:
            self.received += sink.received
            target.close()
        self.capacity = target.capacity

    def bring_file(self, store, temp):
        """Bring bytes that are put to a datastore as a file."""
        plan, cluster = self.plan, self.cluster
        final = "%s/%s" % (temp.inner, plan.name)
        path = {
            ISO: final,
            SPARSE: "%s/tmp-sparse.vmdk" % temp.inner,
            FLAT: "%s/%s" % (temp.inner, plan.flat_name),
        }[plan.kind]
        if plan.kind == FLAT:
            self.create(store, final)
            files.delete(cluster, store, path)
        self.bring(FileTarget(cluster, store, path, plan))
        if plan.kind == FLAT:
            self.capacity = plan.size // 1024 * 1024
        if plan.kind == SPARSE:
            with self.telling():
                files.copy_disk(cluster, (store, path), (store, final))
            files.delete(cluster, store, path)

    def bring_disk(self, store):
        """Bring bytes that vSphere imports; return where the disk is."""
        kind = OvaTarget if self.plan.kind == OVA else ImportTarget
        target = kind(self.cluster, store, self.plan)
        self.bring(target)
        return target.disk_path

    def check_stored(self, store, folder):
        """Compare what the datastore shows with what it should have.

        Raises:
            Failure: ``size``.
        """
        if store.kind == "vsan":
            return
        found, plan = self.cluster.search(store, folder) or (), self.plan
        shown = {file.name: file.size for file in found}
        if plan.as_it_is and shown.get(plan.content_name, plan.size) != plan.size:
            message = "%s has %d bytes there instead of %d"
            shown_size = shown[plan.content_name]
            raise Failure("size", message % (plan.content_name, shown_size, plan.size))
        if plan.name not in shown:
            raise Failure("io", "%s is not there after it was stored" % plan.name)
        if files.lacks_content(self.cluster, store, folder, found, plan.name):
            raise Failure("io", "%s is not there after it was stored" % plan.flat_name)
        if plan.format == "vmdk":
            capacity = files.capacity_of(self.cluster, store, "%s/%s" % (folder, plan.name))
            if capacity is not None and capacity != self.capacity:
                message = "its disk has %d bytes there instead of %d"
                raise Failure("size", message % (capacity, self.capacity))

    # ---- publishing

    def publish(self, store, temp, manifest, made):
        """Give a folder that is whole its final name; on vSAN, where none moves, the disk ``made``."""
        cluster, base = self.cluster, self.cluster.base
        store.free -= self.plan.size if self.plan.as_it_is else self.capacity or self.plan.size
        final = "%s/%s" % (base, self.image["id"])
        files.make_folder(cluster, store, base)
        if store.kind == "vsan":
            files.make_folder(cluster, store, final)
            with cluster.publishing():
                if not self.is_there(store):
                    self._move_in(files.move_disk, store, made, final, manifest)
            return
        notes.write_manifest(cluster, store, temp.inner, manifest)
        with cluster.publishing():
            moved = self._move(files.move_folder, store, temp.inner, final)
            if not moved and not self.is_there(store):
                self._into_folder(store, temp.inner, final, manifest)

    def _move(self, move, store, source, target):
        """Move on a datastore; False when the target exists. What may go on without us is not removed."""
        try:
            return move(self.cluster, store, source, target)
        except Failure as failure:
            if not isinstance(failure.__cause__, Fault):
                # Nobody says whether it has ended; ``clean`` takes what it leaves.
                temps = self.cluster.temps
                temps[:] = [one for one in temps if one[0] is not store]
            raise

    def _into_folder(self, store, inner, final, manifest):
        """Move into a folder that is there without the image: what somebody's broken transfer left."""
        cluster, name = self.cluster, self.plan.name
        strange = [
            file.name
            for file in cluster.search(store, final) or ()
            if file.name != MANIFEST and not (file.folder and file.name.startswith(TIMESTAMP))
        ]
        if strange:
            raise Failure(
                "foreign",
                "%s is there without the image, and holds %s; look at it, and remove it"
                % (store.path(final), ascii(strange[0])[:100]),
            )
        move = files.move_folder if self.plan.format == "iso" else files.move_disk
        self._move_in(move, store, "%s/%s" % (inner, name), final, manifest)

    def _move_in(self, move, store, source, final, manifest):
        """Move a disk into a folder, and note what it is: not before, as it may be Nova that comes first."""
        cluster, target = self.cluster, "%s/%s" % (final, self.plan.name)
        files.delete(cluster, store, final, MANIFEST)  # which a broken transfer may have left
        if self._move(move, store, source, target):
            notes.write_manifest(cluster, store, final, manifest)
        elif not self.is_there(store):
            raise Failure("io", "cannot move to " + store.path(target))

    def manifest(self, store, folder):
        """Return the manifest of what stands in a folder."""
        image, plan, now = self.image, self.plan, utc_now()
        algo, value = image["digest"]["algo"], image["digest"]["value"].lower()
        weak = algo in ("md5", "sha1")
        found = self.cluster.search(store, folder) or ()
        size = {file.name: file.size for file in found}.get(plan.content_name)
        stored = {
            "algo": algo if plan.as_it_is or not weak else "sha512",
            "value": value if plan.as_it_is else None,
            "size": plan.size if plan.as_it_is else size or self.capacity,
            "format": plan.format,
            "mtime_ns": None,
        }
        return {
            "version": 1,
            "image_id": image["id"],
            "image_name": image["name"],
            "base": image["id"],
            "digest": {"algo": algo, "value": value, "weak": weak},
            "stored": stored,
            "disk_format": image["disk_format"],
            "disk_type": plan.kind if not plan.as_it_is else plan.disk_type,
            "source": self.order["source"]["kind"],
            "tool": self.order["tool"],
            "run": self.order["run"],
            "cached_at": now,
            "touched_at": now,
            "verified_at": now,
            "pin": None,
        }

    def _copy_content(self, source, store, inner):
        """Copy what holds the image; a plain disk's content goes into a new disk, as it came from Glance."""
        cluster, plan = self.cluster, self.plan
        folder = "%s/%s" % (cluster.base, self.image["id"])
        path, target = "%s/%s" % (folder, plan.name), "%s/%s" % (inner, plan.name)
        copy = files.copy_file
        if plan.format == "vmdk":
            self.capacity = files.capacity_of(cluster, source, path)
            self.admit(store, self.capacity or 0)
        if plan.kind == FLAT:
            self.create(store, target)
            path, target = (place + "/" + plan.flat_name for place in (folder, inner))
            files.delete(cluster, store, target)
        elif plan.format == "vmdk":
            copy = files.copy_disk
        with self.telling():
            copy(cluster, (source, path), (store, target))
