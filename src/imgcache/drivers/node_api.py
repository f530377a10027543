"""The API of a host that is a node of an HTTP service, as a driver sees it: requests as the operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from imgcache.model import ApiAnswer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AbstractAsyncContextManager

__all__ = ["ApiAnswer", "NodeApi"]


class NodeApi(Protocol):
    """One node of a service, at its own URL. Timeouts, CA and repetition are those of the service."""

    url: str
    """Where it is, without version and trailing slash; never holds a secret."""

    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None
    ) -> ApiAnswer:
        """Make one request without a body; repeated while the fault may pass, so it must bear that.

        Redirects are answers as others: they are not followed.

        Raises:
            HostError: no answer, no trust, no token, a server's error that stays, an endless answer.
        """

    def blocks(self, path: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a file of the service; the end of its bytes proves nothing.

        Raises:
            HostError: as ``request``, for any status but 200, or while reading.
        """
