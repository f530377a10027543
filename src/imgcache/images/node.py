"""One node of the image service, asked at its own URL with the session of the service itself."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import requests

from imgcache.errors import ImageServiceError
from imgcache.images.client import ServiceClient, answer_detail, error_from, request_id
from imgcache.images.cloud import service_root
from imgcache.model import ApiAnswer
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from keystoneauth1.session import Session

#: Far more than the list of any cache; a body that goes on is not read.
MAX_BODY_BYTES = 32 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024
#: What the caller judges; 401 and what may pass (429, 5xx) is judged here.
_JUDGED = frozenset(range(200, 600)) - frozenset({401, 429, *range(500, 600)})


class GlanceNode:
    """See ``ServiceNode``. Thread safe."""

    def __init__(
        self, session: Session, endpoint: str, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.url = service_root(endpoint)
        self._label = f"Glance at {printable(self.url)}"
        self._client = ServiceClient(session, self._label, sleep=sleep)

    def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None
    ) -> ApiAnswer:
        """See ``ServiceNode.request``."""
        answer = self._client.request(
            method, self.url + path, ok=_JUDGED, headers=headers, stream=True
        )
        with answer:
            if answer.status_code >= 300:
                detail, body = f"{_after_colon(answer_detail(answer))}{request_id(answer)}", b""
            else:
                detail, body = "", self._body(answer)
            return ApiAnswer(answer.status_code, answer.headers, body, detail)

    def _body(self, answer: requests.Response) -> bytes:
        parts: list[bytes] = []
        size = 0
        for block in self._blocks(answer):
            parts.append(block)
            size += len(block)
            if size > MAX_BODY_BYTES:
                message = f"{self._label} answers with more than {MAX_BODY_BYTES} bytes"
                raise ImageServiceError(message, hint="is that the URL of a Glance node?")
        return b"".join(parts)

    def _blocks(self, answer: requests.Response) -> Iterator[bytes]:
        try:
            yield from answer.iter_content(_BLOCK_BYTES)
        except (requests.RequestException, OSError) as error:
            raise error_from(error, self._label) from error

    @contextmanager
    def read(self, path: str) -> Iterator[Iterator[bytes]]:
        """See ``ServiceNode.read``."""
        with self._client.request("GET", self.url + path, stream=True) as answer:
            yield self._blocks(answer)


def _after_colon(text: str) -> str:
    return f": {text}" if text else ""
