"""A helper that lets others read, and readers that speak for themselves: no client of imgcache's between."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from imgcache.transport.relay_certificate import make_certificate
from imgcache.transport.relay_secret import RelayKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from helper.controller import Controller, Frame
    from imgcache.model import Secret

RELAY = ("watch", "staging", "offers", "relay")
#: For tests that are refused.
TIMES = {"wait_s": 0.5}
_PATIENCE_S = 30


class Answer:
    """One connection on which something was asked."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.file = sock.makefile("rb")
        self.status, self.headers = 0, dict[str, str]()

    def read_head(self) -> Self:
        """Wait for the head."""
        first = self.file.readline()
        assert first.startswith(b"HTTP/1.1 "), first
        self.status = int(first.split()[1])
        while (line := self.file.readline()) != b"\r\n":
            name, _, value = line.decode().partition(": ")
            self.headers[name.lower()] = value.strip()
        return self

    def read(self, count: int) -> bytes:
        """Return exactly ``count`` bytes of the body, or fewer at its end."""
        return self.file.read(count)

    def rest(self) -> bytes:
        """Return what comes until the end, also when that is an unfriendly one."""
        parts = []
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while part := self.file.read1(1 << 16):
                parts.append(part)
        return b"".join(parts)

    def has_more(self, within_s: float = 0.3) -> bool:
        """Whether a byte, or the end, comes within so many seconds. Nothing can be read afterwards."""
        self.sock.settimeout(within_s)
        try:
            self.sock.recv(1)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Leave."""
        self.file.close()
        self.sock.close()


class Rig:
    """One helper, listening. A context manager, which closes all connections."""

    def __init__(
        self, helper: Controller, instances: Path, *, tls: bool = True, **relay: Any
    ) -> None:
        self.helper = helper
        self.instances = instances
        self.keys: dict[str, RelayKey] = {}
        self.sources: dict[str, Path] = {}
        self._closing = contextlib.ExitStack()
        helper.load("conf", "cache", *RELAY)
        self._load("grow", Path(__file__).with_name("grow.py"))
        helper.result(helper.open(instances))
        self.cert_pem, self.key_pem = make_certificate()
        fields = {
            "address": "127.0.0.1", "ports": None, "max_readers": 4,
            "cert_pem": self.cert_pem if tls else None,
            "key_pem": self.key_pem.reveal() if tls else None,
            **relay,
        }  # fmt: skip
        self.tls = tls
        self.answer = helper.answer(helper.order("relay", **fields))
        self.port: int = self.answer.get("port", 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _load(self, name: str, path: Path) -> None:
        source = path.read_bytes()
        digest = hashlib.sha256(source).hexdigest()
        self.helper.order("load", source, name=name, size=len(source), sha256=digest)

    def do(self, op: str, **fields: Any) -> Frame:
        """Give an order and return its result."""
        return self.helper.result(self.helper.order(op, **fields), _PATIENCE_S)

    # ---- what the helper has

    def grow(self, name: str, data: bytes) -> RelayKey:
        """Begin a file that will hold ``data``."""
        key = self.key(name)
        path = self.instances.parent / f"{name}.source"
        path.write_bytes(data)
        self.sources[name] = path
        self.do("grow", name=name, key=key.hex.reveal(), size=len(data))
        return key

    def key(self, name: str) -> RelayKey:
        """Return the key of a file, the same each time."""
        return self.keys.setdefault(name, RelayKey())

    def append(self, name: str, until: int) -> None:
        """Let the file come in up to an offset."""
        self.do("append", name=name, source=str(self.sources[name]), until=until)

    def end(self, name: str, how: str) -> None:
        """``restart``, ``complete``, ``fail`` or ``unlink``."""
        self.do("end", name=name, how=how)

    def count(self) -> Frame:
        """Return what the relay holds."""
        return self.do("count")

    def wait_until(self, good: Callable[[Frame], bool]) -> Frame:
        """Wait until what the relay holds is as wanted."""
        deadline = time.monotonic() + _PATIENCE_S
        while not good(held := self.count()):
            assert time.monotonic() < deadline, held
            time.sleep(0.05)
        return held

    # ---- who reads

    def context(self, cert_pem: str | None = None) -> ssl.SSLContext:
        """Return a reader's context, which trusts the relay's certificate, or another one."""
        context = ssl.create_default_context(cadata=cert_pem or self.cert_pem)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    def connect(self, *, bare: bool = False, buffer: int | None = None) -> socket.socket:
        """Return a connection; ``bare``: without a handshake; ``buffer``: bytes that it takes unread."""
        sock: socket.socket = socket.socket()
        self._closing.callback(sock.close)
        sock.settimeout(_PATIENCE_S)
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.connect(("127.0.0.1", self.port))
        if self.tls and not bare:
            sock = self.context().wrap_socket(sock)
            self._closing.callback(sock.close)
        return sock

    def send(
        self,
        name: str,
        ticket: Secret | str | None = None,
        start: int | None = None,
        **connect: Any,
    ) -> Answer:
        """Ask for a file, by default with a new ticket, and do not wait."""
        shown = (
            ticket if isinstance(ticket, str) else (ticket or self.key(name).ticket(name)).reveal()
        )
        lines = [f"GET /{name} HTTP/1.1", "Host: peer"]
        if shown:
            lines.append(f"X-Auth-Token: {shown}")
        if start is not None:
            lines.append(f"Range: bytes={start}-")
        answer = Answer(self.connect(**connect))
        self._closing.callback(answer.close)
        answer.sock.sendall("\r\n".join([*lines, "", ""]).encode())
        return answer

    def ask(self, *args: Any, **more: Any) -> Answer:
        """Ask for a file, and wait for the head."""
        return self.send(*args, **more).read_head()
