"""What broken connections are called: words, and nothing of how Python writes its objects."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from typing import TYPE_CHECKING

import pytest
import requests
from keystoneauth1 import session, token_endpoint

from imgcache.errors import ImageServiceError
from imgcache.images.client import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What Python's reprs are recognised by.
CODE = re.compile(
    r"[A-Za-z]+(Error|Read|Pool|Connection|Disconnected|Length|Line)\(|<[a-z]|0x[0-9a-f]|\('|b'|\\x"
)


@contextlib.contextmanager
def server(said: bytes, *, close: bool = True) -> Iterator[str]:
    """Answer one request with these bytes, then hang up or stay silent; give the URL."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(said)
                if not close:
                    ended.wait(20)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        finally:
            ended.set()
            thread.join()


def with_requests(url: str) -> None:
    with translated("Glance"), requests.Session() as http:
        http.trust_env = False
        with http.get(url, timeout=1, stream=True) as answer:
            for _ in answer.iter_content(10):
                pass


def with_keystoneauth(url: str) -> None:
    with translated("Glance"), requests.Session() as http:
        http.trust_env = False
        auth = token_endpoint.Token(url, "token")
        session.Session(auth=auth, session=http, timeout=1).get(url)


def reason(get: Callable[[str], None], url: str) -> str:
    with pytest.raises(ImageServiceError) as caught:
        get(url)
    return caught.value.message


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
SAID = [
    (HEAD + b"abc", True, "ended 97 bytes early"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", True, "chunks are malformed"),
    (b"", True, "closed without an answer"),
    (b"", False, "timed out"),
    (HEAD + b"abc", False, "timed out"),
    (b"garbage\r\n\r\n", True, "is not HTTP: garbage"),
]


@pytest.mark.parametrize("get", [with_requests, with_keystoneauth])
@pytest.mark.parametrize(("said", "close", "words"), SAID)
def test_a_broken_answer_is_told_in_words(
    get: Callable[[str], None], said: bytes, close: bool, words: str
) -> None:
    with server(said, close=close) as url:
        message = reason(get, url)
    assert words in message
    assert not CODE.search(message), message


@pytest.mark.parametrize("get", [with_requests, with_keystoneauth])
def test_a_service_that_is_not_there_is_told_in_words_with_its_url(
    get: Callable[[str], None],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
    message = reason(get, url)
    assert message == f"Glance: {url}: Connection refused"
    message = reason(get, "http://nowhere.invalid/x")
    assert message.startswith("Glance: http://nowhere.invalid/x: ")
    assert not CODE.search(message), message


@pytest.mark.parametrize("get", [with_requests, with_keystoneauth])
def test_a_service_without_tls_is_told_in_words(get: Callable[[str], None]) -> None:
    with server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
        message = reason(get, url.replace("http:", "https:"))
    assert "no trust (TLS)" in message
    assert not CODE.search(message), message
    assert "_ssl.c" not in message
