"""Brings one image into the cache on each datastore: fetched once, then copied from datastore to datastore.

How it gets onto one datastore is in ``vmware_make``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a warm host

import os

from . import vmware_files as files
from . import vmware_notes as notes
from .core import Failure
from .vmware import TEMP, is_image_id, opened
from .vmware_entry import room_problem, suited, touch
from .vmware_image import Plan
from .vmware_make import Making
from .vmware_names import owner_of
from .watch import watch as watch_of


class Fetch(Making):
    """One order ``vmware_fetch``, from its checks to its last manifest."""

    def __init__(self, session, order):
        self.session = session
        self.order = order
        self.watch = watch_of(session)
        self.cluster = opened(session)
        self.image = order["image"]
        self.limits = order["limits"]
        if not is_image_id(self.image["id"]):
            raise Failure("protocol", "the image's id is no UUID")
        self.plan = Plan(self.image, order["properties"], order["container"])
        self.received = 0
        self.problems = []
        self.damaged = []

    def run(self):
        """Return what ``vmware_fetch`` answers."""
        lock_fd = self.cluster.lock_file(
            "imgcache-vmware-%s_%s" % (self.cluster.base, self.image["id"]),
            self.limits["lock_wait_s"],
        )
        try:
            return self._run()
        finally:
            if lock_fd is not None:
                os.close(lock_fd)

    def _run(self):
        stores = suited(self.cluster, self.plan)
        missing = []
        for number, store in enumerate(stores):
            self.watch.tell("inspect", number, len(stores))
            if self.lacks(store):
                missing.append(store)
        for store in missing:
            sweep(self.cluster, store)
        self.cluster.look_for_room(missing)
        done, source = [], self.managed(stores, [*missing, *self.damaged])
        missing = [store for store in missing if self.has_room(store)]
        if missing and source is None:
            source = missing.pop(0)
            self.fetch(source)
            done.append(source)
        for store in missing:
            try:
                self.copy(source, store)
                done.append(store)
            except Failure as failure:
                if failure.code == "interrupted":
                    raise
                message = "datastore %s: %s" % (store.name, failure.message)
                self.problems.append(Failure(failure.code, message))
        for store in stores:
            if store not in done:
                touch(
                    self.cluster,
                    store,
                    self.image["id"],
                    self.plan.format,
                    self.limits["lock_wait_s"],
                )
        return self.answer(done)

    def lacks(self, store):
        """Whether a datastore lacks the image; one with a half of it is noted, and the others get theirs."""
        try:
            return not self.is_there(store)
        except Failure as failure:
            if failure.code != "damaged":
                raise
            self.damaged.append(store)
            self.problems.append(failure)
            return False

    def answer(self, done):
        """Return the result, or fail when a datastore has gone without."""
        names = ", ".join(store.name for store in done)
        if self.problems:
            failure = self.problems[0]
            said = "; it is on the others: %s" % names if done else ""
            raise Failure(failure.code, failure.message + said)
        return {
            "state": "cached" if done else "existing",
            "bytes_fetched": self.received,
            "datastores": [store.name for store in done],
            "size": self.image["size"],
            "copied": bool(done) and not self.received,
            "reason": None,
        }

    def managed(self, stores, missing):
        """Return a datastore that has the very image, as was verified when it came; or None."""
        digest = self.image["digest"]
        for store in stores:
            if store in missing:
                continue
            known = notes.read_manifest(self.cluster, store, self.image["id"])
            if known and known.get("digest", {}).get("value") == digest["value"].lower():
                return store
        return None

    def has_room(self, store):
        """Whether a datastore keeps its reserve free beside the image; notes it when not."""
        failure = room_problem(store, self.plan, self.image, self.limits["reserve"])
        if failure is not None:
            self.problems.append(failure)
        return failure is None

    # ---- the other datastores

    def copy(self, source, store):
        """Copy the image from one datastore to another, and publish it there."""
        cluster, image_id = self.cluster, self.image["id"]
        manifest = notes.read_manifest(cluster, source, image_id)
        if manifest is None:
            text = (
                "what datastore %s has is not known to be the image: Nova put it there; run again"
            )
            raise Failure("changed", text % source.name)
        temp = files.Temp(cluster, store, image_id)
        try:
            self.watch.tell("publish", 0, 1)
            self._copy_content(source, store, temp.inner)
            self.check_stored(store, temp.inner)
            manifest.update(pin=None)
            self.publish(store, temp, manifest, "%s/%s" % (temp.inner, self.plan.name))
        finally:
            temp.drop()


def sweep(cluster, store):
    """Remove what helpers left on a datastore that have died on this very machine."""
    for file in cluster.search(store, TEMP, "imgcache-*") or ():
        if owner_of(file.name) == "dead":
            files.delete(cluster, store, TEMP, file.name)


def order_vmware_fetch(session, order):
    """Bring one image into the cache on each datastore."""
    watch = watch_of(session)
    watch.begin(order["id"], order["limits"]["alive_s"])
    watch.tell("lock", 0, 1)  # told every second from now on, or we would be taken for dead
    try:
        return Fetch(session, order).run()
    finally:
        watch.end()
