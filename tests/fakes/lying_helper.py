"""A host whose answers about a fetch are lies: ``python: [python3, lying_helper.py, MODE]``.

Until the first ``fetch`` it answers as a host with an empty cache does.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from misbehaving_helper import (  # type: ignore[import-not-found]  # beside this script
    hello,
    progress,
    read_order,
    read_start,
    send,
)

OPENED = {
    "instances_path": "/i", "cache_path": "/i/_base", "force_raw_images": True, "images_type": "qcow2",
    "from": {}, "cache_exists": True, "free": 1 << 40, "capacity": 1 << 41,
}  # fmt: skip


def result(order: dict[str, Any], **content: Any) -> None:
    send({"id": order["id"], "event": "result", **content})


def cached(order: dict[str, Any], bytes_fetched: int) -> None:
    result(
        order, state="cached", size=order["image"]["size"], stored_format="raw",
        bytes_fetched=bytes_fetched, confirmed=True, reason=None,
    )  # fmt: skip


def retry(order: dict[str, Any], code: str) -> None:
    send({"id": order["id"], "event": "retry", "code": code, "message": "401", "after_s": None,
          "offset": 0, "bytes_fetched": 0})  # fmt: skip


def ready(order: dict[str, Any]) -> None:
    send({"id": order["id"], "event": "ready", "offset": 0})


def lie(mode: str, order: dict[str, Any]) -> None:
    size = order["image"]["size"]
    if mode == "nothing-fetched":
        cached(order, 0)
    elif mode == "all-fetched":
        cached(order, size)
    elif mode == "more-than-there-is":
        cached(order, 1 << 62)
    elif mode == "before-the-bytes":
        ready(order)
        read_order()
        cached(order, size)
        time.sleep(60)
    elif mode in {"token", "tokens"}:
        retry(order, "auth")
        while mode == "tokens" and read_order()["op"] == "again":
            retry(order, "auth")
    elif mode == "switches":
        retry(order, "switched")
        while read_order()["op"] == "again":
            retry(order, "switched")
    elif mode == "ready":
        ready(order)
    elif mode == "hang":
        time.sleep(60)
    elif mode == "hang-in-push":
        ready(order)
        time.sleep(60)
    elif mode == "standstill":
        while True:
            progress(order["id"], 5, size)
            time.sleep(0.1)
    elif mode == "swollen":
        progress(order["id"], 1 << 62, 1 << 62)
        cached(order, size)


def main(mode: str) -> None:
    hello(read_start())
    while True:
        order = read_order()
        if order["op"] == "load":
            result(order)
        elif order["op"] == "open":
            result(order, **OPENED)
        elif order["op"] == "touch":
            result(order, state="absent")
        elif order["op"] == "storage":
            result(order, storage_id=None)
        elif order["op"] == "fetch":
            lie(mode, order)


if __name__ == "__main__":
    main(sys.argv[1])
