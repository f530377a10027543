"""The contract of an image service: the only file to read before adding one.

Implementations: ``glance`` (Glance v2, with or without Keystone) and ``directory`` (a folder of image
files). All pass ``tests/contract/image_service_suite.py``.

Methods block (they use requests and files): the operations call them with ``asyncio.to_thread``. An
implementation is used by several threads at once and must allow it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from imgcache.errors import ImageServiceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from imgcache.model import ApiAnswer, Image, ImageId, Secret, ServiceAccess


class HostAccess(Protocol):
    """Access for hosts to one run's images, made by ``ImageService.host_access``."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the operator should know, such as an admin role in the token; grows until access ends."""

    def for_image(self, image: Image, *, refused: Secret | None = None) -> ServiceAccess:
        """Return what a host needs to fetch ``image``; blocks while a new token is made.

        ``refused`` is a token that Glance answered with 401: a newer one is returned, made once for
        all hosts that ask about the same token.

        Raises:
            AuthenticationError: no token can be had any more.
            ImageServiceUnreachableError: Keystone does not answer.
        """


class ServiceNode(Protocol):
    """One server of an image service, at its own URL, asked as the operator."""

    url: str
    """Without version and trailing slash."""

    def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None
    ) -> ApiAnswer:
        """Make one request without a body; repeated while the fault may pass. Follows no redirect.

        Raises:
            AuthenticationError, ImageServiceUnreachableError, ImageServiceError: no answer to use.
        """

    def read(self, path: str) -> AbstractContextManager[Iterator[bytes]]:
        """Open a file, in blocks; the end of the stream proves nothing.

        Raises:
            ImageServiceError: or a subclass, for any status but 200, or while reading.
        """


class ImageService(ABC):
    """Where images come from. Closing it ends its connections; use as a context manager."""

    #: Whether hosts can download from it by themselves; otherwise the controller pushes.
    serves_hosts: bool = False
    #: What the operator should know about which service this is, a sentence each.
    notes: tuple[str, ...] = ()

    @abstractmethod
    def describe(self) -> str:
        """Return one line that names it: ``Glance at https://…``, ``directory /srv/images``."""

    @abstractmethod
    def find_images(self, names: Sequence[str]) -> tuple[Image, ...]:
        """Resolve ids and names to images that are verified to be cacheable, in the order given.

        An image named twice comes once. Each has been seen to exist, to be active and readable, to
        have a size above 0, a digest in an algorithm that we can compute, and an allowed format.

        Raises:
            ImageProblemsError: lists every name with a problem, not just the first.
            AuthenticationError, ImageServiceUnreachableError, ImageServiceError: no answer to use.
        """

    @abstractmethod
    def read(self, image: Image, *, offset: int = 0) -> AbstractContextManager[Iterator[bytes]]:
        """Open the image's bytes from ``offset`` on, in blocks of at most 1 MiB.

        The end of the stream proves nothing: the reader counts and hashes. At most
        ``image.size_bytes - offset`` bytes are given.

        Raises:
            ImageServiceError: on opening, or while reading; ``ImageServiceUnreachableError`` when another
                attempt may bring more.
        """

    @abstractmethod
    def list_images(self) -> Iterator[tuple[ImageId, str, str]]:
        """Give (id, name, status) of every image that is visible, hidden ones too, whatever its state.

        In no order; an image that comes or goes meanwhile may be left out. An image that is not given
        need not be gone: see ``is_gone``.

        Raises:
            AuthenticationError, ImageServiceUnreachableError, ImageServiceError: no answer to use.
        """

    @abstractmethod
    def is_gone(self, image_id: ImageId) -> bool:
        """Whether the image service knows no such image (any more), asked for it by its id.

        With rights that do not show all projects' images, an image of others seems gone too.

        Raises:
            AuthenticationError, ImageServiceUnreachableError, ImageServiceError: no answer to use.
        """

    def host_access(
        self, images: Sequence[Image], run_id: str, lifetime_s: float
    ) -> AbstractContextManager[HostAccess]:
        """Give hosts access to exactly these images for ``lifetime_s``; leaving the context ends it.

        Only for services with ``serves_hosts``.
        """
        raise NotImplementedError

    def access_without_token(self) -> ServiceAccess | None:
        """Return where hosts reach the service, for `imgcache check`; None when they do not need to."""
        return None

    def node(self, endpoint: str) -> ServiceNode:
        """Return the node at this URL; asks nothing of the network yet.

        Raises:
            ImageServiceError: the service has no such nodes, or it is no URL.
        """
        message = f"{self.describe()} has no nodes that could be asked"
        hint = "hosts that are nodes of Glance need image_service: {kind: glance} in the inventory"
        raise ImageServiceError(message, hint=hint)

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """End all connections; idempotent."""

    def __enter__(self) -> ImageService:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
