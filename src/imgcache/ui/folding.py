"""Many names as few words: ``edge1-[01-17]``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    Value = TypeVar("Value", bound=Hashable)

#: What ClusterShell reads as a plain name; anything else would mean something to it, or be an address
#: whose hexadecimal digits must not become a range.
_FOLDABLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z", re.ASCII)
_MAX_DIGITS = 9
_LONG_NUMBER = re.compile(rf"\d{{{_MAX_DIGITS + 1}}}", re.ASCII)


def fold_hosts(names: Iterable[str]) -> str:
    """Return the names, each once, as one node set; names that cannot be folded follow as they are.

    Sorted as ClusterShell sorts; the same whatever the order of ``names``. Names come out unsanitised.
    """
    unique = set(names)
    foldable = {name for name in unique if _foldable(name)}
    parts = sorted(unique - foldable)
    if len(foldable) == 1:
        parts = [*foldable, *parts]
    elif foldable:
        parts = [_fold(sorted(foldable)), *parts]
    return ",".join(parts)


def _foldable(name: str) -> bool:
    return bool(_FOLDABLE.match(name)) and not _LONG_NUMBER.search(name)


def _fold(names: list[str]) -> str:
    from ClusterShell.NodeSet import (  # noqa: PLC0415 - for many names only
        RESOLVER_NOGROUP,
        NodeSet,
        NodeSetException,
    )

    try:
        return str(NodeSet.fromlist(names, resolver=RESOLVER_NOGROUP))
    except NodeSetException:
        return ",".join(names)


def group_equal(items: Iterable[tuple[str, Value]]) -> list[tuple[str, Value]]:
    """Return (folded names, value) per distinct value, in the order in which values first came.

    ``items`` are (name, value) pairs.
    """
    groups: dict[Value, list[str]] = {}
    for name, value in items:
        groups.setdefault(value, []).append(name)
    return [(fold_hosts(names), value) for value, names in groups.items()]
