"""Lets other hosts read an image's original bytes: listens, and offers what is on the disk.

The certificate and its key never are in a file. See "Relay and resume" in ``docs/helper-protocol.md``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101, PLC0415 - a Failure's code is a literal; imports are dear on a host

import errno
import os
import random
import socket
import stat
import threading

from . import cache as caches
from .core import Failure, os_failure
from .offers import Relay
from .watch import watch as watch_of

#: As in ``formats``: what Nova keeps as it came.
_RAW_FAMILY = ("raw", "iso", "ami", "ari", "aki")
_LOCK_WAIT_S = 5
_NO_TLS = "this host's Python has no TLS 1.3 (%s), which reading from it needs; or relay_tls: off"


def _listen(address, ports):
    """Return a listening socket on an address, null: all, and one of a range of ports, null: any."""
    first, last = ports or (0, 0)
    if not (0 <= first <= last <= 65535 and (first or not ports)):
        raise Failure("protocol", "%s-%s is no range of ports" % (first, last))
    candidates = list(range(first, last + 1))
    random.SystemRandom().shuffle(candidates)
    where = address or "any address"
    if ports:
        where += ", ports %d-%d" % (first, last)
    try:
        host = address and address.encode("ascii", "replace")  # as text it would load a codec
        places = socket.getaddrinfo(
            host, 0, 0, socket.SOCK_STREAM, socket.IPPROTO_TCP, socket.AI_PASSIVE
        )
        # Of all addresses, those of IPv6 take those of IPv4 with them.
        places.sort(key=lambda place: place[0] != socket.AF_INET6 or bool(address))
        problem = None
        for family, _, _, _, place in places:
            try:
                return _listen_at(family, place, candidates)
            except OSError as error:
                problem = error
        raise problem or OSError(errno.EADDRNOTAVAIL, "no such address")
    except OSError as error:
        what = "cannot let other hosts read here, on %s: %s; see relay_address and relay_ports"
        raise Failure("peer", what % (where, error.strerror or error)) from error


def _listen_at(family, place, candidates):
    problem = None
    for port in candidates:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and place[0] == "::":
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind((place[0], port, *place[2:]))
            listener.listen(64)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            problem = error
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                break
        else:
            return listener
    raise problem


def _tls_context(cert_pem, key_pem):
    """Return a context with a certificate and a key that exist in memory only."""
    try:
        import ssl
    except ImportError:
        raise Failure("peer", _NO_TLS % "it has no ssl") from None
    if not getattr(ssl, "HAS_TLSv1_3", False):
        raise Failure("peer", _NO_TLS % ssl.OPENSSL_VERSION)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if hasattr(ssl, "TLSVersion"):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    else:
        context.options |= ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1 | ssl.OP_NO_TLSv1_2
    context.options |= ssl.OP_NO_TICKET
    if hasattr(context, "num_tickets"):
        context.num_tickets = 0
    pipes = []
    try:
        pipes.append(_pipe_with(cert_pem.encode("ascii")))
        pipes.append(_pipe_with(key_pem.encode("ascii")))
        # A pipe's bytes are in no file, and are gone with the first reading.
        context.load_cert_chain(*["/proc/self/fd/%d" % fd for fd in pipes])
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise Failure("peer", "the relay's certificate cannot be used here: %s" % reason) from error
    finally:
        for fd in pipes:
            os.close(fd)
    return context


def _pipe_with(data):
    """Return the reading end of a pipe that holds ``data`` and nothing after it."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        if os.write(writing, data) == len(data):
            return reading
        os.close(reading)
        raise OSError(errno.ENOSPC, "too long for a pipe")
    finally:
        os.close(writing)


def order_relay(session, order):
    """Listen, from now on until the helper's end."""
    if session.relay is not None:
        raise Failure("protocol", "this helper lets others read already")
    watch = watch_of(session)
    context = None
    if order["cert_pem"] is not None:
        context = _tls_context(order["cert_pem"], order.pop("key_pem"))
    listener = _listen(order["address"], order["ports"])
    relay = Relay(listener, context, order["max_readers"], order.get("times") or {})
    session.relay = relay
    if order.get("alive_s") is not None:
        watch.expect_controller(order["alive_s"])
    threading.Thread(target=watch._guarded, args=(relay.run,), daemon=True).start()
    return {"port": listener.getsockname()[1]}


# ---- offering what is on the disk


def order_serve(session, order):
    """Let others read an image's original bytes, if they are here."""
    cache = caches.opened(session)
    if session.relay is None:
        raise Failure("protocol", "serve came before relay")
    base, image = order["base"], order["image"]
    fd, reason = _open_final(cache, base, image)
    if fd is None:
        fd = _open_kept(cache, base, image)
    if fd is None:
        state = "absent" if reason is None else "other"
        return {"state": state, "size": None, "reason": reason}
    try:
        session.relay.offer(order["name"], order["key"], fd, image["size"]).complete()
    finally:
        os.close(fd)
    return {"state": "serving", "size": image["size"], "reason": None}


def _open_final(cache, base, image):
    """Return a descriptor of the final if it is the original, or None and why not (None: it is absent)."""
    if cache.find(base) is None:
        return None, None
    # Nova downloads some images straight into the final, holding the lock: who gets the lock sees it whole.
    lock_fd = cache.lock(base, _LOCK_WAIT_S, create=False)
    try:
        fd = _open(base, cache.cache_fd)
    except OSError as error:
        raise os_failure(error, "cannot read %s/%s" % (cache.path, base), cache.cache_fd) from error
    finally:
        if lock_fd is not None:
            os.close(lock_fd)
    if fd is None:
        return None, None
    reason = _why_other(cache, base, image, os.fstat(fd))
    if reason is None:
        return fd, None
    os.close(fd)
    return None, reason


def _why_other(cache, base, image, status):
    """Return why a final is not the original; None: it is, for all that is known without reading it."""
    size, disk_format = image["size"], image["disk_format"]
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        return "the file has %d bytes, the image %d" % (status.st_size, size)
    manifest = cache.read_manifest(base) if cache.own_fd is not None else None
    if manifest and manifest["stored"]["size"] == size:
        known, wanted = manifest["digest"], image["digest"]
        if known["algo"] == wanted["algo"] and known["value"] != wanted["value"].lower():
            return "the file was made of other bytes"
        original = manifest["stored"]["format"] == disk_format
    else:
        original = not cache.values["force_raw_images"]
    return None if original or disk_format in _RAW_FAMILY else "the file was converted"


def _open_kept(cache, base, image):
    """Return a descriptor of the original that was kept beside a converted final, or None."""
    if cache.own_fd is None:
        return None
    try:
        fd = _open(base + ".original", cache.own_fd)
    except OSError:
        return None
    if fd is not None:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size == image["size"]:
            return fd
        os.close(fd)
    return None


def _open(name, dir_fd):
    """Open a file to read; as root when it was given to another user, as libvirt does with files in use."""
    effective = os.geteuid()
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    except PermissionError:
        if os.getuid() != 0 or effective == 0:
            raise
        os.seteuid(0)
        try:
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
        finally:
            os.seteuid(effective)
