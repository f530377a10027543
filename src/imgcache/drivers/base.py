"""The contract of a driver: the only file to read before adding one.

A driver knows one virtualisation back end's image cache. It talks to hosts through the ``HostContext``
it is given and reports an outcome per image; it never decides about concurrency, deadlines or retries
of connections, which are the engine's.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from imgcache.errors import ErrorCode, HostError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from imgcache.model import Host, Image, ServiceAccess
    from imgcache.plan import CheckState, OutcomeWord, SourceKind
    from imgcache.transport.conversation import Conversation


@dataclass(frozen=True, slots=True)
class DriverCapabilities:
    """What a driver can do; shown to operators."""

    precache: bool = False


class UnsupportedError(HostError):
    """The driver, or the host's back end, has no image cache of this kind: a warning, not a failure."""


class Sources(Protocol):
    """Where a host may get an image's bytes, best first."""

    def kinds(self, image: Image) -> tuple[SourceKind, ...]:
        """Return the kinds to try, in order; never empty."""

    async def access(self, image: Image, refused: ServiceAccess | None) -> ServiceAccess:
        """Return what the host needs for ``SourceKind.SERVICE``; a new token when one was refused.

        Raises:
            HostError: code ``auth`` when no other token can be had.
        """

    def blocks(
        self, image: Image, offset: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open the image's bytes for ``SourceKind.PUSH``.

        Raises:
            HostError: code ``source``, on opening or while reading.
        """


class HostContext(Protocol):
    """What the engine lends a driver for one host in one run."""

    host: Host
    sources: Sources
    dry_run: bool
    retries: int
    """How often one item's attempt may be repeated."""
    run_id: str

    def converse(self, modules: Sequence[str]) -> AbstractAsyncContextManager[Conversation]:
        """Connect and start the helper with these of its modules; one connection per host and run."""

    def begin(self, image: Image) -> None:
        """Say that an order about this image is on its way.

        From now on its clock runs, and losing contact leaves it ``unknown``.
        """

    def report(
        self,
        image: Image,
        outcome: OutcomeWord,
        *,
        code: ErrorCode | None = None,
        reason: str | None = None,
        source: SourceKind | None = None,
        bytes_fetched: int = 0,
    ) -> None:
        """Say how an image ended; exactly once per image, in any order."""

    def progress(self, image: Image, phase: str, done_bytes: int, total_bytes: int) -> None:
        """Say how far an image is; as often as wanted."""

    def notice(self, message: str, *, hint: str | None = None) -> None:
        """Tell the operator something about this host that is not an outcome."""

    async def back_off(
        self, image: Image | None, attempt: int, reason: str, after_s: float | None
    ) -> None:
        """Wait before repetition ``attempt`` (1 is the first), lending this host's place to others.

        ``after_s`` is what a server asked for; it is capped, and jitter is added.
        """


class Driver(ABC):
    """One virtualisation back end. Stateless: one object serves all hosts of a run."""

    name: ClassVar[str]
    capabilities: ClassVar[DriverCapabilities] = DriverCapabilities()

    async def precache(self, context: HostContext, images: Sequence[Image]) -> None:
        """Put images into the host's cache, in the order given, or renew those that are there.

        Reports one outcome per image through ``context.report``. One image's trouble is reported and
        the rest goes on; trouble with the host as a whole is raised, and the engine gives all images
        that were not reported yet that outcome.

        Source: nova-specs ``image-precache-support``: a driver without it answers ``unsupported``.

        Raises:
            UnsupportedError: this back end cannot; the engine reports ``unsupported`` and warns.
            HostError: see ``HostContext.converse``.
        """
        message = f"the driver {self.name} cannot pre-cache images"
        raise UnsupportedError(ErrorCode.DRIVER, message)

    async def check(
        self, context: HostContext, service: ServiceAccess | None
    ) -> Sequence[tuple[str, CheckState, str]]:
        """Return whether ``precache`` would work on the host: (check, state, detail) each.

        ``service`` is where hosts reach the image service, without a token; None when the controller
        pushes. Reads only.

        Raises:
            UnsupportedError: this back end cannot be pre-cached at all.
            HostError: see ``HostContext.converse``.
        """
        message = f"the driver {self.name} cannot pre-cache images"
        raise UnsupportedError(ErrorCode.DRIVER, message)
