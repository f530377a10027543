"""Reads ``images.yaml`` of a directory image service: strict, all problems at once, with their places."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from imgcache.document import parse_document
from imgcache.errors import ConfigError, Problem
from imgcache.images.records import (
    CACHEABLE_CONTAINER_FORMATS,
    digest_algorithm,
    digest_from,
    is_image_id,
)
from imgcache.model import CACHEABLE_DISK_FORMATS, Digest, ImageId
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgcache.document import Data, Node

    Keys = tuple[str | int, ...]

FILE_NAME = "images.yaml"
MAX_BYTES = 1024 * 1024
_REQUIRED = ("id", "name", "file", "disk_format")
_OPTIONAL = ("container_format", "status")
_ALGORITHMS = (
    "sha512",
    "sha384",
    "sha256",
    "sha224",
    "sha3_256",
    "sha3_512",
    "blake2b",
    "blake2s",
    "sha1",
    "md5",
)
_STATUSES = ("active", "deactivated", "queued")


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of the folder, as ``images.yaml`` has it."""

    id: ImageId
    name: str
    path: Path
    """Absolute, inside the folder, symbolic links resolved."""
    disk_format: str
    container_format: str
    status: str
    digest: Digest | None
    """None: to be computed."""


def load_listing(folder: Path) -> tuple[Entry, ...]:
    """Return the images of ``folder``, in the file's order.

    Raises:
        ConfigError: lists every problem, with file, line and column.
    """
    return _Reader(folder).read()


class _Reader:
    """Checks each image and notes what is wrong with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        file = folder / FILE_NAME
        self._document = parse_document(file, _read(file))
        self._lines: dict[str, int] = {}

    def read(self) -> tuple[Entry, ...]:
        entries = self._entries()
        self._document.raise_problems()
        return tuple(entry for entry in entries if entry is not None)

    def _bad(self, keys: Keys, what: str, hint: str | None = None) -> None:
        self._document.add(keys, what, hint)

    def _entries(self) -> list[Entry | None]:
        root = self._document.root
        if not isinstance(root.data, dict):
            self._bad((), "must be a mapping with the key images")
            return []
        self._check_keys((), root, known=("images",), required=("images",))
        if "images" not in root.entries:
            return []
        images = root.entries["images"][2]
        if not isinstance(images.data, list):
            self._bad(("images",), "must be a list")
            return []
        return [self._entry(node, ("images", index)) for index, node in enumerate(images.items)]

    # -------------------------------------------------------------------------------------- one image

    def _check_keys(
        self, keys: Keys, node: Node, *, known: Sequence[str], required: Sequence[str]
    ) -> None:
        for key in node.entries:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else None
                self._document.add((*keys, key), "unknown key", hint, at_key=True)
        for key in required:
            if key not in node.entries:
                self._bad((*keys, key), "is missing")

    def _entry(self, node: Node, keys: Keys) -> Entry | None:
        if not isinstance(node.data, dict):
            self._bad(keys, "must be a mapping")
            return None
        before = len(self._document.problems)
        known = (*_REQUIRED, *_OPTIONAL, *_ALGORITHMS)
        self._check_keys(keys, node, known=known, required=_REQUIRED)
        texts = {
            key: self._text(value.data, (*keys, key))
            for key, (_, _, value) in node.entries.items()
            if key in known
        }
        if "id" in texts:
            self._check_id(texts["id"], node.entries["id"][2].line, (*keys, "id"))
        for key, allowed in (
            ("disk_format", tuple(sorted(CACHEABLE_DISK_FORMATS))),
            ("container_format", tuple(sorted(CACHEABLE_CONTAINER_FORMATS))),
            ("status", _STATUSES),
        ):
            value = texts.get(key)
            if value is not None and value not in allowed:
                what = f"must be one of {', '.join(allowed)}, not {printable(value)}"
                self._bad((*keys, key), what)
        digest = self._digest(texts, keys)
        file = self._file_path(texts.get("file"), (*keys, "file"))
        if len(self._document.problems) > before or file is None:
            return None
        return Entry(
            id=ImageId(str(texts["id"])),
            name=str(texts["name"]),
            path=file,
            disk_format=str(texts["disk_format"]),
            container_format=texts.get("container_format") or "bare",
            status=texts.get("status") or "active",
            digest=digest,
        )

    def _text(self, value: Data, keys: Keys) -> str | None:
        if not isinstance(value, str) or not value:
            self._bad(keys, "must be a text")
            return None
        if len(value) > 1024 or "\0" in value:
            self._bad(keys, "is too long or holds a NUL")
            return None
        return value

    def _check_id(self, image_id: str | None, line: int, keys: Keys) -> None:
        if image_id is None:
            return
        if not is_image_id(image_id):
            self._bad(keys, f"{printable(image_id)} is not a UUID", "make one with uuidgen")
        elif image_id.lower() in self._lines:
            first = self._lines[image_id.lower()]
            self._bad(keys, f"{image_id} is the id of another image too, in line {first}")
        else:
            self._lines[image_id.lower()] = line

    def _digest(self, texts: dict[str, str | None], keys: Keys) -> Digest | None:
        given = [key for key in _ALGORITHMS if key in texts]
        if not given:
            return None
        if len(given) > 1:
            self._bad((*keys, given[1]), f"there is {given[0]} already; give one digest")
        name = given[0]
        algo = digest_algorithm(name)
        digest = digest_from(algo, texts.get(name)) if algo else None
        if digest is None and texts.get(name) is not None:
            self._bad((*keys, name), f"is not a {name} digest in hex")
        return digest

    def _file_path(self, name: str | None, keys: Keys) -> Path | None:
        if name is None:
            return None
        relative = Path(name)
        if relative.is_absolute() or ".." in relative.parts:
            self._bad(keys, f"{printable(name)} must be a path inside the folder, without ..")
            return None
        try:
            full = (self._folder / relative).resolve(strict=True)
            inside = full.is_relative_to(self._folder.resolve(strict=True))
            regular = stat.S_ISREG(full.stat().st_mode)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or "a symbolic link leads in a circle"
            self._bad(keys, f"{printable(name)}: {reason}")
            return None
        if not inside:
            self._bad(keys, f"{printable(name)} is a symbolic link that leads out of the folder")
        elif not regular:
            self._bad(keys, f"{printable(name)} is not a regular file")
        return full if inside and regular else None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        hint = "a directory image service is a folder of image files with images.yaml"
        problem = Problem(str(path), f"cannot be read: {error.strerror}", hint)
    else:
        if len(data) <= MAX_BYTES:
            return data
        problem = Problem(str(path), f"is larger than {MAX_BYTES} bytes")
    message = f"{path} cannot be read"
    raise ConfigError(message, [problem])
