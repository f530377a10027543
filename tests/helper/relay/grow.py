"""Loaded into a helper by tests, as if it were a driver's: lets a test drive an offer as a fetch would.

Python 3.6 syntax, as all that helpers run.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa

import fcntl
import os
import sys
import threading

#: The writer's descriptor, its offer, and where the file is, by name.
_GROWN = {}  # type: dict[str, tuple]  # type: ignore[type-arg]


def order_grow(session, order):
    """Begin a file that is offered from its first byte on."""
    caches = sys.modules[__package__ + ".cache"]
    cache = caches.opened(session)
    cache.open_folders(create=True)
    path = order["name"] + ".grown"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=cache.own_fd)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    offer = session.relay.offer(order["name"], order["key"], fd, order["size"])
    _GROWN[order["name"]] = (fd, offer, (path, cache.own_fd))
    return {}


def order_append(session, order):
    """Add bytes: those of a file of the test's, up to an offset."""
    fd, offer, _ = _GROWN[order["name"]]
    at = offer.arrived
    with open(order["source"], "rb") as source:
        source.seek(at)
        while at < order["until"]:
            at += os.pwrite(fd, source.read(min(1 << 20, order["until"] - at)), at)
            offer.advance(at)
    return {}


def order_end(session, order):
    """Restart, complete or fail; ``unlink`` as a conversion does."""
    fd, offer, (path, dir_fd) = _GROWN[order["name"]]
    if order["how"] == "restart":
        offer.restart()
        os.ftruncate(fd, 0)
    elif order["how"] == "unlink":
        os.unlink(path, dir_fd=dir_fd)
        os.close(fd)
    else:
        getattr(offer, order["how"])()
    return {}


def order_count(session, order):
    """Tell what the relay holds at this moment."""
    relay = session.relay
    with relay.changed:
        with open("/proc/self/status") as file:
            memory = [line.split()[1] for line in file if line.startswith("VmRSS")][0]
        return {
            "threads": threading.active_count(),
            "descriptors": len(os.listdir("/proc/self/fd")) - 1,
            "connections": len(relay.readers),
            "offers": sorted(relay.offers),
            "tended": len(relay.tended),
            "memory_kib": int(memory),
        }
