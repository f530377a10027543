"""YAML files as trees of text, lists and mappings, each value with its line and column.

The one reader for every YAML file of ours: the inventory, ``images.yaml``, and the places in clouds.yaml.
Anchors, aliases and merge keys are resolved, and the result is bounded in size and depth. Tags are refused,
so nothing in a file is constructed or executed. Scalars stay the text that they are in the file; a schema
gives them their types: ``site: no`` is Norway and not false.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import yaml

from imgcache.errors import ConfigError, Problem
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

MAX_DEPTH = 20
#: Keys and values, those of aliases counted at each place where they stand. Ordinary ones take 20 bytes each,
#: so a file of 10 MiB has no more; one of ``[a,a,…`` has.
MAX_VALUES = 500_000
#: Further problems are counted, not listed.
MAX_PROBLEMS = 100

_FORBIDDEN_CHARS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]")
_NO_VALUE = {"", "~", "null", "Null", "NULL"}
#: What loaders that construct plain data accept. Source: https://yaml.org/type/.
_STANDARD_TAGS = {
    f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "map", "null", "seq", "str")
}
# libyaml where it is built in: ten times faster, same events.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Data = str | list["Data"] | dict[str, "Data"] | None


@dataclass(slots=True)
class Node:
    """One value of the file and where it stands; lines and columns count from 1."""

    line: int
    """0: not known."""
    column: int
    data: Data
    """Plain data for a schema; None when no value is given."""
    items: Sequence[Node] = ()
    """The values of a list."""
    entries: dict[str, tuple[int, int, Node]] = field(default_factory=dict)
    """The entries of a mapping: key -> line and column of the key, value."""
    values: int = 1
    """How many values it stands for, itself included, all aliases expanded."""
    depth: int = 0
    """How many levels of lists and mappings are in it."""


@dataclass(slots=True)
class Document:
    """A parsed file, and the problems found so far."""

    path: Path
    title: str
    """How messages begin: ``the inventory FILE``."""
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

    def note_empty_values(self) -> None:
        """Note as a problem each key without a value, once where aliases repeat it."""
        seen: set[tuple[int, int]] = set()
        for keys, node in _leaves(self.root, ()):
            if node.data is None and (node.line, node.column) not in seen:
                seen.add((node.line, node.column))
                self.add(keys, "has no value: give one, or remove the line")

    def raise_problems(self) -> None:
        """End here when there are problems.

        Raises:
            ConfigError: lists them, by line.
        """
        raise_problems((self,))


def raise_problems(documents: Sequence[Document]) -> None:
    """End here when one of the documents has problems; the first of them gives the message its title.

    Raises:
        ConfigError: lists them, by document and line.
    """
    found = [
        problem for one in documents for problem in sorted(_distinct(one.problems), key=_position)
    ]
    if not found:
        return
    first, count = documents[0], len(found)
    shown = found[:MAX_PROBLEMS]
    if count > MAX_PROBLEMS:
        shown.append(Problem(str(first.path), f"and {count - MAX_PROBLEMS} more problems"))
    noun = "problem" if count == 1 else "problems"
    message = f"{first.title} has {count} {noun}"
    raise ConfigError(message, shown)


def _distinct(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems without those that an alias repeats: same place in the file, same words."""
    found: dict[tuple[tuple[int, int], str, str], Problem] = {}
    for one in problems:
        position = _position(one)
        found.setdefault((position, "" if any(position) else one.where, one.what), one)
    return list(found.values())


def _position(problem: Problem) -> tuple[int, int]:
    found = re.search(r":(\d+):(\d+)(?::|$)", problem.where)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _where(path: Path, line: int, column: int, keys: Sequence[str | int]) -> str:
    place = f"{path}:{line}:{column}" if line else str(path)
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


def _leaves(
    node: Node, keys: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], Node]]:
    if node.entries:
        for key, (_, _, value) in node.entries.items():
            yield from _leaves(value, (*keys, key))
    elif node.items:
        for index, value in enumerate(node.items):
            yield from _leaves(value, (*keys, index))
    else:
        yield keys, node


def parse_document(
    path: Path, content: bytes, *, title: str | None = None, as_loaders: bool = False
) -> Document:
    """Parse a file's bytes.

    Args:
        path: for messages only.
        content: UTF-8, with or without a byte order mark.
        title: how messages begin; the path when not given.
        as_loaders: accept what YAML loaders in general accept, for a file of another program: standard tags
            (which mean nothing here), and keys given twice, of which the last counts.

    Raises:
        ConfigError: this is not the YAML we accept; the first place where that shows.
    """
    title = title or str(path)
    try:
        text = _decode(content)
        root, problems = _Composer(text, as_loaders=as_loaders).compose()
    except _RefusedError as exc:
        problem = Problem(_where(path, exc.line, exc.column, ()), exc.what, exc.hint)
        message = f"{title} cannot be read"
        raise ConfigError(message, (problem,)) from exc.__cause__
    document = Document(path, title, root)
    for line, column, keys, what in problems:
        document.problems.append(Problem(_where(path, line, column, keys), what))
    return document


class _RefusedError(Exception):
    """The file is refused at this place."""

    def __init__(self, line: int, column: int, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.line, self.column, self.what, self.hint = line, column, what, hint


def _decode(content: bytes) -> str:
    try:
        # Editors of some systems put a byte order mark in front.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        before = exc.object[: exc.start].decode("utf-8-sig")
        raise _char_error(before, "not UTF-8", "save the file as UTF-8") from exc
    found = _FORBIDDEN_CHARS.search(text)
    if found:
        name = "a NUL byte" if found[0] == "\0" else f"the control character {printable(found[0])}"
        raise _char_error(text[: found.start()], f"{name} in the file", "remove it")
    return text


def _char_error(before: str, what: str, hint: str) -> _RefusedError:
    line_start = before.rfind("\n") + 1
    return _RefusedError(before.count("\n") + 1, len(before) - line_start + 1, what, hint)


def _at(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _is_plain(event: yaml.Event) -> bool:
    """Return whether a scalar stands without quotes: with them, it is text whatever it looks like."""
    return isinstance(event, yaml.ScalarEvent) and event.implicit[0]


def _refused(event: yaml.Event, what: str, hint: str | None = None) -> _RefusedError:
    return _RefusedError(*_at(event), what, hint)


class _Composer:
    """Builds the tree from parser events.

    An alias is the same node once more, so that memory is bounded by the file's size; what it stands for
    counts again, so that all later work is bounded, too.
    """

    def __init__(self, text: str, *, as_loaders: bool) -> None:
        self._text = text
        self._as_loaders = as_loaders
        self._events: Iterator[yaml.Event] = iter(yaml.parse(text, Loader=_Loader))
        self._problems: list[tuple[int, int, tuple[str | int, ...], str]] = []
        self._keys: list[str | int] = []
        self._values = 0
        #: None: begun, and not at its end yet.
        self._anchors: dict[str, Node | None] = {}

    def compose(self) -> tuple[Node, list[tuple[int, int, tuple[str | int, ...], str]]]:
        """Return the file's value, and problems that do not keep it from being used."""
        try:
            event = self._next()
            while not isinstance(event, yaml.NodeEvent):
                if isinstance(event, yaml.StreamEndEvent):
                    raise _RefusedError(1, 1, "is empty")
                event = self._next()
            root = self._node(event)
            self._expect_end()
        except yaml.MarkedYAMLError as exc:
            mark = exc.problem_mark or exc.context_mark
            line, column = (mark.line, mark.column) if mark else (0, 0)
            raise _RefusedError(line + 1, column + 1, self._describe(exc, line, column)) from exc
        except yaml.YAMLError as exc:
            raise _RefusedError(1, 1, printable(str(exc))) from exc
        return root, self._problems

    def _describe(self, exc: yaml.MarkedYAMLError, line: int, column: int) -> str:
        lines = self._text.split("\n", line + 1)
        if line < len(lines) and lines[line][column : column + 1] == "\t":
            return "a tab: YAML is indented with spaces only"
        context = f" ({exc.context})" if exc.context else ""
        return printable(
            f"not valid YAML: {exc.problem or exc.context}{context if exc.problem else ''}"
        )

    def _expect_end(self) -> None:
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                raise _refused(event, "a second YAML document", "a file holds one document")

    def _next(self) -> yaml.Event:
        return next(self._events)

    def _node(self, event: yaml.Event) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        self._check(event)
        anchor: str | None = getattr(event, "anchor", None)
        if anchor is not None:
            self._anchors[anchor] = None
        before = self._values
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(event)
        else:
            node = self._mapping(event)
        node.values += self._values - before
        if anchor is not None:
            self._anchors[anchor] = node
        return node

    def _alias(self, event: yaml.AliasEvent) -> Node:
        # The name is not repeated: it may be a secret that starts with * and stands without quotes.
        name = event.anchor or ""
        if name not in self._anchors:
            hint = "put text that starts with * in quotes"
            raise _refused(event, "an alias (*) without its anchor (&) before it", hint)
        node = self._anchors[name]
        if node is None:
            raise _refused(event, "an alias (*) inside of what it stands for")
        self._count(event, node.values, node.depth)
        return node

    def _check(self, event: yaml.Event) -> None:
        self._count(event, 1, 0)
        tag = getattr(event, "tag", None)
        if tag is not None and not (self._as_loaders and tag in _STANDARD_TAGS):
            raise _refused(
                event, "tags (!) are not accepted", "put text that starts with ! in quotes"
            )

    def _count(self, event: yaml.Event, values: int, depth: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise _refused(event, f"more than {MAX_VALUES} values, those of aliases included")
        if len(self._keys) + depth > MAX_DEPTH:
            raise _refused(event, f"nested deeper than {MAX_DEPTH} levels")

    def _scalar(self, event: yaml.ScalarEvent) -> Node:
        empty = _is_plain(event) and event.value in _NO_VALUE
        return Node(*_at(event), None if empty else event.value)

    def _sequence(self, start: yaml.Event) -> Node:
        items: list[Node] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            self._keys.append(len(items))
            items.append(self._node(event))
            self._keys.pop()
        depth = 1 + max((item.depth for item in items), default=0)
        return Node(*_at(start), [item.data for item in items], items=items, depth=depth)

    def _mapping(self, start: yaml.Event) -> Node:
        own: dict[str, tuple[int, int, Node]] = {}
        merged: dict[str, tuple[int, int, Node]] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._key(event)
            self._keys.append(key)
            value_event = self._next()
            node = self._node(value_event)
            self._keys.pop()
            if key == "<<" and _is_plain(event):
                # Of several sources, the first that has a key gives it.
                for source in self._merged(value_event, node):
                    merged = {**source.entries, **merged}
            else:
                self._enter(own, event, key, node)
        entries = {**merged, **own}
        data: Data = {key: node.data for key, (_, _, node) in entries.items()}
        depth = 1 + max((node.depth for _, _, node in entries.values()), default=0)
        return Node(*_at(start), data, entries=entries, depth=depth)

    def _enter(
        self,
        entries: dict[str, tuple[int, int, Node]],
        event: yaml.Event,
        key: str,
        node: Node,
    ) -> None:
        if key in entries and not self._as_loaders:
            what = f"given twice, first in line {entries[key][0]}"
            self._problems.append((*_at(event), (*self._keys, key), what))
        else:
            entries[key] = (*_at(event), node)

    def _merged(self, event: yaml.Event, node: Node) -> Sequence[Node]:
        """Return the mappings that a merge key names. Source: https://yaml.org/type/merge.html."""
        sources = (node,) if isinstance(node.data, dict) else node.items
        if not sources or not all(isinstance(one.data, dict) for one in sources):
            hint = "write '<<: *name', or '<<: [*name, *other]'"
            raise _refused(event, "a merge key (<<) takes a mapping, or a list of mappings", hint)
        return sources

    def _key(self, event: yaml.Event) -> str:
        if isinstance(event, yaml.AliasEvent):
            node = self._alias(event)
            value = node.data if isinstance(node.data, str) else None
        else:
            self._check(event)
            value = None
            if isinstance(event, yaml.ScalarEvent):
                value = event.value
                if event.anchor is not None:
                    self._anchors[event.anchor] = Node(*_at(event), value)
        if value is None:
            raise _refused(event, "a key that is a list or a mapping", "keys are plain text")
        if not value.strip():
            raise _refused(event, "an empty key")
        return value
