"""Policies of caches without an age of their own, and of images that wait in a queue."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from imgcache.drivers.glance_cache import POLICY as GLANCE
from imgcache.errors import ErrorCode
from imgcache.model import CacheEntry, EntryKind, HostCache
from imgcache.policy import Amount, PrunePolicy, plan_delete, plan_prune
from unit.life_values import DAY, GIB, HOUR, POLICY, base, cache, entry, image_id


def node(*entries: CacheEntry) -> HostCache:
    return cache(entries, policy=GLANCE, filesystem_size_bytes=0, filesystem_free_bytes=0)


def stored(number: int, age_s: float) -> CacheEntry:
    return entry(number, name=image_id(number), image_id=image_id(number), age_s=age_s)


def queued(number: int) -> CacheEntry:
    return entry(
        number, name=image_id(number), image_id=image_id(number), kind=EntryKind.QUEUED, age_s=0.0,
        size_bytes=0, allocated_bytes=0,
    )  # fmt: skip


def removed(found: HostCache, policy: PrunePolicy) -> list[str]:
    return [one.entry.name for one in plan_prune(found, policy).removals]


def test_without_an_age_nothing_is_old() -> None:
    plan = plan_prune(node(stored(1, 400 * DAY)), PrunePolicy())
    (decision,) = plan.decisions
    assert (decision.remove, decision.code) == (False, ErrorCode.POLICY)
    assert decision.reason == "unused for 400 days, and no age was given"


def test_an_age_below_an_hour_counts_where_nothing_can_be_hurt() -> None:
    found = node(stored(1, 60.0), stored(2, 120.0))
    assert removed(found, PrunePolicy(min_age_s=90.0)) == [image_id(2)]
    # a compute host's floor stays
    compute = replace(found, policy=POLICY)
    assert removed(compute, PrunePolicy(min_age_s=90.0)) == []


def test_room_is_made_by_the_least_recently_used() -> None:
    found = node(stored(1, 5.0), stored(2, 3 * HOUR), stored(3, 60.0))
    assert removed(found, PrunePolicy(max_size_bytes=GIB)) == [image_id(2), image_id(3)]
    (decision,) = plan_prune(node(stored(1, 5.0)), PrunePolicy(max_size_bytes=1)).removals
    assert decision.min_age_s == 0


def test_a_host_that_does_not_tell_its_room_loses_nothing_for_it() -> None:
    found = node(stored(1, 5 * DAY))
    for amount in (Amount(count=GIB), Amount(share=0.5)):
        plan = plan_prune(found, PrunePolicy(min_free=amount))
        assert plan.removals == ()
        assert plan.unmet is not None
        assert "does not tell" in plan.unmet


def test_what_is_gone_or_named_goes_however_young() -> None:
    found = node(stored(1, 0.0), stored(2, 0.0))
    plan = plan_prune(found, PrunePolicy(), gone_bases={image_id(2)})
    assert [one.entry.name for one in plan.removals] == [image_id(2)]
    assert plan.removals[0].min_age_s == 0
    assert [one.entry.name for one in plan_delete(found, {image_id(1)}).removals] == [image_id(1)]


def test_what_waits_is_taken_back_by_delete_only() -> None:
    found = node(queued(1), stored(2, 0.0))
    harsh = PrunePolicy(min_age_s=1.0, max_size_bytes=1)
    plan = plan_prune(found, harsh, gone_bases={image_id(1)})
    (kept,) = [one for one in plan.decisions if one.entry.kind is EntryKind.QUEUED]
    assert (kept.remove, kept.code) == (False, ErrorCode.TRANSFER)
    both = {image_id(1), image_id(2)}
    assert len(plan_delete(found, both).removals) == 2
    only = plan_delete(found, both, queued_only=True)
    assert [one.entry.name for one in only.decisions] == [image_id(1)]
    assert len(only.removals) == 1


@pytest.mark.parametrize("age_s", [0.0, 60.0, HOUR - 1])
def test_a_compute_host_keeps_what_is_young_whatever_is_asked(age_s: float) -> None:
    young = cache([entry(1, age_s=age_s)])
    assert plan_delete(young, {base(1)}).removals == ()
    assert plan_prune(young, PrunePolicy(), gone_bases={base(1)}).removals == ()
    assert math.isfinite(POLICY.original_min_age_s)
