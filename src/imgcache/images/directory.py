"""The directory image service: a folder of image files, described by its ``images.yaml``."""

from __future__ import annotations

import os
import stat
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from imgcache.errors import ImageProblemsError, ImageServiceError, Problem
from imgcache.images.base import ImageService
from imgcache.images.digests import DigestCache
from imgcache.images.listing import Entry, load_listing
from imgcache.images.records import is_image_id
from imgcache.model import Image
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from imgcache.model import ImageId

BLOCK_BYTES = 1024 * 1024


class DirectoryImageService(ImageService):
    """See ``ImageService``. Hosts cannot download from it: the controller pushes."""

    serves_hosts = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = load_listing(path)
        self._digests = DigestCache(path)
        self._lock = threading.Lock()

    def describe(self) -> str:
        """See ``ImageService.describe``."""
        return f"directory {self._path}"

    def find_images(self, names: Sequence[str]) -> tuple[Image, ...]:
        """See ``ImageService.find_images``. Computes digests that images.yaml does not give."""
        found: dict[str, Image] = {}
        problems: dict[str, Problem] = {}
        for name in dict.fromkeys(names):
            result = self._find(name)
            if isinstance(result, Problem):
                problems[name] = result
            else:
                found.setdefault(result.id, result)
        if problems:
            message = f"{len(problems)} of {len(set(names))} images cannot be cached from {self.describe()}"
            raise ImageProblemsError(message, list(problems.values()))
        return tuple(found.values())

    def list_images(self) -> Iterator[tuple[ImageId, str, str]]:
        """See ``ImageService.list_images``."""
        return iter([(entry.id, entry.name, entry.status) for entry in self._entries])

    def is_gone(self, image_id: ImageId) -> bool:
        """See ``ImageService.is_gone``."""
        return all(entry.id.lower() != image_id.lower() for entry in self._entries)

    def _find(self, name: str) -> Image | Problem:
        where = printable(name)
        matches = [entry for entry in self._entries if entry.id == name]
        if not matches and is_image_id(name):
            matches = [entry for entry in self._entries if entry.id.lower() == name.lower()]
        if not matches:
            matches = [entry for entry in self._entries if entry.name == name]
        if not matches:
            return Problem(
                where, f"no such image in {self._path / 'images.yaml'}", self._nearest(name)
            )
        if len(matches) > 1:
            ids = ", ".join(entry.id for entry in matches)
            return Problem(
                where, f"{len(matches)} images have this name: {ids}", "name it by its id"
            )
        entry = matches[0]
        if entry.status != "active":
            return Problem(where, f"is not active but {printable(entry.status)}")
        return self._image(where, entry)

    def _key(self, entry: Entry) -> str:
        return str(entry.path.relative_to(self._path.resolve()))

    def _nearest(self, name: str) -> str | None:
        from difflib import get_close_matches  # noqa: PLC0415 - only when something is wrong

        near = get_close_matches(name, [entry.name for entry in self._entries], n=3)
        return f"did you mean {' or '.join(printable(word) for word in near)}?" if near else None

    def _image(self, where: str, entry: Entry) -> Image | Problem:
        try:
            with _opened(entry.path) as (fd, status):
                if status.st_size == 0:
                    return Problem(where, f"{entry.path} is empty (0 bytes)")
                digest = entry.digest
                if digest is None:
                    with self._lock:
                        digest = self._digests.digest(self._key(entry), fd, status)
        except OSError as error:
            return Problem(where, f"{entry.path} cannot be read: {error.strerror}")
        return Image(
            id=entry.id,
            name=entry.name,
            size_bytes=status.st_size,
            disk_format=entry.disk_format,
            container_format=entry.container_format,
            digest=digest,
        )

    @contextmanager
    def read(self, image: Image, *, offset: int = 0) -> Iterator[Iterator[bytes]]:
        """See ``ImageService.read``."""
        entry = next((entry for entry in self._entries if entry.id == image.id), None)
        if entry is None:
            message = f"{self.describe()} has no image {printable(image.id)}"
            raise ImageServiceError(message)
        with ExitStack() as stack:
            try:
                fd, status = stack.enter_context(_opened(entry.path))
            except OSError as error:
                message = f"{entry.path} cannot be read: {error.strerror}"
                raise ImageServiceError(message) from error
            if status.st_size != image.size_bytes:
                message = f"{entry.path} has {status.st_size} bytes now, not {image.size_bytes}"
                raise ImageServiceError(message, hint="run again once the file is complete")
            os.lseek(fd, offset, os.SEEK_SET)
            yield _blocks(fd, entry.path, image.size_bytes - offset)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    # not blocking: a fifo that came in the file's place must not hang us
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "not a regular file")
        yield fd, status
    finally:
        os.close(fd)


def _blocks(fd: int, path: Path, remaining: int) -> Iterator[bytes]:
    while remaining > 0:
        try:
            block = os.read(fd, min(BLOCK_BYTES, remaining))
        except OSError as error:
            message = f"{path} cannot be read: {error.strerror}"
            raise ImageServiceError(message) from error
        if not block:
            message = f"{path} ended {remaining} bytes early"
            raise ImageServiceError(message, hint="it was shortened while it was read")
        remaining -= len(block)
        yield block
