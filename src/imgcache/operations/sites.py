"""The sites of one run: which hosts read from each other, and what their links may carry."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from imgcache.drivers.feed import MIN_RATE
from imgcache.events import NullSink
from imgcache.operations.budget import SiteBudget
from imgcache.operations.relay.node import FANOUT, SiteState
from imgcache.operations.relay.site_relay import SiteRelay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from imgcache.events import EventSink
    from imgcache.model import Host, Site

#: How often transfers are looked after.
BEAT_S = 0.5
#: A download is slow, not dead, while it gets this part of what it would get if all hosts came at once.
_LEAST_PART = 0.25
_RELAY_POLICIES = frozenset({"auto", "relay", "push-relay"})


class Sites:
    """See the module.

    Args:
        policy: the source that the operator chose; relays are planned for ``auto`` (where the inventory
            names the site), ``relay`` and ``push-relay``.
        hosts: those of this run.
        neighbours: all hosts of the inventory that may be asked: some of a site may have an image already.
        sites: what the inventory says about sites, by name.
        seeds: hosts per site that get an image from outside.
        rate_limit: bytes a second that any one host may take.
        fanout: readers of one host, as long as another host is free.
    """

    def __init__(
        self,
        *,
        policy: str = "service",
        hosts: Sequence[Host] = (),
        neighbours: Sequence[Host] = (),
        sites: Mapping[str, Site] | None = None,
        seeds: int = 1,
        rate_limit: int | None = None,
        fanout: int = FANOUT,
    ) -> None:
        self._fanout = fanout
        self.rate_limit = rate_limit
        self.sink: EventSink = NullSink()
        self._policy = policy
        self._seeds = seeds
        self._budgets: dict[str, SiteBudget] = {
            name: SiteBudget(site.bytes_per_s)
            for name, site in (sites or {}).items()
            if site.bytes_per_s is not None
        }
        self._hosts_of = Counter(host.site for host in hosts)
        self._run_hosts: dict[str, list[str]] = {}
        for host in hosts:
            self._run_hosts.setdefault(self._key(host) or "", []).append(host.name)
        in_run = {host.name for host in hosts}
        self._neighbours: dict[str, list[Host]] = {}
        for host in neighbours:
            if host.name not in in_run:
                self._neighbours.setdefault(self._key(host) or "", []).append(host)
        self._relays: dict[str, SiteRelay] = {}

    def budget(self, host: Host) -> SiteBudget | None:
        """Return what a host's site may take from outside; None: as much as comes."""
        return self._budgets.get(host.site) if host.site is not None else None

    def min_rate(self, host: Host) -> int:
        """Return the bytes a second below which a download on this host is taken for dead."""
        budget = self.budget(host)
        limits = [MIN_RATE]
        if budget is not None:
            limits.append(int(budget.payload / max(1, self._hosts_of[host.site]) * _LEAST_PART))
        if self.rate_limit is not None:
            limits.append(int(self.rate_limit * _LEAST_PART))
        return max(1, min(limits))

    def relay(self, host: Host) -> SiteRelay | None:
        """Return the relays of a host's site; None: it shall get the bytes by itself."""
        key = self._key(host)
        if key is None:
            return None
        hosts, neighbours = self._run_hosts.get(key, []), self._neighbours.get(key, [])
        if len(hosts) + len(neighbours) < 2:
            return None
        if key not in self._relays:
            state = SiteState(self._seeds, self._fanout)
            self._relays[key] = SiteRelay(
                key, hosts, state=state, sink=self.sink, neighbours=neighbours
            )
        return self._relays[key]

    def relays(self) -> tuple[SiteRelay, ...]:
        """Return the relays of all sites that were asked for."""
        return tuple(self._relays.values())

    def _key(self, host: Host) -> str | None:
        if self._policy not in _RELAY_POLICIES:
            return None
        if host.site is not None:
            return f"site {host.site}"
        return None if self._policy == "auto" else f"aggregate {host.aggregate}"

    @asynccontextmanager
    async def tended(self) -> AsyncIterator[None]:
        """Look after the transfers meanwhile: repair relays, divide budgets."""
        tending = asyncio.create_task(self._tend())
        try:
            yield
        finally:
            tending.cancel()
            with suppress(asyncio.CancelledError):
                await tending
            for relay in self._relays.values():
                await relay.close()

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            for relay in self._relays.values():
                relay.beat()
            for budget in self._budgets.values():
                budget.divide()
