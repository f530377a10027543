"""Where the hosts of one run get their bytes: the image service itself, or pushed by the controller."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Literal, TypeVar

from imgcache.errors import ErrorCode, HostError, ImageServiceError, UsageError
from imgcache.events import Notice
from imgcache.operations.feeds import DirectFeed, Outside
from imgcache.operations.reader_thread import ReaderThread
from imgcache.operations.relay.feed import RelayFeed
from imgcache.operations.sites import Sites
from imgcache.plan import SourceKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from imgcache.drivers.base import HostContext
    from imgcache.drivers.feed import Feed
    from imgcache.events import EventSink
    from imgcache.images.base import HostAccess, ImageService
    from imgcache.model import Image, Secret, ServiceAccess
    from imgcache.operations.engine import HostWork
    from imgcache.operations.host_run import HostRun

T = TypeVar("T")
#: How long the end of a push waits for a read under way. A service that has fallen silent is left to a
#: thread that nobody waits for, so that an interrupted run ends in time.
LEAVE_READ_S = 3.0
SourcePolicy = Literal["auto", "service", "push", "relay", "push-relay"]


def source_kinds(policy: SourcePolicy, service: ImageService) -> tuple[SourceKind, ...]:
    """Return which kinds a host tries, in order.

    Raises:
        UsageError: hosts cannot download from this image service, but are told to.
    """
    if policy in {"push", "push-relay"} or (policy == "auto" and not service.serves_hosts):
        return (SourceKind.PUSH,)
    if not service.serves_hosts:
        message = f"--source {policy}: hosts cannot download from {service.describe()}"
        instead = "push-relay" if policy == "relay" else "push"
        raise UsageError(message, hint=f"leave --source out, or say --source {instead}")
    if policy == "service":
        return (SourceKind.SERVICE,)
    return (SourceKind.SERVICE, SourceKind.PUSH)


class RunSources:
    """See ``Sources``. Access for hosts is made when the first host asks, and ended with the run."""

    def __init__(
        self,
        service: ImageService,
        images: Sequence[Image],
        *,
        kinds: tuple[SourceKind, ...],
        run_id: str,
        lifetime_s: float,
        sink: EventSink,
        sites: Sites | None = None,
    ) -> None:
        self._sites = sites or Sites()
        self._sites.sink = sink
        self._service = service
        self._images = images
        self._kinds = kinds
        self._run_id = run_id
        self._lifetime_s = lifetime_s
        self._sink = sink
        self._access: HostAccess | None = None
        self._lock = asyncio.Lock()
        self._cleanup = AsyncExitStack()

    async def __aenter__(self) -> RunSources:
        await self._cleanup.enter_async_context(self._sites.tended())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        told = len(self._access.warnings) if self._access else 0
        await self._cleanup.aclose()
        for warning in self._access.warnings[told:] if self._access else ():
            self._sink.emit(Notice(warning))

    def kinds(self, image: Image) -> tuple[SourceKind, ...]:
        """See ``Sources``."""
        return self._kinds

    async def access(self, image: Image, refused: ServiceAccess | None) -> ServiceAccess:
        """See ``Sources``."""
        try:
            grant = await self._host_access()
            token: Secret | None = refused.token if refused else None
            return await asyncio.to_thread(grant.for_image, image, refused=token)
        except ImageServiceError as error:
            message = f"no access for the host to download with: {error.message}"
            raise HostError(ErrorCode.AUTH, message, hint=error.hint) from error

    async def _host_access(self) -> HostAccess:
        async with self._lock:
            if self._access is None:
                manager = self._service.host_access(self._images, self._run_id, self._lifetime_s)
                self._access = await self._cleanup.enter_async_context(_in_threads(manager))
                for warning in self._access.warnings:
                    self._sink.emit(Notice(warning))
            return self._access

    @asynccontextmanager
    async def blocks(self, image: Image, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """See ``Sources``."""
        reader = ReaderThread()
        try:
            manager = self._service.read(image, offset=offset)
            blocks = await reader.call(manager.__enter__)
            try:
                yield _each_block(reader, blocks)
            finally:
                # In the same thread, thus never beside a read that is still under way.
                leaving = asyncio.ensure_future(reader.call(manager.__exit__, None, None, None))
                with suppress(TimeoutError):
                    await asyncio.wait_for(leaving, LEAVE_READ_S)
        except ImageServiceError as error:
            raise HostError(ErrorCode.SOURCE, error.message, hint=error.hint) from error
        finally:
            reader.end()

    def feed(
        self, context: HostContext, image: Image, given_up: set[SourceKind], *, relays: bool
    ) -> Feed:
        """See ``Sources``."""
        budget = self._sites.budget(context.host)
        outside = Outside(context, image, given_up, budget, self._sites.rate_limit)
        min_rate = self._sites.min_rate(context.host)
        relay = self._sites.relay(context.host) if relays else None
        member = relay.members.get(context.host.name) if relay else None
        if relay is None or member is None:
            return DirectFeed(outside, min_rate)
        return RelayFeed(relay, member, context, image, outside=outside, min_rate=min_rate)

    def relays(self, context: HostContext) -> bool:
        """See ``Sources``."""
        return self._sites.relay(context.host) is not None

    def present(self, context: HostContext, image: Image) -> None:
        """See ``Sources``."""
        relay = self._sites.relay(context.host)
        if relay is not None:
            relay.present(context.host, image)

    @asynccontextmanager
    async def member(self, context: HostContext) -> AsyncIterator[None]:
        """See ``Sources``."""
        relay = self._sites.relay(context.host)
        if relay is None:
            yield
            return
        async with relay.member(context):
            yield

    def telling(self, work: HostWork) -> HostWork:
        """Return ``work`` that notes when a host's part is over: others may have waited for it to come."""

        async def do(context: HostRun, images: Sequence[Image]) -> None:
            try:
                await work(context, images)
            finally:
                relay = self._sites.relay(context.host)
                if relay is not None:
                    relay.left(context.host)

        return do


class NoSources:
    """See ``Sources``: for work that moves no images. Asking it for anything is a bug."""

    def kinds(self, image: Image) -> tuple[SourceKind, ...]:
        """See ``Sources``."""
        raise NotImplementedError

    async def access(self, image: Image, refused: ServiceAccess | None) -> ServiceAccess:
        """See ``Sources``."""
        raise NotImplementedError

    def blocks(
        self, image: Image, offset: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """See ``Sources``."""
        raise NotImplementedError

    def feed(
        self, context: HostContext, image: Image, given_up: set[SourceKind], *, relays: bool
    ) -> Feed:
        """See ``Sources``."""
        raise NotImplementedError

    def relays(self, context: HostContext) -> bool:
        """See ``Sources``."""
        raise NotImplementedError

    def present(self, context: HostContext, image: Image) -> None:
        """See ``Sources``."""
        raise NotImplementedError

    def member(self, context: HostContext) -> AbstractAsyncContextManager[None]:
        """See ``Sources``."""
        raise NotImplementedError


async def _each_block(reader: ReaderThread, blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while block := await reader.call(next, blocks, b""):
        yield block


@asynccontextmanager
async def _in_threads(manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave a blocking context manager in threads; leaving is never skipped."""
    value = await asyncio.to_thread(manager.__enter__)
    try:
        yield value
    finally:
        await asyncio.shield(asyncio.to_thread(manager.__exit__, None, None, None))
