"""Prove: unmanaged entries that hosts converted are compared with their image, fetched again beside them."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from imgcache.operations.fleet import driver_of
from imgcache.operations.sites import Sites
from imgcache.operations.sources import RunSources, source_kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from imgcache.drivers.base import Verdict
    from imgcache.images.base import ImageService
    from imgcache.model import Image, Site
    from imgcache.operations.fleet import Fleet
    from imgcache.operations.host_run import HostRun
    from imgcache.operations.removal import Ending
    from imgcache.operations.sources import SourcePolicy
    from imgcache.plan import EntryOutcome

#: Access for hosts never outlives a day.
_MAX_ACCESS_LIFETIME_S = 86400.0


async def prove(
    fleet: Fleet,
    unproven: Mapping[str, Mapping[str, Image]],
    found: Mapping[str, list[EntryOutcome]],
    service: ImageService,
    source: SourcePolicy,
    *,
    sites: Mapping[str, Site],
    bytes_per_s: int | None,
    ending_of: Callable[[Verdict], Ending],
) -> None:
    """Adopt what is proven; ``unproven``: host name -> name of the entry -> image.

    Changes the outcomes in ``found`` in place; those of entries that get no verdict stay as they are.
    """
    answered: set[tuple[str, str]] = set()

    async def work(context: HostRun, _: Sequence[Image]) -> None:
        host = context.host.name
        left = [image for base, image in unproven[host].items() if (host, base) not in answered]
        driver = driver_of(context.host)
        async with aclosing(driver.prove(context, left, bytes_per_s=bytes_per_s)) as proven:
            async for verdict in proven:
                answered.add((host, verdict.base_name))
                _note(found[host], verdict.base_name, ending_of(verdict))

    hosts = [
        host for host in fleet.hosts if unproven.get(host.name) and host.name not in fleet.failures
    ]
    rounds = -(-len(hosts) // fleet.limits.concurrency)
    images = {base: image for one in unproven.values() for base, image in one.items()}
    sources = RunSources(
        service,
        tuple(images.values()),
        kinds=source_kinds(source, service),
        run_id=fleet.run_id,
        lifetime_s=min(rounds * fleet.limits.timeout_s, _MAX_ACCESS_LIFETIME_S),
        sink=fleet.sink,
        sites=Sites(hosts=hosts, sites=sites),
    )
    async with sources:
        await fleet.run(hosts, (), work, sources)


def _note(rows: list[EntryOutcome], base: str, ending: Ending) -> None:
    word, code, reason = ending
    for index, row in enumerate(rows):
        if row.entry == base:
            rows[index] = replace(row, outcome=word, code=code, reason=reason)
