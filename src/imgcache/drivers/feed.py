"""Where one image's bytes come from on one host: what a transfer asks, and tells, while it runs.

Whoever plans a run's distribution implements ``Feed``; ``drivers.transfer`` asks it. A feed hands out
tickets: one at the beginning, another whenever a source failed. It may wish in between that the host
leaves its source for another, or takes bytes faster or slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from imgcache.errors import HostError

if TYPE_CHECKING:
    from imgcache.model import Secret, ServiceAccess
    from imgcache.plan import SourceKind

#: Less than this many bytes a second from a source, over a minute, is a stall.
MIN_RATE = 65536


class ItemError(HostError):
    """This image cannot be had on this host; the conversation can go on with the next one."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A source to read from now."""

    kind: SourceKind
    access: ServiceAccess | None = None
    """Where, and with which secret; None when the controller pushes."""
    rate: int | None = None
    """The most bytes a second to take from it; None: no limit."""


@dataclass(frozen=True, slots=True)
class Listener:
    """How a host shall listen for others of its site. Never printed: the key has no repr."""

    address: str | None
    """None: all of its addresses."""
    ports: tuple[int, int] | None
    """First and last; None: any free one."""
    cert_pem: str | None
    key_pem: Secret | None
    """Both None: without TLS."""
    max_readers: int


@dataclass(frozen=True, slots=True)
class Offer:
    """Under which name, and with which key, a host lets others read what it fetches."""

    name: str
    key: Secret


@dataclass(frozen=True, slots=True)
class Wish:
    """What shall be otherwise in a transfer under way."""

    switch: bool = False
    """Leave the present source; the feed has a better one."""
    rate: int | None = None
    """Without ``switch``: the most bytes a second from now on."""


class Feed(Protocol):
    """See the module. One per host, image and attempt at it."""

    @property
    def listener(self) -> Listener | None:
        """Have the host listen, once, before the first ticket is asked for; None: it need not."""

    @property
    def offer(self) -> Offer | None:
        """How others may read what the host fetches; None: they may not."""

    @property
    def min_rate(self) -> int:
        """Bytes a second below which a source stalls; see ``MIN_RATE``."""

    @property
    def piece(self) -> int | None:
        """How many bytes the controller may push at a time; None: ``pace`` never waits."""

    def listening(self, port: int) -> None:
        """The host listens there now."""

    def cannot_listen(self, error: HostError) -> None:
        """The host cannot serve others: no free port, too old a Python."""

    async def first(self) -> Ticket:
        """Return the source to begin with; may wait.

        Raises:
            HostError: code ``auth``: no access to the image service can be had.
        """

    async def instead(self, failure: HostError, offset: int) -> Ticket | None:
        """Return the source to go on with at ``offset`` after the present one failed; None: give up.

        Asked at once after each failure of another host; after one of the image service or a push only
        when repeating makes no sense (any more). The transfer has counted those repetitions.

        Raises:
            HostError: as ``first``.
        """

    def progress(self, phase: str, done_bytes: int) -> None:
        """Say how far the host is."""

    def paused(self) -> None:
        """The host waits before it tries again: it says nothing meanwhile."""

    def anew(self) -> None:
        """What an earlier run left was spoilt: the host begins from zero, with the source it has."""

    async def wish(self) -> Wish:
        """Wait for the next wish; asked again and again while the transfer runs."""

    async def pace(self, count: int) -> None:
        """Wait until the controller may push ``count`` more bytes."""

    def ended(self, failure: HostError | None, *, whole: bool = False) -> str | None:
        """The transfer is over; ``whole``: the host has fetched and verified all bytes.

        Returns what the operator should know about it besides. Called exactly once.
        """
