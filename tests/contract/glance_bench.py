"""A bench for the glance-cache driver: one real node, images in the real image service."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from contract.driver_suite import Bench, Context, Stock
from contract.rows import collected
from imgcache.drivers.base import RemovalItem
from imgcache.drivers.glance_cache import GlanceCacheDriver
from imgcache.drivers.glance_cache_fill import Patience
from imgcache.images.open import open_image_service
from imgcache.images.options import CloudOptions
from imgcache.model import Host, HostSettings, ImageServiceSettings
from imgcache.transport.dispatch import open_transport
from servers.openstack import ADMIN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imgcache.drivers.base import RemovalRow
    from imgcache.images.base import ImageService
    from imgcache.model import HostCache, Image
    from servers.glance_nodes import GlanceNode
    from servers.openstack import KeystoneAndGlance, User

#: As an operator's, but looking more often.
WATCHFUL = Patience(first_poll_s=0.05, last_poll_s=0.2)
#: For nodes where nothing will ever move.
HASTY = Patience(base_s=0.5, bytes_per_s=1e9, first_poll_s=0.05, last_poll_s=0.2)


class NodeContext(Context):
    """A context that tells of each wait for a node that is away, and keeps what operators were told."""

    on_back_off: Callable[[], None] | None = None

    def notice(self, message: str, *, hint: str | None = None) -> None:
        self.calls.append(("notice", message))

    async def back_off(
        self, image: Image | None, attempt: int, reason: str, after_s: float | None
    ) -> None:
        if self.on_back_off:
            self.on_back_off()


class GlanceStock(Stock):
    """Images that are uploaded to the image service; their records are what it says."""

    def __init__(self, cloud: KeystoneAndGlance, service: ImageService) -> None:
        super().__init__()
        self.cloud = cloud
        self._service = service

    def add(self, data: bytes, **changes: Any) -> Image:
        """See ``Stock.add``."""
        name = f"cached-{len(self.data) + 1}"
        glance = self.cloud.glance
        image_id = glance.upload(name, data, token=self.cloud.admin_token, **changes)
        (image,) = self._service.find_images((image_id,))
        self.data[image.id] = data
        return image

    def lose(self, image: Image) -> None:
        """Remove an image's object from the store."""
        self.cloud.glance.stored(image.id).unlink()


@dataclass(kw_only=True)
class NodeBench(Bench):
    """A bench whose host is a Glance node."""

    service: ImageService
    node: GlanceNode
    stock: GlanceStock
    wait: bool = True
    retries: int = 0
    on_back_off: Callable[[], None] | None = None

    def _run(
        self, work: Callable[[Context], Awaitable[None]], dry_run: bool, through: Any
    ) -> Context:
        async def run() -> Context:
            async with self.open_transport() as transport:
                context = NodeContext(self.host, transport, self.stock, dry_run, self.retries)
                context.service, context.wait = self.service, self.wait
                context.on_back_off = self.on_back_off
                self.last = context
                await work(context)
                return context

        return asyncio.run(run())

    def inspect(self) -> HostCache:
        """Run ``inspect``."""
        found: list[HostCache] = []

        async def work(context: Context) -> None:
            found.append(await self.driver.inspect(context, formats=True, use=True))

        self._run(work, False, None)
        return found[0]

    def remove(self, *items: RemovalItem) -> list[tuple[str, str, str | None]]:
        """Run ``remove``; return name, state and code of each row."""
        rows: list[RemovalRow] = []

        async def work(context: Context) -> None:
            rows.extend(await collected(self.driver.remove(context, items)))

        self._run(work, False, None)
        return [(row.name, row.state.value, row.code) for row in rows]

    def clean(self, *, dry_run: bool = False) -> list[RemovalRow]:
        """Run ``clean``."""
        rows: list[RemovalRow] = []

        async def work(context: Context) -> None:
            rows.extend(await collected(self.driver.clean(context, 1.0)))

        self._run(work, dry_run, None)
        return rows


def items_of(cache: HostCache, *names: str, min_age_s: float = 0.0) -> list[RemovalItem]:
    """Return what removes these entries of a cache."""
    return [
        RemovalItem(entry.name, entry.inode, entry.mtime_ns, min_age_s)
        for entry in cache.entries
        if entry.name in names
    ]


def service_of(cloud: KeystoneAndGlance, user: User = ADMIN) -> ImageService:
    """Open the image service as this user."""
    return open_image_service(ImageServiceSettings(), CloudOptions(values=cloud.settings(user)))


def node_bench(
    service: ImageService,
    cloud: KeystoneAndGlance,
    node: GlanceNode,
    patience: Patience = WATCHFUL,
) -> NodeBench:
    """Return the driver with this node as its host."""
    settings = HostSettings(driver="glance-cache", endpoint=node.url)
    return NodeBench(
        driver=GlanceCacheDriver(patience),
        host=Host("g1", "nodes", None, None, settings),
        open_transport=open_transport,
        folder=node.cache,
        cached=lambda image: node.cached(image.id),
        stock=GlanceStock(cloud, service),
        service=service,
        node=node,
    )
