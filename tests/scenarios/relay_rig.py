"""Whole runs over hosts of one site that read from each other, on loopback: see ``faults_rig``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imgcache.model import Host
from imgcache.operations.sites import Sites
from scenarios.faults_rig import Rig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgcache.model import Image, Site
    from imgcache.operations.sources import SourcePolicy
    from imgcache.plan import Outcome


@dataclass
class RelayRig(Rig):
    """Hosts of the site ``oslo``."""

    site: str | None = "oslo"

    def host(self, number: int = 1, **settings: Any) -> Host:
        values: dict[str, Any] = {"address": "127.0.0.1", "relay_address": "127.0.0.1"}
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
        plan = Sites(
            policy=policy,
            hosts=hosts,
            neighbours=(*hosts, *neighbours),
            sites=sites,
            seeds=seeds,
            rate_limit=rate_limit,
        )
        limits.setdefault("concurrency", len(hosts))
        return asyncio.run(self.execute(*hosts, policy=policy, sites=plan, **limits))

    def bytes_served(self, image: Image) -> int:
        """Return how many bytes of an image the image service was asked for."""
        requests = [one for one in self.server.requests if image.id in one.target]
        return sum(image.size_bytes - (one.offset or 0) for one in requests)

    def assert_cached(self, image: Image, data: bytes, *numbers: int) -> None:
        """The hosts have the image, and nothing is left behind."""
        assert [n for n in numbers if self.final(image, n).read_bytes() != data] == []
        assert self.leftovers() == []
