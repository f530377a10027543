"""Many names as few words, whatever the names are."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgcache.config.nodesets import expand_hosts
from imgcache.ui.folding import fold_hosts, group_equal


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        ([], ""),
        (["a"], "a"),
        (["a1", "a1"], "a1"),
        ([f"edge1-{number:02}" for number in range(1, 18)], "edge1-[01-17]"),
        (["a1.x", "a2.x", "a4.x"], "a[1-2,4].x"),
        (["a1", "b1"], "a1,b1"),
        (["fe80::1", "fe80::2", "a1", "a2"], "a[1-2],fe80::1,fe80::2"),
        (["a b", "x@y", "a[1]", "-o", "*", "a,b"], "*,-o,a b,a,b,a[1],x@y"),
        (["a99999999999", "a99999999998"], "a99999999998,a99999999999"),
    ],
)
def test_folds(names: list[str], folded: str) -> None:
    assert fold_hosts(names) == folded


def test_the_order_of_the_names_does_not_matter() -> None:
    names = [f"e{row}-{number}" for row in range(3) for number in range(12)] + ["::1", "z"]
    expected = fold_hosts(names)
    shuffler = random.Random(1)
    for _ in range(5):
        shuffler.shuffle(names)
        assert fold_hosts(names) == expected


@given(st.lists(st.from_regex(r"[a-c]{1,2}[0-9]{0,3}(\.[0-9]{1,2})?", fullmatch=True), min_size=1))
def test_what_is_folded_unfolds_to_the_same_names(names: list[str]) -> None:
    assert set(expand_hosts(fold_hosts(names))) == set(names)


@given(st.lists(st.text(max_size=10), max_size=6))
def test_any_names_are_folded_somehow(names: list[str]) -> None:
    fold_hosts(names)


def test_equal_values_are_grouped_in_the_order_they_came() -> None:
    items = [("a2", "x"), ("b1", "y"), ("a1", "x")]
    assert group_equal(items) == [("a[1-2]", "x"), ("b1", "y")]
