"""Stands between a helper and the test vCenter, and meddles: what no simulator does on demand."""

from __future__ import annotations

import http.client
import ssl
import threading
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from imgcache.transport.relay_certificate import make_certificate
from servers.misbehaving_peer import server_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from servers.vcenter import VCenter


@dataclass(frozen=True)
class Request:
    """What came."""

    method: str
    path: str
    """With its query."""
    headers: dict[str, str]
    body: bytes

    def calls(self, method: str) -> bool:
        """Whether it calls a method of the vSphere API."""
        return b"<" + method.encode() + b" " in self.body


@dataclass(frozen=True)
class Answer:
    """What the vCenter says to it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    sent: int | None = None
    """After so many bytes of the body the connection is closed, all the same."""

    def cut(self) -> Answer:
        """Return it with half of its body only."""
        return replace(self, sent=len(self.body) // 2)


class Front:
    """``meddle`` is called with each request, in its thread, and with what has the vCenter answer it."""

    def __init__(
        self, vcenter: VCenter, meddle: Callable[[Request, Callable[[], Answer]], Answer]
    ) -> None:
        self.vcenter = vcenter
        self.requests: list[Request] = []
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(self.command, self.path, dict(self.headers), body)
                front.requests.append(request)
                answer = meddle(request, lambda: front.ask(request))
                self.send_response_only(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                if request.method != "HEAD":
                    self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body[: answer.sent])
                if answer.sent is not None:
                    self.close_connection = True

            do_GET = do_HEAD = do_POST = do_PUT = handle_any

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        cert_pem, key_pem = make_certificate()
        context = server_context(cert_pem, key_pem.reveal())
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def ask(self, request: Request) -> Answer:
        """Have the vCenter answer a request."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.vcenter.port, timeout=60, context=context
        )
        try:
            connection.request(request.method, request.path, request.body, request.headers)
            response = connection.getresponse()
            body = response.read()
            left_out = {"transfer-encoding", "connection"}
            if request.method != "HEAD":
                left_out.add("content-length")
            headers = [one for one in response.getheaders() if one[0].lower() not in left_out]
            return Answer(response.status, tuple(headers), body)
        finally:
            connection.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
