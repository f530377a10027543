"""Nova's own libvirt code boots images; runs in the environment of ``tools/requirements-nova.txt``.

    nova_boots.py NOVA_CONF

Each line of standard input is a boot, a JSON object: ``image`` (an id), ``disk`` (a path to make), ``kernel``
(whether it is a kernel, which Nova fetches straight to its final name) and ``delay_s``. Boots run at once,
each in a thread. Each ends with a line: ``image``, ``error`` (null: none) and ``inode`` of its base file.

Source: nova ``virt/libvirt/driver.py`` (``_create_image``: how ``cache`` is called).
"""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201 - run by Nova's own Python

import hashlib
import json
import os
import sys
import threading
import time

from nova import context as nova_context
from nova import privsep
from nova.conf import CONF
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt import utils as libvirt_utils

MIB = 1 << 20
SAYING = threading.Lock()
RENAME = os.rename


def rename(source, target):
    """Rename as Nova does. A base file it publishes under its lock, having seen that there is none."""
    if os.path.basename(os.path.dirname(target)) == "_base" and os.path.exists(target):
        raise FileExistsError(f"{target} appeared while Nova held its lock")
    RENAME(source, target)


def boot(order):
    """Make a disk of an image as for an instance."""
    time.sleep(order["delay_s"])
    context = nova_context.RequestContext("user", "project", auth_token="token")
    base = hashlib.sha1(order["image"].encode()).hexdigest()
    if order["kernel"]:
        disk, fetch, size = (
            imagebackend.Flat(path=order["disk"]),
            libvirt_utils.fetch_raw_image,
            None,
        )
    else:
        disk, fetch, size = (
            imagebackend.Qcow2(path=order["disk"]),
            libvirt_utils.fetch_image,
            16 * MIB,
        )
    disk.cache(
        fetch_func=fetch, context=context, filename=base, image_id=order["image"], size=size,
        trusted_certs=None,
    )  # fmt: skip
    return os.stat(os.path.join(CONF.instances_path, "_base", base)).st_ino


def answer(order):
    """Boot, and say how it ended."""
    error = inode = None
    try:
        inode = boot(order)
    except Exception as exc:  # noqa: BLE001 - whatever Nova would log
        error = f"{type(exc).__name__}: {exc}"
    with SAYING:
        print(json.dumps({"image": order["image"], "error": error, "inode": inode}), flush=True)


def main():
    """Boot until standard input ends."""
    CONF([], project="nova", default_config_files=[sys.argv[1]])
    privsep.sys_admin_pctxt.set_client_mode(False)  # what Nova lets another process do is done here
    os.rename = rename
    print("ready", flush=True)
    for line in sys.stdin:
        threading.Thread(target=answer, args=(json.loads(line),), daemon=True).start()


if __name__ == "__main__":
    main()
