"""The image cache of one Glance node, by its API: what is in it, and the few requests that change it.

Source: glance ``api/v2/cached_images.py``, ``router.py``: Image API 2.14 (Yoga); clean since 2.18 (33.0.0).
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from imgcache.drivers.base import UnsupportedError
from imgcache.errors import ErrorCode, HostError
from imgcache.model import ImageId
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from imgcache.drivers.node_api import ApiAnswer, NodeApi

#: More than any cache has; beyond it the node is not believed.
MAX_ENTRIES = 50_000
#: Ids become parts of URLs. Source: glance ``schemas``: a client may choose an id, of this form only.
_IMAGE_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_VERSION = re.compile(r"v?([0-9]{1,3})\.([0-9]{1,3})", re.ASCII)
_MAX_NUMBER = 2**62

ADMIN_HINT = (
    "use an admin's credentials, or see cache_list, cache_image, cache_delete and cache_clean in Glance's "
    "policy"
)
NO_CACHE = (
    "the node has no image cache with an API: image_cache_dir is not set in its glance-api.conf, "
    "or Glance is older than Yoga"
)


@dataclass(frozen=True, slots=True)
class CachedImage:
    """One image in a node's cache; what the node does not tell is None."""

    image_id: ImageId
    size_bytes: int | None
    hits: int | None
    last_accessed: float | None
    """Seconds since 1970, by the node's clock; a new entry's is the time at which it came."""


@dataclass(frozen=True, slots=True)
class CacheState:
    """What a node says about its cache at one moment."""

    cached: Mapping[str, CachedImage]
    """Image id -> entry."""
    queued: tuple[ImageId, ...]
    """Ids that are to be fetched, also the one that is being fetched now."""
    now: float
    """The node's clock."""

    def age_s(self, image: CachedImage) -> float:
        """Return the seconds since an entry's last use; unknown, or in the future, is now: it is not old.

        A node's ``Date`` has whole seconds; and with the driver ``centralized_db`` a node west of Greenwich
        tells times that lie hours ahead. Source: glance ``db/sqlalchemy/api.py``: the database has UTC
        without a zone, of which ``timestamp`` makes local time.
        """
        return 0.0 if image.last_accessed is None else max(self.now - image.last_accessed, 0.0)


class NodeCache:
    """The cache of one node."""

    def __init__(self, api: NodeApi) -> None:
        self._api = api
        self.url = api.url

    async def state(self) -> CacheState:
        """Return what is cached and queued.

        Raises:
            UnsupportedError: the node has no cache, or no API for it.
            HostError: no answer to use; code ``forbidden`` without the role admin.
        """
        answer = await self._api.request("GET", "/v2/cache")
        if answer.status == 404:
            await self.api_version()  # what is no image service says nothing about its cache
            raise UnsupportedError(ErrorCode.BACKEND, f"{NO_CACHE}{answer.detail}")
        if answer.status != 200:
            raise self.refusal(answer)
        return _state(self.url, answer)

    async def api_version(self) -> tuple[int, int]:
        """Return the newest version that the node offers; needs no rights.

        Source: glance ``api/versions.py``: 300 at ``/``; 2.14, 2.16 and 2.18 only with a cache.
        """
        answer = await self._api.request("GET", "/versions")
        try:
            ids = [str(row["id"]) for row in json.loads(answer.body)["versions"]]
            found = [_VERSION.fullmatch(one) for one in ids]
            return max((int(one[1]), int(one[2])) for one in found if one)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            message = (
                f"{self.url} does not answer as an image service: {answer.status}{answer.detail}"
            )
            hint = "see endpoint: of the host; it is the node's own URL, without a version"
            raise HostError(ErrorCode.PROTOCOL, message, hint=hint) from error

    async def queue(self, image_id: str) -> None:
        """Ask the node to fetch an image; does nothing for one that is cached. Promises nothing.

        Raises:
            HostError: ``gone``, ``nodata`` (not active) or ``forbidden``; or no answer to use.
        """
        answer = await self._api.request("PUT", f"/v2/cache/{_checked(image_id)}")
        if answer.status == 404:
            raise HostError(ErrorCode.GONE, f"the node knows no such image{answer.detail}")
        if answer.status == 400:
            raise HostError(ErrorCode.NODATA, f"the node does not take it{answer.detail}")
        if not 200 <= answer.status < 300:
            raise self.refusal(answer)

    async def drop(self, image_id: str) -> bool:
        """Remove an image from cache and queue; False when it was in neither and is unknown besides."""
        answer = await self._api.request("DELETE", f"/v2/cache/{_checked(image_id)}")
        if answer.status == 404:
            return False
        if not 200 <= answer.status < 300:
            raise self.refusal(answer)
        return True

    async def clean(self) -> bool:
        """Have the node remove what broke off; False when it is too old to offer that."""
        answer = await self._api.request("POST", "/v2/cache/clean")
        if answer.status in {404, 405}:
            return False
        if not 200 <= answer.status < 300:
            raise self.refusal(answer)
        return True

    def data(self, image_id: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open an image's bytes; where Glance's cache filter is on, reading them all fills the cache."""
        return self._api.blocks(f"/v2/images/{_checked(image_id)}/file")

    def refusal(self, answer: ApiAnswer) -> HostError:
        """Return the error for an answer that is of no use."""
        said = f"{self.url} answers {answer.status}{answer.detail}"
        if answer.status == 403:
            message = f"managing the cache of Glance needs the role admin: {said}"
            return HostError(ErrorCode.FORBIDDEN, message, hint=ADMIN_HINT)
        if 300 <= answer.status < 400:
            target = printable(answer.headers.get("Location", "nowhere"))
            message = f"{self.url} redirects to {target}, which is not followed"
            hint = "give the node's own URL as endpoint"
            return HostError(ErrorCode.REDIRECT, message, hint=hint)
        return HostError(
            ErrorCode.PROTOCOL, said, hint="see endpoint: of the host, and Glance's log"
        )


def _checked(image_id: str) -> str:
    if not _IMAGE_ID.fullmatch(image_id):
        raise HostError(ErrorCode.PROTOCOL, f"{printable(image_id)} is no image id")
    return image_id


def _state(url: str, answer: ApiAnswer) -> CacheState:
    try:
        content = json.loads(answer.body)
        rows, ids = content["cached_images"], content["queued_images"]
        if len(rows) + len(ids) > MAX_ENTRIES:
            message = f"{url} lists more than {MAX_ENTRIES} images in its cache"
            raise HostError(ErrorCode.PROTOCOL, message)
        cached = [_cached(row) for row in rows]
        queued = [ImageId(str(one)) for one in ids]
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        message = f"{url} answers with something else than the state of a cache"
        hint = "see endpoint: of the host"
        raise HostError(ErrorCode.PROTOCOL, message, hint=hint) from error
    return CacheState(
        cached={one.image_id: one for one in cached if _IMAGE_ID.fullmatch(one.image_id)},
        queued=tuple(dict.fromkeys(one for one in queued if _IMAGE_ID.fullmatch(one))),
        now=node_time(answer),
    )


def node_time(answer: ApiAnswer) -> float:
    """Return the node's clock by the ``Date`` of its answer, else our own."""
    try:
        return parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
    except (ValueError, TypeError, OverflowError):
        return time.time()


def _cached(row: Mapping[str, Any]) -> CachedImage:
    """Source: of the drivers' rows only ``image_id`` is always there; ``xattr`` gives whole seconds."""
    accessed = _number(row.get("last_accessed"))
    size, hits = _number(row.get("size")), _number(row.get("hits"))
    return CachedImage(
        image_id=ImageId(str(row["image_id"])),
        size_bytes=None if size is None else int(size),
        hits=None if hits is None else int(hits),
        last_accessed=accessed,
    )


def _number(value: object) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value < _MAX_NUMBER else None
