"""Few places, and hosts that wait for each other: nobody waits for a place that its own readers hold."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from scenarios.relay_rig import RelayRig
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = os.urandom(5_000_003)


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
