"""YAML read strictly: a tree of text, lists and mappings, each with its line and column.

Only what an inventory needs: no tags, no anchors, aliases or merge keys, no duplicate keys, bounded
size, depth and number of values. Scalars stay the text they are in the file; the schema gives them
their types, so that ``site: no`` is Norway and not false.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import yaml

from imgcache.errors import ConfigError, Problem
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MAX_DEPTH = 20
#: Keys and values. Ordinary ones take 20 bytes each, so a file of 10 MiB has no more; one of ``[a,a,…`` has.
MAX_VALUES = 500_000
#: Further problems are counted, not listed.
MAX_PROBLEMS = 100

_FORBIDDEN_CHARS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]")
_NO_VALUE = {"", "~", "null", "Null", "NULL"}
# libyaml where it is built in: ten times faster, same events.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Data = str | list["Data"] | dict[str, "Data"] | None


@dataclass(slots=True)
class Node:
    """One value of the file and where it stands; lines and columns count from 1."""

    line: int
    column: int
    data: Data
    """Plain data for the schema; None when no value is given."""
    items: list[Node] = field(default_factory=list)
    """The values of a list."""
    entries: dict[str, tuple[int, int, Node]] = field(default_factory=dict)
    """The entries of a mapping: key -> line and column of the key, value."""


@dataclass(slots=True)
class Document:
    """A parsed file, and the problems found so far."""

    path: Path
    root: Node
    problems: list[Problem] = field(default_factory=list)

    def where(self, keys: Sequence[str | int], *, at_key: bool = False) -> str:
        """Return ``file:line:column: a.b[2]`` of the value at ``keys``, or of its nearest parent."""
        node, line, column = self.root, self.root.line, self.root.column
        for key in keys:
            if isinstance(key, str) and key in node.entries:
                line, column, node = node.entries[key]
                if not at_key:
                    line, column = node.line, node.column
            elif isinstance(key, int) and key < len(node.items):
                node = node.items[key]
                line, column = node.line, node.column
            else:
                break
        return _where(self.path, line, column, keys)

    def deepest(self, keys: Sequence[str | int]) -> tuple[str | int, ...]:
        """Return the part of a path that stands in the file: a host given as text has no ``name``."""
        node, found = self.root, 0
        for key in keys:
            if isinstance(key, str) and key in node.entries:
                node = node.entries[key][2]
            elif isinstance(key, int) and key < len(node.items):
                node = node.items[key]
            else:
                break
            found += 1
        return tuple(keys[:found])

    def add(
        self, keys: Sequence[str | int], what: str, hint: str | None = None, *, at_key: bool = False
    ) -> None:
        """Note a problem with the value at ``keys``."""
        self.problems.append(Problem(self.where(keys, at_key=at_key), what, hint))

    def raise_problems(self) -> None:
        """End here when there are problems.

        Raises:
            ConfigError: lists them, by line.
        """
        if not self.problems:
            return
        count = len(self.problems)
        shown = sorted(self.problems, key=_position)[:MAX_PROBLEMS]
        if count > MAX_PROBLEMS:
            shown.append(Problem(str(self.path), f"and {count - MAX_PROBLEMS} more problems"))
        noun = "problem" if count == 1 else "problems"
        message = f"the inventory {self.path} has {count} {noun}"
        raise ConfigError(message, shown)


def _position(problem: Problem) -> tuple[int, int]:
    found = re.search(r":(\d+):(\d+)(?::|$)", problem.where)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _where(path: Path, line: int, column: int, keys: Sequence[str | int]) -> str:
    place = f"{path}:{line}:{column}"
    return f"{place}: {key_path(keys)}" if keys else place


def key_path(keys: Sequence[str | int]) -> str:
    """Return ``aggregates.edge-1.hosts[2]`` for a path of keys and indexes, safe to show."""
    parts: list[str] = []
    for key in keys:
        if isinstance(key, int):
            parts.append(f"[{key}]")
        else:
            parts.append(("." if parts else "") + printable(key, 60))
    return "".join(parts)


def parse_document(path: Path, content: bytes) -> Document:
    """Parse a file's bytes; ``path`` is for messages only.

    Raises:
        ConfigError: this is not the YAML we accept; the first place where that shows.
    """
    text = _decode(path, content)
    composer = _Composer(path, text)
    try:
        return composer.compose()
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        raise _syntax_error(path, line + 1, column + 1, _describe(exc, text, line, column)) from exc
    except yaml.YAMLError as exc:
        raise _syntax_error(path, 1, 1, printable(str(exc))) from exc


def _describe(exc: yaml.MarkedYAMLError, text: str, line: int, column: int) -> str:
    lines = text.split("\n", line + 1)
    if line < len(lines) and lines[line][column : column + 1] == "\t":
        return "a tab: YAML is indented with spaces only"
    context = f" ({exc.context})" if exc.context else ""
    return printable(
        f"not valid YAML: {exc.problem or exc.context}{context if exc.problem else ''}"
    )


def _syntax_error(
    path: Path, line: int, column: int, what: str, hint: str | None = None
) -> ConfigError:
    problem = Problem(_where(path, line, column, ()), what, hint)
    return ConfigError(f"the inventory {path} cannot be read", (problem,))


def _decode(path: Path, content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as exc:
        before = content[: exc.start].decode()
        raise _char_error(path, before, "not UTF-8", "save the file as UTF-8") from exc
    if text.startswith("\ufeff"):
        raise _char_error(
            path, "", "starts with a byte order mark", "save the file as UTF-8 without BOM"
        )
    found = _FORBIDDEN_CHARS.search(text)
    if found:
        name = "a NUL byte" if found[0] == "\0" else f"the control character {printable(found[0])}"
        raise _char_error(path, text[: found.start()], f"{name} in the file", "remove it")
    return text


def _char_error(path: Path, before: str, what: str, hint: str) -> ConfigError:
    line_start = before.rfind("\n") + 1
    return _syntax_error(path, before.count("\n") + 1, len(before) - line_start + 1, what, hint)


def _at(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


class _Composer:
    """Builds the tree from parser events: nothing is constructed, so nothing can be executed."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._events: Iterator[yaml.Event] = iter(yaml.parse(text, Loader=_Loader))
        self._problems: list[tuple[int, int, tuple[str | int, ...], str]] = []
        self._keys: list[str | int] = []
        self._values = 0

    def compose(self) -> Document:
        event = self._next()
        while not isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.StreamEndEvent):
                raise _syntax_error(self._path, 1, 1, "is empty")
            event = self._next()
        root = self._node(event)
        self._expect_end()
        document = Document(self._path, root)
        document.problems += [
            Problem(_where(self._path, line, column, keys), what)
            for line, column, keys, what in self._problems
        ]
        return document

    def _expect_end(self) -> None:
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                raise self._error(event, "a second YAML document", "one file holds one inventory")

    def _next(self) -> yaml.Event:
        return next(self._events)

    def _error(self, event: yaml.Event, what: str, hint: str | None = None) -> ConfigError:
        return _syntax_error(self._path, *_at(event), what, hint)

    def _node(self, event: yaml.Event) -> Node:
        self._check(event)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(event)
        return self._mapping(event)

    def _check(self, event: yaml.Event) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise self._error(event, f"more than {MAX_VALUES} values")
        if len(self._keys) > MAX_DEPTH:
            raise self._error(event, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            hint = "put what hosts share under 'defaults' or under their aggregate"
            raise self._error(event, "anchors and aliases (& and *) are not accepted", hint)
        if getattr(event, "tag", None) is not None:
            raise self._error(
                event, "tags (!) are not accepted", "put text that starts with ! in quotes"
            )

    def _note(self, event: yaml.Event, what: str, key: str | int | None = None) -> None:
        keys = (*self._keys, key) if key is not None else tuple(self._keys)
        self._problems.append((*_at(event), keys, what))

    def _scalar(self, event: yaml.ScalarEvent) -> Node:
        # implicit[0]: a plain scalar; quoted ones are text even when they look like nothing.
        empty = event.implicit[0] and event.value in _NO_VALUE
        if empty:
            self._note(event, "has no value: give one, or remove the line")
        return Node(*_at(event), None if empty else event.value)

    def _sequence(self, start: yaml.Event) -> Node:
        items: list[Node] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            self._keys.append(len(items))
            items.append(self._node(event))
            self._keys.pop()
        return Node(*_at(start), [item.data for item in items], items=items)

    def _mapping(self, start: yaml.Event) -> Node:
        entries: dict[str, tuple[int, int, Node]] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._key(event)
            if key in entries:
                self._note(event, f"given twice, first in line {entries[key][0]}", key)
            self._keys.append(key)
            node = self._node(self._next())
            self._keys.pop()
            entries.setdefault(key, (*_at(event), node))
        data: Data = {key: node.data for key, (_, _, node) in entries.items()}
        return Node(*_at(start), data, entries=entries)

    def _key(self, event: yaml.Event) -> str:
        self._check(event)
        if not isinstance(event, yaml.ScalarEvent):
            raise self._error(event, "a key that is a list or a mapping", "keys are plain text")
        if event.value == "<<":
            raise self._error(event, "merge keys (<<) are not accepted", "use 'defaults'")
        if not event.value.strip():
            raise self._error(event, "an empty key")
        value: str = event.value
        return value
