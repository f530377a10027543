"""Whole runs over hosts of one site that read from each other, on loopback: see ``faults_rig``."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcache.events import ItemProgress
from imgcache.model import Host
from imgcache.operations.sites import Sites
from imgcache.transport.local import LocalTransport
from scenarios.faults_rig import Events, Rig

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Callable, Sequence

    from imgcache.events import Event
    from imgcache.model import Image, Site
    from imgcache.operations.relay.node import Node
    from imgcache.operations.sources import SourcePolicy
    from imgcache.plan import Outcome
    from imgcache.transport.base import Session

FAKE = Path(__file__).parents[1] / "fakes" / "relay_host.py"


class RecordingTransport(LocalTransport):
    """Keeps who was contacted, and what each host was sent."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.sent: dict[str, bytearray] = {}

    @asynccontextmanager
    async def open(self, host: Host, command: str) -> AsyncIterator[Session]:
        self.opened.append(host.name)
        async with super().open(host, command) as session:
            sent, write = self.sent.setdefault(host.name, bytearray()), session.write

            async def recorded(data: bytes) -> None:
                sent.extend(data)
                await write(data)

            session.write = recorded  # type: ignore[method-assign]
            yield session


class WatchedEvents(Events):
    """Calls back on each progress of a download."""

    def __init__(self) -> None:
        super().__init__()
        self.on_download: Callable[[ItemProgress], None] = lambda _: None

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, ItemProgress) and event.phase == "download":
            self.on_download(event)


@dataclass
class RelayRig(Rig):
    """Hosts of the site ``oslo``."""

    site: str | None = "oslo"
    sites: Sites = field(default_factory=Sites)
    events: WatchedEvents = field(default_factory=WatchedEvents)
    transport: RecordingTransport = field(default_factory=RecordingTransport)

    def host(self, number: int = 1, mode: str = "honest", **settings: Any) -> Host:
        path = self.folder / f"h{number}"
        values: dict[str, Any] = {
            "address": "127.0.0.1",
            "python": (sys.executable, str(FAKE), str(path / "pid"), mode),
        }
        host = super().host(number, **{**values, **settings})
        return Host(host.name, host.aggregate, host.cell, self.site, host.settings)

    def relay(
        self,
        *hosts: Host,
        policy: SourcePolicy = "relay",
        neighbours: Sequence[Host] = (),
        seeds: int = 1,
        sites: dict[str, Site] | None = None,
        rate_limit: int | None = None,
        **limits: Any,
    ) -> list[Outcome]:
        """Pre-cache all images on the hosts, which read from each other."""
        self.sites = Sites(
            policy=policy,
            hosts=hosts,
            neighbours=(*hosts, *neighbours),
            sites=sites,
            seeds=seeds,
            rate_limit=rate_limit,
        )
        limits.setdefault("concurrency", len(hosts))
        return asyncio.run(self.execute(*hosts, policy=policy, sites=self.sites, **limits))

    def nodes(self, image: Image) -> dict[str, Node]:
        """Return who reads from whom at the moment, in a run under way."""
        (relay,) = self.sites.relays()
        return relay.tree(image).nodes

    def signal(self, name: str, number: signal.Signals) -> bool:
        """Send a signal to a host's helper; False when it does not live."""
        file = self.folder / name / "pid"
        try:
            pid = int(file.read_text())
            # The number may have been given to another process since.
            if str(file).encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
                return False
            os.kill(pid, number)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return False
        return True

    def when_middle_has(
        self, image: Image, count: int, act: Callable[[str], object]
    ) -> Callable[[], str | None]:
        """Call ``act`` with the first host found in the middle of a chain with so many bytes."""
        found: list[str] = []

        def look(event: ItemProgress) -> None:
            node = self.nodes(image).get(event.host)
            if node and not found and node.parent and node.readers and event.done_bytes >= count:
                found.append(node.name)
                act(node.name)

        self.events.on_download = look
        return lambda: found[0] if found else None

    def bytes_served(self, image: Image) -> int:
        """Return how many bytes of an image the image service was asked for."""
        requests = [one for one in self.server.requests if image.id in one.target]
        return sum(image.size_bytes - (one.offset or 0) for one in requests)

    def times_told(self, words: bytes) -> int:
        """Return in how many hosts' conversations something was said to the host."""
        return sum(words in sent for sent in self.transport.sent.values())

    def leftovers(self) -> list[str]:
        return [path for path in super().leftovers() if not path.endswith("/pid")]

    def assert_cached(self, image: Image, data: bytes, *numbers: int) -> None:
        """The hosts have the image, and nothing is left behind."""
        assert [n for n in numbers if self.final(image, n).read_bytes() != data] == []
        assert self.leftovers() == []
