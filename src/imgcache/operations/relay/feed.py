"""One transfer that may read from other hosts of its site: see ``Feed``."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from imgcache.drivers.feed import Ticket
from imgcache.errors import ErrorCode
from imgcache.operations.feeds import DirectFeed
from imgcache.operations.relay.node import State
from imgcache.plan import SourceKind

if TYPE_CHECKING:
    from imgcache.drivers.base import HostContext
    from imgcache.drivers.feed import Listener, Offer
    from imgcache.errors import HostError
    from imgcache.model import Image
    from imgcache.operations.feeds import Outside
    from imgcache.operations.relay.node import Node
    from imgcache.operations.relay.site_relay import Member, SiteRelay

#: How long to wait for a parent's own verdict on its bytes, before nobody can be blamed.
VERDICT_S = 5.0
#: Before a host turns again to the parent that has just broken off: news of its end may be on the way.
_BREATH_S = 0.3
#: Those who wait look again so often, whatever they were told.
_WAIT_S = 2.0


class RelayFeed(DirectFeed):
    """See the module."""

    def __init__(
        self,
        relay: SiteRelay,
        member: Member,
        context: HostContext,
        image: Image,
        *,
        outside: Outside,
        min_rate: int,
    ) -> None:
        super().__init__(outside, min_rate)
        self._relay = relay
        self._member = member
        self._context = context
        self._image = image
        self._tree = relay.tree(image)
        self._node: Node | None = None
        self._remarks: list[str] = []

    @property
    def listener(self) -> Listener | None:
        """See ``Feed``."""
        return None if self._member.asked else self._member.listener()

    @property
    def offer(self) -> Offer | None:
        """See ``Feed``."""
        return self._member.offer(self._image)

    def listening(self, port: int) -> None:
        """See ``Feed``."""
        self._member.asked, self._member.port = True, port

    def cannot_listen(self, error: HostError) -> None:
        """See ``Feed``."""
        self._member.asked = True
        self._context.notice(f"other hosts cannot read from here: {error.message}")

    async def first(self) -> Ticket:
        """See ``Feed``."""
        self._node = self._relay.join(self._member, self._image, self._outside.wishes)
        self._member.offer(self._image)
        return await self._next()

    async def instead(self, failure: HostError, offset: int) -> Ticket | None:
        """See ``Feed``."""
        node, code = self._joined(), failure.code
        parent = node.parent
        from_others = code is ErrorCode.DIGEST and bool(node.fed_by)
        if parent is None and code is not ErrorCode.SWITCHED and not from_others:
            return await self._after_outside(failure)
        if code is ErrorCode.DIGEST:
            await self._find_culprit(node)
        else:
            self._tree.failed(node, code, offset)
            self._relay.tell_blocked(failure.message)
        self._relay.changed()
        ticket = await self._next()
        if parent is not None and node.parent is parent:
            await asyncio.sleep(_BREATH_S)
            if parent.state is State.GONE:
                ticket = await self._next()
        return ticket

    def progress(self, phase: str, done_bytes: int) -> None:
        """See ``Feed``."""
        self._outside.progress(phase, done_bytes)
        proven, node = self._relay.state.proven, self._joined()
        verified = node.verified
        self._tree.progress(node, phase, done_bytes)
        if (proven, verified) != (self._relay.state.proven, node.verified):
            self._relay.changed()

    def paused(self) -> None:
        """See ``Feed``."""
        if self._node is not None:
            self._tree.pause(self._node)

    def anew(self) -> None:
        """See ``Feed``."""
        self._tree.anew(self._joined())
        self._relay.changed()

    def ended(self, failure: HostError | None, *, whole: bool = False) -> str | None:
        """See ``Feed``."""
        self._outside.close()
        if self._node is not None:
            self._relay.ended(self._node, self._image, whole=whole)
        return "; ".join(self._remarks) or None

    def _joined(self) -> Node:
        if self._node is None:
            message = "a transfer that has not begun"
            raise AssertionError(message)
        return self._node

    async def _next(self) -> Ticket:
        """Return where the host reads from now; waits, without its place, for what others find out."""
        node = self._joined()
        while (stop := self._context.must_stop()) is None:
            if not await self._waits_for_neighbour(node):
                placement = self._tree.look(node)
                if placement.outside and await self._had_to_take_place():
                    continue  # somebody else may be read from by now
                placement = self._tree.place(node)
                if placement.parent is not None:
                    return self._ticket_of(placement.parent)
                if placement.outside:
                    self._relay.changed()
                    return await self._outside.ticket()
            self._context.leave_place()
            await self._relay.wait_for_news(_WAIT_S)
        raise stop

    async def _had_to_take_place(self) -> bool:
        """Whether the host had no place; waits for one, as long as nothing changes in its site.

        Before anybody is told that it reads from outside: who is waited for need not wait for a place.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_WAIT_S):
                return await self._context.take_place()
        return True

    async def _waits_for_neighbour(self, node: Node) -> bool:
        """Whether a host with the image is being looked for; looks for one when there is nobody else."""
        neighbours, image = self._relay.neighbours, self._image
        while not neighbours.is_looking(image):
            if node.begun or not self._tree.is_alone(node):
                return False
            if not neighbours.worth_asking(node.name, image):
                return False
            self._context.leave_place()
            await neighbours.find(self._context, image)
        return True

    def _ticket_of(self, parent: Node) -> Ticket:
        self._outside.close()
        # Places spare what hosts share, the image service before all. This one burdens its parent alone, and
        # a site's hosts end together only when all of them read at the same time.
        self._context.leave_place()
        self._outside.wishes.forget()
        self._relay.changed()
        access = self._relay.member_of(parent).access(self._image)
        return Ticket(SourceKind.RELAY, access, self._outside.rate)

    async def _after_outside(self, failure: HostError) -> Ticket | None:
        """Return the next source after one outside has failed for good; None: there is none."""
        node = self._joined()
        self._tree.pause(node)
        ticket = await self._outside.after(failure)
        if ticket is not None or self._relay.state.blocked:
            return ticket
        if any(parent.outside or parent.parent for parent in self._tree.candidates(node)):
            placement = self._tree.place(node)
            if placement.parent is not None:
                return self._ticket_of(placement.parent)
        return None

    async def _find_culprit(self, node: Node) -> None:
        """Find out who sent wrong bytes, if it can be told; the host starts from zero."""
        self._tree.note_wrong(node)
        _, undecided = self._tree.suspects(node)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + VERDICT_S
        while undecided and loop.time() < deadline:
            await self._relay.wait_for_news(0.5)
            _, undecided = self._tree.suspects(node)
        blamed = self._tree.wrong_bytes(node)
        if blamed is None:
            self._remarks.append("bytes from another host were wrong, and were fetched anew")
        else:
            self._remarks.append(f"peer-bad: {blamed.name} sent other bytes; fetched anew")
            self._relay.blame(blamed.name, node.name)
