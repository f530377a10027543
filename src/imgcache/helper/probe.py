"""What ``imgcache check`` asks of a host: each check on its own, so that none hides another."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a warm host

import errno
import os
import sys

from . import cache as caches
from . import conf, qemu
from .core import Failure, os_failure, owner_and_mode, user_name
from .download import Download, Retry
from .watch import watch as watch_of

_RESERVE_BYTES = 10 << 30
_GIB = 1 << 30
_LIMITS = {"connect_s": 10, "stall_s": 10}


class Verdict(Exception):
    """A check's end that is not plain success: ``warn`` or ``fail``, and why."""

    def __init__(self, state, detail):
        super().__init__(detail)
        self.state = state
        self.detail = detail


class Probe:
    """The checks; each returns its detail when all is well, else raises."""

    def __init__(self, session, order):
        self.session = session
        self.order = order
        self.values = None
        self.cache = None

    def run(self):
        """Return all checks in a fixed order."""
        checks = (
            "python",
            "user",
            "config",
            "cache",
            "locks",
            "space",
            "images_type",
            "qemu-img",
            "glance",
            "nova",
        )
        return {"checks": [self.check(name) for name in checks]}

    def check(self, name):
        """Return one check's outcome, whatever goes wrong in it."""
        try:
            state, detail = "ok", getattr(self, "check_" + name.replace("-", "_"))()
        except Verdict as verdict:
            state, detail = verdict.state, verdict.detail
        except Failure as failure:
            state, detail = "fail", failure.message
        except OSError as error:
            state, detail = "fail", os_failure(error, name).message
        except Exception as error:  # noqa: BLE001 - a check that breaks must not hide the others
            state, detail = "fail", "the check itself broke: " + type(error).__name__
        return {"name": name, "state": state, "detail": detail[:900]}

    def check_python(self):
        """Which Python runs us."""
        return "Python %d.%d.%d" % sys.version_info[:3]

    def check_user(self):
        """Who we are."""
        return "%s (uid %d)" % (user_name(os.getuid()), os.getuid())

    def check_config(self):
        """Whether the settings can be had."""
        self.values, origins = conf.effective(self.order["settings"])
        return ", ".join("%s from %s" % (name, origins[name]) for name in sorted(origins))

    def check_cache(self):
        """Whether the cache is there, or can be made, and Nova's user can use what we make."""
        if self.values is None:
            raise Verdict("fail", "not known without the configuration")
        self.cache = cache = caches.Cache(self.values)
        exists = cache.cache_fd is not None
        folder_fd = cache.cache_fd if exists else cache.instances_fd
        status = os.fstat(folder_fd)
        detail = "%s (%s, owner {owner}, mode {mode})" % (
            cache.path,
            "there" if exists else "not there yet",
        )
        detail = detail.format(**owner_and_mode(status))
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder_fd, effective_ids=True):
            raise Verdict("fail", "%s: not writable for %s" % (detail, user_name()))
        if os.geteuid() != status.st_uid:
            raise Verdict("warn", "%s: files will belong to %s instead" % (detail, user_name()))
        return detail

    def check_locks(self):
        """Whether we can take the locks that Nova takes."""
        cache = self.need_cache()
        fd = cache.folder(cache.instances_fd, "locks", False)
        if fd is None:
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=cache.instances_fd, effective_ids=True):
                raise Verdict(
                    "fail", "%s/locks is missing and cannot be made" % cache.instances_path
                )
            return "%s/locks will be made" % cache.instances_path
        try:
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=True):
                detail = "%s/locks (owner {owner}, mode {mode}) is not writable for us"
                raise Verdict(
                    "fail", (detail % cache.instances_path).format(**owner_and_mode(os.fstat(fd)))
                )
        finally:
            os.close(fd)
        return "%s/locks" % cache.instances_path

    def check_space(self):
        """Whether more is free than must remain free."""
        cache = self.need_cache()
        room = os.fstatvfs(cache.instances_fd if cache.cache_fd is None else cache.cache_fd)
        have = room.f_bavail * room.f_frsize
        reserve = self.order.get("reserve")
        if reserve is None:
            reserve = max(room.f_blocks * room.f_frsize // 20, _RESERVE_BYTES)
        detail = "%.1f GiB free, %.1f GiB of them a reserve" % (have / _GIB, reserve / _GIB)
        if have <= reserve:
            raise Verdict("fail", detail + ": no room for any image")
        return detail

    def check_images_type(self):
        """Whether this back end uses the cache."""
        if self.values is None:
            raise Verdict("fail", "not known without the configuration")
        kind = self.values["images_type"]
        if kind in caches.NO_CACHE:
            raise Verdict("fail", "%s: %s" % (kind, caches.NO_CACHE[kind]))
        return "%s, force_raw_images %s" % (
            kind,
            "on" if self.values["force_raw_images"] else "off",
        )

    def check_qemu_img(self):
        """Whether images can be converted here."""
        program = qemu.find()
        if program is None:
            raise Verdict("warn", "no qemu-img: only raw and iso images can be cached, unconfirmed")
        return "%s %s" % (program, qemu.version(program, watch_of(self.session)))

    def check_glance(self):
        """Whether Glance answers from here: connection, trust, any HTTP answer. No token is sent."""
        if not self.order["url"]:
            raise Verdict("warn", "not asked: no address of Glance is known")
        source = {name: self.order[name] for name in ("url", "ca_pem", "insecure")}
        try:
            status = Download(
                dict(source, token=None), _LIMITS, None, watch_of(self.session)
            ).look()
        except Retry as retry:
            raise Verdict("fail", retry.message) from retry
        detail = "%s answered %d" % (self.order["url"][:300], status)
        if status >= 500:
            raise Verdict("warn", detail)
        return detail + (" (certificate not checked)" if self.order["insecure"] else "")

    def check_nova(self):
        """Whether a nova-compute here reads the same files as we do."""
        read = self.order["settings"].get("nova_conf") or conf.find_files()
        seen = False
        for given in _nova_commands():
            seen = True
            if given and list(given) != list(read) and not self.all_given():
                detail = "nova-compute here reads %s, we read %s; set nova_conf in the inventory"
                raise Verdict("warn", detail % (" ".join(given), " ".join(read) or "no file"))
        return "nova-compute runs" if seen else "no nova-compute is visible from here"

    def all_given(self):
        """Whether the inventory leaves nothing to nova.conf."""
        settings = self.order["settings"]
        return all(settings.get(name) is not None for name in conf.WANTED)

    def need_cache(self):
        """Return the cache, or say that its own check tells more."""
        if self.cache is None:
            raise Verdict("fail", "not known: see cache")
        return self.cache


def _nova_commands():
    """Yield the configuration files named on the command line of each nova-compute."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open("/proc/%s/cmdline" % name, "rb") as file:
                words = os.fsdecode(file.read(65536)).split("\0")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM):
                continue
            raise
        if any(os.path.basename(word) == "nova-compute" for word in words[:3]):
            yield _config_files(words)


def _config_files(words):
    found = []
    for place, word in enumerate(words):
        for option in ("--config-file", "--config-dir"):
            if word == option:
                found.extend(words[place + 1 : place + 2])
            elif word.startswith(option + "="):
                found.append(word[len(option) + 1 :])
    return found


def order_probe(session, order):
    """Answer what ``imgcache check`` asks."""
    return Probe(session, order).run()
