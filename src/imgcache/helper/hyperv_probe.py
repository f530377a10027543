"""What ``imgcache check`` asks of a Hyper-V host: each check on its own, so that none hides another."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a host

import os
import sys

from . import hyperv, winstore
from .core import Failure, os_failure, user_name
from .download import Download, Retry
from .watch import watch as watch_of

_GIB = 1 << 30
_LIMITS = {"connect_s": 10, "stall_s": 10}
_CHECKS = ("python", "user", "config", "cache", "locks", "space", "glance", "nova")


class Verdict(Exception):
    """A check's end that is not plain success: ``warn`` or ``fail``, and why."""

    def __init__(self, state, detail):
        super().__init__(detail)
        self.state = state
        self.detail = detail


class Probe:
    """The checks; each returns its detail when all is well, else raises. They write nothing."""

    def __init__(self, session, order):
        self.session = session
        self.order = order
        self.store = None

    def run(self):
        """Return all checks in a fixed order."""
        return {"checks": [self.check(name) for name in _CHECKS]}

    def check(self, name):
        """Return one check's outcome, whatever goes wrong in it."""
        try:
            state, detail = "ok", getattr(self, "check_" + name)()
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
        return "Python %d.%d.%d, %s" % (*sys.version_info[:3], sys.executable)

    def check_user(self):
        """Who we are."""
        return user_name()

    def check_config(self):
        """Whether the settings can be had."""
        path, origin, _ = hyperv.settings_of(self.order["settings"])
        self.store = winstore.Store(path)
        return "instances_path %s from %s" % (path, origin)

    def need_store(self):
        """Return the cache, or say that its own check tells more."""
        if self.store is None:
            raise Verdict("fail", "not known: see config")
        return self.store

    def check_cache(self):
        """Whether the cache is there, or can be made."""
        store = self.need_store()
        exists = store.exists()
        folder = store.path if exists else store.instances_path
        if not os.access(folder, os.W_OK):
            raise Verdict("fail", "%s: not writable for %s" % (folder, user_name()))
        return "%s (%s)" % (store.path, "there" if exists else "not there yet")

    def check_locks(self):
        """Whether what Nova locks can be looked for."""
        store = self.need_store()
        if not store.exists():
            return "will be made in " + store.path
        held = [name for name in store.names() if name.startswith("nova-")]
        return "%d of Nova's lock files in %s" % (len(held), store.path)

    def check_space(self):
        """Whether more is free than must remain free."""
        have, capacity = hyperv.room(self.need_store())
        reserve = hyperv.reserve_of(self.order.get("reserve"), capacity)
        detail = "%.1f GiB free, %.1f GiB of them a reserve" % (have / _GIB, reserve / _GIB)
        if have <= reserve:
            raise Verdict("fail", detail + ": no room for any image")
        return detail

    def check_glance(self):
        """Whether Glance answers from here: connection, trust, any HTTP answer. No token is sent."""
        if not self.order["url"]:
            raise Verdict("warn", "not asked: no address of Glance is known")
        source = {name: self.order[name] for name in ("url", "ca_pem", "insecure")}
        try:
            watch = watch_of(self.session)
            status = Download(dict(source, token=None), _LIMITS, None, watch).look()
        except Retry as retry:
            raise Verdict("fail", retry.message) from retry
        detail = "%s answered %d" % (self.order["url"][:300], status)
        if status >= 500:
            raise Verdict("warn", detail)
        return detail + (" (certificate not checked)" if self.order["insecure"] else "")

    def check_nova(self):
        """Whether this host has the service whose cache this is."""
        command = hyperv.service_command()
        if not command:
            raise Verdict("warn", "no service nova-compute is installed here")
        return "service nova-compute: " + command[:300]


def order_hyperv_probe(session, order):
    """Answer what ``imgcache check`` asks."""
    return Probe(session, order).run()
