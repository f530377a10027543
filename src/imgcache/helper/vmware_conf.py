"""What nova.conf says about vCenter and the image cache on its datastores.

Credentials are read here, on the host, and never leave it.
Source: nova ``conf/vmware.py``, ``conf/imagecache.py``, ``conf/netconf.py``, ``virt/vmwareapi/vmops.py``
(``_get_base_folder``); oslo.concurrency ``lockutils.py``; oslo.utils ``netutils.py`` (``get_my_ipv4``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a warm host

import os
import re
import socket

from . import conf
from .core import Failure

_AGE = "remove_unused_%s_minimum_age_seconds"
_OPTIONS = {
    "host_ip": ((("vmware", "host_ip"),), ""),
    "host_port": ((("vmware", "host_port"),), "443"),
    "host_username": ((("vmware", "host_username"),), ""),
    "host_password": ((("vmware", "host_password"),), ""),
    "ca_file": ((("vmware", "ca_file"),), ""),
    "insecure": ((("vmware", "insecure"),), "false"),
    "cluster_name": ((("vmware", "cluster_name"),), ""),
    "datastore_regex": ((("vmware", "datastore_regex"),), ""),
    "cache_prefix": ((("vmware", "cache_prefix"),), ""),
    "my_ip": ((("DEFAULT", "my_ip"),), ""),
    "lock_path": ((("oslo_concurrency", "lock_path"), ("DEFAULT", "lock_path")), ""),
    "disable_process_locking": (
        (
            ("oslo_concurrency", "disable_process_locking"),
            ("DEFAULT", "disable_process_locking"),
        ),
        "false",
    ),
    "remove_unused": (
        (("image_cache", "remove_unused_base_images"), ("DEFAULT", "remove_unused_base_images")),
        "true",
    ),
    "original_min_age_s": (
        (("image_cache", _AGE % "original"), ("DEFAULT", _AGE % "original")),
        "86400",
    ),
    "resized_min_age_s": (
        (("image_cache", _AGE % "resized"), ("libvirt", _AGE % "resized")),
        "3600",
    ),
    "manager_interval_s": (
        (("image_cache", "manager_interval"), ("DEFAULT", "image_cache_manager_interval")),
        "2400",
    ),
    "reserved_host_disk_mb": ((("DEFAULT", "reserved_host_disk_mb"),), "0"),
}
_SWITCHES = ("insecure", "remove_unused", "disable_process_locking")
_NUMBERS = (
    "host_port",
    "original_min_age_s",
    "resized_min_age_s",
    "manager_interval_s",
    "reserved_host_disk_mb",
)
#: A cache's folder stands at the top of a datastore; nothing else may be meant by it.
_FOLDER = re.compile(r"[0-9A-Za-z._:@+=~-][0-9A-Za-z._:@+=~ -]{0,200}\Z")


class Settings:
    """Everything the driver needs to know from nova.conf."""

    def __init__(self, order):
        settings = order["settings"]
        paths = settings.get("nova_conf") or conf.find_files()
        if not paths:
            raise Failure(
                "config",
                "no nova.conf found on this host; the vmwareapi driver reads vCenter's address and "
                "credentials from it: give nova_conf in the inventory",
            )
        conf.OPTIONS.update(_OPTIONS)
        self.paths = list(paths)
        self.conf = conf.Conf(paths)
        self.values = {}
        for name in _OPTIONS:
            if name != "host_password":
                self.values[name] = self._read(name)
        for name in ("host_ip", "host_username", "cluster_name"):
            if not self.values[name]:
                raise Failure(
                    "config",
                    "[vmware] %s is not set in %s; is this the host that runs nova-compute?"
                    % (name, ", ".join(self.paths)),
                )
        self.host = self.values["host_ip"].strip("[]")
        self.given_folder = settings.get("cache_subdirectory")
        self.base, self.guessed = self._base()
        self.wanted = settings.get("datastores")

    def _read(self, name):
        value, origin = self.conf.get(name)
        if name in _SWITCHES:
            return conf._boolean(name, value, origin)
        if name in _NUMBERS:
            try:
                return int(value)
            except ValueError:
                raise Failure(
                    "config", "%s: %s must be a number, not %r" % (origin, name, value[:60])
                ) from None
        return value

    def password(self):
        """Return the password; for each login, of which a session that ended needs another."""
        return self.conf.get("host_password")[0]

    def trust(self):
        """Return (CA file or None, whether no certificate is checked)."""
        return self.values["ca_file"] or None, self.values["insecure"]

    def _base(self):
        """Return (the cache folder's name, whether Nova may have computed another)."""
        values = self.values
        subdirectory, guessed = self.conf.get("cache_subdirectory")[0], False
        if self.given_folder:
            name = self.given_folder
        elif values["cache_prefix"]:
            name = values["cache_prefix"] + subdirectory
        elif values["remove_unused"]:
            guessed = not values["my_ip"]
            name = (values["my_ip"] or _own_address()) + subdirectory
        else:
            name = subdirectory
        if not _FOLDER.match(name):
            raise Failure("config", "%s cannot be the folder of a cache" % ascii(name)[:200])
        return name, guessed

    @property
    def own(self):
        """Whether the folder is this host's alone, as its name has the host's address in it."""
        return bool(
            not self.given_folder
            and not self.values["cache_prefix"]
            and self.values["remove_unused"]
        )

    @property
    def marks(self):
        """Whether Nova's cache manager marks what nobody uses."""
        return self.values["remove_unused"] and self.values["manager_interval_s"] >= 0

    def regex(self):
        """Return ``datastore_regex`` compiled, or None. Source: nova ``vmwareapi/driver.py``."""
        text = self.values["datastore_regex"]
        try:
            return re.compile(text) if text else None
        except re.error as error:
            raise Failure("config", "[vmware] datastore_regex is no regex: %s" % error) from None

    def lock_path(self):
        """Return the folder of Nova's external locks; None: Nova takes none.

        Raises:
            Failure: ``lock``, when nobody says where it is.
        """
        if self.values["disable_process_locking"]:
            return None
        if not self.values["lock_path"]:
            raise Failure(
                "lock",
                "[oslo_concurrency] lock_path is not set in %s: Nova's locks cannot be taken"
                % ", ".join(self.paths),
            )
        return self.values["lock_path"]

    def policy(self):
        """Return what ``list`` tells of Nova's own aging."""
        names = ("remove_unused", *_NUMBERS[1:])
        return dict({name: self.values[name] for name in names}, reserves_cache=False)


def _own_address():
    """Return the address that oslo.utils would compute for ``my_ip``."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.0", 80))
            return probe.getsockname()[0]
    except OSError:
        return "127.0.0.1"


def nodename(settings):
    """Return what Nova calls this host."""
    found = settings.conf.lookup((("DEFAULT", "host"),))
    if found:
        return settings.conf.substitute(found[0], "DEFAULT", "host", 0)
    return os.uname().nodename
