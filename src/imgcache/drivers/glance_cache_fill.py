"""Fills the cache of one Glance node: queue, watch, hand over again, pull through, or say what is wrong.

Source: glance ``api/v2/cached_images.py``: a PUT answers 202 and promises nothing. A fetch that fails kills
the thread that fetches for this server process, and all it was given stays queued for ever; a restart
forgets its list, and keeps the marks of the queue. A second PUT hands an image over again. A full download
through a server with the cache filter fills the cache by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imgcache.errors import ErrorCode, HostError
from imgcache.plan import OutcomeWord, SourceKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgcache.drivers.base import HostContext
    from imgcache.drivers.glance_cache_api import CacheState, NodeCache
    from imgcache.model import Image

#: Images that one node is given at a time; it fetches one after the other.
MAX_WAITING = 8

STUCK = "its cache worker is stuck: restart glance-api there, and see its log"
UNFILLED = (
    "nor does downloading the image fill the cache: the filter cache is not in the pipeline there, or the "
    "image's object in the store is damaged"
)
STALE = (
    "it is neither cached nor queued: incomplete/{id} in the image_cache_dir is from a fetch that broke "
    f"off, and {STUCK}"
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long nothing may move at a node before something is done about it."""

    base_s: float = 60.0
    bytes_per_s: float = 5e6
    """The slowest store that is believed to be at work."""
    first_poll_s: float = 0.2
    last_poll_s: float = 5.0

    def for_bytes(self, size_bytes: int) -> float:
        """Return the seconds within which an image of this size must come."""
        return self.base_s + size_bytes / self.bytes_per_s


def size_problem(state: CacheState, image: Image) -> str | None:
    """Return what is wrong with the size of a cached image, if anything is."""
    size = state.cached[image.id].size_bytes
    if size is None or size == image.size_bytes:
        return None
    return f"the node has {size} of {image.size_bytes} bytes: imgcache delete it, and precache it again"


@dataclass(slots=True)
class Filling:
    """The work on one node. ``todo``: the images that are not cached there."""

    context: HostContext
    node: NodeCache
    patience: Patience
    todo: deque[Image]
    _waiting: dict[str, Image] = field(default_factory=dict)
    _queued: frozenset[str] = frozenset()
    """What the node's queue held when it was looked at last."""
    _moved_at: float = 0.0
    _poll_s: float = 0.0
    _handed_again: bool = False
    _stuck: bool = False
    _outages: int = 0
    _forgotten: bool = False
    """The node was away: it may have restarted, and then it does not know what it was to fetch."""

    async def run(self) -> None:
        """Report one outcome for each image.

        Raises:
            HostError: the node does not answer any more, or the run must stop.
        """
        while self.todo or self._waiting:
            try:
                await self._hand_over()
                if self._waiting:
                    await self._pause()
                    await self._look()
                if self._waiting and self._standstill():
                    await self._escalate()
            except HostError as error:
                await self._outlast(error)

    async def _outlast(self, error: HostError) -> None:
        """Wait for a node that does not answer: it may be restarted just now. Raises what is not that."""
        if error.code is not ErrorCode.UNREACHABLE or self._outages >= self.context.retries:
            raise error
        self._outages += 1
        self._forgotten = True
        await self.context.back_off(None, self._outages, error.message, None)

    async def _hand_over(self) -> None:
        while self.todo and len(self._waiting) < MAX_WAITING:
            image = self.todo[0]
            taken = await self._put(image)
            self.todo.popleft()
            if not taken:
                continue
            if not self.context.wait:
                reason = "the node was asked to fetch it, and is not waited for (--no-wait)"
                self.context.report(
                    image, OutcomeWord.SKIPPED, code=ErrorCode.QUEUED, reason=reason
                )
                continue
            if not self._waiting:
                self._moved()
            self._waiting[image.id] = image
            self.context.progress(image, "download", 0, image.size_bytes)

    async def _put(self, image: Image) -> bool:
        """Queue one image; False when that cannot be, which is reported."""
        try:
            await self.node.queue(image.id)
        except HostError as error:
            if error.code not in {ErrorCode.GONE, ErrorCode.NODATA}:
                raise
            self._fail(image, error.code, error.message)
            return False
        return True

    async def _pause(self) -> None:
        await asyncio.sleep(self._poll_s)
        self._poll_s = min(self._poll_s * 1.5, self.patience.last_poll_s)
        if error := self.context.must_stop():
            raise error

    async def _look(self) -> None:
        """Take from the node what it has by now."""
        state = await self.node.state()
        for image in [one for one in self._waiting.values() if one.id in state.cached]:
            self._ended(image, state)
        queued = frozenset(state.queued)
        if self._queued - queued:
            self._moved()
        self._queued = queued
        if self._forgotten:
            await self._hand_again()
            self._forgotten = False

    def _ended(self, image: Image, state: CacheState, *, pulled: int = 0) -> None:
        """Report an image that the node has; ``pulled``: bytes that were downloaded here and dropped."""
        del self._waiting[image.id]
        self._moved()
        if problem := size_problem(state, image):
            self._fail(image, ErrorCode.DAMAGED, problem, image.size_bytes)
            return
        reason = f"pulled through the node, since {STUCK}" if pulled else None
        self.context.report(
            image,
            OutcomeWord.CACHED,
            reason=reason,
            source=SourceKind.SERVICE,
            bytes_fetched=max(pulled, image.size_bytes),
        )

    def _fail(self, image: Image, code: ErrorCode, reason: str, bytes_fetched: int = 0) -> None:
        self.context.report(
            image, OutcomeWord.ERROR, code=code, reason=reason, bytes_fetched=bytes_fetched
        )

    # -------------------------------------------------------------------------------------- standing still

    def _moved(self) -> None:
        self._moved_at = time.monotonic()
        self._poll_s = self.patience.first_poll_s
        self._handed_again = False
        self._outages = 0

    def _first_queued(self) -> Image | None:
        return next((one for one in self._waiting.values() if one.id in self._queued), None)

    def _standstill(self) -> bool:
        if self._stuck and self._first_queued():
            return True
        largest = max(image.size_bytes for image in self._waiting.values())
        return time.monotonic() - self._moved_at > self.patience.for_bytes(largest)

    async def _escalate(self) -> None:
        """Nothing moves: hand all over again; when that was in vain, pull one through."""
        image = self._first_queued()
        if not self._handed_again and not (self._stuck and image):
            self.context.notice(
                "nothing moves in the queue of its image cache; handing the images over again"
            )
            await self._hand_again()
            self._moved()
            self._handed_again = True
        elif image:
            await self._pull(image)
        else:
            # Downloading it is of no use: beside that file Glance does not cache what it sends. A worker
            # that lives writes over it, which the second hand-over gave it the chance to.
            image = next(iter(self._waiting.values()))
            del self._waiting[image.id]
            self._fail(image, ErrorCode.STALL, STALE.format(id=image.id))

    async def _hand_again(self) -> None:
        for image in list(self._waiting.values()):
            if not await self._put(image):
                del self._waiting[image.id]

    async def _pull(self, image: Image) -> None:
        """Download an image from the node and drop it, which fills the cache; judge the node by that."""
        got, problem = await self._drain(image)
        if error := self.context.must_stop():
            raise error
        self._stuck = True
        if await self._came(image, got):
            return
        del self._waiting[image.id]
        if problem is not None:
            self._fail(image, ErrorCode.DOWNLOAD, f"{problem}; {STUCK}", got)
        else:
            reason = f"{STUCK}; {UNFILLED}"
            self._fail(image, ErrorCode.STALL, reason, got)

    async def _drain(self, image: Image) -> tuple[int, str | None]:
        """Return how many bytes came, and what was wrong; the end of a stream proves nothing."""
        got = 0
        try:
            async with self.node.data(image.id) as blocks:
                async for block in blocks:
                    got += len(block)
                    if got > image.size_bytes or self.context.must_stop():
                        break
                    self.context.progress(image, "download", got, image.size_bytes)
        except HostError as error:
            return got, error.message
        if got == image.size_bytes:
            return got, None
        return got, f"{got} bytes came of {image.size_bytes}: its object in the store is damaged"

    async def _came(self, image: Image, got: int) -> bool:
        """Tell whether the image is cached now; reports it then. It takes a moment after the last byte."""
        for _ in range(4):
            state = await self.node.state()
            if image.id in state.cached:
                self._ended(image, state, pulled=got)
                return True
            await asyncio.sleep(self.patience.first_poll_s)
        return False


async def fill(
    context: HostContext, node: NodeCache, images: Sequence[Image], patience: Patience
) -> None:
    """Put images into one node's cache; reports one outcome for each. See ``Driver.precache``."""
    state = await node.state()
    todo: deque[Image] = deque()
    for image in images:
        context.begin(image)
        if image.id not in state.cached:
            todo.append(image)
        elif problem := size_problem(state, image):
            context.report(image, OutcomeWord.ERROR, code=ErrorCode.DAMAGED, reason=problem)
        else:
            context.report(image, OutcomeWord.EXISTING)
    if context.dry_run:
        for image in todo:
            reason = f"dry run: the node would fetch it, {image.size_bytes} bytes"
            context.report(image, OutcomeWord.SKIPPED, code=ErrorCode.DRY_RUN, reason=reason)
        return
    await Filling(context, node, patience, todo).run()
