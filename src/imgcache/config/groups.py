"""ClusterShell's node groups (``@name``), as the controller's groups.conf defines them.

Source: ClusterShell ``NodeUtils.GroupResolverConfig``, and ``man groups.conf``.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ClusterShell.NodeSet import ILLEGAL_GROUP_CHARS
from ClusterShell.NodeUtils import GroupResolverConfig, GroupResolverError, GroupSourceNoUpcall

from imgcache.config.files import read_guarded
from imgcache.errors import ConfigError

if TYPE_CHECKING:
    from ClusterShell.NodeUtils import GroupResolver

#: Groups of groups multiply; no site has so many.
_MAX_LOOKUPS = 10_000
_RANGE = re.compile(r"(\d+)-(\d+)", re.ASCII)


class _Groups(GroupResolverConfig):  # type: ignore[misc]  # ClusterShell has no types
    """A resolver that counts before anything is expanded."""

    def begin(self, limit: int) -> None:
        """Begin to count for one node set: no group may have more hosts than ``limit``."""
        self._limit = limit
        self._lookups = 0

    def group_nodes(self, group: str, namespace: str | None = None) -> list[str]:
        """Return the node sets of a group."""
        node_sets = super().group_nodes(group, namespace)
        if not node_sets and self._is_unknown(group, namespace):
            message = f"there is no group @{group}"
            raise GroupResolverError(message)
        return self._bounded(f"@{group}", node_sets)

    def _is_unknown(self, group: str, namespace: str | None) -> bool:
        """Return whether the source lists its groups without this one: to many, unknown is empty."""
        try:
            return group not in self.grouplist(namespace)
        except GroupSourceNoUpcall:
            return False

    def all_nodes(self, namespace: str | None = None) -> list[str]:
        """Return the node sets of all nodes of a source."""
        return self._bounded("@*", super().all_nodes(namespace))

    def _bounded(self, name: str, node_sets: list[str]) -> list[str]:
        self._lookups += 1
        if self._lookups > _MAX_LOOKUPS:
            message = f"{name}: groups of groups without end"
            raise GroupResolverError(message)
        if sum(_most(text) for text in node_sets) > self._limit:
            message = f"{name} has more than {self._limit} hosts"
            raise GroupResolverError(message)
        return node_sets


def _most(node_set: str) -> int:
    """Return how many names a node set can stand for, groups in it not counted."""
    total = 0
    for part in re.split(r"[,!&^\s](?![^\[]*\])", node_set):
        count = 1
        for ranges in re.findall(r"\[([^\[\]]*)\]", part):
            spans = [_RANGE.match(one) for one in ranges.split(",")]
            count *= sum(int(span[2]) - int(span[1]) + 1 if span else 1 for span in spans)
        total += count
    return total


def open_groups(limit: int) -> GroupResolver:
    """Return the resolver for one node set; a group of more hosts than ``limit`` is an error.

    Raises:
        GroupResolverError: others can change the file that defines the groups.
    """
    groups = _open()
    groups.begin(limit)
    return groups


@cache
def _open() -> _Groups:
    from ClusterShell.Defaults import config_paths  # noqa: PLC0415 - reads the environment

    paths = config_paths("groups.conf")
    for path in paths:
        if Path(path).exists():
            try:
                # It may name commands, which run here.
                read_guarded(Path(path))
            except ConfigError as exc:
                (problem,) = exc.problems
                message = f"{problem.where} {problem.what}"
                raise GroupResolverError(message) from exc
    return _Groups(paths, illegal_chars=ILLEGAL_GROUP_CHARS)
