"""The image cache of a vSphere cluster: one folder on each datastore that Nova may choose.

Source: nova ``virt/vmwareapi/ds_util.py`` (``get_available_datastores``), ``imagecache.py``, ``vmops.py``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, SIM105 - a Failure's code is a literal; what fails while giving up changes nothing

import contextlib
import fcntl
import hashlib
import os
import re
import threading
import time

from .core import Failure, os_failure
from .soap import Fault, text_of
from .vim import SERVICE, Vim
from .vmware_conf import Settings, nodename
from .vmware_stores import Stores, epoch_of
from .watch import watch as watch_of

#: Where what is not complete yet stands, as Nova's own transfers do; its name begins with ours.
TEMP = "vmware_temp"
PREFIX = "imgcache-"
MANIFEST = "imgcache.json"
TIMESTAMP = "ts-"
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
_ENDING_S = 5.0


class Cluster(Stores):
    """What nova-compute manages: logged in to vCenter, with the datastores that Nova may choose."""

    def __init__(self, session, order):
        self.session = session
        self.watch = watch_of(session)
        self.settings = Settings(order)
        values = self.settings.values
        self.vim = Vim(
            self.settings.host, values["host_port"], self.settings.trust(), self.watch.check
        )
        self.temps = []
        self.upload = self.lease = None
        self._moving = threading.Lock()
        self._mover = None
        self.abandoned = False
        self.place = "%s of vCenter %s" % (values["cluster_name"], self.vim.place)
        self.base = self.settings.base
        self._login()
        self.vim.log_in = self._login
        try:
            self.ref = self._find()
            self.stores = self._stores()
        except Fault as fault:
            self.vim.end()
            raise fault.failure("cannot look at cluster " + self.place) from fault
        except Failure:
            self.vim.end()
            raise
        _clean_up_too(self)

    def _login(self):
        values = self.settings.values
        try:
            self.vim.start(values["host_username"], self.settings.password())
        except Fault as fault:
            if fault.name == "InvalidLogin":
                raise Failure(
                    "auth",
                    "vCenter %s does not accept host_username %s and host_password of %s"
                    % (self.vim.place, values["host_username"][:80], self.settings.paths[-1]),
                ) from None
            raise fault.failure("cannot log in to " + self.vim.place) from None

    # ---- looking

    def now(self):
        """Return vCenter's time, in seconds of the epoch."""
        return epoch_of(text_of(self.vim.one(SERVICE, "CurrentTime"), ""))

    def folders(self):
        """Return the names at the top of the datastores that may be caches' folders."""
        found = set()
        for store in self.stores:
            for file in self.search(store, "", "*_base") or ():
                found.add(file.name)
        return found

    # ---- Nova's lock

    def lock(self, store, image_id, wait_s):
        """Return a descriptor that holds Nova's lock on an image's timestamps; None: Nova takes none.

        Raises:
            Failure: ``busy``, ``lock``.
        """
        path = store.path(self.base, image_id)
        return self.lock_file("nova-vmware-ts-" + path.replace("/", "_"), wait_s)

    def lock_file(self, name, wait_s):
        """Return a descriptor that holds a lock in Nova's folder of locks, or None."""
        folder = self.settings.lock_path()
        if folder is None:
            return None
        path = os.path.join(folder, name)
        try:
            fd = _open_lock(path, folder)
        except OSError as error:
            raise _lock_failure(error, path) from error
        deadline = time.monotonic() + wait_s
        try:
            while True:
                try:
                    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError):
                    pass
                else:
                    return fd
                self.watch.check()
                if time.monotonic() > deadline:
                    raise Failure("busy", "%s is locked for more than %g s" % (path, wait_s))
                time.sleep(0.05)
        except OSError as error:
            os.close(fd)
            raise _lock_failure(error, path) from error
        except Failure:
            os.close(fd)
            raise

    def storage_id(self):
        """Return one word for hosts that see the same caches; None: the cache is this host's own."""
        if self.settings.own:
            return None
        parts = [self.vim.about("instanceUuid"), self.base]
        parts += sorted(store.ref.value for store in self.stores)
        return "vsphere:" + hashlib.sha256("\n".join(parts).encode("utf-8")).hexdigest()[:32]

    @contextlib.contextmanager
    def publishing(self):
        """Let nothing be removed while it gets its final name, and get none once it is being removed.

        A move overtaken by the removal would leave half a disk where Nova takes it for a whole one.
        Nor is it to be stopped half-way.

        Raises:
            Failure: ``interrupted``.
        """
        with self._moving:
            if self.abandoned:
                raise Failure("interrupted", "it was given up before it was published")
            check, self.vim.check = self.vim.check, lambda: None
            self._mover = threading.get_ident()
            try:
                yield
            finally:
                self._mover = None
                self.vim.check = check

    def _may_remove(self):
        """Whether nothing is just getting its final name, nor will from now on; waits a little for it."""
        self.abandoned = True
        # A signal may have come to the very thread that moves: it would wait for itself.
        mine = self._mover == threading.get_ident()
        return self._moving.acquire(timeout=0 if mine else _ENDING_S)

    def abandon(self):
        """Have vCenter remove what is unfinished, and forget us: the process is about to end."""
        removable = self._may_remove()
        upload, self.upload = self.upload, None
        if upload is not None:
            upload.cut()
        settings, old = self.settings, self.vim
        last = Vim(settings.host, settings.values["host_port"], settings.trust())
        last.cookie, last.content = old.cookie, old.content
        if last.cookie is None or last.content is None:
            return
        last.answer_s = _ENDING_S
        calls, lease = [], self.lease
        if lease is not None:
            calls.append((lease.ref, "HttpNfcLeaseAbort"))
            if lease.machine is not None:
                calls.append((lease.machine, "Destroy_Task"))
        if removable:  # else it is left for ``clean``
            calls += [delete_call(last, store, folder) for store, folder in list(self.temps)]
        for call in calls:
            try:
                last.call(*call)
            except Failure:
                pass
        last.end()


def delete_call(vim, store, *parts):
    """Return the call that deletes a file or a whole folder."""
    return (
        vim.manager("fileManager"),
        "DeleteDatastoreFile_Task",
        ("name", store.path(*parts)),
        ("datacenter", store.datacenter.ref),
    )


def is_image_id(text):
    """Whether a folder's name can be an image's id."""
    return _UUID.match(text) is not None


def _open_lock(path, folder):
    """Open a lock file; a new one so that whoever may make files in its folder can open it too.

    Nova is who: one that it could not open would keep it from booting the image ever after.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        pass
    before = os.umask(0)
    try:
        fd = os.open(path, flags | os.O_CREAT, 0o666)
    finally:
        os.umask(before)
    owner, me = os.stat(folder), os.geteuid()
    if os.fstat(fd).st_uid != me:
        return fd  # Nova has made it in this moment
    try:
        if me != owner.st_uid:
            os.fchown(fd, -1 if me else owner.st_uid, owner.st_gid)
        os.fchmod(fd, 0o644 | owner.st_mode & 0o022)
    except OSError:
        pass  # not our group: it stays open to all
    return fd


def _lock_failure(error, path):
    failure = os_failure(error, "cannot take the lock %s" % path)
    code = "permission" if failure.code == "permission" else "lock"
    return Failure(code, failure.message + "; log in as Nova's user")


def _clean_up_too(cluster):
    """Have the watch end vCenter's part too when the helper ends early."""
    watch = cluster.watch
    before = watch.clean_up

    def clean_up():
        watch.clean_up = before
        try:
            cluster.abandon()
        finally:
            before()

    watch.clean_up = clean_up


def opened(session):
    """Return the cluster that ``vmware_open`` found."""
    cluster = getattr(session, "vmware", None)
    if cluster is None:
        raise session.open_failure or Failure("protocol", "an order before vmware_open")
    return cluster


def order_vmware_open(session, order):
    """Log in to vCenter and tell what is there."""
    try:
        session.vmware = cluster = Cluster(session, order)
    except Failure as failure:
        session.open_failure = failure
        raise
    notice = None
    if cluster.settings.guessed:
        others = sorted(cluster.folders())
        if others and cluster.base not in others:
            notice = (
                "my_ip is not set in nova.conf; it was taken for a cache folder %s, which is not there, "
                "while %s is: give cache_subdirectory in the inventory if that is Nova's"
                % (cluster.base, ", ".join(others[:5]))
            )
    return {
        "cache_path": "; ".join(store.path(cluster.base) for store in cluster.stores),
        "instances_path": "cluster %s" % cluster.place,
        "datastores": [store.name for store in cluster.stores],
        "free": min(store.free for store in cluster.stores),
        "capacity": sum(store.capacity for store in cluster.stores),
        "storage_id": cluster.storage_id(),
        "nodename": nodename(cluster.settings)[:200],
        "version": cluster.vim.about("fullName")[:200],
        "notice": notice,
    }


def order_vmware_close(session, order):
    """Log out, so that vCenter keeps no session that nobody uses."""
    del order
    cluster = getattr(session, "vmware", None)
    if cluster is not None:
        cluster.vim.end()
        session.vmware = None
    return {}
