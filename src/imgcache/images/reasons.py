"""What errors of the HTTP libraries mean, in words: they nest each other, and show the inner one as code."""

from __future__ import annotations

import http.client
import re
import ssl

import requests
import urllib3
from keystoneauth1 import exceptions as ksa

#: ``HTTPConnectionPool(host='…', port=1): …`` and ``<urllib3.connection.HTTPConnection object at 0x…>: …``.
_OBJECT = re.compile(r"^(HTTPS?Connection(Pool)?\([^)]*\)|<[^>]*>): ")
_NESTING = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
#: OpenSSL's file and line.
_SSL_PLACE = re.compile(r"^\[[^]]*\] ?| ?\(_ssl\.c:\d+\)")


def plain_reason(error: BaseException) -> str:
    """Return what an error of keystoneauth1 or requests says, on one line, with the URL where it is known.

    The result may still hold user info of URLs and characters that are unsafe to show.
    """
    chain = _chain(error)
    nested = any(isinstance(one, _NESTING) for one in chain)
    words = _words(chain[-1] if nested else error)
    if not nested:
        return words
    prepared = (one.request for one in chain if isinstance(one, requests.RequestException))
    url = next((request.url for request in prepared if request is not None), None)
    return f"{url}: {words}" if url else words


def _chain(error: BaseException) -> list[BaseException]:
    """Return the error and those inside it, the innermost last."""
    found = [error]
    while (inner := _inside(found[-1])) is not None and inner not in found:
        found.append(inner)
    return found


def _inside(error: BaseException) -> BaseException | None:
    """Return the error that another one wraps, in any of the ways in which that is done."""
    candidates = [getattr(error, "reason", None), *error.args, error.__cause__]
    if isinstance(error, ksa.ClientException):
        candidates.append(error.__context__)
    return next((one for one in candidates if isinstance(one, BaseException)), None)


def _words(error: BaseException) -> str:  # noqa: PLR0911 - a table
    match error:
        case urllib3.exceptions.InvalidChunkLength():
            return "the connection ended early, or its chunks are malformed"
        case http.client.IncompleteRead():
            early = f"{error.expected} bytes early" if isinstance(error.expected, int) else "early"
            return f"the connection ended {early}"
        case ssl.SSLError():
            text = getattr(error, "verify_message", "") or str(error.strerror or error)
            return _SSL_PLACE.sub("", text)
        case http.client.RemoteDisconnected():
            return "the connection was closed without an answer"
        case http.client.BadStatusLine():
            return f"the answer is not HTTP: {str(error).strip()}"
        case OSError() if error.strerror:
            return error.strerror
        case _:
            text = " ".join(str(error).split())
            return _OBJECT.sub("", text) or type(error).__name__
