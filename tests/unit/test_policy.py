"""What a prune, a delete or a clean takes: never what a guard holds, and all that the policy asks for."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from imgcache import guards, policy
from imgcache.errors import ErrorCode, ExitCode, UnsafePlanError
from imgcache.model import PIN_FOREVER, EntryKind
from imgcache.policy import (
    Amount,
    HostPlan,
    PrunePolicy,
    check_policy,
    plan_delete,
    plan_invalid,
    plan_prune,
    too_many_removals,
)
from unit.life_values import DAY, GIB, HOUR, POLICY, base, cache, caches, entry, manifest

if TYPE_CHECKING:
    from imgcache.model import CacheEntry, HostCache

PLAIN = PrunePolicy()
AMOUNTS = st.one_of(
    st.builds(lambda share: Amount(share=share), st.sampled_from([0.01, 0.5, 0.99])),
    st.builds(lambda count: Amount(count=count), st.sampled_from([1, GIB, 60 * GIB])),
)
POLICIES = st.builds(
    PrunePolicy,
    min_age_s=st.sampled_from([None, 1.0, HOUR, DAY, 10 * DAY]),
    resized_min_age_s=st.sampled_from([None, 1.0, HOUR, DAY]),
    max_size_bytes=st.sampled_from([None, None, 1, 2 * GIB, 1000 * GIB]),
    min_free=st.one_of(st.none(), AMOUNTS),
    include_templates=st.booleans(),
    override_host=st.booleans(),
)
#: Looks for any case, without making it smaller.
SEARCH = settings(max_examples=20_000, database=None, deadline=None, phases=[Phase.generate])
BASES = st.frozensets(st.sampled_from([base(number) for number in range(7)]))


def removed(plan: HostPlan) -> list[str]:
    return [decision.entry.name for decision in plan.removals]


def pinned(one: CacheEntry) -> bool:
    until = one.manifest.pinned_until if one.manifest else None
    return until is not None and (until == PIN_FOREVER or until.year == 2100)


#: Not even when nobody uses them: what is not ours, what is being brought, what is not there yet.
NEVER_REMOVED = {EntryKind.FOREIGN, EntryKind.STAGING, EntryKind.QUEUED}


def hurts(found: HostCache, plan: HostPlan, *, delete: bool = False) -> str | None:
    """Return what a plan takes that nobody may take; written without looking at the guards."""
    for decision in plan.removals:
        one = decision.entry
        if found.evidence_problems or any(
            each.users is None for each in found.entries if each.kind not in NEVER_REMOVED
        ):
            return "evidence"
        if one.users != 0 or one.live:
            return "used"
        if pinned(one):
            return "pinned"
        if one.links != 1 or one.kind in NEVER_REMOVED:
            return "foreign"
        if one.age_s < 0:
            return "future"
        if one.age_s < HOUR and not (delete and one.manifest):
            return "young"
    return None


@pytest.mark.row("D4")
@pytest.mark.row("D10")
@settings(max_examples=150, deadline=None)
@given(found=caches(), asked=POLICIES, gone=BASES, keep=BASES)
def test_prune_takes_nothing_that_a_guard_holds(
    found: HostCache, asked: PrunePolicy, gone: frozenset[str], keep: frozenset[str]
) -> None:
    plan = plan_prune(found, asked, gone_bases=gone, kept_bases=keep)
    assert hurts(found, plan) is None
    assert [decision.entry for decision in plan.decisions] == list(found.entries)
    for decision in plan.removals:
        one = decision.entry
        assert one.name[:40] not in keep
        assert asked.override_host or found.policy.remove_unused
        assert asked.include_templates or one.kind in {EntryKind.ORIGINAL, EntryKind.RESIZED}
        assert decision.code is None
        assert decision.min_age_s >= HOUR
    assert all(
        decision.code and decision.reason for decision in plan.decisions if not decision.remove
    )


@settings(max_examples=100, deadline=None)
@given(found=caches(), chosen=BASES)
def test_delete_takes_only_what_was_named_and_no_guard_holds(
    found: HostCache, chosen: frozenset[str]
) -> None:
    plan = plan_delete(found, chosen)
    assert hurts(found, plan, delete=True) is None
    assert {one.entry.name[:40] for one in plan.decisions} <= chosen
    assert not {one.entry.kind for one in plan.decisions} - {EntryKind.ORIGINAL, EntryKind.RESIZED}


@pytest.mark.row("D15")
@settings(max_examples=100, deadline=None)
@given(found=caches())
def test_clean_takes_no_invalid_entry_that_a_guard_holds(found: HostCache) -> None:
    plan = plan_invalid(found, {one.name: "damaged" for one in found.entries})
    assert hurts(found, plan) is None


@settings(max_examples=150, deadline=None)
@given(found=caches(), asked=POLICIES)
def test_prune_makes_the_room_it_is_asked_for_oldest_first_and_no_more(
    found: HostCache, asked: PrunePolicy
) -> None:
    by_age = plan_prune(found, replace(asked, max_size_bytes=None, min_free=None))
    plan = plan_prune(found, asked)
    if plan.code:
        return
    rules = guards.Rules(
        policy=found.policy,
        include_templates=asked.include_templates,
        override_host=asked.override_host,
    )
    assert set(removed(by_age)) <= set(removed(plan))
    for_room = [one.entry for one in plan.removals if one.entry.name not in removed(by_age)]
    left = [
        one.entry
        for one in plan.decisions
        if not one.remove and guards.held_by(one.entry, rules) is None
    ]
    reached = _is_enough(found, asked, plan.bytes_to_free)
    assert reached == (plan.unmet is None)
    assert reached or not left
    if for_room:
        youngest = min(for_room, key=lambda one: one.age_s)
        assert all(one.age_s <= youngest.age_s for one in left)
        # Sizes of 0 free nothing and may go first; without the last of the others it is not enough.
        last = max(one.allocated_bytes for one in for_room if one.age_s == youngest.age_s)
        assert not last or not _is_enough(found, asked, plan.bytes_to_free - last)


def _is_enough(found: HostCache, asked: PrunePolicy, freed: int) -> bool:
    taken = max(found.nova_usage_bytes, sum(one.allocated_bytes for one in found.entries))
    enough = asked.max_size_bytes is None or taken - freed <= asked.max_size_bytes
    if asked.min_free is not None:
        count, share = asked.min_free.count, asked.min_free.share or 0
        wanted = count if count is not None else share * found.filesystem_size_bytes
        enough = enough and found.filesystem_free_bytes + freed >= wanted
    return enough


# ---- planted mutants: every guard matters


@pytest.mark.parametrize("mutant", guards.GUARDS, ids=lambda guard: guard.__name__)
def test_without_any_one_guard_something_is_hurt(
    mutant: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    weaker = tuple(guard for guard in guards.GUARDS if guard is not mutant)
    monkeypatch.setattr(guards, "GUARDS", weaker)

    def is_wrong(case: tuple[HostCache, PrunePolicy, frozenset[str]]) -> bool:
        found, asked, names = case
        plan = plan_prune(found, asked, kept_bases=names)
        deleted = plan_delete(found, names)
        return bool(
            hurts(found, plan)
            or hurts(found, deleted, delete=True)
            or any(one.entry.name[:40] in names for one in plan.removals)
            or (plan.removals and not (found.policy.remove_unused or asked.override_host))
            or any(
                one.entry.kind in {EntryKind.SWAP, EntryKind.EPHEMERAL}
                and not asked.include_templates
                for one in plan.removals
            )
        )

    assert find(
        st.tuples(caches(), POLICIES, BASES),
        is_wrong,
        settings=SEARCH,
    )


@pytest.mark.row("D6")
def test_without_the_evidence_rule_something_is_hurt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "_blocked", lambda *_: None)
    find(
        caches(),
        lambda found: hurts(found, plan_prune(found, PLAIN)) == "evidence",
        settings=SEARCH,
    )


# ---- Nova's own rules


@pytest.mark.row("D4")
@pytest.mark.parametrize(
    ("age_s", "kind", "goes"),
    [
        (DAY - 1, EntryKind.ORIGINAL, False),
        (DAY, EntryKind.ORIGINAL, True),
        (HOUR - 1, EntryKind.RESIZED, False),
        (HOUR, EntryKind.RESIZED, True),
        (100 * DAY, EntryKind.SWAP, False),
    ],
)
def test_without_options_it_takes_what_nova_would(
    age_s: float, kind: EntryKind, goes: bool
) -> None:
    name = {"resized": f"{base(1)}_5", "swap": "swap_512"}.get(kind, base(1))
    found = cache([entry(1, age_s=age_s, kind=kind, name=name)])
    assert bool(plan_prune(found, PLAIN).removals) is goes


def test_the_hosts_own_ages_count_unless_others_are_given() -> None:
    own = replace(POLICY, original_min_age_s=7 * DAY)
    found = cache([entry(1, age_s=3 * DAY)], policy=own)
    assert not plan_prune(found, PLAIN).removals
    assert plan_prune(found, PrunePolicy(min_age_s=2 * DAY)).removals


@pytest.mark.parametrize("age_s", [0.0, 1.0, HOUR - 1])
def test_below_an_hour_nothing_goes_whatever_the_host_or_the_option_says(age_s: float) -> None:
    own = replace(POLICY, original_min_age_s=0, resized_min_age_s=-5)
    found = cache(
        [entry(1, age_s=age_s), entry(2, age_s=age_s, kind=EntryKind.RESIZED, name=base(2) + "_1")],
        policy=own,
    )
    asked = PrunePolicy(min_age_s=1, resized_min_age_s=1, max_size_bytes=1)
    plan = plan_prune(found, asked, gone_bases=[base(1), base(2)])
    assert not plan.removals
    assert {one.code for one in plan.decisions} == {ErrorCode.YOUNG}


@pytest.mark.row("H13")
def test_a_time_in_the_future_keeps() -> None:
    plan = plan_prune(cache([entry(1, age_s=-30.0)]), PrunePolicy(max_size_bytes=1))
    assert plan.decisions[0].code is ErrorCode.YOUNG
    assert "future" in plan.decisions[0].reason


def test_images_that_are_gone_need_not_be_old() -> None:
    found = cache(
        [
            entry(1, age_s=2 * HOUR),
            entry(2, age_s=2 * HOUR, name=base(1) + "_7", kind=EntryKind.RESIZED),
        ],
        policy=replace(POLICY, resized_min_age_s=DAY),
    )
    assert not plan_prune(found, PLAIN).removals
    assert len(plan_prune(found, PLAIN, gone_bases={base(1)}).removals) == 2


def test_the_least_recently_used_go_first_until_the_cache_is_at_its_size() -> None:
    found = cache([entry(number, age_s=(number + 2) * HOUR) for number in range(6)])
    plan = plan_prune(found, PrunePolicy(max_size_bytes=4 * GIB))
    assert removed(plan) == [base(4), base(5)]
    assert "least recently used" in plan.removals[0].reason


def test_room_that_cannot_be_made_is_told() -> None:
    found = cache([entry(1, users=1), entry(2)])
    plan = plan_prune(found, PrunePolicy(max_size_bytes=GIB // 2, min_free=Amount(share=0.9)))
    assert removed(plan) == [base(2)]
    assert plan.unmet is not None
    assert "--max-size and --min-free" in plan.unmet


@pytest.mark.row("D6")
def test_with_incomplete_evidence_nothing_goes_and_all_reasons_are_told() -> None:
    found = cache(
        [entry(1), entry(2, age_s=60.0)], evidence_problems=("x/disk: Permission denied",)
    )
    plan = plan_prune(found, PLAIN)
    assert plan.code is ErrorCode.EVIDENCE
    assert "x/disk: Permission denied" in (plan.reason or "")
    assert [one.code for one in plan.decisions] == [ErrorCode.EVIDENCE, ErrorCode.YOUNG]


def test_a_pin_that_ran_out_keeps_no_more() -> None:
    past = datetime(2000, 1, 1, tzinfo=UTC)
    found = cache([entry(1, manifest=manifest(1, pinned_until=past))])
    assert removed(plan_prune(found, PLAIN)) == [base(1)]


def test_delete_leaves_the_young_that_imgcache_may_have_touched_itself_to_the_host() -> None:
    found = cache([entry(1, age_s=5.0, manifest=manifest(1)), entry(2, age_s=5.0)])
    plan = plan_delete(found, [base(1), base(2)])
    assert removed(plan) == [base(1)]
    assert plan.removals[0].min_age_s == 0
    assert plan.decisions[1].code is ErrorCode.YOUNG


# ---- D2, D3


@pytest.mark.row("D2")
@pytest.mark.parametrize(
    "asked",
    [
        *(PrunePolicy(min_age_s=age) for age in (0, -1, -0.0, math.nan, math.inf, 1e300)),
        *(PrunePolicy(resized_min_age_s=age) for age in (0, -3600, math.nan, math.inf)),
        *(PrunePolicy(max_size_bytes=size) for size in (0, -1)),
        *(PrunePolicy(min_free=Amount(share=share)) for share in (0, 1, 1.5, -0.1, math.nan)),
        *(PrunePolicy(min_free=Amount(count=count)) for count in (0, -1)),
        PrunePolicy(min_free=Amount()),
        PrunePolicy(min_free=Amount(count=1, share=0.5)),
        PrunePolicy(max_delete=Amount(count=-1)),
        PrunePolicy(max_delete=Amount(share=1.01)),
        PrunePolicy(max_delete=Amount(share=math.nan)),
    ],
)
def test_a_policy_that_takes_everything_or_makes_no_sense_is_refused(asked: PrunePolicy) -> None:
    with pytest.raises(UnsafePlanError) as refused:
        check_policy(asked)
    assert refused.value.exit_code is ExitCode.REFUSED
    assert refused.value.hint


@pytest.mark.parametrize(
    "asked",
    [
        PLAIN,
        PrunePolicy(min_age_s=1, resized_min_age_s=HOUR, max_size_bytes=1),
        PrunePolicy(min_free=Amount(share=0.15), max_delete=Amount(share=1)),
        PrunePolicy(min_free=Amount(count=1), max_delete=Amount(count=0)),
    ],
)
def test_other_policies_pass(asked: PrunePolicy) -> None:
    check_policy(asked)


@pytest.mark.row("D3")
@pytest.mark.parametrize(
    ("ceiling", "fits"),
    [
        (None, True),
        (Amount(count=3), True),
        (Amount(count=2), False),
        (Amount(share=0.5), True),
        (Amount(share=0.49), False),
    ],
)
def test_a_ceiling_counts_entries_of_one_host(ceiling: Amount | None, fits: bool) -> None:
    young = [entry(number, age_s=60.0) for number in (4, 5, 6)]
    foreign = entry(7, name="notes", kind=EntryKind.FOREIGN)
    found = cache([entry(1), entry(2), entry(3), *young, foreign])
    excess = too_many_removals(plan_prune(found, PLAIN), ceiling)
    assert (excess is None) is fits
