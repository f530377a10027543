"""The toy driver's part of the helper: a folder of files called by image ids."""

# mypy: ignore-errors

import hashlib
import os
import re
import time

from .core import Failure

_NAME = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


def order_toy_touch(session, order):
    """Renew an image that is there."""
    path = _path(order["folder"], order["name"])
    there = os.path.exists(path)
    if there and not order["dry"]:
        os.utime(path, None)
    return {"there": there}


def order_toy_fetch(session, order):
    """Take an image that the controller pushes; nothing is left of one that is not whole."""
    image = order["image"]
    path = _path(order["folder"], image["id"])
    if order["source"]["kind"] != "push":
        raise Failure("unreachable", "a toy takes only what is pushed to it")
    session.answer(order, "ready", offset=0)
    part = path + ".part"
    try:
        with open(part, "wb") as file:
            size = _receive(session, file, image)
        os.rename(part, path)
    except BaseException:
        os.unlink(part)
        raise
    return {"state": "cached", "bytes_fetched": size}


def _receive(session, file, image):
    digest, size = hashlib.new(image["digest"]["algo"]), 0
    while True:
        frame = session.read_frame()
        if frame["op"] == "stop":
            raise Failure("interrupted", "told to stop")
        if frame["op"] != "data":
            continue
        if not frame["raw"]:
            break
        digest.update(frame["raw"])
        file.write(frame["raw"])
        size += len(frame["raw"])
    if size != image["size"]:
        raise Failure("source", "%d bytes instead of %d" % (size, image["size"]))
    if digest.hexdigest() != image["digest"]["value"]:
        raise Failure("digest", "other bytes than the image's")
    return size


def order_toy_list(session, order):
    """Tell what is there."""
    folder = order["folder"]
    names = [name for name in sorted(os.listdir(folder)) if _NAME.match(name)]
    now = time.time()
    for name in names:
        status = os.stat(os.path.join(folder, name))
        row = {
            "name": name,
            "size": status.st_size,
            "age": now - status.st_mtime,
            "inode": status.st_ino,
            "mtime_ns": status.st_mtime_ns,
        }
        session.answer(order, "rows", rows=[row])
    room = os.statvfs(folder)
    return {"size": room.f_blocks * room.f_frsize, "free": room.f_bavail * room.f_frsize}


def order_toy_remove(session, order):
    """Remove what is old enough: decided here again, by this host's own clock."""
    for item in order["items"]:
        path = _path(order["folder"], item["name"])
        row = {"name": item["name"], "state": "removed", "size": 0}
        try:
            status = os.stat(path)
            row["size"] = status.st_size
            if time.time() - status.st_mtime < item["min_age_s"]:
                row.update(state="kept", reason="it was used meanwhile")
            else:
                os.unlink(path)
        except FileNotFoundError:
            row["state"] = "gone"
        session.answer(order, "rows", rows=[row])
    return {}


def _path(folder, name):
    if not _NAME.match(name):
        raise Failure("protocol", "not the id of an image: %s" % ascii(name)[:60])
    return os.path.join(folder, name)
