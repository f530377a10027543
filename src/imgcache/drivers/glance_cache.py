"""The glance-cache driver: the image cache on Glance API nodes, each asked at its own URL over HTTP.

An entry's name is the image's id. Nobody needs a cached file to stay: Glance fetches an image again when it
is asked for, and who is reading a removed one reads on. So nothing here is ever in use, and no age is too
young; and Glance itself removes nothing for its age.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, ClassVar

from imgcache.drivers.base import Driver, RemovalRow, RemovalState, UnsupportedError
from imgcache.drivers.glance_cache_api import CacheState, NodeCache
from imgcache.drivers.glance_cache_fill import Patience, fill
from imgcache.errors import ErrorCode, HostError
from imgcache.guards import age_text
from imgcache.model import CacheEntry, CachePolicy, EntryKind, HostCache, ImageId
from imgcache.plan import CheckState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from imgcache.drivers.base import HostContext, RemovalItem
    from imgcache.drivers.glance_cache_api import CachedImage
    from imgcache.model import Image, ServiceAccess

#: Glance removes nothing for its age, and does not tell its size limit: so neither is assumed.
POLICY = CachePolicy(
    remove_unused=True,
    original_min_age_s=math.inf,
    resized_min_age_s=math.inf,
    reserved_host_disk_mb=0,
    reserves_cache=True,
    manager_interval_s=-1,
    floor_s=0.0,
)
#: The Image API that brought ``/v2/cache/clean``.
_CLEAN_SINCE = (2, 18)
_MAX_CLOCK_OFFSET_S = 30.0
#: What a node said about its cache longer ago is asked again before anything is removed.
_FRESH_S = 1.0
#: A queued image has no file yet, and so no time; it is told from a cached one by that.
_NO_TIME = 0


class GlanceCacheDriver(Driver):
    """See ``Driver``."""

    name = "glance-cache"
    needs_service = True
    unsupported: ClassVar[Mapping[str, str]] = {
        "verify": "Glance does not tell whether what it sends is from its cache, so no entry can be judged",
        "prove": "what Glance caches is always the image itself: there is nothing to prove",
        "pin": "Glance's cache knows no pins; it removes images only above image_cache_max_size",
        "renew": "Glance's cache knows no pins to renew; a download renews an image's last access",
    }

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()

    async def precache(self, context: HostContext, images: Sequence[Image]) -> None:
        """See ``Driver.precache``: the node fetches each image by itself."""
        await fill(context, _node(context), images, self._patience)

    async def check(
        self, context: HostContext, service: ServiceAccess | None
    ) -> Sequence[tuple[str, CheckState, str]]:
        """See ``Driver.check``."""
        del service
        try:
            node = _node(context)
            version = await node.api_version()
            asked_at = time.time()
            state = await node.state()
        except UnsupportedError:
            raise
        except HostError as error:
            return [(_CHECKS.get(error.code, "api"), CheckState.FAIL, _reason(error))]
        newest = f"{version[0]}.{version[1]}"
        cleans = version >= _CLEAN_SINCE
        return [
            ("api", CheckState.OK, f"{node.url} answers, Image API {newest}"),
            ("rights", CheckState.OK, "may see and manage the cache"),
            (
                "cache",
                CheckState.OK,
                f"{len(state.cached)} images cached, {len(state.queued)} queued",
            ),
            (
                "clean",
                CheckState.OK if cleans else CheckState.WARN,
                "offered by the node" if cleans else f"needs Image API 2.18, the node has {newest}",
            ),
            _clock(state.now - asked_at),
        ]

    async def inspect(self, context: HostContext, *, formats: bool, use: bool) -> HostCache:
        """See ``Driver.inspect``. Formats and users do not apply: there are no users."""
        del formats, use
        node = _node(context)
        state = await node.state()
        entries = [_cached(state, one) for one in state.cached.values()]
        entries += [_queued(one) for one in state.queued if one not in state.cached]
        return HostCache(
            cache_path=node.url,
            instances_path=node.url,
            entries=tuple(sorted(entries, key=lambda entry: entry.name)),
            policy=POLICY,
            filesystem="",
            filesystem_size_bytes=0,
            filesystem_free_bytes=0,
            own_filesystem=True,
            nova_usage_bytes=0,
            evidence_problems=(),
            storage_id=None,
            shares_with=(),
            nodename=context.host.name,
        )

    async def remove(
        self, context: HostContext, items: Sequence[RemovalItem]
    ) -> AsyncGenerator[RemovalRow, None]:
        """See ``Driver.remove``. Of an orphan too: an image that is gone from Glance, but cached."""
        node = _node(context)
        state, looked_at = await node.state(), time.monotonic()
        for item in items:
            if time.monotonic() - looked_at > _FRESH_S:
                state, looked_at = await node.state(), time.monotonic()
            yield await _remove(node, state, item)

    async def clean(
        self, context: HostContext, stall_age_s: float
    ) -> AsyncGenerator[RemovalRow, None]:
        """See ``Driver.clean``. The node goes by its own ``image_cache_stall_time``, and does not say what.

        Raises:
            UnsupportedError: it is older than that API.
        """
        del stall_age_s
        node = _node(context)
        version = await node.api_version()
        state = await node.state()
        if version < _CLEAN_SINCE or not (context.dry_run or await node.clean()):
            message = "cleaning by the API needs Image API 2.18 (Glance 33.0.0)"
            hint = "run glance-cache-cleaner on the node"
            raise UnsupportedError(ErrorCode.DRIVER, message, hint=hint)
        for image_id in state.queued:
            reason = (
                "queued; imgcache precache hands it over again, imgcache delete --queued drops it"
            )
            yield RemovalRow(image_id, RemovalState.KEPT, ErrorCode.TRANSFER, reason, 0)
        what = "invalid/, and what in incomplete/ is older than image_cache_stall_time"
        if context.dry_run:
            reason = f"dry run: the node would be asked to remove {what}"
            yield RemovalRow("", RemovalState.KEPT, ErrorCode.DRY_RUN, reason, 0)
        else:
            reason = f"the node removed {what}; it does not say which files"
            yield RemovalRow("", RemovalState.REMOVED, None, reason, 0)


#: Which check an error answers; all others answer ``api``.
_CHECKS = {
    ErrorCode.CONFIG: "endpoint",
    ErrorCode.FORBIDDEN: "rights",
    ErrorCode.AUTH: "rights",
}


def _reason(error: HostError) -> str:
    return f"{error.message}: {error.hint}" if error.hint else error.message


def _clock(offset_s: float) -> tuple[str, CheckState, str]:
    fine = abs(offset_s) <= _MAX_CLOCK_OFFSET_S
    detail = f"{offset_s:+.0f} s against this machine"
    return "clock", CheckState.OK if fine else CheckState.WARN, detail


def _node(context: HostContext) -> NodeCache:
    """Return the cache of a host.

    Raises:
        HostError: code ``config``: the inventory does not say where it is.
    """
    endpoint = context.host.settings.endpoint
    if endpoint is None:
        message = "the inventory does not say at which URL this Glance node answers"
        hint = f"give it endpoint: http://{context.host.address}:9292, its own URL and not the balancer's"
        raise HostError(ErrorCode.CONFIG, message, hint=hint)
    return NodeCache(context.api(endpoint))


def _cached(state: CacheState, image: CachedImage) -> CacheEntry:
    size = image.size_bytes or 0
    return CacheEntry(
        name=image.image_id,
        kind=EntryKind.ORIGINAL,
        size_bytes=size,
        allocated_bytes=size,
        format=None,
        age_s=state.age_s(image),
        inode=0,
        # never the time that a queued image has
        mtime_ns=max(round((image.last_accessed or 0.0) * 1e9), 1),
        links=1,
        users=0,
        used_by=(),
        live=False,
        manifest=None,
        image_id=image.image_id,
        hits=image.hits,
    )


def _queued(image_id: ImageId) -> CacheEntry:
    return CacheEntry(
        name=image_id,
        kind=EntryKind.QUEUED,
        size_bytes=0,
        allocated_bytes=0,
        format=None,
        age_s=0.0,
        inode=0,
        mtime_ns=_NO_TIME,
        links=1,
        users=0,
        used_by=(),
        live=False,
        manifest=None,
        image_id=image_id,
    )


async def _remove(node: NodeCache, state: CacheState, item: RemovalItem) -> RemovalRow:
    image = state.cached.get(item.name)
    if item.mtime_ns == _NO_TIME and image:
        reason = "the node has fetched it meanwhile"
        size = image.size_bytes or 0
        return RemovalRow(item.name, RemovalState.KEPT, ErrorCode.CHANGED, reason, size)
    if image is None and item.name not in state.queued:
        return RemovalRow(item.name, RemovalState.GONE, None, None, 0)
    size = (image.size_bytes or 0) if image else 0
    if image and state.age_s(image) < item.min_age_s:
        reason = f"used {age_text(state.age_s(image))} ago"
        return RemovalRow(item.name, RemovalState.KEPT, ErrorCode.YOUNG, reason, size)
    if not await node.drop(item.name):
        return RemovalRow(item.name, RemovalState.GONE, None, None, 0)
    return RemovalRow(item.name, RemovalState.REMOVED, None, None, size)
