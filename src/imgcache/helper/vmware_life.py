"""The life of the caches on a cluster's datastores: list, remove, clean, pin.

An entry is an image, whichever datastores have it: Nova may choose any of them for the next boot.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a host

import json
import os

from . import vmware_files as files
from .core import Failure
from .soap import Fault, refs_of, text_of
from .vmware import PREFIX, TEMP, is_image_id, opened
from .vmware_conf import nodename
from .vmware_entry import Look, Work, change_manifest
from .vmware_names import is_ours, owner_of
from .vmware_use import Use

_LOCK_WAIT_S = 10
_FLOOR_S = 3600
_ROWS = 20


class Rows:
    """Sends rows, some at a time."""

    def __init__(self, session, order):
        self.session = session
        self.order = order
        self.rows = []

    def add(self, row):
        """Send a row, sooner or later."""
        self.rows.append(row)
        if len(self.rows) >= _ROWS:
            self.flush()

    def flush(self):
        """Send what is waiting."""
        if self.rows:
            self.session.answer(self.order, "rows", rows=self.rows)
            self.rows = []


def order_vmware_list(session, order):
    """Tell what is in the caches."""
    cluster = opened(session)
    with Work(session, order) as work:
        look = Look(cluster, tell=work.tell)
        use = Use(cluster, work.tell) if order["use"] else None
    rows, allocated = Rows(session, order), 0
    for image_id in sorted(look.copies):
        row = look.row(image_id, use)
        if len(json.dumps(row)) > 3000:
            row["manifest"] = None  # nobody of ours wrote that
        allocated += row["allocated"]
        rows.add(row)
    for row in look.foreign_rows():
        rows.add(row)
    rows.flush()
    kinds = sorted({store.kind for store in cluster.stores})
    return {
        "filesystem": "+".join(kinds)[:40],
        "size": sum(store.capacity for store in cluster.stores),
        "free": sum(store.free for store in cluster.stores),
        "own_filesystem": False,
        "nova_usage": allocated,
        "problems": use.problems[:20] if use else [],
        "storage_id": cluster.storage_id(),
        "shares_with": [],
        "nodename": nodename(cluster.settings)[:200],
        "policy": cluster.settings.policy(),
    }


# ---- remove


class Kept(Exception):
    """An entry stays: a code, and the reason."""

    def __init__(self, code, reason):
        super().__init__(code)
        self.code = code
        self.reason = reason


def order_vmware_remove(session, order):
    """Remove images from all datastores, each decided again under Nova's locks."""
    cluster, rows = opened(session), Rows(session, order)
    with Work(session, order) as work:
        for number, item in enumerate(order["items"]):
            work.watch.check()
            tell = _part(work.tell, number, len(order["items"]))
            tell(0, 1)
            rows.add(_removed(cluster, item, tell))
            rows.flush()
    return {}


def _part(tell, number, count):
    """Return what tells of one of many items, each of which has a thousand steps."""

    def tell_part(done, total):
        tell(1000 * number + 999 * done // max(total, 1), 1000 * count)

    return tell_part


def _removed(cluster, item, tell):
    row = {"name": item["name"], "state": "kept", "code": None, "reason": None, "bytes": 0}
    if not is_image_id(item["name"]):
        return dict(row, code="foreign", reason="not the name of an image")
    locks = []
    try:
        for store in cluster.stores:
            # one by one: those that were taken must be let go of
            locks.append(cluster.lock(store, item["name"], _LOCK_WAIT_S))  # noqa: PERF401
        look = Look(cluster, item["name"])
        copies = look.copies.get(item["name"])
        if not copies:
            return dict(row, state="gone")
        row["bytes"] = sum(copy.allocated for copy in copies)
        _check_removable(cluster, item, look, copies, tell)
        for copy in copies:
            files.delete(cluster, copy.store, cluster.base, item["name"])
        return dict(row, state="removed")
    except Kept as kept:
        return dict(row, code=kept.code, reason=kept.reason)
    except Failure as failure:
        if failure.code == "interrupted":
            raise
        code = failure.code if failure.code in ("lock", "busy", "permission") else "io"
        return dict(row, code=code, reason=failure.message[:900])
    finally:
        for lock_fd in locks:
            if lock_fd is not None:
                os.close(lock_fd)


def _check_removable(cluster, item, look, copies, tell):
    """Raise ``Kept`` unless nothing stands against it. Nova's locks on the timestamps are held."""
    used_at = max(copy.used_at for copy in copies)
    if look.identity(copies) != item["inode"] or int(used_at * 1e9) != item["mtime_ns"]:
        raise Kept("changed", "it is not what it was when it was looked at")
    age = look.age(copies)
    # Whoever boots from it has a machine, which is looked for below: the age only spares what was just used.
    ours = item["ours_ok"] and all(copy.manifest for copy in copies)
    if age < 0:
        raise Kept("young", "its time lies in the host's future")
    if age < (item["min_age_s"] if ours else max(_FLOOR_S, item["min_age_s"])):
        if any(copy.unmarked for copy in copies):
            raise Kept("young", "Nova has not marked it as unused yet")
        raise Kept("young", "last used %d s ago" % age)
    pin = look.pin(copies)
    if pin is not None and not item["pinned_ok"] and (pin == "forever" or pin > look.now):
        raise Kept("pinned", "pinned")
    use = Use(cluster, tell)
    if use.problems:
        raise Kept("evidence", "; ".join(use.problems[:3]))
    users = use.of(item["name"])
    if users:
        raise Kept("in-use", "used by %d: %s" % (len(users), ", ".join(users[:3])))


# ---- clean


class Cleaning:
    """One order ``vmware_clean``."""

    def __init__(self, cluster, order):
        self.cluster = cluster
        self.order = order
        self.now = cluster.now()
        self.machines = self.find_machines()

    def find_machines(self):
        """Return the machines that imports of ours have made, by name."""
        vim = self.cluster.vim
        stores = vim.properties([store.ref for store in self.cluster.stores], ["vm"])
        refs = {ref.value: ref for it in stores.values() for ref in refs_of(it.get("vm"))}
        names = {
            text_of(values.get("name"), ""): refs[value]
            for value, values in vim.properties(refs.values(), ["name"]).items()
        }
        return {name: ref for name, ref in names.items() if is_ours(name)}

    def run(self):
        """Yield a row for each folder of ours."""
        for store in self.cluster.stores:
            for folder in (TEMP, ""):
                for file in self.cluster.search(store, folder, PREFIX + "*") or ():
                    if file.folder and is_ours(file.name):
                        path = "%s/%s" % (folder, file.name) if folder else file.name
                        yield self.one(store, path, file.mtime)
        for name, ref in sorted(self.machines.items()):
            if owner_of(name) == "dead" and not self.order["dry"]:
                self.destroy(ref)

    def one(self, store, path, made_at):
        """Decide about one folder, and return its row; ``made_at``: its own time, 0.0 when it has none."""
        name = path.rpartition("/")[2]
        found = self.cluster.search(store, path) or []
        found += [
            file for content in (self.cluster.tree(store, path) or {}).values() for file in content
        ]
        row = {"name": store.path(path), "state": "kept", "code": None, "reason": None}
        row["bytes"] = sum(file.size for file in found if not file.folder)
        # A transfer that has just begun has folders only, so their times count as well.
        age = self.now - max([made_at, *(file.mtime for file in found)])
        owner = owner_of(name)
        if owner == "alive":
            return dict(row, code="busy", reason="a transfer is at work on it")
        if owner == "unknown" and age < self.order["stall_age_s"]:
            reason = "changed %d s ago, by another host or before a reboot" % max(0, age)
            return dict(row, code="young", reason=reason)
        if self.order["dry"]:
            return dict(row, code="dry-run", reason="would be removed")
        try:
            if name in self.machines:
                self.destroy(self.machines.pop(name))
            files.delete(self.cluster, store, path)
        except Failure as failure:
            return dict(row, code="io", reason=failure.message[:900])
        return dict(row, state="removed")

    def destroy(self, ref):
        """Remove a machine that an import left behind; its files go with it."""
        try:
            self.cluster.vim.task(ref, "Destroy_Task")
        except Fault as fault:
            if fault.name != "ManagedObjectNotFound":
                raise fault.failure("cannot remove the machine of an import") from fault


def order_vmware_clean(session, order):
    """Remove what broken transfers of ours left on the datastores."""
    cluster, rows = opened(session), Rows(session, order)
    with Work(session, order) as work:
        for number, row in enumerate(Cleaning(cluster, order).run(), 1):
            work.tell(number, number + 1)
            rows.add(row)
        rows.flush()
    return {}


# ---- pin


def order_vmware_pin(session, order):
    """Pin an image until a time, for ever, or no more, on each datastore that has it."""
    cluster, image_id, until = opened(session), order["base"], order["until"]
    number = isinstance(until, (int, float)) and not isinstance(until, bool)
    if not (until is None or until == "forever" or number) or not is_image_id(image_id):
        raise Failure("protocol", "not a time to pin until, or no image")
    with Work(session, order):
        return {"state": _pinned(cluster, order, image_id, until)}


def _pinned(cluster, order, image_id, until):
    """Return what became of it."""
    copies = Look(cluster, image_id).copies.get(image_id)
    if not copies:
        return "absent"
    done = False

    def note(manifest):
        held = manifest.get("pin") if order.get("extend") else None
        if held is None or (held != "forever" and (until == "forever" or until > held)):
            manifest["pin"] = until

    for copy in copies:
        done = change_manifest(cluster, copy.store, image_id, note) or done
    if not done:
        return "unmanaged"
    return "unpinned" if until is None else "pinned"
