"""Caches that several hosts share: who sees them together, and what all of them say about one entry."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from imgcache.guards import is_pinned

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from imgcache.model import CacheEntry, CachePolicy, HostCache


@dataclass(frozen=True, slots=True)
class HostView:
    """One host's view of its cache."""

    host: str
    """The host's name in the inventory."""
    cache: HostCache = field(repr=False)


def group_by_storage(views: Iterable[HostView]) -> list[tuple[HostView, ...]]:
    """Return the views that see one storage together; those of a host's own storage alone."""
    groups: dict[str, list[HostView]] = {}
    for view in views:
        key = view.cache.storage_id
        groups.setdefault(f"shared {key}" if key else f"alone {view.host}", []).append(view)
    return [tuple(group) for group in groups.values()]


def not_examined(group: Sequence[HostView]) -> tuple[str, ...]:
    """Return the hosts that use this storage, by Nova's own list, and gave no view of it."""
    examined = [view.cache.nodename for view in group]
    named = {name for view in group for name in view.cache.shares_with}
    missing = (name for name in named if not any(_same_host(name, one) for one in examined))
    return tuple(sorted(missing))


def _same_host(one: str, other: str) -> bool:
    """Whether two names are of one host, as the helper judges it: ``edge1`` is ``Edge1.example.net``."""
    short, _, domain = one.lower().rstrip(".").partition(".")
    other_short, _, other_domain = other.lower().rstrip(".").partition(".")
    return short == other_short and (domain == other_domain or not (domain and other_domain))


def why_held(group: Sequence[HostView]) -> str | None:
    """Return why nothing may be removed from this storage, or None: hosts that use it were not looked at."""
    missing = not_examined(group)
    if not missing:
        return None
    few = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if missing[5:] else "")
    return f"{few} use the same storage and were not examined in this run"


def unite(group: Sequence[HostView]) -> HostCache:
    """Return one view of a storage that several hosts share: every host's doubt counts.

    An entry is as used as all hosts together say, as young as the host with the youngest view says,
    and of unknown use when any host does not know, or when the hosts do not see the same file.
    """
    first = group[0].cache
    if len(group) == 1:
        return first
    by_name: dict[str, list[CacheEntry]] = {}
    for view in group:
        for entry in view.cache.entries:
            by_name.setdefault(entry.name, []).append(entry)
    problems = dict.fromkeys(
        f"{view.host}: {problem}" for view in group for problem in view.cache.evidence_problems
    )
    return replace(
        first,
        entries=tuple(_unite_entries(entries, len(group)) for entries in by_name.values()),
        policy=_strictest([view.cache.policy for view in group]),
        filesystem_free_bytes=min(view.cache.filesystem_free_bytes for view in group),
        nova_usage_bytes=max(view.cache.nova_usage_bytes for view in group),
        evidence_problems=tuple(problems),
        shares_with=(),
    )


def _unite_entries(entries: Sequence[CacheEntry], hosts: int) -> CacheEntry:
    first = entries[0]
    pinned = next((entry for entry in entries if is_pinned(entry)), first)
    counts = [entry.users for entry in entries if entry.users is not None]
    unknown = len(counts) < len(entries)
    same_file = len({(entry.inode, entry.mtime_ns) for entry in entries}) == 1
    used_by = dict.fromkeys(name for entry in entries for name in entry.used_by)
    return replace(
        first,
        # Another mtime, or gone for one host: it changed while the hosts were examined, so it is fresh.
        age_s=min(entry.age_s for entry in entries) if same_file and len(entries) == hosts else 0.0,
        users=None if unknown else sum(counts),
        used_by=tuple(used_by)[:3],
        links=max(entry.links for entry in entries),
        live=any(entry.live for entry in entries),
        manifest=pinned.manifest,
        unremovable=next((entry.unremovable for entry in entries if entry.unremovable), None),
    )


def _strictest(policies: Sequence[CachePolicy]) -> CachePolicy:
    return replace(
        policies[0],
        remove_unused=all(policy.remove_unused for policy in policies),
        original_min_age_s=max(policy.original_min_age_s for policy in policies),
        resized_min_age_s=max(policy.resized_min_age_s for policy in policies),
    )
