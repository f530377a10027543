"""Reads ``images.yaml`` of a directory image service: strict, all problems at once, with their places."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml

from imgcache.errors import ConfigError, Problem
from imgcache.images.records import (
    CACHEABLE_CONTAINER_FORMATS,
    digest_algorithm,
    digest_from,
    is_image_id,
)
from imgcache.model import CACHEABLE_DISK_FORMATS, Digest, ImageId
from imgcache.text import printable

FILE_NAME = "images.yaml"
MAX_BYTES = 1024 * 1024
_MAX_DEPTH = 10
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
    """Collects problems while it walks the YAML nodes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / FILE_NAME
        self._problems: list[Problem] = []
        self._ids: dict[str, yaml.Node] = {}

    def read(self) -> tuple[Entry, ...]:
        entries = self._entries(self._compose())
        if self._problems:
            raise self._error()
        return tuple(entry for entry in entries if entry is not None)

    def _error(self) -> ConfigError:
        count = len(self._problems)
        message = f"{self._file} has {count} problem{'s' if count > 1 else ''}"
        return ConfigError(message, self._problems)

    def _bad(self, node: yaml.Node | None, key: str, what: str, hint: str | None = None) -> None:
        where = str(self._file)
        if node is not None:
            where += f":{node.start_mark.line + 1}:{node.start_mark.column + 1}"
        self._problems.append(Problem(f"{where}: {key}" if key else where, what, hint))

    # ------------------------------------------------------------------------------------ the document

    def _compose(self) -> yaml.Node | None:
        try:
            data = _read_bounded(self._file)
        except OSError as error:
            hint = "a directory image service is a folder of image files with images.yaml"
            self._bad(None, "", f"cannot be read: {error.strerror}", hint)
            raise self._error() from error
        if len(data) > MAX_BYTES:
            self._bad(None, "", f"is larger than {MAX_BYTES} bytes")
            raise self._error()
        try:
            self._refuse_bombs(data)
            return yaml.compose(data, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
            what = f"is not valid YAML: {printable(error.problem or error.context or '')}"
            self._problems.append(Problem(f"{self._file}{place}", what))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            self._bad(None, "", f"is not valid YAML: {printable(str(error))}")
        raise self._error()

    def _refuse_bombs(self, data: bytes) -> None:
        """Refuse aliases, which can grow without end; depth, which could end our stack; and tags."""
        depth = 0
        for event in yaml.parse(data, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                self._refuse(event, "aliases are not allowed")
            if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None):
                self._refuse(event, "tags are not allowed")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > _MAX_DEPTH:
                self._refuse(event, "nested too deeply")

    def _refuse(self, event: yaml.Event, what: str) -> NoReturn:
        mark = event.start_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        self._problems.append(Problem(f"{self._file}{place}", what))
        raise self._error()

    def _entries(self, root: yaml.Node | None) -> list[Entry | None]:
        if not isinstance(root, yaml.MappingNode):
            self._bad(root, "", "must be a mapping with the key images")
            return []
        found = self._keys(root, "", ("images",), required=("images",))
        images = found.get("images")
        if images is None:
            return []
        if not isinstance(images, yaml.SequenceNode):
            self._bad(images, "images", "must be a list")
            return []
        return [self._entry(node, f"images[{index}]") for index, node in enumerate(images.value)]

    # -------------------------------------------------------------------------------------- one image

    def _keys(
        self, node: yaml.MappingNode, path: str, known: tuple[str, ...], required: tuple[str, ...]
    ) -> dict[str, yaml.Node]:
        found: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            place = f"{path}.{printable(key)}" if path else printable(key)
            if key not in known:
                near = get_close_matches(key, known, n=1)
                self._bad(
                    key_node, place, "unknown key", f"did you mean {near[0]}?" if near else None
                )
            elif key in found:
                self._bad(key_node, place, "given twice")
            else:
                found[key] = value
        for key in required:
            if key not in found:
                self._bad(node, f"{path}.{key}" if path else key, "is missing")
        return found

    def _entry(self, node: yaml.Node, path: str) -> Entry | None:
        if not isinstance(node, yaml.MappingNode):
            self._bad(node, path, "must be a mapping")
            return None
        before = len(self._problems)
        found = self._keys(node, path, (*_REQUIRED, *_OPTIONAL, *_ALGORITHMS), _REQUIRED)
        texts = {key: self._text(value, f"{path}.{key}") for key, value in found.items()}
        self._check_id(found.get("id"), texts.get("id"), f"{path}.id")
        for key, allowed in (
            ("disk_format", tuple(sorted(CACHEABLE_DISK_FORMATS))),
            ("container_format", tuple(sorted(CACHEABLE_CONTAINER_FORMATS))),
            ("status", _STATUSES),
        ):
            value = texts.get(key)
            if value is not None and value not in allowed:
                what = f"must be one of {', '.join(allowed)}, not {printable(value)}"
                self._bad(found[key], f"{path}.{key}", what)
        digest = self._digest(found, texts, path)
        file = self._file_path(found.get("file"), texts.get("file"), f"{path}.file")
        if len(self._problems) > before or file is None:
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

    def _text(self, node: yaml.Node, path: str) -> str | None:
        value: Any = node.value if isinstance(node, yaml.ScalarNode) else None
        if not isinstance(value, str) or not value or node.tag == "tag:yaml.org,2002:null":
            self._bad(node, path, "must be a text")
            return None
        if len(value) > 1024 or "\0" in value:
            self._bad(node, path, "is too long or holds a NUL")
            return None
        return value

    def _check_id(self, node: yaml.Node | None, image_id: str | None, path: str) -> None:
        if node is None or image_id is None:
            return
        if not is_image_id(image_id):
            self._bad(node, path, f"{printable(image_id)} is not a UUID", "make one with uuidgen")
        elif image_id.lower() in self._ids:
            line = self._ids[image_id.lower()].start_mark.line + 1
            self._bad(node, path, f"{image_id} is the id of another image too, in line {line}")
        else:
            self._ids[image_id.lower()] = node

    def _digest(
        self, found: dict[str, yaml.Node], texts: dict[str, str | None], path: str
    ) -> Digest | None:
        given = [key for key in _ALGORITHMS if key in found]
        if not given:
            return None
        if len(given) > 1:
            self._bad(
                found[given[1]],
                f"{path}.{given[1]}",
                f"there is {given[0]} already; give one digest",
            )
        name = given[0]
        algo = digest_algorithm(name)
        digest = digest_from(algo, texts.get(name)) if algo else None
        if digest is None and texts.get(name) is not None:
            self._bad(found[name], f"{path}.{name}", f"is not a {name} digest in hex")
        return digest

    def _file_path(self, node: yaml.Node | None, name: str | None, path: str) -> Path | None:
        if node is None or name is None:
            return None
        relative = Path(name)
        if relative.is_absolute() or ".." in relative.parts:
            self._bad(node, path, f"{printable(name)} must be a path inside the folder, without ..")
            return None
        try:
            full = (self._folder / relative).resolve(strict=True)
            inside = full.is_relative_to(self._folder.resolve(strict=True))
            regular = stat.S_ISREG(full.stat().st_mode)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or "a symbolic link leads in a circle"
            self._bad(node, path, f"{printable(name)}: {reason}")
            return None
        if not inside:
            self._bad(
                node, path, f"{printable(name)} is a symbolic link that leads out of the folder"
            )
        elif not regular:
            self._bad(node, path, f"{printable(name)} is not a regular file")
        return full if inside and regular else None


def _read_bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)
