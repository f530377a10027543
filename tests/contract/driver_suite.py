"""What every driver that can pre-cache promises: ``imgcache.drivers.base``, as tests.

A test module subclasses ``DriverSuite``, and ``LifeSuite`` (``life_suite.py``) when its driver can tell
what is cached; it gives a ``bench`` fixture, and ``cannot``: the methods that its driver lacks.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from contract.unsupported_suite import UnsupportedSuite
from imgcache.errors import ContactLostError, ErrorCode, HostError
from imgcache.model import Digest, Image, ImageId
from imgcache.operations.feeds import DirectFeed, Outside
from imgcache.operations.node_access import NodeAccess
from imgcache.plan import CheckState, SourceKind
from imgcache.transport.conversation import start_conversation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from imgcache.drivers.base import Driver, HostContext, Sources
    from imgcache.drivers.feed import Feed
    from imgcache.drivers.node_api import NodeApi
    from imgcache.errors import ImgcacheError
    from imgcache.images.base import ImageService
    from imgcache.model import Host, ServiceAccess
    from imgcache.plan import OutcomeWord
    from imgcache.transport.base import Session, Transport
    from imgcache.transport.conversation import Conversation

MIB = 1024 * 1024


class Stock:
    """``Sources`` that push from memory."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def add(self, data: bytes, **changes: Any) -> Image:
        """Add an image of these bytes."""
        number = len(self.data) + 1
        values: dict[str, Any] = {
            "id": ImageId(f"00000000-0000-4000-8000-{number:012}"),
            "name": f"image-{number}",
            "size_bytes": len(data),
            "disk_format": "raw",
            "container_format": "bare",
            "digest": Digest("sha256", hashlib.sha256(data).hexdigest()),
        }
        image = Image(**{**values, **changes})
        self.data[image.id] = data
        return image

    def kinds(self, image: Image) -> tuple[SourceKind, ...]:
        return (SourceKind.PUSH,)

    async def access(self, image: Image, refused: ServiceAccess | None) -> ServiceAccess:
        raise NotImplementedError

    def blocks(
        self, image: Image, offset: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        @asynccontextmanager
        async def opened() -> AsyncIterator[AsyncIterator[bytes]]:
            async def each() -> AsyncIterator[bytes]:
                data = self.data[image.id]
                for at in range(offset, len(data), 1 << 16):
                    yield data[at : at + (1 << 16)]

            yield each()

        return opened()

    def feed(
        self, context: HostContext, image: Image, given_up: set[SourceKind], *, relays: bool
    ) -> Feed:
        return DirectFeed(Outside(context, image, given_up, None, None))

    def relays(self, context: HostContext) -> bool:
        return False

    def present(self, context: HostContext, image: Image) -> None:
        assert context.host.name

    def member(self, context: HostContext) -> AbstractAsyncContextManager[None]:
        return nullcontext()


@dataclass
class Context:
    """A ``HostContext`` that writes everything down."""

    host: Host
    transport: Transport
    sources: Sources
    dry_run: bool = False
    retries: int = 0
    run_id: str = "suite"
    wait: bool = True
    service: ImageService | None = None
    calls: list[tuple[str, str]] = field(default_factory=list)
    """(``begin`` or ``report``, image name), in their order."""
    outcomes: dict[str, tuple[OutcomeWord, ErrorCode | None]] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    connections: int = 0

    def converse(self, modules: Sequence[str]) -> AbstractAsyncContextManager[Conversation]:
        self.connections += 1
        return start_conversation(self.transport, self.host, modules)

    def session(self, command: str) -> AbstractAsyncContextManager[Session]:
        self.connections += 1
        return self.transport.open(self.host, command)

    def api(self, endpoint: str) -> NodeApi:
        return NodeAccess(self.service, endpoint)

    @asynccontextmanager
    async def alone_on(self, storage_id: str) -> AsyncIterator[None]:
        assert storage_id
        yield

    def beside(self, host: Host) -> Context:
        raise NotImplementedError

    def begin(self, image: Image) -> None:
        self.calls.append(("begin", image.name))

    def report(
        self, image: Image, outcome: OutcomeWord, *, code: ErrorCode | None = None, **more: Any
    ) -> None:
        assert image.name not in self.outcomes, "reported twice"
        self.calls.append(("report", image.name))
        self.outcomes[image.name] = (outcome, code)
        self.details[image.name] = more

    def progress(self, image: Image, phase: str, done_bytes: int, total_bytes: int) -> None:
        assert 0 <= done_bytes <= total_bytes

    def notice(self, message: str, *, hint: str | None = None) -> None:
        assert message

    @asynccontextmanager
    async def lend_place(self) -> AsyncIterator[None]:
        yield

    def leave_place(self) -> None:
        """There is no other host."""

    async def take_place(self) -> bool:
        return False

    def needed_when(self, is_needed: Callable[[], bool]) -> None:
        """Nobody waits for it."""

    def must_stop(self) -> HostError | None:
        return None

    async def back_off(
        self, image: Image | None, attempt: int, reason: str, after_s: float | None
    ) -> None:
        assert attempt >= 1


@dataclass
class Bench:
    """A driver, and one host that it can work on."""

    driver: Driver
    host: Host
    open_transport: Callable[[], AbstractAsyncContextManager[Transport]]
    folder: Path
    """Everything that the host may change lies below."""
    cached: Callable[[Image], bytes | None]
    """What the host's cache holds for an image."""
    stock: Stock = field(default_factory=Stock)
    python_path: Path | None = None
    """Where the driver's package is installed, when it is none of imgcache's."""

    def precache(self, *images: Image, dry_run: bool = False, through: Any = None) -> Context:
        """Run ``precache`` and return what the driver told."""
        return self._run(lambda context: self.driver.precache(context, images), dry_run, through)

    def check(self) -> Sequence[tuple[str, CheckState, str]]:
        """Run ``check``."""
        rows: list[tuple[str, CheckState, str]] = []

        async def work(context: Context) -> None:
            rows.extend(await self.driver.check(context, None))

        self.run(work)
        return rows

    def run(self, work: Callable[[Context], Awaitable[None]], *, dry_run: bool = False) -> Context:
        """Do some work with the driver on the host."""
        return self._run(work, dry_run, None)

    def _run(
        self, work: Callable[[Context], Awaitable[None]], dry_run: bool, through: Any
    ) -> Context:
        async def run() -> Context:
            async with self.open_transport() as transport:
                wrapped = through(transport) if through else transport
                context = Context(self.host, wrapped, self.stock, dry_run)
                self.last = context
                await work(context)
                return context

        return asyncio.run(run())

    def tree(self) -> dict[str, tuple[int, int]]:
        """Return path -> (size, mtime) of all that the host has."""
        return {
            str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
            for path in self.folder.rglob("*")
        }


class CutOff:
    """A transport whose connection is lost after so many bytes to the host."""

    def __init__(self, inner: Transport, after: int) -> None:
        self._inner = inner
        self._left = after

    def open(self, host: Host, command: str) -> AbstractAsyncContextManager[Session]:
        @asynccontextmanager
        async def opened() -> AsyncIterator[Session]:
            async with self._inner.open(host, command) as session:
                original = session.write

                async def write(data: bytes) -> None:
                    self._left -= len(data)
                    if self._left < 0:
                        raise ContactLostError(ErrorCode.LOST, "cut off by the test")
                    await original(data)

                session.write = write  # type: ignore[method-assign]
                yield session

        return opened()


class DriverSuite(UnsupportedSuite):
    """See the module."""

    source: ClassVar[SourceKind] = SourceKind.PUSH
    """Where its hosts get the bytes from, in these tests."""
    connections: ClassVar[int] = 1
    """How often it connects to a host for all images of a run."""

    def test_each_image_is_cached_in_order_and_reported_once(self, bench: Bench) -> None:
        images = [bench.stock.add(os.urandom(size)) for size in (700_000, 1, 300_000)]
        told = bench.precache(*images)
        names = [image.name for image in images]
        assert told.outcomes == dict.fromkeys(names, ("cached", None))
        assert [name for call, name in told.calls if call == "report"] == names
        assert told.connections == self.connections
        for image in images:
            begun = told.calls.index(("begin", image.name))
            assert begun < told.calls.index(("report", image.name))
            assert bench.cached(image) == bench.stock.data[image.id]
            details = told.details[image.name]
            assert details["bytes_fetched"] == image.size_bytes
            assert details["source"] is self.source
            assert details["reason"] is None

    def test_the_second_time_all_is_existing_and_renewed(self, bench: Bench) -> None:
        image = bench.stock.add(os.urandom(5000))
        bench.precache(image)
        before = time.time()
        told = bench.precache(image)
        assert told.outcomes == {image.name: ("existing", None)}
        assert told.details[image.name].get("bytes_fetched", 0) == 0
        assert told.details[image.name].get("source") is None
        newest = max(mtime for path, (_, mtime) in bench.tree().items() if len(path) > 1)
        assert newest >= (before - 2) * 1e9

    def test_a_dry_run_writes_nothing_and_says_what_it_would_do(self, bench: Bench) -> None:
        there, absent = bench.stock.add(os.urandom(600)), bench.stock.add(os.urandom(700))
        untouched = bench.tree()
        bench.precache(absent, dry_run=True)
        assert bench.tree() == untouched
        bench.precache(there)
        before = bench.tree()
        told = bench.precache(there, absent, dry_run=True)
        assert bench.tree() == before
        assert told.outcomes == {
            there.name: ("existing", None),
            absent.name: ("skipped", ErrorCode.DRY_RUN),
        }

    def test_one_images_trouble_leaves_the_rest_alone(self, bench: Bench) -> None:
        good, wrong = bench.stock.add(os.urandom(900_000)), bench.stock.add(os.urandom(2_000_000))
        last = bench.stock.add(os.urandom(10))
        bench.stock.data[wrong.id] = os.urandom(2_000_000)
        told = bench.precache(good, wrong, last)
        assert [word for word, _ in told.outcomes.values()] == ["cached", "error", "cached"]
        assert told.outcomes[wrong.name][1] is ErrorCode.DIGEST
        assert told.details[wrong.name]["reason"]
        assert bench.cached(wrong) is None
        assert bench.cached(last) == bench.stock.data[last.id]

    def test_too_few_bytes_are_never_an_image(self, bench: Bench) -> None:
        image = bench.stock.add(os.urandom(900_000))
        bench.stock.data[image.id] = bench.stock.data[image.id][:-1]
        told = bench.precache(image)
        assert told.outcomes[image.name] == ("error", ErrorCode.SOURCE)
        assert bench.cached(image) is None

    def test_lost_contact_is_raised_with_what_was_done_reported(self, bench: Bench) -> None:
        first, second = bench.stock.add(os.urandom(100)), bench.stock.add(os.urandom(3_000_000))
        with pytest.raises(ContactLostError):
            bench.precache(first, second, through=lambda inner: CutOff(inner, 1_000_000))
        assert second.name not in bench.last.outcomes
        assert bench.last.outcomes == {first.name: ("cached", None)}
        assert ("begin", second.name) in bench.last.calls
        assert bench.cached(second) is None
        # The next run needs no help
        told = bench.precache(first, second)
        assert {word for word, _ in told.outcomes.values()} <= {"cached", "existing"}
        assert bench.cached(second) == bench.stock.data[second.id]

    def test_a_check_reads_only_and_has_one_row_per_question(self, bench: Bench) -> None:
        before = bench.tree()
        rows = bench.check()
        assert bench.tree() == before
        names = [name for name, _, _ in rows]
        assert len(set(names)) == len(names) > 0
        assert all(isinstance(state, CheckState) and detail for _, state, detail in rows)
        assert "glance" not in names  # nothing was asked about a service

    def test_no_images_is_no_trouble(self, bench: Bench) -> None:
        assert bench.precache().outcomes == {}


def raised_by(work: Awaitable[object]) -> ImgcacheError:
    """Return the ``HostError`` that some work raises."""

    async def run() -> None:
        await work

    with pytest.raises(HostError) as caught:
        asyncio.run(run())
    return caught.value
