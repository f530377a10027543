"""Whatever a host of the same site does instead of sending its bytes: the fetch goes on from another one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from helper.controller import Controller, base_name, image_of
from servers.misbehaving_peer import LIES, MODES, MisbehavingPeer, black_hole, refused_url

if TYPE_CHECKING:
    from pathlib import Path

DATA = os.urandom(300_000)
IMAGE = image_of(DATA)
#: Those that only differ when a part of the bytes is there are in test_helper_sources.
FAULTS = [mode for mode in MODES if mode not in {"good", "wrong-range", "no-range"}]
#: Mode -> what the host says of it; "peer" of the others.
CODES = {
    "stops": "download", "breaks": "download", "broken": "download", "nonsense": "download",
    "resets": "download", "stalls": "stall", "mute": "stall", "silent": "stall", "slow": "stall",
    **dict.fromkeys(LIES, "digest"),
}  # fmt: skip
#: Modes that end in the handshake, where there is one.
SHAKING = ("silent", "resets")
#: Modes after which half of the bytes are there.
HALVES = ("stops", "stalls", "breaks")


def assert_cached(helper: Controller, instances: Path, number: int) -> None:
    assert helper.result(number)["state"] == "cached"
    name = base_name(IMAGE["id"])
    assert (instances / "_base" / name).read_bytes() == DATA
    assert os.listdir(instances / "_base/.imgcache") == [f"{name}.json"]


@pytest.mark.row("N20")
@pytest.mark.row("M9")
@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
@pytest.mark.parametrize("mode", FAULTS)
def test_a_fetch_goes_on_from_another_host(
    helper: Controller, instances: Path, mode: str, tls: bool
) -> None:
    helper.open(instances)
    with MisbehavingPeer(DATA, mode, tls=tls) as bad, MisbehavingPeer(DATA, tls=tls) as good:
        least = 1000 if mode == "slow" else 0
        number = helper.fetch(IMAGE, bad.source(), stall_s=2, min_rate=least, min_rate_window_s=2)
        retry = helper.event(number, "retry")
        code = "unreachable" if tls and mode in SHAKING else CODES.get(mode, "peer")
        assert retry["code"] == code
        if mode != "slow":
            assert retry["offset"] == (len(DATA) // 2 if mode in HALVES else 0)
        helper.tell("again", number, token=None, source=good.source())
        assert_cached(helper, instances, number)
        assert [one.offset for one in good.requests] == [retry["offset"] or None]


@pytest.mark.row("N20")
@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_a_host_that_breaks_off_again_and_again_is_read_to_the_end(
    helper: Controller, instances: Path, tls: bool
) -> None:
    helper.open(instances)
    with MisbehavingPeer(DATA, "stops", "breaks", "stops", "good", tls=tls) as peer:
        number = helper.fetch(IMAGE, peer.source())
        offsets = []
        for _ in range(3):
            offsets.append(helper.event(number, "retry")["offset"])
            helper.tell("again", number, token=None)
        assert_cached(helper, instances, number)
        assert [one.offset for one in peer.requests] == [None, *offsets]
        assert offsets == [150_000, 225_000, 262_500]


@pytest.mark.row("N20")
@pytest.mark.row("N21")
def test_a_host_that_cannot_be_connected_to(helper: Controller, instances: Path) -> None:
    helper.open(instances)
    with MisbehavingPeer(DATA) as good, black_hole() as dropping:
        source = good.source()
        number = helper.fetch(IMAGE, {**source, "url": refused_url()}, connect_s=1)
        assert helper.event(number, "retry")["code"] == "unreachable"
        helper.tell("again", number, token=None, source={**source, "url": dropping})
        assert helper.event(number, "retry")["code"] == "unreachable"
        helper.tell("again", number, token=None, source=source)
        assert_cached(helper, instances, number)
