"""What an earlier run left, and the disk has spoilt since: the run begins once more from zero."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from scenarios.relay_rig import RelayRig
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from imgcache.operations.sources import SourcePolicy

DATA = os.urandom(5_000_003)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[RelayRig]:
    """A site and an image service."""
    (tmp_path / "hosts").mkdir()
    with http.HttpServer() as server:
        yield RelayRig(tmp_path / "hosts", server)


@pytest.mark.row("N6")
@pytest.mark.parametrize("policy", ["service", "push", "relay", "push-relay"])
def test_bytes_of_an_earlier_run_that_were_spoilt_are_fetched_anew(
    rig: RelayRig, policy: SourcePolicy
) -> None:
    image = rig.add(DATA, http.truncate_after(3_000_000), http.serve())
    hosts = [rig.host(1), rig.host(2)]
    first = rig.relay(hosts[0], policy=policy, retries=0)
    assert [one.outcome for one in first] == ["error"], first
    (left,) = (rig.folder / "h1").rglob("*.staging")
    with left.open("r+b") as file:
        file.seek(1000)
        file.write(b"spoilt")
    outcomes = rig.relay(*hosts, policy=policy)
    assert [one.outcome for one in outcomes] == ["cached"] * 2, outcomes
    rig.assert_cached(image, DATA, 1, 2)
    assert not [text for text in rig.events.notices if "peer-bad" in text]
