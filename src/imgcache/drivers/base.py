"""The contract of a driver: the only file to read before adding one.

A driver knows one virtualisation back end's image cache. It talks to hosts through the ``HostContext``
it is given and reports an outcome per image; it never decides about concurrency, deadlines or retries
of connections, which are the engine's.
"""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING, ClassVar, NoReturn, Protocol

from imgcache.drivers.results import (
    HashProgress,
    NoteRow,
    NoteState,
    RemovalItem,
    RemovalRow,
    RemovalState,
    Verdict,
    VerdictState,
)
from imgcache.errors import ErrorCode, HostError
from imgcache.plan import OutcomeWord

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from imgcache.drivers.feed import Feed, Listener, Offer
    from imgcache.drivers.node_api import NodeApi
    from imgcache.model import Host, HostCache, Image, ImageId, ServiceAccess
    from imgcache.plan import CheckState, SourceKind
    from imgcache.transport.base import Session
    from imgcache.transport.conversation import Conversation

__all__ = [
    "METHODS",
    "Driver",
    "HashProgress",
    "HostContext",
    "NoteRow",
    "NoteState",
    "RemovalItem",
    "RemovalRow",
    "RemovalState",
    "Sources",
    "UnsupportedError",
    "Verdict",
    "VerdictState",
]


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

    def feed(
        self, context: HostContext, image: Image, given_up: set[SourceKind], *, relays: bool
    ) -> Feed:
        """Return where one transfer gets its bytes: see ``drivers.feed``.

        ``given_up`` is the host's own memory of kinds it cannot reach; ``relays``: it can read from other
        hosts, and let others read.
        """

    def relays(self, context: HostContext) -> bool:
        """Whether the host may read from others of its site."""

    def present(self, context: HostContext, image: Image) -> None:
        """Say that the host has the image: others of its site may be filled from there."""

    def member(self, context: HostContext) -> AbstractAsyncContextManager[None]:
        """The host fetches inside of this, in one conversation.

        Leaving waits, with the place lent and for a bounded time, for hosts that read from this one.
        """


class HostContext(Protocol):
    """What the engine lends a driver for one host in one run."""

    host: Host
    sources: Sources
    dry_run: bool
    retries: int
    """How often one item's attempt may be repeated."""
    run_id: str
    wait: bool
    """False: hand work to a back end that does it by itself, and do not wait for its end."""

    def converse(self, modules: Sequence[str]) -> AbstractAsyncContextManager[Conversation]:
        """Connect and start the helper with these of its modules; one connection per host and run."""

    def session(self, command: str) -> AbstractAsyncContextManager[Session]:
        """Connect and start a command of the driver's own, as the host's login shell reads it.

        For hosts that ``converse`` cannot start the helper on as it is; see ``Transport.open``.
        """

    def api(self, endpoint: str) -> NodeApi:
        """Return the API of a host that is a node of the image service; for ``Driver.needs_service``.

        Raises:
            HostError: code ``config``: there is no such service, or ``endpoint`` is no URL.
        """

    def beside(self, host: Host) -> HostContext:
        """Return a context for a host that this one is to read from; nothing is reported through it."""

    def alone_on(self, storage_id: str) -> AbstractAsyncContextManager[None]:
        """Wait until no other host of this run works on this storage, lending the place meanwhile."""

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

    def lend_place(self) -> AbstractAsyncContextManager[None]:
        """Lend this host's place to another one while it only waits; leaving waits for a place."""

    def leave_place(self) -> None:
        """Let others have this host's place until it takes one again: it is busy, but only with its site."""

    async def take_place(self) -> bool:
        """Wait for a place, where this host has left its own; return whether it had. See ``needed_when``."""

    def needed_when(self, is_needed: Callable[[], bool]) -> None:
        """Say how to tell whether others wait for this host: a place that it has lent is its own then."""

    def must_stop(self) -> HostError | None:
        """Return why no more bytes may be moved now (a window closed, the deadline), if so.

        Whoever moves bytes asks at least every few seconds, stops cleanly, and raises or reports it.
        """

    async def back_off(
        self, image: Image | None, attempt: int, reason: str, after_s: float | None
    ) -> None:
        """Wait before repetition ``attempt`` (1 is the first), lending this host's place to others.

        ``after_s`` is what a server asked for; it is capped, and jitter is added.
        """


#: The methods that make what a driver can do -> that, after "cannot".
METHODS: Mapping[str, str] = {
    "precache": "pre-cache images",
    "check": "tell whether images can be pre-cached",
    "inspect": "tell what is cached",
    "remove": "remove cached images",
    "clean": "remove what broken transfers left behind",
    "verify": "verify cached images",
    "prove": "prove which image a converted file is",
    "pin": "pin cached images",
    "renew": "renew the age of cached images",
}


class Driver(ABC):
    """One virtualisation back end. Stateless: one object serves all hosts of a run.

    What a driver can do is told by which of these methods it overrides: see ``drivers.capabilities``. A
    method that it leaves as it is raises ``UnsupportedError``.
    """

    name: ClassVar[str]
    """As the inventory says it: lower-case letters, digits and hyphens."""
    unsupported: ClassVar[Mapping[str, str]] = {}
    """Method -> why this back end cannot, in a sentence without its full stop, for those left as they are."""
    needs_service: ClassVar[bool] = False
    """Whether it asks ``HostContext`` for the image service, in commands about what is cached, too."""
    kept_as_is: ClassVar[frozenset[str]] = frozenset()
    """Disk formats of images that its cache keeps byte for byte: an entry's size is the image's."""
    helper_package: ClassVar[str | None] = None
    """The package with the modules it sends to hosts (``toy_driver.helper``); None: imgcache's own."""

    def entry_name(self, image_id: ImageId) -> str:
        """Return the name that an image's entry has in this back end's cache: its id, unless overridden."""
        return image_id

    def refuses(self, image: Image) -> str | None:
        """Return why no host of this back end can have an image, as "has disk format …"; None: it may."""
        del image
        return None

    def usable(self, context: HostContext, images: Sequence[Image]) -> list[Image]:
        """Return the images that it does not refuse; the others are reported."""
        left = []
        for image in images:
            reason = self.refuses(image)
            if reason is None:
                left.append(image)
                continue
            context.begin(image)
            context.report(image, OutcomeWord.ERROR, code=ErrorCode.FORMAT, reason=reason)
        return left

    def helper_modules(self, *names: str) -> tuple[str, ...]:
        """Return modules of ``helper_package`` as ``HostContext.converse`` takes them."""
        if self.helper_package is None:
            return names
        return tuple(f"{self.helper_package}:{name}" for name in names)

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
        self._cannot("precache")

    def serving(
        self, context: HostContext, image: Image, listener: Listener, offer: Offer
    ) -> AbstractAsyncContextManager[int | None]:
        """Let other hosts read an image's original bytes from this one, meanwhile; reads only.

        Gives the port it listens on, or None when it has not those bytes. Only for drivers whose hosts
        relay: see ``Sources.feed``.

        Raises:
            UnsupportedError, HostError: as ``precache``.
        """
        message = f"hosts of the driver {self.name} do not read from each other"
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
        self._cannot("check")

    # ---- the life of what is in the cache; rows are read with ``aclosing``, which ends the session

    async def inspect(self, context: HostContext, *, formats: bool, use: bool) -> HostCache:
        """Return what is in the host's cache. Reads only.

        Args:
            context: see ``HostContext``.
            formats: look at the files' headers; without, ``CacheEntry.format`` is None.
            use: look for users; without, ``CacheEntry.users`` is None.

        Raises:
            UnsupportedError: this back end has no cache of files.
            HostError: see ``HostContext.converse``.
        """
        self._cannot("inspect")

    def remove(
        self, context: HostContext, items: Sequence[RemovalItem]
    ) -> AsyncGenerator[RemovalRow, None]:
        """Remove entries, each decided again by the host; yield one row per item, as they come.

        Raises:
            UnsupportedError, HostError: as ``inspect``; items without a row may be gone or not.
        """
        self._cannot("remove")

    def clean(self, context: HostContext, stall_age_s: float) -> AsyncGenerator[RemovalRow, None]:
        """Remove what broken transfers left behind; yield one row per transfer file found.

        In a dry run (``context.dry_run``) the rows say what would be done.
        """
        self._cannot("clean")

    def verify(
        self,
        context: HostContext,
        base_names: Sequence[str],
        *,
        adopt: Mapping[str, Image],
        bytes_per_s: int | None,
    ) -> AsyncGenerator[Verdict | HashProgress, None]:
        """Hash entries again, one after the other, and note in their manifests that they are intact.

        Yields each entry's progress, and its verdict as it is found.

        Args:
            context: see ``HostContext``.
            base_names: the entries; one verdict each.
            adopt: base name -> image: unmanaged entries whose bytes are this image's get a manifest.
            bytes_per_s: the most to read per second; None: as fast as it goes, at low priority.
        """
        self._cannot("verify")

    def prove(
        self,
        context: HostContext,
        images: Sequence[Image],
        *,
        bytes_per_s: int | None,
    ) -> AsyncGenerator[Verdict, None]:
        """Give unmanaged entries a manifest that are what their image becomes on this host.

        For images that hosts convert: the original is fetched again from ``context.sources`` beside the
        entry, converted, compared and dropped. The entry itself is only read.

        Args:
            context: see ``HostContext``; nothing is reported through it but progress.
            images: whose entries; one verdict each, as it is found.
            bytes_per_s: the most to read per second while hashing; None: as fast as it goes.
        """
        self._cannot("prove")

    def pin(
        self,
        context: HostContext,
        base_names: Sequence[str],
        until: datetime | None,
        *,
        extend: bool = False,
    ) -> AsyncGenerator[NoteRow, None]:
        """Pin entries until a time (``PIN_FOREVER`` too), or unpin them (None); yield one row each.

        ``extend``: a pin that ends later stays as it is.
        """
        self._cannot("pin")

    def renew(
        self, context: HostContext, sizes: Sequence[tuple[str, int]]
    ) -> AsyncGenerator[NoteRow, None]:
        """Set the times of entries to now: (base name, size in bytes that it must have) each.

        Yields one row per entry.
        """
        self._cannot("renew")

    def why_not(self, method: str) -> str:
        """Return why this driver does not have a method of ``METHODS``, in a sentence without full stop."""
        return self.unsupported.get(method, f"the driver {self.name} cannot {METHODS[method]}")

    def _cannot(self, method: str) -> NoReturn:
        raise UnsupportedError(ErrorCode.DRIVER, self.why_not(method))
