"""Runs compute-hyperv's own image cache code under Windows Python, and says what it thinks of a cache.

Reads lines of JSON, the first with the folders to import from, and answers each with a line. What
compute-hyperv itself does, its locks and os-win's way with files are the real ones; what stands beside them
is made up here: the parts of nova that it imports, WMI, and libraries that wine lacks.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import types
from typing import Any
from unittest import mock

sys.path[:0] = json.loads(sys.stdin.readline())
#: The order at work.
ORDER: dict[str, Any] = {}
NOVAS_OPTIONS = (
    ("remove_unused_base_images", True),
    ("remove_unused_original_minimum_age_seconds", 86400),
)


def stand_in(name: str, **content: object) -> types.ModuleType:
    """Put a module where compute-hyperv finds it."""
    module = types.ModuleType(name)
    module.__path__ = []
    module.__dict__.update(content)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    return module


class Manager:
    """What nova's ``ImageCacheManager`` gives: who runs here."""

    def _list_running_instances(self, context: object, instances: Any) -> dict[str, Any]:
        del context
        return {"used_images": dict.fromkeys(instances)}


def fetch(context: object, image_id: str, path: str, certs: object) -> None:
    """Download: the bytes that the test gave."""
    del context, image_id, certs
    with open(ORDER["source"], "rb") as source, open(path, "wb") as target:
        target.write(source.read())


def stand_in_for_libraries() -> None:
    """Make up what wine lacks; nothing of it is asked for."""
    windows: Any = ctypes
    windows.cdll.LoadLibrary = lambda name: mock.MagicMock(name=name)
    windows.windll.iscsidsc = windows.windll.clusapi = mock.MagicMock()
    for name in ("wmi", "pkg_resources"):
        sys.modules[name] = mock.MagicMock()


def stand_in_for_nova() -> Any:
    """Make up the parts of nova that compute-hyperv imports; return the configuration."""
    conf = importlib.import_module("oslo_config.cfg").CONF
    synchronized = importlib.import_module("oslo_concurrency.lockutils").synchronized_with_prefix
    stand_in("nova")
    stand_in("nova.conf", CONF=conf)
    stand_in("nova.exception")
    stand_in("nova.utils", synchronized=synchronized("nova-"))
    stand_in("nova.compute", power_state=mock.MagicMock())
    stand_in("nova.compute.utils", disk_ops_semaphore=mock.MagicMock())
    stand_in("nova.objects", fields=mock.MagicMock())
    stand_in("nova.virt")
    stand_in("nova.virt.imagecache", ImageCacheManager=Manager)
    stand_in("nova.virt.images", fetch=fetch)
    return conf


def configure(conf: Any) -> None:
    """Give the options that nova itself would register."""
    cfg = importlib.import_module("oslo_config.cfg")
    conf.register_opts([cfg.StrOpt("instances_path"), cfg.BoolOpt("use_cow_images", default=True)])
    kinds = {bool: cfg.BoolOpt, int: cfg.IntOpt}
    options = [kinds[type(value)](name, default=value) for name, value in NOVAS_OPTIONS]
    conf.register_opts(options, "image_cache")
    conf([], project="nova")


def main() -> None:
    """Ask compute-hyperv, and answer, until the end of the input."""
    stand_in_for_libraries()
    conf = stand_in_for_nova()
    configure(conf)
    code = importlib.import_module("compute_hyperv.nova.imagecache")
    factory: Any = importlib.import_module("os_win.utilsfactory")
    factory.utils.get_windows_version = lambda: "10.0.18362"
    factory.get_vmutils = mock.MagicMock()
    for line in sys.stdin:
        ORDER.clear()
        ORDER.update(json.loads(line))
        conf.set_override("instances_path", ORDER["instances_path"])
        cache = code.ImageCache()
        if ORDER["op"] == "cache_image":
            answer = cache.cache_image(None, ORDER["image_id"], ORDER["image_type"])
        else:
            answer = cache.update(None, ORDER["used"])
        os.write(1, json.dumps({"answer": answer}).encode() + b"\n")


main()
