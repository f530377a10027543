"""Helpers killed at random moments of runs whose hosts read from each other; and the runs after them."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from typing import TYPE_CHECKING

import pytest

from scenarios.relay_rig import RelayRig
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = os.urandom(4_000_003)
NUMBERS = range(1, 6)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[RelayRig]:
    """A site and an image service."""
    (tmp_path / "hosts").mkdir()
    with http.HttpServer() as server:
        yield RelayRig(tmp_path / "hosts", server)


@pytest.mark.row("H19")
@pytest.mark.row("N20")
@pytest.mark.parametrize(
    "number", [*range(4), *(pytest.param(n, marks=pytest.mark.long) for n in range(4, 40))]
)
def test_whoever_dies_no_final_is_wrong_and_the_next_run_completes_all(
    rig: RelayRig, number: int
) -> None:
    chance = random.Random(number)
    image = rig.add(DATA)
    victims = chance.sample(NUMBERS, chance.randint(1, 3))
    killed: list[str] = []

    def kill(name: str) -> None:
        if rig.signal(name, signal.SIGKILL):
            killed.append(name)

    def begin(_: object) -> None:
        rig.events.on_download = lambda _: None
        for victim in victims:
            asyncio.get_running_loop().call_later(chance.uniform(0, 3), kill, f"h{victim}")

    rig.events.on_download = begin
    outcomes = rig.relay(
        *(rig.host(n) for n in NUMBERS), rate_limit=1_500_000, retries=chance.randint(0, 1)
    )
    bad = {one.host for one in outcomes if one.outcome not in {"cached", "existing"}}
    assert bad <= set(killed), outcomes
    finals = [path for n in NUMBERS if (path := rig.final(image, n)).exists()]
    assert [path for path in finals if path.read_bytes() != DATA] == []

    again = rig.relay(*(rig.host(n) for n in NUMBERS))
    assert {one.outcome for one in again} <= {"cached", "existing"}, again
    rig.assert_cached(image, DATA, *NUMBERS)
