"""Which entries of a cache may go, and why the others stay: pure functions over what hosts report.

``plan_prune``, ``plan_delete`` and ``plan_invalid`` all pass each entry through the same guards
(``guards``). Where a host could not read all evidence of use, nothing is removed there.

Source: nova ``virt/libvirt/imagecache.py``, ``_remove_old_enough_file``, for ages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from imgcache.errors import ErrorCode, UnsafePlanError
from imgcache.guards import (
    FLOOR_TEXT,
    HARD_FLOOR_S,
    NEVER_TAKEN,
    Rules,
    age_text,
    base_of,
    held_by,
)
from imgcache.model import EntryKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from imgcache.model import CacheEntry, CachePolicy, HostCache

#: Ages above a century are slips of the pen.
_MAX_AGE_S = 100 * 365.25 * 86400


@dataclass(frozen=True, slots=True)
class Amount:
    """So many bytes, or a share: of the file system for free space, of a host's entries for a ceiling."""

    count: int | None = None
    """Bytes, or entries; None: ``share`` counts."""
    share: float | None = None
    """Above 0 and at most 1; None: ``count`` counts."""

    def of(self, whole: int) -> float:
        """Return the amount, where ``whole`` is what a share is a share of."""
        return self.count if self.count is not None else (self.share or 0.0) * whole


@dataclass(frozen=True, slots=True)
class PrunePolicy:
    """What the operator wants gone; without any word, what Nova itself would remove."""

    min_age_s: float | None = None
    """For originals and templates; None: the host's own nova.conf."""
    resized_min_age_s: float | None = None
    max_size_bytes: int | None = None
    """After ages: remove the least recently used until the cache is at or under it."""
    min_free: Amount | None = None
    """After ages: the same until the file system has so much free."""
    include_templates: bool = False
    override_host: bool = False
    """Remove also where the host's ``remove_unused_base_images`` is false."""
    max_delete: Amount | None = None
    """The most entries that may be removed on one host; a share is of its removable kinds."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of one entry."""

    entry: CacheEntry
    remove: bool
    code: ErrorCode | None
    """Why it is kept; None when it is to be removed."""
    reason: str
    min_age_s: float = HARD_FLOOR_S
    """The age that the helper checks again, besides its own floor of an hour."""


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What is to become of one host's cache."""

    decisions: tuple[Decision, ...]
    code: ErrorCode | None = None
    """Why nothing at all is removed here; None: nothing stands against it."""
    reason: str | None = None
    unmet: str | None = None
    """What of ``max_size_bytes`` or ``min_free`` the removals do not reach; None: all of it."""

    @property
    def removals(self) -> tuple[Decision, ...]:
        """The entries to remove."""
        return tuple(decision for decision in self.decisions if decision.remove)

    @property
    def bytes_to_free(self) -> int:
        """Allocated bytes of the entries to remove."""
        return sum(decision.entry.allocated_bytes for decision in self.removals)


def check_policy(policy: PrunePolicy) -> None:
    """Refuse a policy that would remove everything, or that makes no sense.

    Raises:
        UnsafePlanError: an age, size or share that is 0, negative, not a number or beyond all measure.
    """
    for option, age in (
        ("--min-age", policy.min_age_s),
        ("--resized-min-age", policy.resized_min_age_s),
    ):
        if age is not None and not 0 < age <= _MAX_AGE_S:
            message = f"{option}: an age of {age:g} s would take everything, or makes no sense"
            raise UnsafePlanError(
                message, hint=f"give an age such as 24h; the least is {FLOOR_TEXT}"
            )
    if policy.max_size_bytes is not None and policy.max_size_bytes <= 0:
        message = "--max-size: a size of 0 would take every unused entry"
        raise UnsafePlanError(message, hint="give a size such as 200G, or name images to delete")
    for option, amount, zero_ok in (
        ("--min-free", policy.min_free, False),
        ("--max-delete", policy.max_delete, True),
    ):
        if amount is not None:
            _check_amount(option, amount, zero_ok=zero_ok)


def _check_amount(option: str, amount: Amount, *, zero_ok: bool) -> None:
    if (amount.count is None) == (amount.share is None):
        message = f"{option}: neither a number nor a share"
        raise UnsafePlanError(message, hint=f"give one, such as {option} 15%")
    lowest_ok = zero_ok and (amount.count == 0 or amount.share == 0)
    if amount.count is not None and amount.count <= 0 and not lowest_ok:
        message = f"{option}: {amount.count} makes no sense"
        raise UnsafePlanError(message, hint="give a number above 0")
    top_ok = zero_ok and amount.share == 1
    if amount.share is not None and not (0 < amount.share < 1 or lowest_ok or top_ok):
        message = f"{option}: a share of {amount.share * 100:g} % makes no sense"
        raise UnsafePlanError(message, hint="give a share above 0 % and below 100 %")


# --------------------------------------------------------------------------------------------- planning


def plan_prune(
    cache: HostCache,
    policy: PrunePolicy,
    *,
    gone_bases: Collection[str] = (),
    kept_bases: Collection[str] = (),
) -> HostPlan:
    """Decide by age, then by room, which unused entries of a host, or of a shared storage, go.

    Args:
        cache: what the host reported, with users looked for; several hosts' views: see ``unite``.
        policy: what the operator wants; checked before by ``check_policy``.
        gone_bases: base file names of images that are gone from the image service: these need not be
            old, only unused for one hour.
        kept_bases: base file names of images that stay whatever their age.
    """
    rules = Rules(
        policy=cache.policy,
        kept_bases=frozenset(kept_bases),
        include_templates=policy.include_templates,
        override_host=policy.override_host,
    )
    decisions = [_by_age(entry, policy, rules, gone_bases) for entry in cache.entries]
    blocked = _blocked(cache, decisions)
    if blocked:
        return blocked
    decisions = _make_room(decisions, rules, _bytes_too_many(cache, policy, decisions))
    return HostPlan(tuple(decisions), unmet=_unmet(cache, policy, decisions))


def plan_delete(cache: HostCache, bases: Collection[str], *, queued_only: bool = False) -> HostPlan:
    """Decide whether the originals and resized copies of these images may go now, and what is queued.

    ``queued_only``: what is there stays, and is not spoken of.
    """
    rules = Rules(
        policy=cache.policy, override_host=True, ours_may_be_young=True, queued_may_go=True
    )
    chosen = [
        entry
        for entry in cache.entries
        if base_of(entry) in bases and (entry.kind is EntryKind.QUEUED or not queued_only)
    ]
    return _plan_chosen(cache, rules, {entry.name: "asked for" for entry in chosen})


def plan_invalid(cache: HostCache, faults: Mapping[str, str]) -> HostPlan:
    """Decide whether entries that are not what they should be may go; ``faults``: name -> what is wrong."""
    return _plan_chosen(cache, Rules(policy=cache.policy, override_host=True), faults)


def _plan_chosen(cache: HostCache, rules: Rules, reasons: Mapping[str, str]) -> HostPlan:
    decisions = []
    for entry in cache.entries:
        if entry.name in reasons:
            held = held_by(entry, rules)
            reason = f"{reasons[entry.name]}, but {held[1]}" if held else reasons[entry.name]
            least = 0.0 if rules.ours_may_be_young else rules.policy.floor_s
            code = held[0] if held else None
            decisions.append(Decision(entry, held is None, code, reason, least))
    return _blocked(cache, decisions) or HostPlan(tuple(decisions))


def _by_age(
    entry: CacheEntry, policy: PrunePolicy, rules: Rules, gone_bases: Collection[str]
) -> Decision:
    if held := held_by(entry, rules):
        return Decision(entry, False, *held)
    if base_of(entry) in gone_bases:
        reason = "its image is gone from the image service"
        return Decision(entry, True, None, reason, rules.policy.floor_s)
    limit = max(_age_limit(entry, policy, rules.policy), rules.policy.floor_s)
    unused = f"unused for {age_text(entry.age_s)}"
    if math.isinf(limit):
        return Decision(entry, False, ErrorCode.POLICY, f"{unused}, and no age was given")
    if entry.age_s >= limit:
        return Decision(entry, True, None, f"{unused}, limit {age_text(limit)}", limit)
    return Decision(entry, False, ErrorCode.YOUNG, f"{unused}, below the limit {age_text(limit)}")


def _age_limit(entry: CacheEntry, policy: PrunePolicy, host: CachePolicy) -> float:
    """Source: nova ``imagecache.py``: swap and ephemeral templates age as originals do."""
    if entry.kind is EntryKind.RESIZED:
        given, own = policy.resized_min_age_s, host.resized_min_age_s
    else:
        given, own = policy.min_age_s, host.original_min_age_s
    return own if given is None else given


def _blocked(cache: HostCache, decisions: Sequence[Decision]) -> HostPlan | None:
    """Return the plan of a host on which nothing may be removed, or None."""
    unknown = sum(entry.users is None for entry in cache.entries if entry.kind not in NEVER_TAKEN)
    if not cache.evidence_problems and not unknown:
        return None
    few = "; ".join(cache.evidence_problems[:3]) or f"{unknown} entries have no answer"
    reason = f"what uses the cache could not be found out completely: {few}"
    return hold_all(HostPlan(tuple(decisions)), ErrorCode.EVIDENCE, reason)


def hold_all(plan: HostPlan, code: ErrorCode, reason: str) -> HostPlan:
    """Return the plan with everything kept that was to go, for this reason."""
    kept = tuple(
        replace(decision, remove=False, code=code, reason=reason) if decision.remove else decision
        for decision in plan.decisions
    )
    return HostPlan(kept, code, reason)


def cache_bytes(cache: HostCache) -> int:
    """Return what the cache takes on the disk; Nova's own count is 0 on a file system of its own."""
    return max(cache.nova_usage_bytes, sum(entry.allocated_bytes for entry in cache.entries))


def _bytes_too_many(cache: HostCache, policy: PrunePolicy, decisions: Iterable[Decision]) -> float:
    """Return how many more bytes must go than the decisions take."""
    freed = sum(
        decision.entry.allocated_bytes
        for decision in decisions
        if decision.remove and not decision.entry.unremovable
    )
    over = 0.0
    if policy.max_size_bytes is not None:
        over = cache_bytes(cache) - policy.max_size_bytes
    if policy.min_free is not None and cache.filesystem_size_bytes:
        wanted = policy.min_free.of(cache.filesystem_size_bytes)
        over = max(over, wanted - cache.filesystem_free_bytes)
    return over - freed


def _make_room(decisions: list[Decision], rules: Rules, too_many: float) -> list[Decision]:
    """Turn the least recently used of the entries that no guard holds into removals, as far as needed."""
    result = list(decisions)
    oldest_first = sorted(range(len(result)), key=lambda index: -result[index].entry.age_s)
    for index in oldest_first:
        if too_many <= 0:
            break
        entry = result[index].entry
        if result[index].remove or entry.unremovable or held_by(entry, rules):
            continue
        reason = f"to make room: least recently used, {age_text(entry.age_s)} ago"
        result[index] = Decision(entry, True, None, reason, rules.policy.floor_s)
        too_many -= entry.allocated_bytes
    return result


def _unmet(cache: HostCache, policy: PrunePolicy, decisions: Sequence[Decision]) -> str | None:
    missing = _bytes_too_many(cache, policy, decisions)
    if policy.min_free is not None and not cache.filesystem_size_bytes:
        return "--min-free: the host does not tell how much room its file system has"
    if missing <= 0:
        return None
    options = [
        option
        for option, given in (
            ("--max-size", policy.max_size_bytes),
            ("--min-free", policy.min_free),
        )
        if given is not None
    ]
    return f"{' and '.join(options)}: {math.ceil(missing)} bytes more should go, and may not"


def too_many_removals(plan: HostPlan, ceiling: Amount | None) -> str | None:
    """Return by how much a plan exceeds ``--max-delete``, or None."""
    if ceiling is None:
        return None
    removable = sum(decision.entry.kind not in NEVER_TAKEN for decision in plan.decisions)
    count, most = len(plan.removals), ceiling.of(removable)
    if count <= most:
        return None
    return f"{count} of {removable} entries would be removed, --max-delete allows {most:g}"
