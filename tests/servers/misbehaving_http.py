"""A real HTTP server on loopback that breaks on purpose: each route follows a script of behaviours.

    with HttpServer() as server:
        url = server.route("/v2/images/1/file", data, reset_after(1000), serve())
        ...
        assert [request.header("range") for request in server.requests] == [None, "bytes=1000-"]

Each request takes the next behaviour of its route's script; the last one is used again and again.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    import ssl

Framing = Literal["length", "chunked", "close"]
Ranges = Literal[
    "ok", "400", "403", "404", "302", "416", "500", "503", "ignore", "wrong", "whole-length",
    "short-length", "part", "empty", "encoded",
]  # fmt: skip
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    target: str
    headers: Mapping[str, str]
    """Names in lower case."""

    def header(self, name: str) -> str | None:
        """Return a header's value."""
        return self.headers.get(name.lower())

    @property
    def offset(self) -> int | None:
        """The start of the range that was asked for."""
        found = re.fullmatch(r"bytes=(\d+)-", self.header("range") or "")
        return int(found[1]) if found else None


@dataclass
class Exchange:
    """One request being answered."""

    server: HttpServer
    connection: socket.socket
    request: Request
    data: bytes

    def head(self, status: int, headers: Mapping[str, object] | None = None) -> None:
        """Send a status line and headers."""
        lines = [f"HTTP/1.1 {status} Status", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.connection.sendall("\r\n".join([*lines, "", ""]).encode())

    def body(self, data: bytes, *, chunked: bool = False) -> None:
        """Send a body, or a part of one."""
        view = memoryview(data)
        for at in range(0, len(view), _BLOCK):
            part = view[at : at + _BLOCK]
            self.connection.sendall(b"%x\r\n%b\r\n" % (len(part), bytes(part)) if chunked else part)

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # With TLS, an orderly end would come first.
        socket.socket.close(self.connection)

    def hold(self) -> None:
        """Say nothing more until the client leaves or the server closes."""
        self.connection.settimeout(0.2)
        while not self.server.closing.is_set():
            with contextlib.suppress(TimeoutError):
                if not self.connection.recv(1):
                    return


Behaviour = Callable[[Exchange], None]


def serve(
    framing: Framing = "length", ranges: Ranges = "ok", body: bytes | None = None
) -> Behaviour:
    """Answer as a good server does; ``ranges`` says what a range request gets; ``body`` replaces the data.

    ``whole-length`` and ``short-length``: a Content-Length that is not the range's; ``part``: a good answer
    that ends early; ``empty``: a good head, and no byte; digits: that status.
    """

    def behave(exchange: Exchange) -> None:
        data = exchange.data if body is None else body
        offset = exchange.request.offset
        headers: dict[str, object] = {"Content-Type": "application/octet-stream"}
        if offset is None or ranges == "ignore":
            _send(exchange, 200, headers, data, len(data), framing)
        elif ranges.isdigit():
            exchange.head(int(ranges), {"Content-Length": 0, "Location": "http://127.0.0.1:1/"})
        else:
            first, last = offset + (ranges == "wrong"), len(data) - 1
            if ranges == "part":
                last = (offset + last) // 2
            rest = data[offset : last + 1]
            announced = {"whole-length": len(data), "short-length": len(rest) // 2}
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            if ranges == "encoded":
                headers["Content-Encoding"] = "gzip"
            sent = b"" if ranges == "empty" else rest[: announced.get(ranges)]
            _send(exchange, 206, headers, sent, announced.get(ranges, len(rest)), framing)

    return behave


def _send(
    exchange: Exchange,
    status: int,
    headers: dict[str, object],
    data: bytes,
    announced: int,
    framing: Framing,
) -> None:
    if framing == "length":
        headers["Content-Length"] = announced
    elif framing == "chunked":
        headers["Transfer-Encoding"] = "chunked"
    exchange.head(status, headers)
    exchange.body(data, chunked=framing == "chunked")
    if framing == "chunked" and len(data) == announced:
        exchange.connection.sendall(b"0\r\n\r\n")


def truncate_after(
    count: int, framing: Framing = "length", announced: int | None = None
) -> Behaviour:
    """Send ``count`` bytes and end in good order; with ``close`` framing that is a clean, short 200."""

    def behave(exchange: Exchange) -> None:
        size = len(exchange.data) if announced is None else announced
        _send(exchange, 200, {}, exchange.data[:count], size, framing)

    return behave


def reset_after(count: int, framing: Framing = "length") -> Behaviour:
    """Send ``count`` bytes of the body, wait until they have left, and reset the connection."""

    def behave(exchange: Exchange) -> None:
        _send(exchange, 200, {}, exchange.data[:count], len(exchange.data), framing)
        time.sleep(0.2)  # a reset may overtake bytes that the client has not read
        exchange.reset()

    return behave


def stall_after(count: int, framing: Framing = "length") -> Behaviour:
    """Send ``count`` bytes of the body and then nothing."""

    def behave(exchange: Exchange) -> None:
        _send(exchange, 200, {}, exchange.data[:count], len(exchange.data), framing)
        exchange.hold()

    return behave


def stall_before_head() -> Behaviour:
    """Take the request and never answer."""
    return lambda exchange: exchange.hold()


def late(seconds: float, then: Behaviour) -> Behaviour:
    """Take the request, and answer as ``then`` does some time later."""

    def behave(exchange: Exchange) -> None:
        exchange.server.closing.wait(seconds)
        then(exchange)

    return behave


def drip(bytes_per_s: float) -> Behaviour:
    """Send the body slowly, one byte at a time."""

    def behave(exchange: Exchange) -> None:
        exchange.head(200, {"Content-Length": len(exchange.data)})
        for at in range(len(exchange.data)):
            if exchange.server.closing.wait(1 / bytes_per_s):
                return
            exchange.connection.sendall(exchange.data[at : at + 1])

    return behave


def endless(framing: Framing = "close") -> Behaviour:
    """Send the data, and zeros for as long as the client takes them (1 GiB at most)."""

    def behave(exchange: Exchange) -> None:
        _send(exchange, 200, {}, exchange.data, -1, framing)
        for _ in range((1 << 30) // _BLOCK):
            exchange.body(bytes(_BLOCK), chunked=framing == "chunked")

    return behave


def too_long(extra: int, framing: Framing = "length") -> Behaviour:
    """Send ``extra`` bytes more than the data, in good order."""

    def behave(exchange: Exchange) -> None:
        data = exchange.data + bytes(extra)
        _send(exchange, 200, {}, data, len(data), framing)

    return behave


def flip_bit(place: int) -> Behaviour:
    """Send the whole body with one bit wrong."""

    def behave(exchange: Exchange) -> None:
        data = bytearray(exchange.data)
        data[place] ^= 1
        serve(body=bytes(data))(exchange)

    return behave


def status(code: int, **headers: object) -> Behaviour:
    """Answer with a status and no body; ``retry_after=3`` becomes ``Retry-After: 3``."""

    def behave(exchange: Exchange) -> None:
        named = {name.replace("_", "-").title(): value for name, value in headers.items()}
        exchange.head(code, named if code == 204 else {"Content-Length": 0, **named})

    return behave


def raw(answer: bytes) -> Behaviour:
    """Send exactly these bytes and close."""
    return lambda exchange: exchange.connection.sendall(answer)


@dataclass
class _Route:
    data: bytes
    script: list[Behaviour]


@dataclass
class HttpServer:
    """The server. A context manager; a request for no route gets 404."""

    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    _routes: dict[str, _Route] = field(default_factory=dict)
    _connections: set[socket.socket] = field(default_factory=set)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    @property
    def url(self) -> str:
        """Where it is, without a slash at the end."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def route(self, target: str, data: bytes, *script: Behaviour) -> str:
        """Serve ``data`` at ``target`` as ``script`` says; return the URL."""
        self._routes[target] = _Route(data, list(script or (serve(),)))
        return self.url + target

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.add(connection)
            thread = threading.Thread(target=self._talk, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _talk(self, plain: socket.socket) -> None:
        connection = plain
        try:
            if self.tls:
                connection = self.tls.wrap_socket(plain, server_side=True)
                self._connections.add(connection)
            self._answer(connection)
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_WR)
        except OSError:
            pass  # the client left, or the server is closing
        finally:
            self._connections -= {plain, connection}
            connection.close()
            plain.close()

    def _answer(self, connection: socket.socket) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            data = connection.recv(_BLOCK)
            if not data:
                return
            received += data
            if received.startswith(
                b"\x16\x03"
            ):  # a TLS hello to a plain server: answered as others do
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                return
        first, *lines = received.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        request = Request(method, target, headers)
        self.requests.append(request)
        route = self._routes.get(target)
        if route is None:
            status(404)(Exchange(self, connection, request, b""))
            return
        behaviour = route.script.pop(0) if len(route.script) > 1 else route.script[0]
        behaviour(Exchange(self, connection, request, route.data))
