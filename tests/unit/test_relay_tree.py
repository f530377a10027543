"""Who reads from whom: a chain, and its repair, in a world whose time passes at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgcache.errors import ErrorCode
from imgcache.operations.relay.node import SiteState, State
from imgcache.operations.relay.tree import Tree
from unit.relay_world import World

SIZE = 20e6
ALONE_S = 20.0


def site(count: int, **facts: float | bool) -> World:
    world = World(SIZE, **facts)  # type: ignore[arg-type]
    for number in range(count):
        world.add(f"h{number}")
    return world


def outside(world: World) -> float:
    return sum(one.from_outside for one in world.machines.values())


def test_all_hosts_end_at_nearly_the_time_of_one_with_one_copy_from_outside() -> None:
    world = site(8)
    assert world.run() < ALONE_S * 1.1
    assert outside(world) == pytest.approx(SIZE)
    assert world.switches == 0


def test_two_seeds_make_two_chains() -> None:
    world = site(8, seeds=2)
    world.run()
    assert outside(world) == pytest.approx(2 * SIZE)
    assert sum(one.source == "outside" for one in world.machines.values()) == 2


@pytest.mark.row("N20")
@pytest.mark.parametrize("killed", range(8))
def test_a_killed_host_anywhere_in_the_chain_costs_the_others_little(killed: int) -> None:
    world = site(8)
    world.machines[f"h{killed}"].killed_at = 8.0
    assert world.run() < ALONE_S * 1.15
    assert outside(world) <= SIZE * 1.1


@pytest.mark.row("N20")
@pytest.mark.parametrize("cut", range(8))
def test_a_host_that_vanishes_from_the_net_costs_the_others_little(cut: int) -> None:
    world = site(8)
    world.machines[f"h{cut}"].cut_at = 8.0
    assert world.run() < ALONE_S * 1.3
    assert outside(world) <= SIZE * 1.2


@pytest.mark.row("N21")
def test_blocked_ports_cost_one_connect_per_site_and_then_nothing_more() -> None:
    world = site(8, blocked=True)
    assert world.run() < 10 + ALONE_S * 1.1
    assert world.connects == 1
    assert world.site.blocked
    late = world.add("late", starts_at=world.now)
    assert world.run() - late.starts_at < ALONE_S * 1.1
    assert world.connects == 1


def test_a_parent_that_died_is_no_proof_of_blocked_ports() -> None:
    world = site(4)
    world.machines["h0"].killed_at = 0.5
    world.machines["h1"].starts_at = 0.6
    world.run()
    assert not world.site.blocked


def test_a_slow_service_is_nobodys_fault() -> None:
    world = site(5, outside=50e3)
    world.size = 3e6
    world.tree.size = int(world.size)
    world.run()
    assert world.switches == 0
    assert outside(world) == pytest.approx(world.size)


def test_a_seed_that_waits_before_it_tries_again_keeps_its_readers() -> None:
    tree, now = _tree()
    seed, child = tree.join("seed"), tree.join("child")
    tree.place(seed)
    tree.progress(seed, "download", 1000)
    tree.place(child)
    tree.progress(child, "download", 1000)
    tree.pause(seed)
    for _ in range(30):
        now[0] += 1
        tree.progress(child, "download", 1000)
        assert tree.tick() == []


def test_a_late_host_reads_from_one_that_is_done() -> None:
    world = site(2)
    world.run()
    late = world.add("late", starts_at=world.now)
    world.run()
    assert late.source in {"h0", "h1"}
    assert outside(world) == pytest.approx(SIZE)


# ---- speed


@pytest.mark.parametrize("slow", [1, 3, 6])
def test_a_host_that_receives_slowly_holds_up_nobody(slow: int) -> None:
    world = World(60e6)
    for number in range(8):
        world.add(f"h{number}", down=1e5 if number == slow else 1e6)
    world.run()
    ended = [one.ended_at or 0 for one in world.machines.values()]
    assert sorted(ended)[-2] < 60 * 1.5, world.story()
    assert ended[slow] > 590
    assert world.switches < 8


@pytest.mark.parametrize("slow", [1, 3, 6])
def test_a_host_that_sends_slowly_loses_its_readers(slow: int) -> None:
    world = World(60e6)
    for number in range(8):
        world.add(f"h{number}", up=1e5 if number == slow else 1e6)
    assert world.run() < 60 * 2.1, world.story()
    assert world.switches < 8


def test_where_all_send_slowly_nobody_is_moved_to_and_fro() -> None:
    world = World(60e6)
    for number in range(8):
        world.add(f"h{number}", up=3e5)
    assert world.run() < 200 * 1.3, world.story()
    assert world.switches < 12


# ---- wrong bytes


def _tree() -> tuple[Tree, list[float]]:
    now = [0.0]
    return Tree(SiteState(), 1000, clock=lambda: now[0]), now


def _chain(tree: Tree, *names: str) -> None:
    for name in names:
        node = tree.join(name)
        tree.place(node)
        tree.progress(node, "download", 500)


@pytest.mark.row("M9")
@pytest.mark.row("T5")
def test_a_parent_that_had_the_right_bytes_and_sent_others_is_blamed_and_never_used_again() -> None:
    tree, _ = _tree()
    _chain(tree, "seed", "liar", "victim")
    liar, victim = tree.nodes["liar"], tree.nodes["victim"]
    assert victim.parent is liar
    tree.whole(liar)
    tree.note_wrong(victim)
    assert tree.suspects(victim) == ({liar}, set())
    assert tree.wrong_bytes(victim) is liar
    assert tree.site.bad == {"liar"}
    assert tree.place(victim).parent is tree.nodes["seed"]
    late = tree.join("late")
    assert tree.place(late).parent is victim


@pytest.mark.row("T5")
def test_who_passes_on_wrong_bytes_and_finds_it_out_is_not_blamed() -> None:
    tree, _ = _tree()
    _chain(tree, "seed", "liar", "middle", "last")
    middle, last = tree.nodes["middle"], tree.nodes["last"]
    tree.whole(tree.nodes["liar"])
    tree.note_wrong(last)
    assert tree.suspects(last) == (set(), {middle})
    tree.note_wrong(middle)
    assert tree.suspects(last) == (set(), set())
    assert tree.wrong_bytes(last) is None
    assert tree.wrong_bytes(middle) is tree.nodes["liar"]


def test_who_had_bytes_from_elsewhere_too_blames_nobody() -> None:
    tree, _ = _tree()
    _chain(tree, "seed", "parent")
    child = tree.join("child")
    tree.place(child)
    tree.progress(child, "hash", 10)
    tree.whole(tree.nodes["parent"])
    tree.note_wrong(child)
    assert tree.wrong_bytes(child) is None
    assert tree.site.bad == set()


# ---- whatever happens


def test_nobody_reads_from_one_below_itself() -> None:
    tree, _ = _tree()
    _chain(tree, "seed", "a", "b", "c")
    a = tree.nodes["a"]
    tree.gone(tree.nodes["seed"])
    tree.failed(a, ErrorCode.DOWNLOAD, 500)
    placement = tree.place(a)
    assert placement.parent is None
    assert not placement.wait
    assert a.outside


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_host_that_lives_gets_the_image_whatever_dies(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 9))
    world = World(
        3e6,
        seeds=data.draw(st.integers(1, 3)),
        fanout=data.draw(st.integers(1, 2)),
        blocked=data.draw(st.booleans()),
        outside=data.draw(st.sampled_from([1e5, 1e6, 1e9])),
    )
    moments = st.none() | st.floats(0, 12)
    for number in range(count):
        world.add(
            f"h{number}",
            up=data.draw(st.sampled_from([1e5, 1e6, 1e7])),
            down=data.draw(st.sampled_from([1e5, 1e6, 1e7])),
            starts_at=data.draw(st.floats(0, 5)),
            killed_at=data.draw(moments),
            cut_at=data.draw(moments),
        )
    if any(one.killed_at is None and one.cut_at is None for one in world.machines.values()):
        world.run(600)
    assert all(
        one.node is None or one.node.state is not State.WAITING or one.ended_at is None
        for one in world.machines.values()
    )
