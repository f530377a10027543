"""Runs under a Python that has oslo.config: prints what nova-compute would make of nova.conf files, as JSON.

Arguments: configuration files, later ones winning; none: where oslo.config looks for them. The options
are declared as nova's ``conf/`` does (34.0.0).
"""

# mypy: disable-error-code="import-not-found"

import json
import sys

from oslo_config import cfg

conf = cfg.ConfigOpts()
conf.register_opts(
    [
        cfg.StrOpt("pybasedir", default="/usr/lib/python3"),
        cfg.StrOpt("state_path", default="/var/lib/nova"),
        cfg.StrOpt("instances_path", default="$state_path/instances"),
        cfg.BoolOpt("force_raw_images", default=True),
        cfg.BoolOpt("use_cow_images", default=True),
        cfg.StrOpt("my_ip", default="192.0.2.1"),
    ]
)
conf.register_opts(
    [
        cfg.StrOpt(
            "subdirectory_name", default="_base", deprecated_name="image_cache_subdirectory_name",
            deprecated_group="DEFAULT",
        )
    ],
    group="image_cache",
)  # fmt: skip
kinds = ["raw", "flat", "qcow2", "lvm", "rbd", "ploop", "default"]
conf.register_opts([cfg.StrOpt("images_type", default="default", choices=kinds)], group="libvirt")

found = {}
try:
    if sys.argv[1:]:
        conf(
            [],
            project="nova",
            prog="nova-compute",
            default_config_files=sys.argv[1:],
            default_config_dirs=[],
        )
    else:
        conf([], project="nova", prog="nova-compute")
    found["instances_path"] = conf.instances_path
    found["cache_subdirectory"] = conf.image_cache.subdirectory_name
    found["force_raw_images"] = conf.force_raw_images
    kind = conf.libvirt.images_type
    found["images_type"] = (
        ("qcow2" if conf.use_cow_images else "flat") if kind == "default" else kind
    )
except Exception as error:  # noqa: BLE001 - whatever oslo.config raises is its way to refuse
    found = {"error": type(error).__name__}
print(json.dumps(found))
