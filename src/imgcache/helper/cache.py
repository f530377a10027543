"""The image cache of one host: paths, Nova's lock, touching, manifests.

Everything goes through directory descriptors, so that nobody can exchange a folder under our feet.
Source: nova ``virt/libvirt/{imagebackend,imagecache}.py``, ``utils.py``; fasteners ``process_lock.py``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, SIM105 - a Failure's code is a literal; imports are dear on a warm host

import errno
import fcntl
import os
import stat
import time

from . import conf
from .core import Failure, decode, encode, os_failure, owner_and_mode, user_name

#: Back ends that a file in the cache would harm or that never read it.
NO_CACHE = {
    "rbd": "its instances are cloned inside Ceph; a file in the cache would make each boot a full import",
    "ploop": "its images are not kept as base files that we know how to write",
}
_MANIFEST = os.O_NOFOLLOW | os.O_NONBLOCK
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_STEP = os.O_PATH | os.O_DIRECTORY
_LOCK_WAIT_S = 10
#: What file systems without POSIX locks answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Cache:
    """One host's cache, opened. ``owner`` is the stat result whose owner new things get."""

    def __init__(self, values, nova_conf=None):
        self.values, self.nova_conf = values, nova_conf
        self.cache_fd = self.own_fd = self.locks_fd = None
        given = values["instances_path"]
        self.instances_path = os.path.realpath(given)
        if not os.path.isabs(given) or not os.path.isdir(self.instances_path):
            raise Failure(
                "nopath", "instances_path %s is not a folder on this host" % given, path=given
            )
        self.parts = [
            part for part in values["cache_subdirectory"].split("/") if part not in ("", ".")
        ]
        if values["cache_subdirectory"].startswith("/") or not self.parts or ".." in self.parts:
            raise Failure(
                "config",
                "cache_subdirectory %r must lie below instances_path"
                % values["cache_subdirectory"],
            )
        self.path = os.path.join(self.instances_path, *self.parts)
        try:
            self.instances_fd = _open_instances(given)
        except OSError as error:
            raise os_failure(error, "cannot open " + self.instances_path) from error
        self.owner = os.fstat(self.instances_fd)
        if os.geteuid() == 0 and self.owner.st_uid:
            # Work as Nova's user: what is made, also just before a crash, is Nova's to use.
            os.setegid(self.owner.st_gid)
            os.seteuid(self.owner.st_uid)
            _check_python()
        self.open_folders(create=False)

    def open_folders(self, create):
        """Open the cache folder, and ours in it, as far as they exist; make them when asked to."""
        if self.cache_fd is None:
            folder_fd = self.instances_fd
            for part in self.parts:
                folder_fd = folder_fd if folder_fd is None else self.folder(folder_fd, part, create)
            self.cache_fd = folder_fd
        if self.cache_fd is not None and self.own_fd is None:
            self.owner = os.fstat(self.cache_fd)
            self.own_fd = self.folder(self.cache_fd, ".imgcache", create)

    def folder(self, parent_fd, name, create):
        """Return a descriptor of a folder in a folder, or None; make it like its parent when asked to."""
        for _ in range(2):
            try:
                return os.open(name, _FOLDER, dir_fd=parent_fd)
            except FileNotFoundError:
                if not create:
                    return None
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise self._no_folder(parent_fd, name) from error
                raise os_failure(
                    error, "cannot open %s in %s" % (name, self.instances_path), parent_fd
                ) from error
            try:
                self.make(parent_fd, name)
            except FileExistsError:
                pass
            except OSError as error:
                raise os_failure(
                    error, "cannot make %s in %s" % (name, self.instances_path), parent_fd
                ) from error
        raise Failure("io", "%s in %s comes and goes" % (name, self.instances_path))

    def _no_folder(self, parent_fd, name):
        """Return the failure of a name that is a symlink, or something else than a folder."""
        where = "%s in %s" % (name, self.instances_path)
        try:
            target = os.readlink(name, dir_fd=parent_fd)[:300]
        except OSError:
            return Failure("symlink", "%s is no folder" % where, path=name)
        message = (
            "%s is a symlink, to %s, and links are not followed: make it a folder and mount the other one"
            " there (mount --bind), which Nova sees alike"
        )
        return Failure("symlink", message % (where, target), path=name)

    def make(self, parent_fd, name):
        """Make a folder with its parent's mode and, as far as we may, owner; right from the start."""
        like = os.fstat(parent_fd)
        before = os.umask(0)
        try:
            os.mkdir(name, like.st_mode & 0o777, dir_fd=parent_fd)
        finally:
            os.umask(before)
        made = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        if made.st_gid != like.st_gid:
            try:
                os.chown(name, -1, like.st_gid, dir_fd=parent_fd, follow_symlinks=False)
            except OSError:
                pass  # not one of our groups: the folder is as Nova's own user would have made it

    def find(self, base):
        """Return the stat result of a final, or None.

        Raises:
            Failure: ``foreign``, when it is no regular file.
        """
        if len(base) != 40 or base.strip("0123456789abcdef"):
            raise Failure("protocol", "not a base file's name")
        if self.cache_fd is None:
            return None
        try:
            status = os.stat(base, dir_fd=self.cache_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise Failure(
                "foreign", "%s/%s is no regular file; it was left alone" % (self.path, base)
            )
        return status

    def guard(self):
        """Refuse back ends that must not have a cache; orders are sent ahead, before the controller knows."""
        reason = NO_CACHE.get(self.values["images_type"])
        if reason:
            raise Failure("backend", "images_type is %s: %s" % (self.values["images_type"], reason))

    def lock(self, base, wait_s, create=True, check=None):
        """Take Nova's lock on a base file; return its descriptor, or None where there is no locking.

        Closing the descriptor releases it. Nova deletes lock files without holding them: so a lock counts
        only while its file is still the one at its path.
        """
        if self.locks_fd is None:
            self.locks_fd = self.folder(self.instances_fd, "locks", create)
        name = "nova-" + base
        deadline = time.monotonic() + wait_s
        while self.locks_fd is not None:
            fd = self._lock_file(name, create)
            if fd is None:
                return None
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(fd, name, self.locks_fd):
                    return fd
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    os.close(fd)
                    return None
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    os.close(fd)
                    raise os_failure(error, "cannot lock locks/" + name) from error
            os.close(fd)
            if time.monotonic() >= deadline:
                raise Failure(
                    "busy",
                    "Nova, or another tool, holds %s/locks/%s" % (self.instances_path, name),
                    waited_s=wait_s,
                )
            time.sleep(0.05)
            if check:
                check()
        return None

    def _lock_file(self, name, create):
        """Open a lock file, made so that Nova's user can open it too, whoever we are."""
        flags = os.O_RDWR | os.O_NOFOLLOW
        try:
            try:
                return os.open(name, flags, dir_fd=self.locks_fd)
            except FileNotFoundError:
                if not create:
                    return None
            return self._new_lock_file(name, flags | os.O_CREAT)
        except OSError as error:
            raise self._lock_failure(error, name) from error

    def _lock_failure(self, error, name):
        """Return the failure of a lock file: the file itself keeps us out, or else its folder."""
        what = "cannot open %s/locks/%s" % (self.instances_path, name)
        try:
            there = os.stat(name, dir_fd=self.locks_fd, follow_symlinks=False)
        except OSError:
            there = None
        if there is None or error.errno not in (errno.EACCES, errno.EPERM):
            return os_failure(error, what, self.locks_fd)
        fields = dict(owner_and_mode(there), user=user_name())
        what += " (of {owner}:{group}, mode {mode}; we are {user}): Nova's user must be able to write it, or"
        what += " no boot of this image could lock it either; remove it, or give it to Nova's user"
        return Failure("permission", what.format(**fields), **fields)

    def check_lock(self, base):
        """Refuse a fetch whose lock could not be taken when it ends; locks nothing, makes no lock file."""
        if self.locks_fd is None:
            self.locks_fd = self.folder(self.instances_fd, "locks", True)
        fd = self._lock_file("nova-" + base, False)
        if fd is not None:
            os.close(fd)
        elif not os.access(".", os.W_OK | os.X_OK, dir_fd=self.locks_fd, effective_ids=True):
            error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            raise self._lock_failure(error, "nova-" + base)

    def _new_lock_file(self, name, flags):
        mine = os.geteuid() == self.owner.st_uid
        before = os.umask(0)
        try:
            fd = os.open(name, flags, 0o644 if mine else 0o666, dir_fd=self.locks_fd)
        finally:
            os.umask(before)
        if not mine and os.fstat(fd).st_uid == os.geteuid():
            try:
                os.fchown(fd, -1, self.owner.st_gid)
                os.fchmod(fd, 0o664)
            except OSError:
                pass  # not our group: it stays open to all, or Nova could not boot this image any more
        return fd

    def read_manifest(self, base):
        """Return the manifest of a base file as a dict, or None when there is none, or a damaged one."""
        try:
            fd = os.open(base + ".json", _MANIFEST | os.O_RDONLY, dir_fd=self.own_fd)
        except OSError:
            return None
        try:
            return _manifest_in(fd, base)
        finally:
            os.close(fd)

    def change_manifest(self, base, change):
        """Have ``change`` alter a manifest while no other helper does; return it, or None without one."""
        name, mode = base + ".json", os.O_RDWR
        if not os.access(name, os.W_OK, dir_fd=self.own_fd, effective_ids=True):
            mode = os.O_RDONLY  # another user's: it can be replaced, but not locked
        deadline = time.monotonic() + _LOCK_WAIT_S
        while time.monotonic() < deadline:
            try:
                fd = os.open(name, _MANIFEST | mode, dir_fd=self.own_fd)
            except OSError:
                return None
            try:
                if _try_lock(fd) and _is_at(fd, name, self.own_fd):
                    manifest = _manifest_in(fd, base)
                    if manifest is not None:
                        change(manifest)
                        self.write_manifest(manifest)
                    return manifest
            finally:
                os.close(fd)
            time.sleep(0.02)
        raise Failure("busy", "another run of imgcache holds %s/.imgcache/%s" % (self.path, name))

    def write_manifest(self, manifest):
        """Replace a manifest: at every instant, also after a power cut, the old or the new one is there."""
        name = manifest["base"] + ".json"
        new = "%s.%s.new" % (name, os.urandom(8).hex())
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _MANIFEST
        fd = os.open(new, flags, 0o644, dir_fd=self.own_fd)
        try:
            os.fchmod(fd, 0o644)
            os.write(fd, encode(manifest).encode("ascii") + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(new, name, src_dir_fd=self.own_fd, dst_dir_fd=self.own_fd)

    def touch(self, base, sizes, dry, wait_s=_LOCK_WAIT_S, check=None):
        """Renew a final; return what ``touch`` answers."""
        if self.find(base) is None:
            return {"state": "absent"}
        lock_fd = self.lock(base, wait_s, not dry, check)
        try:
            status = self.find(base)
            if status is None:
                return {"state": "absent"}
            manifest = self.read_manifest(base) if self.own_fd is not None else None
            if not _may_be_whole(status.st_size, sizes, manifest):
                what = "%s/%s has %d bytes, which no whole one has: %s"
                what %= (self.path, base, status.st_size, _remedy(status.st_size, manifest))
                raise Failure("damaged", what, size=status.st_size)
            reason = "dry run" if dry else self._renew(base, status)
            if status.st_nlink > 1 and self.own_fd is not None and not dry:
                self._unlink_leftovers(base, status)
        except FileNotFoundError:
            return {"state": "absent"}  # Nova removed it just now
        finally:
            if lock_fd is not None:
                os.close(lock_fd)
        managed = manifest is not None and manifest["stored"]["size"] == status.st_size
        if managed and reason is None:
            try:
                self.change_manifest(base, self._note_touch)
            except (OSError, Failure) as error:
                reason = "renewed, but not its manifest: %s" % error
        return {
            "state": "existing",
            "size": status.st_size,
            "mtime": status.st_mtime,
            "touched": not dry and (reason is None or reason.startswith("renewed")),
            "managed": managed,
            "reason": reason,
        }

    def _unlink_leftovers(self, base, status):
        """Remove the other name that a run left which died while publishing.

        We hold Nova's lock, so no living run is between its link and its unlink.
        """
        for name in os.listdir(self.own_fd):
            if name.startswith(base + ".") and name.endswith(".staging"):
                there = os.stat(name, dir_fd=self.own_fd, follow_symlinks=False)
                if os.path.samestat(there, status):
                    os.unlink(name, dir_fd=self.own_fd)

    def _note_touch(self, manifest):
        manifest["touched_at"] = utc_now()
        manifest["stored"]["mtime_ns"] = self.renewed_ns

    def _renew(self, base, status):
        """Set a final's times to now; return None, or why that was not possible."""
        effective = os.geteuid()
        try:
            if os.getuid() == 0:
                os.seteuid(0)  # libvirt gives files in use to its own user
            os.utime(base, dir_fd=self.cache_fd, follow_symlinks=False)
            renewed = os.stat(base, dir_fd=self.cache_fd, follow_symlinks=False)
            self.renewed_ns = renewed.st_mtime_ns  # another mtime later means that Nova used it
        except PermissionError:
            return "it belongs to user {owner}; Nova itself renews images in use".format(
                **owner_and_mode(status)
            )
        finally:
            if os.getuid() == 0:
                os.seteuid(effective)
        return None


def walk(path, check, root="/"):
    """Return an ``O_PATH`` descriptor of what an absolute path leads to in ``root``, opened step by step.

    ``check`` gets, for each step, the stat results of a folder and of what a name in it is, also of a link.
    Nothing can be exchanged between that look and the step. Source: Linux ``path_resolution(7)``.
    """
    fd, parts, links = os.open(root, _STEP), _parts(path), 0
    try:
        while parts:
            part = parts.pop()
            entry_fd = os.open(part, os.O_PATH | os.O_NOFOLLOW, dir_fd=fd)
            try:
                entry = os.fstat(entry_fd)
                check(os.fstat(fd), entry)
                if stat.S_ISLNK(entry.st_mode):
                    links += 1
                    if links > 40:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    target = os.readlink("", dir_fd=entry_fd)
                    parts += _parts(target)
                    if target.startswith("/"):
                        root_fd = os.open(root, _STEP)
                        os.close(fd)
                        fd = root_fd
                else:
                    fd, entry_fd = entry_fd, fd
            finally:
                os.close(entry_fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _parts(path):
    """Return the components of a path, the first as the last."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _open_instances(path):
    """Open ``instances_path``; as root only where its owner, or root, alone decides where it leads.

    Else the user who may exchange a folder or link on the way could have root, or a third user, write and
    remove elsewhere.
    """
    if os.geteuid():
        return os.open(os.path.realpath(path), _FOLDER)
    steps = []
    fd = walk(path, lambda folder, entry: steps.append((folder, entry)))
    try:
        owner = os.fstat(fd)
        for folder, entry in steps:
            if not _is_safe_step(folder, entry, owner):
                raise Failure(
                    "symlink",
                    "root does not work in %s: others than root and its owner, {owner}, may change where that"
                    " leads (a folder or link on the way belongs to user %s, mode %04o);"
                    " give it an owner of its own below folders of root's".format(
                        **owner_and_mode(owner)
                    )
                    % (path, folder.st_uid, folder.st_mode & 0o7777),
                    path=path,
                )
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
    finally:
        os.close(fd)


def _is_safe_step(folder, entry, owner):
    """Whether none but root and ``owner`` can make a name in ``folder`` lead elsewhere."""
    users = (0, owner.st_uid)
    if folder.st_uid not in users or (stat.S_ISLNK(entry.st_mode) and entry.st_uid not in users):
        return False
    if folder.st_mode & stat.S_ISVTX and entry.st_uid in users:
        return True
    group = folder.st_mode & stat.S_IWGRP and folder.st_gid not in (0, owner.st_gid)
    return not group and not folder.st_mode & stat.S_IWOTH


def _check_python():
    """Refuse a Python whose library only root may read: it could not import what it needs later."""
    if not os.access(os.__file__, os.R_OK, effective_ids=True):
        what = "user %s, who owns the cache, may not read the library of the Python that runs here (%s);"
        what += " give python: /usr/bin/python3, or another that all users may run"
        raise Failure("python", what % (user_name(), os.path.dirname(os.__file__)))


def _manifest_in(fd, base):
    """Return what an open manifest holds, or None when it is damaged. Closes nothing: a lock would go."""
    try:
        manifest = decode(os.pread(fd, 65536, 0).decode("utf-8"))
        good = manifest["version"] == 1 and manifest["stored"]["size"] >= 0
        return manifest if good and manifest["base"] == base else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _try_lock(fd):
    """Whether we hold a file now; also where there are no locks."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _may_be_whole(size, sizes, manifest):
    """Whether a final of this size can be whole; 0 in ``sizes``: others are possible, as sectors come."""
    if 0 not in sizes or size in sizes:
        return size > 0 and (not sizes or size in sizes)
    return size == manifest["stored"]["size"] if manifest else size % 512 == 0


def _remedy(size, manifest):
    """Return what helps with a final of a wrong size: only one that is known as damaged can be repaired."""
    if size < 512 or (manifest and manifest["stored"]["size"] != size):
        return "imgcache verify --repair fetches it again"
    return "imgcache delete removes it when nothing uses it, and precache fetches it again"


def _is_at(fd, name, dir_fd):
    """Whether the open file is still the one at that name."""
    try:
        there = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def utc_now():
    """Return the host's time as manifests hold it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def order_open(session, order):
    """Read the settings and open the cache."""
    session.cache = None
    try:
        values, origins = conf.effective(order["settings"])
        cache = Cache(values, order["settings"].get("nova_conf"))
        if os.geteuid() == 0:
            conf.refuse_foreign(origins)
        session.cache = cache
    except Failure as failure:
        session.open_failure = failure
        raise
    result = dict(values, instances_path=cache.instances_path, cache_path=cache.path)
    result.update({"from": origins, "cache_exists": cache.cache_fd is not None})
    room = os.fstatvfs(cache.instances_fd if cache.cache_fd is None else cache.cache_fd)
    result.update(free=room.f_bavail * room.f_frsize, capacity=room.f_blocks * room.f_frsize)
    del result["cache_subdirectory"]
    return result


def opened(session):
    """Return the cache that ``open`` opened; an order sent ahead of a failed ``open`` fails as that did."""
    if session.cache is None:
        raise session.open_failure or Failure("protocol", "the cache was not opened")
    session.cache.guard()
    return session.cache


def order_touch(session, order):
    """Renew one final."""
    return opened(session).touch(order["base"], order["sizes"], order["dry"])
