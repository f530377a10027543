"""Which image an entry belongs to: by what the image service lists, and by what hosts noted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from imgcache.errors import ImageProblemsError, ImageServiceError, Problem
from imgcache.guards import base_of
from imgcache.images.records import is_image_id
from imgcache.model import EntryKind, Image, ImageId
from imgcache.operations.fleet import driver_of
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence

    from imgcache.drivers.base import Driver
    from imgcache.images.base import ImageService
    from imgcache.model import CacheEntry, Host
    from imgcache.plan import EntryOutcome

_SHOWN_CANDIDATES = 10


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An image as far as it is known; it need not exist any more."""

    id: ImageId
    name: str | None
    known_by: str
    """``name`` (of the entry), ``manifest``, ``hash`` (of a listed id) or ``user`` (named by its id)."""


class KnownImages:
    """Images, found by what a driver calls their entries."""

    def __init__(self, images: Iterable[KnownImage] = ()) -> None:
        self._images = tuple(images)
        self._by_driver: dict[str, Mapping[str, KnownImage]] = {}

    def __bool__(self) -> bool:
        return bool(self._images)

    def __iter__(self) -> Iterator[KnownImage]:
        return iter(self._images)

    def by_entry(self, driver: Driver) -> Mapping[str, KnownImage]:
        """Return name of the entry -> image, in a cache of this driver."""
        if driver.name not in self._by_driver:
            self._by_driver[driver.name] = {
                driver.entry_name(image.id): image for image in self._images
            }
        return self._by_driver[driver.name]


class Catalogue(KnownImages):
    """The images that the image service lists, found by id or name, too."""

    def __init__(self, listed: Iterable[tuple[ImageId, str, str]] = ()) -> None:
        super().__init__(
            KnownImage(image_id, printable(name), "hash") for image_id, name, _ in listed
        )
        self._by_id = {image.id: image for image in self}

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._by_id

    def name_of(self, image_id: ImageId) -> str | None:
        """Return the name of a listed image."""
        image = self._by_id.get(image_id)
        return image.name if image else None

    def resolve(self, names: Sequence[str]) -> KnownImages:
        """Return the images of these ids and names; an id need not exist any more.

        Raises:
            ImageProblemsError: lists every name that is not the name of exactly one image.
        """
        found: dict[ImageId, KnownImage] = {}
        problems: list[Problem] = []
        for name in dict.fromkeys(names):
            matches = self._matches(name)
            if len({image.id.lower() for image in matches}) == 1:
                found.update((image.id, image) for image in matches)
            else:
                problems.append(_problem(name, matches))
        if problems:
            message = f"{len(problems)} of {len(set(names))} images cannot be told"
            raise ImageProblemsError(message, problems)
        return KnownImages(found.values())

    def _matches(self, name: str) -> list[KnownImage]:
        if is_image_id(name):
            listed = [one for one in self if one.id.lower() == name.lower()]
            # An id that is not listed is taken as it was given, and as Glance would have made it.
            given = dict.fromkeys((name.lower(), name))
            return listed or [KnownImage(ImageId(one), None, "user") for one in given]
        return [one for one in self if one.name == printable(name)]


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


def resolve_images(names: Sequence[str], service: ImageService | None) -> KnownImages:
    """Return the images of these names; asks the image service only when a name is no id. Blocks.

    Raises:
        ImageServiceError: the service cannot be used.
        ImageProblemsError: see ``Catalogue.resolve``.
    """
    all_ids = all(is_image_id(name) for name in names)
    return (Catalogue() if all_ids else read_catalogue(service)).resolve(names)


def noted_images(driver: Driver, entries: Iterable[CacheEntry]) -> dict[str, KnownImage]:
    """Return name of the image's entry -> image, as the entries tell by themselves or in manifests."""
    noted: dict[str, KnownImage] = {}
    for entry in entries:
        image, base = _told_by(entry), base_of(entry)
        if image is None or base is None or driver.entry_name(image.id) != base:
            continue
        if base not in noted or noted[base].name is None:
            noted[base] = image
    return noted


def _told_by(entry: CacheEntry) -> KnownImage | None:
    manifest = entry.manifest
    if entry.image_id is not None:
        same = manifest is not None and manifest.image_id == entry.image_id
        return KnownImage(
            entry.image_id, manifest.image_name if manifest and same else None, "name"
        )
    if manifest is not None:
        return KnownImage(manifest.image_id, manifest.image_name, "manifest")
    return None


def image_of(
    driver: Driver, entry: CacheEntry, noted: Mapping[str, KnownImage], catalogue: Catalogue
) -> KnownImage | None:
    """Return the image that an entry is, or was made of, or None when that is not known."""
    base = base_of(entry)
    if base is None:
        return None
    found = noted.get(base) or catalogue.by_entry(driver).get(base)
    if found is not None and found.name is None:
        return replace(found, name=catalogue.name_of(found.id))
    return found


async def with_names(
    hosts: Iterable[Host],
    found: Mapping[str, Iterable[EntryOutcome]],
    service: ImageService | None,
) -> dict[str, list[EntryOutcome]]:
    """Return host name -> its outcomes, with the images that only the image service can name.

    It is asked when there are such, and after the work: when it cannot be used, they go without.
    """
    rows = {name: list(outcomes) for name, outcomes in found.items()}
    unknown = [row for one in rows.values() for row in one if _base_of_unknown(row)]
    if service is None or not unknown:
        return rows
    try:
        catalogue = await asyncio.to_thread(read_catalogue, service)
    except ImageServiceError:
        return rows
    for host in hosts:
        known = catalogue.by_entry(driver_of(host))
        for index, row in enumerate(rows.get(host.name, ())):
            image = known.get(_base_of_unknown(row) or "")
            if image is not None:
                named = replace(row, image_id=image.id, image_name=image.name)
                rows[host.name][index] = named
    return rows


def _base_of_unknown(row: EntryOutcome) -> str | None:
    """Return the base file's name of an outcome whose image is not known; None of all others."""
    if row.image_id is not None or row.kind not in {EntryKind.ORIGINAL, EntryKind.RESIZED}:
        return None
    return row.entry.partition("_")[0]


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
