"""Which hosts a command is about: chosen explicitly, each once, grouped by cell."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcache.config.nodesets import expand_hosts
from imgcache.drivers.registry import DRIVERS
from imgcache.errors import UsageError
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from imgcache.model import Host, Inventory

#: Unknown names that are listed one by one; a mistyped range may bring thousands.
_LISTED = 20
#: Of these the nearest known names are looked for, which takes half a second among 10,000.
_COMPARED = 3


@dataclass(frozen=True, slots=True)
class Selection:
    """What the command line says about hosts."""

    aggregates: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    """Node sets; added to the hosts of the aggregates."""
    exclude: tuple[str, ...] = ()
    """Node sets; taken away from whatever the rest selects."""
    all: bool = False


def select_hosts(inventory: Inventory, selection: Selection) -> tuple[Host, ...]:
    """Return the selected hosts, each once, grouped by cell; groups and hosts in the inventory's order.

    ``aggregates`` and ``hosts`` add up. A host of several aggregates comes as the member of the first
    selected one, or of the first that names it when none is. Every name must be in the inventory, in
    ``exclude`` too, where a typo would silently leave a host in.

    Raises:
        UsageError: nothing selected, unknown names (all of them, with the nearest known), or none left.
        ConfigError: some host of the inventory, selected or not, has a driver that cannot be used.
    """
    _check_drivers(inventory)
    if not (selection.aggregates or selection.hosts or selection.all):
        message = "no hosts selected"
        raise UsageError(message, hint="say which: --aggregate NAME, --host NODESET, or --all")
    known = _by_name(inventory, selection)
    problems = _Problems()
    problems.note_unknown("aggregate", selection.aggregates, inventory.aggregates)
    wanted = problems.expand("--host", selection.hosts, known)
    excluded = problems.expand("--exclude", selection.exclude, known)
    problems.raise_any()
    if selection.all:
        wanted.update(known)
    for name in selection.aggregates:
        wanted.update(host.name for host in inventory.aggregates[name].hosts)
    if not wanted:
        message = "no hosts selected: there are none in what was named"
        raise UsageError(message, hint="name an aggregate or a group that has hosts")
    chosen = [host for name, host in known.items() if name in wanted and name not in excluded]
    if not chosen:
        message = "no hosts left: --exclude takes away all that are selected"
        raise UsageError(message, hint="exclude fewer hosts, or select more")
    return _grouped_by_cell(chosen)


def excluded_names(selection: Selection) -> frozenset[str]:
    """Return the names of the hosts that the operator wants left alone; ``select_hosts`` has checked them."""
    return frozenset(name for node_set in selection.exclude for name in expand_hosts(node_set))


def _check_drivers(inventory: Inventory) -> None:
    """Look for typos here, where it is known which drivers there are; the schema knows only their shape."""
    DRIVERS.check(
        {
            host.settings.driver: f"{inventory.path}: aggregates.{aggregate.name}"
            for aggregate in reversed(tuple(inventory.aggregates.values()))
            for host in aggregate.hosts
        }
    )


def check_known(unknown: Collection[str]) -> None:
    """Refuse hosts of an earlier run that are not in the inventory any more.

    Raises:
        UsageError: there are some.
    """
    if unknown:
        problems = _Problems()
        problems.note_unknown("host", sorted(unknown), ())
        problems.raise_any()


def _by_name(inventory: Inventory, selection: Selection) -> dict[str, Host]:
    """Return host name -> host in the inventory's order, as the member of a selected aggregate."""
    known: dict[str, Host] = {}
    for aggregate in inventory.aggregates.values():
        for host in aggregate.hosts:
            known.setdefault(host.name, host)
    for name in reversed(dict.fromkeys(selection.aggregates)):
        members = inventory.aggregates[name].hosts if name in inventory.aggregates else ()
        known.update((host.name, host) for host in members)
    return known


def _grouped_by_cell(hosts: Iterable[Host]) -> tuple[Host, ...]:
    cells: dict[str | None, list[Host]] = {}
    for host in hosts:
        cells.setdefault(host.cell, []).append(host)
    return tuple(host for group in cells.values() for host in group)


class _Problems:
    """Collects what is wrong with the names, to tell it all at once."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._hints: list[str] = []

    def note_unknown(self, what: str, names: Sequence[str], known: Collection[str]) -> None:
        """Note the names that are not known."""
        unknown = [name for name in dict.fromkeys(names) if name not in known]
        for index, name in enumerate(unknown[:_LISTED]):
            self._lines.append(f"{what} '{printable(name, 80)}' is not in the inventory")
            near = difflib.get_close_matches(name, known, n=3) if index < _COMPARED else []
            if near:
                self._hints.append(f"did you mean {' or '.join(near)}?")
        if len(unknown) > _LISTED:
            self._lines.append(f"and {len(unknown) - _LISTED} more {what}s")

    def expand(self, option: str, node_sets: Sequence[str], known: Collection[str]) -> set[str]:
        """Return the names of the node sets; those that are not known are noted.

        Groups that hosts are excluded by may hold more than the inventory.
        """
        names: dict[str, None] = {}
        for node_set in node_sets:
            try:
                found = expand_hosts(node_set)
            except ValueError as exc:
                self._lines.append(f"{option}: {exc}")
                continue
            if option == "--exclude" and "@" in node_set:
                found = tuple(name for name in found if name in known)
            names.update(dict.fromkeys(found))
        self.note_unknown(f"{option}: host", list(names), known)
        return set(names)

    def raise_any(self) -> None:
        """Raise a ``UsageError`` with everything noted, if anything is."""
        if self._lines:
            hint = " ".join(dict.fromkeys(self._hints))
            raise UsageError("; ".join(self._lines), hint=hint or "see the inventory for the names")
