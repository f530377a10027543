"""Hosts of one site that read an image from each other: one copy from the image service for all."""

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


@pytest.mark.row("T4")
@pytest.mark.parametrize("tls", [True, False])
def test_a_site_gets_one_copy_and_its_hosts_the_rest_from_each_other(
    rig: RelayRig, tls: bool
) -> None:
    image = rig.add(DATA)
    outcomes = rig.relay(*(rig.host(n, relay_tls=tls) for n in range(1, 6)))
    assert [one.outcome for one in outcomes] == ["cached"] * 5, outcomes
    rig.assert_cached(image, DATA, 1, 2, 3, 4, 5)
    assert rig.bytes_served(image) == len(DATA)
    assert sorted(str(one.source) for one in outcomes) == ["relay"] * 4 + ["service"]
