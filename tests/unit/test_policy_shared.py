"""Caches that hosts share: planned once, with every host's doubt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings

from imgcache.errors import ErrorCode
from imgcache.policy import PrunePolicy, plan_prune
from imgcache.shared_storage import HostView, group_by_storage, not_examined, unite
from unit.life_values import DAY, POLICY, base, cache, caches, entry, manifest

if TYPE_CHECKING:
    from imgcache.model import HostCache

PLAIN = PrunePolicy()


def shared(*views: HostCache) -> list[HostView]:
    names = [f"h{number + 1}" for number in range(len(views))]
    return [
        HostView(
            name,
            replace(
                view,
                storage_id="s",
                nodename=name,
                shares_with=tuple(one for one in names if one != name),
            ),
        )
        for name, view in zip(names, views, strict=True)
    ]


@pytest.mark.row("D11")
@pytest.mark.row("H14")
def test_used_by_any_host_is_used() -> None:
    plan = plan_prune(
        unite(shared(cache([entry(1)]), cache([entry(1, users=1, used_by=("vm on h2",))]))), PLAIN
    )
    assert plan.decisions[0].code is ErrorCode.IN_USE
    assert "vm on h2" in plan.decisions[0].reason


@pytest.mark.row("D11")
@settings(max_examples=100, deadline=None)
@given(first=caches(), second=caches())
def test_what_one_host_would_keep_the_group_keeps(first: HostCache, second: HostCache) -> None:
    asked = PrunePolicy(max_size_bytes=1)
    together = {one.entry.name for one in plan_prune(unite(shared(first, second)), asked).removals}
    for view in (first, second):
        alone = {one.entry.name for one in plan_prune(view, asked).removals}
        assert together <= alone


@pytest.mark.row("D11")
def test_all_that_share_must_be_examined() -> None:
    views = shared(cache([entry(1)]), cache([entry(1)]), cache([entry(1)]))
    assert not_examined(views) == ()
    assert not_examined(views[:2]) == ("h3",)
    alone = HostView("h1", replace(views[0].cache, storage_id=None))
    assert not_examined([alone]) == ("h2", "h3")


def test_short_and_full_names_are_of_one_host() -> None:
    views = shared(cache([entry(1)]), cache([entry(1)]))
    named = replace(
        views[0].cache, shares_with=("H2.Example.net", "h1.example.net", "h2.other.net")
    )
    full = [
        HostView("h1", named),
        HostView("h2", replace(views[1].cache, nodename="h2.example.net")),
    ]
    assert not_examined(full) == ("h2.other.net",)


def test_hosts_are_grouped_by_their_storage() -> None:
    own = [HostView(name, cache([])) for name in ("a", "b")]
    groups = group_by_storage([*own, *shared(cache([]), cache([]))])
    assert [[view.host for view in group] for group in groups] == [["a"], ["b"], ["h1", "h2"]]


@pytest.mark.parametrize(
    "other",
    [
        entry(1, inode=5),
        entry(1, age_s=3 * DAY),
        entry(1, links=2),
        entry(1, users=None),
        entry(1, age_s=-5.0),
        entry(1, live=True),
    ],
)
def test_views_that_differ_keep(other: object) -> None:
    united = unite(shared(cache([entry(1)]), cache([other])))  # type: ignore[list-item]
    assert not plan_prune(united, PLAIN).removals


def test_an_entry_that_one_host_does_not_see_is_kept() -> None:
    united = unite(shared(cache([entry(1)]), cache([])))
    assert not plan_prune(united, PLAIN).removals


def test_the_strictest_policy_and_any_pin_count() -> None:
    never = replace(POLICY, remove_unused=False)
    slow = replace(POLICY, original_min_age_s=30 * DAY)
    for policy in (never, slow):
        united = unite(shared(cache([entry(1)]), cache([entry(1)], policy=policy)))
        assert not plan_prune(united, PLAIN).removals
    from imgcache.model import PIN_FOREVER

    kept = entry(1, manifest=manifest(1, pinned_until=PIN_FOREVER))
    united = unite(shared(cache([entry(1)]), cache([kept])))
    assert [one.code for one in plan_prune(united, PLAIN).decisions] == [ErrorCode.PINNED]


def test_seen_alike_and_unused_by_all_it_goes_once() -> None:
    plan = plan_prune(unite(shared(cache([entry(1)]), cache([entry(1)]))), PLAIN)
    assert [one.entry.name for one in plan.removals] == [base(1)]
