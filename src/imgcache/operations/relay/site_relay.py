"""Relays of one site in one run: hosts read an image's original bytes from each other.

``tree`` decides who reads from whom; here the hosts' transfers ask, wait and are told.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from imgcache.drivers.feed import Listener, Offer
from imgcache.events import Notice
from imgcache.model import RAW_DISK_FORMATS, ServiceAccess
from imgcache.operations.relay.neighbours import Neighbours
from imgcache.operations.relay.node import State
from imgcache.operations.relay.tree import Tree
from imgcache.transport.relay_certificate import make_certificate
from imgcache.transport.relay_secret import RelayKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from imgcache.drivers.base import HostContext
    from imgcache.events import EventSink
    from imgcache.model import Host, Image
    from imgcache.operations.feeds import Wishes
    from imgcache.operations.relay.node import Node, SiteState

#: Hosts that read from one host at a time, at most.
MAX_READERS = 16
#: A converted image's original is held so long for readers; a little less than the host does.
HOLD_S = 15.0
#: How long any host stays after its own fetches.
MOST_LINGER_S = 3600.0
#: Hosts known to have an image that are remembered.
_MOST_WARM = 8


class Member:
    """One host of the site, during one conversation with it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.port: int | None = None
        self.nodes: dict[str, Node] = {}
        """Image id -> its part in that image's distribution."""
        self._offers: dict[str, tuple[str, RelayKey]] = {}
        self._listener: Listener | None = None
        self.asked = False
        """Whether it was told to listen."""

    def listener(self) -> Listener:
        """Return how it shall listen; the certificate is made on the first call."""
        if self._listener is None:
            settings = self.host.settings
            cert_pem, key_pem = make_certificate() if settings.relay_tls else (None, None)
            self._listener = Listener(
                settings.relay_address, settings.relay_ports, cert_pem, key_pem, MAX_READERS
            )
        return self._listener

    def is_read(self) -> bool:
        """Whether others read from it at the moment."""
        return any(node.readers for node in self.nodes.values())

    def offer(self, image: Image) -> Offer | None:
        """Return how others may read an image from it; None: it does not listen."""
        return None if self.port is None else self.make_offer(image)

    def make_offer(self, image: Image) -> Offer:
        """Return how others may read an image from it: a name and a key of its own."""
        if image.id not in self._offers:
            self._offers[image.id] = (secrets.token_hex(16), RelayKey())
        name, key = self._offers[image.id]
        return Offer(name, key.hex)

    def access(self, image: Image) -> ServiceAccess:
        """Return what one reader needs: exactly this address, and a secret for this file alone."""
        name, key = self._offers[image.id]
        address = self.host.settings.relay_address or self.host.address
        where = f"[{address}]" if ":" in address else address
        cert_pem = self.listener().cert_pem
        scheme = "https" if cert_pem else "http"
        url = f"{scheme}://{where}:{self.port}/{name}"
        return ServiceAccess(url, key.ticket(name), cert_pem, insecure=False)


class SiteRelay:
    """See the module. For the tasks of one event loop."""

    def __init__(
        self,
        name: str,
        hosts: Iterable[str],
        *,
        state: SiteState,
        sink: EventSink,
        neighbours: Sequence[Host] = (),
    ) -> None:
        self.name = name
        self.state = state
        self.neighbours = Neighbours(self, neighbours)
        self.members: dict[str, Member] = {}
        self.warm: dict[str, list[Host]] = {}
        """Image id -> hosts known to have it, in this run."""
        self._sink = sink
        self._coming = set(hosts)
        self._spoken: dict[str, set[str]] = {}
        self._trees: dict[str, Tree] = {}
        self._wishes: dict[Node, Wishes] = {}
        self._members_of: dict[Node, Member] = {}
        self._unread_since: dict[Node, float] = {}
        self._news = asyncio.Event()
        self._told_blocked = False

    async def close(self) -> None:
        """End what was begun for the site."""
        await self.neighbours.close()

    def tree(self, image: Image) -> Tree:
        """Return the distribution of one image."""
        if image.id not in self._trees:
            self._trees[image.id] = Tree(self.state, image.size_bytes)
        return self._trees[image.id]

    def changed(self) -> None:
        """Wake those who wait, and have hosts leave parents that are no good any more."""
        self._news.set()
        self._news = asyncio.Event()
        self.beat()

    async def wait_for_news(self, timeout_s: float) -> None:
        """Wait until something changes, or for a time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return

    def beat(self) -> None:
        """Look after all transfers; called every second at least."""
        for tree in self._trees.values():
            for node in tree.tick():
                if node in self._wishes:
                    self._wishes[node].switch()
        now = time.monotonic()
        for node, since in list(self._unread_since.items()):
            if node.readers:
                self._unread_since[node] = now
            elif now - since > HOLD_S:
                self._drop(node)

    # ---- hosts

    @asynccontextmanager
    async def member(self, context: HostContext) -> AsyncIterator[None]:
        """See ``Sources.member``."""
        member = self.members[context.host.name] = Member(context.host)
        context.needed_when(member.is_read)
        try:
            yield
            async with context.lend_place():
                await self._linger(member, context)
        finally:
            if self.members.get(context.host.name) is member:
                del self.members[context.host.name]
            self.drop(member)

    def neighbour(self, host: Host) -> Member:
        """Return a host that others may read from, and that fetches nothing by itself."""
        return Member(host)

    def add_whole(self, member: Member, image: Image) -> Node:
        """Add a host that has had an image before and lets others read it."""
        node = self.tree(image).add_whole(member.host.name)
        member.nodes[image.id] = node
        self._members_of[node] = member
        self.changed()
        return node

    def drop(self, member: Member) -> None:
        """Note that a conversation is over: nobody can read from there any more."""
        for node in list(member.nodes.values()):
            self._drop(node)
        self.changed()

    def join(self, member: Member, image: Image, wishes: Wishes) -> Node:
        """Add a host that needs an image."""
        self.spoken(member.host.name, image)
        can_serve = member.port is not None and member.host.name not in self.state.bad
        node = self.tree(image).join(member.host.name, can_serve=can_serve)
        member.nodes[image.id] = node
        self._wishes[node] = wishes
        self._members_of[node] = member
        return node

    def member_of(self, node: Node) -> Member:
        """Return the host that a node stands for."""
        return self._members_of[node]

    def ended(self, node: Node, image: Image, *, whole: bool) -> None:
        """Note that a host's transfer is over."""
        tree = self.tree(image)
        self._wishes.pop(node, None)
        member = self._members_of.get(node)
        if not whole or member is None:
            self._drop(node)
        else:
            tree.whole(node)
            kept = member.host.settings.keep_original
            if image.disk_format not in RAW_DISK_FORMATS and not kept:
                self._unread_since[node] = time.monotonic()
            else:
                self.present(member.host, image)
        self.changed()

    def present(self, host: Host, image: Image) -> None:
        """Note that a host has an image, of which it may still have the original bytes."""
        self.spoken(host.name, image)
        if image.disk_format in RAW_DISK_FORMATS or host.settings.keep_original:
            known = self.warm.setdefault(image.id, [])
            if len(known) < _MOST_WARM and host not in known:
                known.append(host)

    def spoken(self, name: str, image: Image) -> None:
        """Note that a host has asked for an image, or has it."""
        self._spoken.setdefault(image.id, set()).add(name)

    def left(self, host: Host) -> None:
        """Note that a host's work in this run is over."""
        self._coming.discard(host.name)
        self.changed()

    def blame(self, host: str, victim: str) -> None:
        """Tell the operator that a host sent wrong bytes."""
        message = (
            f"peer-bad: {host} sent {victim} other bytes than the image's; it is not used again"
        )
        hint = f"look at {host}: its disk, its memory, and who is at work there"
        self._sink.emit(Notice(message, host=host, hint=hint))
        self.changed()

    def tell_blocked(self, reason: str) -> None:
        """Tell the operator, once, that hosts of the site cannot reach each other."""
        if self._told_blocked or not self.state.blocked:
            return
        self._told_blocked = True
        message = (
            f"{self.name}: hosts cannot read from each other ({reason}); each gets its own copy"
        )
        hint = "open relay_ports between the site's hosts, or set relay_address; see docs/distribution.md"
        self._sink.emit(Notice(message, hint=hint))

    def _drop(self, node: Node) -> None:
        for tree in self._trees.values():
            if tree.nodes.get(node.name) is node:
                tree.gone(node)
        node.state = State.GONE
        self._unread_since.pop(node, None)
        self._wishes.pop(node, None)
        member = self._members_of.pop(node, None)
        if member is not None:
            member.nodes = {key: one for key, one in member.nodes.items() if one is not node}

    # ---- after a host's own fetches

    async def _linger(self, member: Member, context: HostContext) -> None:
        """Wait while others read from a host, or are about to and have nobody else."""
        until = time.monotonic() + MOST_LINGER_S
        while time.monotonic() < until and context.must_stop() is None:
            readers = any(node.readers for node in member.nodes.values())
            if not readers and not self._is_needed(member):
                break
            await self.wait_for_news(1.0)
        for node in member.nodes.values():
            node.can_serve = False  # at once: the next to leave shall know, and nobody shall begin

    def _is_needed(self, member: Member) -> bool:
        """Whether hosts may still come that could read from this one only, and only now.

        Of a host that keeps the original bytes they can read later, in a conversation of its own.
        """
        return any(
            node in self._unread_since
            and self._coming - self._spoken.get(image_id, set())
            and not any(
                other is not node and other.can_serve and other.state is not State.WAITING
                for other in self._trees[image_id].nodes.values()
            )
            for image_id, node in member.nodes.items()
        )
