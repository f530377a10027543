"""Looking into the caches of hosts: the pass that reads, before anything is decided."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgcache.drivers.base import Driver
    from imgcache.model import Host, HostCache
    from imgcache.operations.fleet import Fleet
    from imgcache.operations.host_run import HostRun

T = TypeVar("T")


async def inspect_hosts(
    fleet: Fleet,
    hosts: Sequence[Host],
    *,
    formats: bool,
    use: bool,
    reduce: Callable[[Host, HostCache], T],
) -> dict[str, T]:
    """Return host name -> what ``reduce`` made of its cache; failed hosts are in ``fleet.failures``.

    ``reduce`` is called as soon as a host has answered, so that of thousands of big caches only what is
    needed stays in memory.
    """

    async def look(context: HostRun, driver: Driver) -> T:
        return reduce(context.host, await driver.inspect(context, formats=formats, use=use))

    return await fleet.each(hosts, look)


def as_it_is(_: Host, cache: HostCache) -> HostCache:
    """Keep everything: for ``inspect_hosts``."""
    return cache
