"""How drivers reach hosts that are nodes of the image service: its session, in threads of their own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from imgcache.errors import (
    AuthenticationError,
    ErrorCode,
    HostError,
    ImageServiceError,
    ImageServiceUnreachableError,
)
from imgcache.operations.reader_thread import ReaderThread
from imgcache.operations.sources import LEAVE_READ_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping

    from imgcache.images.base import ImageService
    from imgcache.model import ApiAnswer

T = TypeVar("T")

#: For a whole answer with all repetitions, and for a part of a file: more than any that goes on well. The
#: service's own timeouts are for each wait for bytes, and a node that drips would last for ever.
ANSWER_S = 600.0


class NodeAccess:
    """See ``NodeApi``. Every call has a thread of its own, for which an interrupted run does not wait."""

    def __init__(self, service: ImageService | None, endpoint: str) -> None:
        """Raises HostError when there is no image service that has nodes, or the URL is none."""
        if service is None:
            message = "this host is reached through the image service, and none was opened"
            hint = "see image_service in the inventory, and the options --os-*"
            raise HostError(ErrorCode.CONFIG, message, hint=hint)
        with _as_host_error(ErrorCode.CONFIG):
            self._node = service.node(endpoint)
        self.url = self._node.url

    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None
    ) -> ApiAnswer:
        """See ``NodeApi``."""
        thread = ReaderThread()
        try:
            with _as_host_error():
                answer = thread.call(self._node.request, method, path, headers=headers)
                return await _in_time(answer, self.url)
        finally:
            thread.end()

    @asynccontextmanager
    async def blocks(self, path: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """See ``NodeApi``."""
        thread = ReaderThread()
        try:
            with _as_host_error():
                manager = self._node.read(path)
                blocks = await _in_time(thread.call(manager.__enter__), self.url)
                try:
                    yield _each_block(thread, blocks, self.url)
                finally:
                    leaving = asyncio.ensure_future(thread.call(manager.__exit__, None, None, None))
                    with suppress(TimeoutError):
                        await asyncio.wait_for(leaving, LEAVE_READ_S)
        finally:
            thread.end()


async def _each_block(
    thread: ReaderThread, blocks: Iterator[bytes], url: str
) -> AsyncIterator[bytes]:
    while block := await _in_time(thread.call(next, blocks, b""), url):
        yield block


async def _in_time(call: Awaitable[T], url: str) -> T:
    """Wait for a call that may be left alone, and not for ever.

    Raises:
        HostError: code ``stall``.
    """
    try:
        return await asyncio.wait_for(call, ANSWER_S)
    except TimeoutError:
        message = f"{url} did not come to the end of an answer within {ANSWER_S:.0f} s"
        raise HostError(ErrorCode.STALL, message, hint="see what keeps the node busy") from None


@contextmanager
def _as_host_error(code: ErrorCode = ErrorCode.PROTOCOL) -> Iterator[None]:
    """Turn errors of the image service into one host's; ``code`` is for those that say no more."""
    try:
        yield
    except AuthenticationError as error:
        raise HostError(ErrorCode.AUTH, error.message, hint=error.hint) from error
    except ImageServiceUnreachableError as error:
        raise HostError(ErrorCode.UNREACHABLE, error.message, hint=error.hint) from error
    except ImageServiceError as error:
        raise HostError(code, error.message, hint=error.hint) from error
