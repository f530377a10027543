"""A host of the same site that lets others read from it, and does that badly: a real server on loopback.

    with MisbehavingPeer(data, "stops", "good") as peer:
        order = helper.fetch(image, peer.source())
        ...
        assert [request.offset for request in peer.requests] == [None, len(data) // 2]

Each connection takes the next mode; the last one is used again and again. ``MODES`` lists them, ``LIES``
those whose bytes arrive whole, and are wrong. The certificate is one that imgcache itself makes for a run;
``tls=False`` is a site with ``relay_tls: off``. Tickets are not looked at, only noted in ``requests``.
Two more that are no servers: ``refused_url`` (nobody listens) and ``black_hole`` (no answer to a connect).
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import threading
from typing import TYPE_CHECKING, Any, Self

from imgcache.transport.relay_certificate import make_certificate
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OTHER = b"\xa5"


def _other_bytes(exchange: http.Exchange) -> None:
    http.serve(body=_OTHER * len(exchange.data))(exchange)


def _stops(exchange: http.Exchange) -> None:
    """Send half of what was asked for, and end in good order."""
    start = exchange.request.offset or 0
    rest = exchange.data[start:]
    _part_head(exchange, start)
    exchange.body(rest[: len(rest) // 2])


def _stalls(exchange: http.Exchange) -> None:
    """Send half of what was asked for, and then nothing."""
    _stops(exchange)
    exchange.hold()


def _breaks(exchange: http.Exchange) -> None:
    """Send half of what was asked for, and reset the connection."""
    _stops(exchange)
    exchange.server.closing.wait(0.2)  # a reset may overtake bytes that the client has not read
    exchange.reset()


def _part_head(exchange: http.Exchange, start: int) -> None:
    size = len(exchange.data)
    headers: dict[str, object] = {"Content-Length": size - start}
    if exchange.request.offset is not None:
        headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
    exchange.head(200 if exchange.request.offset is None else 206, headers)


#: What comes after the request. "slow" is 1 byte/s; "never-ends" announces no length.
_ANSWERS: dict[str, http.Behaviour] = {
    "good": http.serve(),
    "other-bytes": _other_bytes,
    "flipped-bit": http.flip_bit(-1),
    "never-ends": http.endless(),
    "never-ends-chunked": http.endless("chunked"),
    "stops": _stops,
    "stalls": _stalls,
    "breaks": _breaks,
    "slow": http.drip(1),
    "too-long": http.too_long(1),
    "too-long-chunked": http.too_long(1, "chunked"),
    "wrong-range": http.serve(ranges="wrong"),
    "no-range": http.serve(ranges="ignore"),
    "forbidden": http.status(403),
    "missing": http.status(404),
    "unauthorised": http.status(401),
    "broken": http.status(500),
    "redirect": http.status(302, location="http://127.0.0.1:1/elsewhere"),
    "mute": http.stall_before_head(),
    "nonsense": http.raw(b"\0\1\2" * 1000),
}


def _silence(plain: socket.socket, closing: threading.Event) -> None:
    """Take the connection and say nothing, not even in the handshake."""
    plain.settimeout(0.2)
    while not closing.is_set():
        with contextlib.suppress(TimeoutError):
            if not plain.recv(4096):
                return


def _reset(plain: socket.socket, _: threading.Event) -> None:
    """Reset the connection as soon as it is there."""
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


#: What comes before any request.
_BELOW: dict[str, Callable[[socket.socket, threading.Event], None]] = {
    "silent": _silence,
    "resets": _reset,
}
MODES = (*_ANSWERS, *_BELOW)
#: Modes whose bytes arrive whole, and are wrong.
LIES = ("other-bytes", "flipped-bit")


class MisbehavingPeer(http.HttpServer):
    """The server. ``certificate``: as ``make_certificate`` returns it, else a new one is made."""

    def __init__(
        self,
        data: bytes,
        *modes: str,
        name: str = "image",
        tls: bool = True,
        certificate: tuple[str, Any] | None = None,
    ) -> None:
        cert_pem, key_pem = certificate or make_certificate()
        self.cert_pem = cert_pem if tls else None
        super().__init__(tls=server_context(cert_pem, key_pem.reveal()) if tls else None)
        self.data, self.name = data, name
        self._modes = list(modes or ("good",))
        self._choosing = threading.Lock()
        self._chosen = threading.local()

    def __enter__(self) -> Self:
        super().__enter__()
        self.route(f"/{self.name}", self.data, self._behave)
        return self

    def source(self, ticket: str = f"{'0' * 32}.{'0' * 64}") -> dict[str, Any]:
        """Return a ``fetch`` order's source for this peer. Within the ``with`` only."""
        return {
            "kind": "relay", "url": f"{self.url}/{self.name}", "token": ticket,
            "ca_pem": self.cert_pem, "insecure": False,
        }  # fmt: skip

    def _behave(self, exchange: http.Exchange) -> None:
        _ANSWERS[self._chosen.mode](exchange)

    def _talk(self, plain: socket.socket) -> None:
        with self._choosing:
            mode = self._modes.pop(0) if len(self._modes) > 1 else self._modes[0]
        if mode not in _BELOW:
            self._chosen.mode = mode
            super()._talk(plain)
            return
        with contextlib.suppress(OSError):
            _BELOW[mode](plain, self.closing)
        self._connections.discard(plain)
        plain.close()


def server_context(cert_pem: str, key_pem: str) -> ssl.SSLContext:
    """Return a server's context; the key stays in memory, as in a real helper."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    pipes = []
    try:
        for text in (cert_pem, key_pem):
            reading, writing = os.pipe()
            pipes.append(reading)
            os.write(writing, text.encode())
            os.close(writing)
        context.load_cert_chain(*(f"/proc/self/fd/{fd}" for fd in pipes))
    finally:
        for fd in pipes:
            os.close(fd)
    return context


def refused_url(name: str = "image") -> str:
    """Return a URL at whose port nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"https://127.0.0.1:{listener.getsockname()[1]}/{name}"


@contextlib.contextmanager
def black_hole(name: str = "image") -> Iterator[str]:
    """Give a URL whose port answers no connect, as behind a firewall that drops: its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"https://127.0.0.1:{listener.getsockname()[1]}/{name}"
