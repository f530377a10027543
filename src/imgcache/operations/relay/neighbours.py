"""Hosts that had an image before they were needed: asked, in a conversation of their own, to let others read.

Tried before the image service when nobody in the run can be read from: first hosts that are known, in this
run, to have the image; then other hosts of the site, which the run is not about. They are only read from.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from imgcache.drivers.registry import DRIVERS
from imgcache.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgcache.drivers.base import HostContext
    from imgcache.model import Host, Image
    from imgcache.operations.relay.site_relay import SiteRelay

#: Hosts that are asked at a time.
ASKED = 4
#: How long they may take together.
ASK_S = 10.0
#: After so long no other hosts are asked for an image, of those of which it is not known that they have it:
#: the image service would have begun to send meanwhile.
SEARCH_S = 10.0
#: A neighbour that nobody reads from for so long is left.
UNREAD_S = 20.0


class Neighbours:
    """See the module."""

    def __init__(self, relay: SiteRelay, hosts: Sequence[Host]) -> None:
        self._relay = relay
        self._hosts = hosts
        self._asked: set[tuple[str, str]] = set()
        self._looking: set[str] = set()
        self._searched_s: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._bug: BaseException | None = None

    def is_looking(self, image: Image) -> bool:
        """Whether one is being looked for."""
        return image.id in self._looking

    def worth_asking(self, name: str, image: Image) -> bool:
        """Whether there are hosts that might have an image, and that were not asked yet."""
        return any(self._rounds(name, image))

    async def find(self, context: HostContext, image: Image) -> None:
        """Look for a host that has an image; it is then in the image's tree."""
        self._looking.add(image.id)
        try:
            known, others = self._rounds(context.host.name, image)
            if known and await self._ask(context, known, image):
                return
            began = time.monotonic()
            if others and await self._ask(context, others, image):
                return
            searched_s = self._searched_s.get(image.id, 0.0)
            self._searched_s[image.id] = searched_s + time.monotonic() - began
        finally:
            self._looking.discard(image.id)
            self._relay.changed()

    async def close(self) -> None:
        """Leave all of them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._bug is not None:
            raise self._bug

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._bug = task.exception()

    def _rounds(self, name: str, image: Image) -> tuple[list[Host], ...]:
        """Return the hosts to ask, those of each round at once."""
        known, others = self._relay.warm.get(image.id, []), self._hosts
        if self._searched_s.get(image.id, 0.0) >= SEARCH_S:
            others = ()
        return tuple(
            [
                host
                for host in hosts
                if host.name != name
                and (host.name, image.id) not in self._asked
                and host.name not in self._relay.state.bad
            ][:ASKED]
            for hosts in (known, others)
        )

    async def _ask(self, context: HostContext, hosts: Sequence[Host], image: Image) -> bool:
        """Ask some hosts at once; whether one has the image. The others are left again."""
        self._asked.update((host.name, image.id) for host in hosts)
        loop = asyncio.get_running_loop()
        answers = [loop.create_future() for _ in hosts]
        for host, answer in zip(hosts, answers, strict=True):
            task = asyncio.create_task(self._serve(context.beside(host), image, answer))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        deadline = loop.time() + ASK_S
        waiting: set[asyncio.Future[bool]] = set(answers)
        while waiting and loop.time() < deadline:
            done, waiting = await asyncio.wait(
                waiting,
                timeout=deadline - loop.time(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if any(answer.result() for answer in done):
                return True
        return False

    async def _serve(
        self, context: HostContext, image: Image, answer: asyncio.Future[bool]
    ) -> None:
        """Have a host let others read, for as long as they do."""
        member = self._relay.neighbour(context.host)
        driver = DRIVERS[context.host.settings.driver]
        try:
            listener, offer = member.listener(), member.make_offer(image)
            async with driver.serving(context, image, listener, offer) as port:
                if port is None:
                    return
                member.port = port
                node = self._relay.add_whole(member, image)
                answer.set_result(True)
                read_at = time.monotonic()
                while time.monotonic() - read_at < UNREAD_S:
                    await self._relay.wait_for_news(1.0)
                    if node.readers:
                        read_at = time.monotonic()
        except HostError:
            return  # then it is not this one
        finally:
            if not answer.done():
                answer.set_result(False)
            self._relay.drop(member)
