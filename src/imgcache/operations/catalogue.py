"""Which image an entry belongs to: by what the image service lists, and by what hosts noted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcache.errors import ImageProblemsError, Problem
from imgcache.guards import base_of
from imgcache.images.records import is_image_id
from imgcache.model import Image, ImageId, base_file_name
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Mapping, Sequence

    from imgcache.images.base import ImageService
    from imgcache.model import CacheEntry

_SHOWN_CANDIDATES = 10


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An image as far as it is known; it need not exist any more."""

    id: ImageId
    name: str | None
    known_by: str
    """``manifest``, ``hash`` (of a listed id) or ``user`` (named by its id on the command line)."""


class Catalogue:
    """The images that the image service lists, found by base file name, id or name."""

    def __init__(self, listed: Iterable[tuple[ImageId, str, str]] = ()) -> None:
        self._by_base = {
            base_file_name(image_id): KnownImage(image_id, printable(name), "hash")
            for image_id, name, _ in listed
        }
        self._ids = {image.id for image in self._by_base.values()}

    def __contains__(self, image_id: ImageId) -> bool:
        return image_id in self._ids

    def image_of(self, base: str) -> KnownImage | None:
        """Return the listed image whose base file has this name."""
        return self._by_base.get(base)

    def resolve(self, names: Sequence[str]) -> dict[str, KnownImage]:
        """Return base file name -> image for ids and names; an id need not exist any more.

        Raises:
            ImageProblemsError: lists every name that is not the name of exactly one image.
        """
        found: dict[str, KnownImage] = {}
        problems: list[Problem] = []
        for name in dict.fromkeys(names):
            matches = self._matches(name)
            if len({image.id.lower() for image in matches}) == 1:
                found.update((base_file_name(image.id), image) for image in matches)
            else:
                problems.append(_problem(name, matches))
        if problems:
            message = f"{len(problems)} of {len(set(names))} images cannot be told"
            raise ImageProblemsError(message, problems)
        return found

    def _matches(self, name: str) -> list[KnownImage]:
        if is_image_id(name):
            listed = [one for one in self._by_base.values() if one.id.lower() == name.lower()]
            # An id that is not listed is hashed as it was given, and as Glance would have made it.
            given = dict.fromkeys((name.lower(), name))
            return listed or [KnownImage(ImageId(one), None, "user") for one in given]
        return [one for one in self._by_base.values() if one.name == printable(name)]


def _problem(name: str, matches: Sequence[KnownImage]) -> Problem:
    where = printable(name)
    if not matches:
        hint = "check the name; name an image that is gone from the image service by its id"
        return Problem(where, "no such image, or it is not visible to you", hint)
    ids = ", ".join(image.id for image in matches[:_SHOWN_CANDIDATES])
    return Problem(where, f"{len(matches)} images have this name: {ids}", "name it by its id")


def read_catalogue(service: ImageService | None) -> Catalogue:
    """Return all images that the service lists; none without a service. Blocks.

    Raises:
        ImageServiceError: the service cannot be used.
    """
    return Catalogue(service.list_images()) if service else Catalogue()


def resolve_bases(names: Sequence[str], service: ImageService | None) -> dict[str, KnownImage]:
    """Return base file name -> image; asks the image service only when a name is no id. Blocks.

    Raises:
        ImageServiceError: the service cannot be used.
        ImageProblemsError: see ``Catalogue.resolve``.
    """
    all_ids = all(is_image_id(name) for name in names)
    return (Catalogue() if all_ids else read_catalogue(service)).resolve(names)


def noted_images(entries: Iterable[CacheEntry]) -> dict[str, KnownImage]:
    """Return base file name -> image, as the manifests of these entries have it."""
    return {
        entry.name: KnownImage(entry.manifest.image_id, entry.manifest.image_name, "manifest")
        for entry in entries
        if entry.manifest and base_file_name(entry.manifest.image_id) == entry.name
    }


def image_of(
    entry: CacheEntry, noted: Mapping[str, KnownImage], catalogue: Catalogue
) -> KnownImage | None:
    """Return the image an original or a resized copy belongs to, or None when that is not known."""
    base = base_of(entry)
    if base is None:
        return None
    return noted.get(base) or catalogue.image_of(base)


class Lookup:
    """Asks the image service about single images, each once in a run."""

    def __init__(self, service: ImageService, catalogue: Catalogue) -> None:
        self._service = service
        self._catalogue = catalogue
        self._gone: dict[ImageId, asyncio.Future[bool]] = {}
        self._images: dict[ImageId, asyncio.Future[Image]] = {}

    async def is_gone(self, image_id: ImageId) -> bool:
        """Whether an image is gone from the image service.

        Raises:
            ImageServiceError: the service cannot be used.
        """
        if image_id in self._catalogue:
            return False
        if image_id not in self._gone:
            call = asyncio.to_thread(self._service.is_gone, image_id)
            self._gone[image_id] = asyncio.ensure_future(call)
        return await asyncio.shield(self._gone[image_id])

    async def image(self, image_id: ImageId) -> Image:
        """Return an image that is verified to be cacheable.

        Raises:
            ImageProblemsError: it is not.
            ImageServiceError: the service cannot be used.
        """
        if image_id not in self._images:
            call = asyncio.to_thread(self._service.find_images, (image_id,))
            self._images[image_id] = asyncio.ensure_future(_only(call))
        return await asyncio.shield(self._images[image_id])


async def _only(call: Awaitable[tuple[Image, ...]]) -> Image:
    return (await call)[0]
