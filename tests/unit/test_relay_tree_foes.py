"""Plans of relays with hosts that are up to no good, and with very many hosts."""

from __future__ import annotations

import pytest

from imgcache.operations.relay.node import Node, SiteState, State
from imgcache.operations.relay.tree import TRIAL_S, Placement, Tree

SIZE = 1000


def _tree() -> tuple[Tree, list[float]]:
    now = [0.0]
    return Tree(SiteState(), SIZE, clock=lambda: now[0]), now


@pytest.mark.row("M9")
@pytest.mark.row("T5")
def test_a_second_liar_is_named_too() -> None:
    tree, _ = _tree()
    for name in ("one", "other"):
        tree.add_whole(name)
    victim = tree.join("victim")
    for _ in range(2):
        liar = tree.place(victim).parent
        tree.progress(victim, "download", SIZE)
        tree.note_wrong(victim)
        assert tree.wrong_bytes(victim) is liar
    assert tree.site.bad == {"one", "other"}


@pytest.mark.row("N20")
@pytest.mark.row("T5")
def test_a_liar_that_never_comes_to_its_end_is_not_asked_again_before_others() -> None:
    tree, _ = _tree()
    tree.site.seeds, tree.site.proven = 2, True
    other, liar, victim = (tree.join(name) for name in ("other", "liar", "victim"))
    for seed in (other, liar):
        assert tree.place(seed).parent is None
        tree.progress(seed, "download", SIZE - 1)
    assert tree.place(victim).parent is liar
    tree.progress(victim, "download", SIZE)
    tree.note_wrong(victim)
    assert tree.suspects(victim) == (set(), {liar})
    assert tree.wrong_bytes(victim) is None
    assert tree.place(victim).parent is other


@pytest.mark.row("N20")
@pytest.mark.row("T5")
def test_nobody_turns_to_a_host_while_it_is_being_found_out_whether_it_lies() -> None:
    """Else all of a chain whose bytes proved wrong would read from the liar next: it is whole."""
    tree, _ = _tree()
    tree.site.proven = True
    liar, child, grandchild = (tree.join(name) for name in ("liar", "child", "grandchild"))
    for node in (liar, child, grandchild):
        tree.place(node)
        tree.progress(node, "download", SIZE)
    assert (child.parent, grandchild.parent) == (liar, child)
    tree.whole(liar)
    tree.note_wrong(child)
    tree.note_wrong(grandchild)
    assert tree.wrong_bytes(grandchild) is None  # explained: its parent's own bytes were wrong
    assert tree.place(grandchild).parent is child
    assert tree.place(tree.join("late")).parent is grandchild
    tree.gone(grandchild)
    tree.gone(tree.nodes["late"])
    child.can_serve = False
    assert tree.place(tree.join("later")).wait  # nobody else is there, and it will soon be known
    assert tree.wrong_bytes(child) is liar
    assert tree.place(tree.nodes["later"]) == Placement()


@pytest.mark.row("N21")
def test_a_first_reader_that_gets_nowhere_does_not_keep_the_whole_site_waiting() -> None:
    tree, now = _tree()
    seed, first, second = (tree.join(name) for name in ("seed", "first", "second"))
    assert tree.place(seed).parent is None
    assert tree.place(first).parent is seed
    assert tree.place(second).wait
    while now[0] <= TRIAL_S + 1:
        assert tree.place(second).wait
        now[0] += 0.5
        tree.progress(seed, "download", int(10 * now[0]))
        tree.progress(first, "download", 0)  # it says something, and that is all
        if tree.tick():
            break
    assert TRIAL_S <= now[0] <= TRIAL_S + 1
    assert tree.place(second).parent is not None


def test_a_first_reader_of_a_seed_that_has_nothing_yet_is_left_alone() -> None:
    tree, now = _tree()
    seed, first = tree.join("seed"), tree.join("first")
    tree.place(seed)
    assert tree.place(first).parent is seed
    while now[0] < 5 * TRIAL_S:
        now[0] += 0.5
        tree.progress(seed, "download", 0)
        tree.progress(first, "download", 0)
        assert tree.tick() == []


def test_a_plan_for_very_many_hosts_takes_time_like_their_number() -> None:
    """Counts steps, not seconds: how often a host's parent is looked up while one more is placed."""
    steps = 0

    class Counted(Node):
        def __getattribute__(self, name: str) -> object:
            nonlocal steps
            steps += name == "parent"
            return super().__getattribute__(name)

    tree, _ = _tree()
    tree.site.proven = True
    last: Node | None = None
    for number in range(300):
        node = tree.nodes[f"h{number}"] = Counted(f"h{number}", number, 0.0, state=State.READING)
        if last is not None:
            node.parent = last
            last.readers.add(node)
        last = node
    tree.site.seeds = 0
    steps = 0
    assert tree.place(tree.join("late")).parent is last
    assert steps < 10 * 300
