"""A Hyper-V host: where its cache is, and renewing what is there.

Source: compute-hyperv ``nova/imagecache.py``, ``cache_image``; Cloudbase's installer, for paths.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, PLC0415 - a Failure's code is a literal; imports are dear on a host

import glob
import os
import re
import shutil

from . import conf, winstore
from .core import Failure, os_failure

#: What stays free when nobody says otherwise: this, or 5 % of the volume.
_RESERVE_BYTES = 10 << 30
_SERVICE = "SYSTEM\\CurrentControlSet\\Services\\nova-compute"
_CONFIG_FILE = re.compile(r"--config-file[= ]+(?:\"([^\"]+)\"|(\S+))")
_INSTALLED = "Cloudbase Solutions\\OpenStack\\Nova\\etc\\nova.conf"


# ---- where things are


def nova_confs():
    """Return the configuration files that nova-compute's service names, else the installer's."""
    named = config_files_of(service_command())
    if named:
        return [path for path in named if os.path.exists(path)]
    folders = [
        os.environ.get(name) for name in ("ProgramFiles", "ProgramW6432", "ProgramFiles(x86)")
    ]
    found = []
    for folder in folders:
        if folder and not found:
            found = sorted(glob.glob(os.path.join(glob.escape(folder), _INSTALLED)))
    return found


def config_files_of(command):
    """Return the configuration files that a command line names, in its order."""
    return [quoted or plain for quoted, plain in _CONFIG_FILE.findall(command)]


def service_command():
    """Return the command line of nova-compute's service, or nothing."""
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _SERVICE) as key:  # type: ignore[attr-defined,unused-ignore]
            return str(winreg.QueryValueEx(key, "ImagePath")[0])  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return ""


def settings_of(given):
    """Return (instances_path, where that comes from, Conf or None)."""
    if given.get("instances_path") is not None:
        return given["instances_path"], "inventory", None
    paths = given.get("nova_conf") or nova_confs()
    if not paths:
        message = "no nova.conf was found on this host; give instances_path or nova_conf"
        raise Failure("config", message)
    read = conf.Conf(paths)
    value, origin = read.get("instances_path")
    if origin == "default":
        message = "%s does not say instances_path; give it in the inventory" % ", ".join(paths)
        raise Failure("config", message)
    return value, origin, read


def room(store):
    """Return (free, capacity) in bytes of the volume that holds the cache."""
    path = store.path if store.exists() else store.instances_path
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        raise os_failure(error, "cannot ask for the free space of " + path) from error
    return usage.free, usage.total


def reserve_of(given, capacity):
    """Return how many bytes must stay free."""
    return max(capacity // 20, _RESERVE_BYTES) if given is None else given


def order_hyperv_open(session, order):
    """Read the settings and open the cache."""
    session.cache = None
    try:
        path, origin, _ = settings_of(order["settings"])
        session.cache = store = winstore.Store(path)
        store.settings = order["settings"]
        exists = store.exists()
        free, capacity = room(store)
    except Failure as failure:
        session.cache, session.open_failure = None, failure
        raise
    return {
        "instances_path": store.instances_path,
        "cache_path": store.path,
        "from": {"instances_path": origin},
        "cache_exists": exists,
        "free": free,
        "capacity": capacity,
    }


def opened(session):
    """Return the cache that ``hyperv_open`` opened; else fail as that did."""
    if session.cache is None:
        raise session.open_failure or Failure("protocol", "the cache was not opened")
    return session.cache


# ---- renewing


def touch(store, image_id, size, dry, wait=(winstore.LOCK_WAIT_S, None)):
    """Renew a final; return what ``hyperv_touch`` answers.

    ``wait``: for how many seconds Nova's lock is waited for, and what is called meanwhile.
    """
    if store.final(image_id) is None:
        return {"state": "absent"}
    lock_fd = None if dry else store.lock(image_id, *wait)
    try:
        final = store.final(image_id)
        if final is None:
            return {"state": "absent"}
        if size is not None and final.status.st_size != size:
            what = "%s has %d bytes instead of %d: see imgcache verify --repair"
            what %= (final.path, final.status.st_size, size)
            raise Failure("damaged", what, size=final.status.st_size)
        reason = "dry run" if dry else None
        renewed_ns = None if dry else store.renew(final)
    except FileNotFoundError:
        return {"state": "absent"}  # Nova removed it just now
    finally:
        if lock_fd is not None:
            os.close(lock_fd)
    if renewed_ns is not None:

        def note(manifest):
            manifest["touched_at"] = winstore.utc_now()
            manifest["stored"]["mtime_ns"] = renewed_ns

        try:
            store.change_manifest(image_id, note)
        except (OSError, Failure) as error:
            reason = "renewed, but not its manifest: %s" % error
    return {
        "state": "existing",
        "size": final.status.st_size,
        "format": final.format,
        "touched": not dry,
        "reason": reason,
    }


def order_hyperv_touch(session, order):
    """Renew one final."""
    return touch(opened(session), order["base"], order["sizes"][0], order["dry"])
