"""Few places, and hosts that wait for each other: nobody waits for a place that its own readers hold."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from imgcache.operations.relay.node import State
from scenarios.relay_rig import RelayRig
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from imgcache.events import ItemProgress

DATA = os.urandom(5_000_003)
SLOW = 1_500_000
"""Bytes a second."""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[RelayRig]:
    """A site and an image service."""
    (tmp_path / "hosts").mkdir()
    with http.HttpServer() as server:
        yield RelayRig(tmp_path / "hosts", server)


@pytest.mark.row("N13")
@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_seed_that_pauses_has_its_place_again_though_its_readers_hold_all(
    rig: RelayRig, concurrency: int
) -> None:
    image = rig.add(
        DATA, http.truncate_after(2_000_000), http.status(503, retry_after=3), http.serve()
    )
    outcomes = rig.relay(*(rig.host(n) for n in range(1, 6)), concurrency=concurrency, timeout_s=30)
    assert [one.outcome for one in outcomes] == ["cached"] * 5, outcomes
    rig.assert_cached(image, DATA, 1, 2, 3, 4, 5)


def test_a_site_with_more_hosts_than_places_ends_together(rig: RelayRig) -> None:
    image = rig.add(DATA)
    receiving: set[str] = set()

    def look(event: ItemProgress) -> None:
        if not any(node.verified for node in rig.nodes(image).values()):
            receiving.add(event.host)

    rig.events.on_download = look
    outcomes = rig.relay(*(rig.host(n) for n in range(1, 9)), concurrency=2, rate_limit=SLOW)
    assert [one.outcome for one in outcomes] == ["cached"] * 8, outcomes
    assert len(receiving) == 8
    assert rig.bytes_served(image) == len(DATA)


def test_hosts_that_cannot_read_from_each_other_share_the_places(rig: RelayRig) -> None:
    image = rig.add(DATA)
    most = 0

    def look(_: ItemProgress) -> None:
        nonlocal most
        nodes = rig.nodes(image).values()
        most = max(most, sum(node.done > 0 and node.state is State.READING for node in nodes))

    rig.events.on_download = look
    hosts = [rig.host(n, address="nowhere.invalid") for n in range(1, 7)]
    outcomes = rig.relay(*hosts, concurrency=2, rate_limit=SLOW)
    assert [one.outcome for one in outcomes] == ["cached"] * 6, outcomes
    assert rig.bytes_served(image) == 6 * len(DATA)
    assert most <= 2


def test_sites_that_have_asked_their_neighbours_share_the_places(rig: RelayRig) -> None:
    image = rig.add(DATA)
    most = 0

    def look(_: ItemProgress) -> None:
        nonlocal most
        nodes = [node for one in rig.sites.relays() for node in one.tree(image).nodes.values()]
        most = max(most, sum(node.outside and node.state is State.READING for node in nodes))

    rig.events.on_download = look
    hosts, neighbours = [], []
    for number in range(6):
        rig.site = f"site-{number}"
        hosts += [rig.host(3 * number), rig.host(3 * number + 1)]
        neighbours.append(rig.host(3 * number + 2))
    outcomes = rig.relay(*hosts, neighbours=neighbours, concurrency=2, rate_limit=SLOW)
    assert [one.outcome for one in outcomes] == ["cached"] * 12, outcomes
    assert rig.bytes_served(image) == 6 * len(DATA)
    assert most <= 2
