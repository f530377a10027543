"""Hosts of one site that read an image from each other: one copy from the image service for all."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from imgcache.drivers import order_fields, transfer
from imgcache.events import ItemEnded
from imgcache.model import Site
from imgcache.operations.relay import neighbours
from imgcache.operations.rollout import Waves
from imgcache.policy import Amount
from imgcache.transport import conversation
from scenarios.relay_rig import RelayRig
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from imgcache.plan import Outcome

DATA = os.urandom(5_000_003)
SLOW = 1_000_000
"""Bytes a second, for transfers that something happens to on their way."""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[RelayRig]:
    """A site and an image service."""
    (tmp_path / "hosts").mkdir()
    with http.HttpServer() as server:
        yield RelayRig(tmp_path / "hosts", server)


def sources(outcomes: list[Outcome]) -> list[str]:
    return sorted(str(one.source) for one in outcomes)


@pytest.mark.parametrize("tls", [True, False])
def test_a_site_gets_one_copy_and_its_hosts_the_rest_from_each_other(
    rig: RelayRig, tls: bool
) -> None:
    image = rig.add(DATA)
    outcomes = rig.relay(*(rig.host(n, relay_tls=tls) for n in range(1, 6)))
    assert [one.outcome for one in outcomes] == ["cached"] * 5, outcomes
    rig.assert_cached(image, DATA, 1, 2, 3, 4, 5)
    assert rig.bytes_served(image) == len(DATA)
    assert sources(outcomes) == ["relay"] * 4 + ["service"]
    assert sum(one.bytes_fetched for one in outcomes) == 5 * len(DATA)
    assert rig.events.notices == []
    assert rig.times_told(b"-----BEGIN CERTIFICATE-----") == (5 if tls else 0)


@pytest.mark.row("T2")
@pytest.mark.row("T4")
def test_only_the_seed_gets_a_token_and_nobody_anothers_secret(rig: RelayRig) -> None:
    rig.add(DATA)
    rig.relay(*(rig.host(n) for n in range(1, 5)))
    assert rig.times_told(b'"token-1"') == 1
    keys: set[bytes] = set()
    for sent in rig.transport.sent.values():
        keys.update(re.findall(rb'"key": ?"([0-9a-f]{64})"', sent))
        keys.update(re.findall(rb"BEGIN PRIVATE KEY-----([^-]+)", sent))
    # Two for each of four; two more for one that had left before somebody wanted to read from it.
    assert len(keys) in {8, 10, 12, 14}
    assert {rig.times_told(key) for key in keys} == {1}
    tickets = {
        ticket
        for sent in rig.transport.sent.values()
        for ticket in re.findall(rb'"token": ?"([0-9a-f]{32}\.[0-9a-f]{64})"', sent)
    }
    assert len(tickets) >= 3
    assert {rig.times_told(ticket) for ticket in tickets} == {1}


@pytest.mark.row("T2")
def test_with_push_relay_no_host_gets_a_token(rig: RelayRig) -> None:
    image = rig.add(DATA)
    outcomes = rig.relay(*(rig.host(n) for n in range(1, 5)), policy="push-relay")
    assert [one.outcome for one in outcomes] == ["cached"] * 4, outcomes
    assert sources(outcomes) == ["push", "relay", "relay", "relay"]
    assert rig.bytes_served(image) == len(DATA)
    assert rig.times_told(b"token-") == 0
    assert rig.service.granted == 0


def test_auto_relays_within_sites_that_the_inventory_names(rig: RelayRig) -> None:
    image = rig.add(DATA)
    rig.relay(rig.host(1), rig.host(2), policy="auto")
    assert rig.bytes_served(image) == len(DATA)
    rig.site = None
    rig.relay(rig.host(3), rig.host(4), policy="auto")
    assert rig.bytes_served(image) == 3 * len(DATA)
    rig.relay(rig.host(5), rig.host(6), policy="relay")
    assert rig.bytes_served(image) == 4 * len(DATA)


def test_as_many_seeds_as_asked_for(rig: RelayRig) -> None:
    image = rig.add(DATA)
    outcomes = rig.relay(*(rig.host(n) for n in range(1, 6)), seeds=2)
    assert sources(outcomes) == ["relay"] * 3 + ["service"] * 2
    assert rig.bytes_served(image) == 2 * len(DATA)


@pytest.mark.parametrize("concurrency", [1, 2])
def test_few_places_are_enough(rig: RelayRig, concurrency: int) -> None:
    image = rig.add(DATA)
    outcomes = rig.relay(*(rig.host(n) for n in range(1, 5)), concurrency=concurrency)
    assert [one.outcome for one in outcomes] == ["cached"] * 4, outcomes
    assert rig.bytes_served(image) == len(DATA)


def test_several_images_each_come_once(rig: RelayRig) -> None:
    images = [rig.add(os.urandom(1_500_000 + n)) for n in range(3)]
    outcomes = rig.relay(*(rig.host(n) for n in range(1, 5)))
    assert [one.outcome for one in outcomes] == ["cached"] * 12, outcomes
    assert [rig.bytes_served(image) for image in images] == [i.size_bytes for i in images]


# ---- neighbours


def test_a_host_added_later_is_filled_from_a_neighbour(rig: RelayRig) -> None:
    image = rig.add(DATA)
    old, new = rig.host(1), rig.host(2)
    rig.relay(old)
    assert rig.bytes_served(image) == len(DATA)
    (outcome,) = rig.relay(new, policy="auto", neighbours=[old])
    assert (outcome.outcome, outcome.source) == ("cached", "relay"), outcome
    rig.assert_cached(image, DATA, 1, 2)
    assert rig.bytes_served(image) == len(DATA)


def test_a_neighbour_hears_from_here_as_long_as_it_is_read(
    rig: RelayRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fetches nothing, and would leave when it heard nothing."""
    monkeypatch.setitem(order_fields.DEFAULT_LIMITS, "alive_s", 1.5)
    monkeypatch.setattr(conversation, "PING_INTERVAL_S", 0.3)
    image = rig.add(DATA)
    old = rig.host(1)
    rig.relay(old)
    (outcome,) = rig.relay(rig.host(2), neighbours=[old], rate_limit=SLOW)
    assert (outcome.outcome, outcome.source) == ("cached", "relay"), outcome
    assert rig.bytes_served(image) == len(DATA)


def test_neighbours_without_the_image_cost_nothing_but_the_question(rig: RelayRig) -> None:
    image = rig.add(DATA)
    (outcome,) = rig.relay(rig.host(3), neighbours=[rig.host(1), rig.host(2)])
    assert (outcome.outcome, outcome.source) == ("cached", "service"), outcome
    rig.assert_cached(image, DATA, 3)
    assert not list((rig.folder / "h1").rglob("_base"))


def test_many_neighbours_that_hang_do_not_hold_up_the_first_byte(
    rig: RelayRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "ASK_S", 0.4)
    monkeypatch.setattr(neighbours, "SEARCH_S", 0.8)
    image = rig.add(DATA)
    silent = (sys.executable, "-c", "import time; time.sleep(60)")
    hanging = [rig.host(n, python=silent) for n in range(2, 32)]
    (outcome,) = rig.relay(rig.host(1), neighbours=hanging)
    assert (outcome.outcome, outcome.source) == ("cached", "service"), outcome
    rig.assert_cached(image, DATA, 1)
    assert len(rig.transport.opened) <= 1 + 3 * neighbours.ASKED


def test_a_host_known_to_have_it_in_this_run_is_asked(rig: RelayRig) -> None:
    image = rig.add(DATA)
    rig.relay(rig.host(1))
    outcomes = rig.relay(rig.host(1), rig.host(2), concurrency=1)
    assert [one.outcome for one in outcomes] == ["existing", "cached"], outcomes
    assert rig.bytes_served(image) == len(DATA)


def qcow2_of(folder: Path, data: bytes) -> bytes:
    plain, made = folder / "plain", folder / "made"
    plain.write_bytes(data)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", plain, made], check=True)
    return made.read_bytes()


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")
@pytest.mark.row("T5")
def test_hosts_that_convert_pass_on_the_original_and_each_converts_by_itself(
    rig: RelayRig, tmp_path: Path
) -> None:
    plain = os.urandom(4 << 20)
    data = qcow2_of(tmp_path, plain)
    image = rig.add(data, disk_format="qcow2", virtual_size_bytes=len(plain))
    rig.settings["force_raw_images"] = True
    keeping = rig.host(1, keep_original=True)
    outcomes = rig.relay(keeping, *(rig.host(n) for n in (2, 3)))
    assert [one.outcome for one in outcomes] == ["cached"] * 3, outcomes
    assert [rig.final(image, n).read_bytes() == plain for n in (1, 2, 3)] == [True] * 3
    assert rig.bytes_served(image) == len(data)
    rig.relay(rig.host(4), neighbours=[keeping])
    assert rig.bytes_served(image) == len(data)


# ---- hosts that die or lie


@pytest.mark.row("N20")
def test_a_host_killed_in_the_middle_is_replaced_and_the_rest_goes_on_where_it_was(
    rig: RelayRig,
) -> None:
    image = rig.add(DATA)
    killed = rig.when_middle_has(image, 1 << 20, lambda name: rig.signal(name, signal.SIGKILL))
    outcomes = rig.relay(*(rig.host(n) for n in range(1, 6)), rate_limit=SLOW, retries=0)
    assert killed()
    assert {one.host: one.outcome for one in outcomes} == {
        f"h{n}": "unknown" if f"h{n}" == killed() else "cached" for n in range(1, 6)
    }, outcomes
    assert rig.bytes_served(image) == len(DATA)
    others = [one for one in outcomes if one.host != killed()]
    assert sum(one.bytes_fetched for one in others) <= 4.5 * len(DATA)


@pytest.mark.row("N20")
def test_a_seed_killed_in_mid_transfer_is_followed_by_the_next(rig: RelayRig) -> None:
    image = rig.add(DATA)
    killed: list[str] = []

    def look(event: object) -> None:
        del event
        for node in rig.nodes(image).values():
            readers = [one for one in node.readers if one.done > 1 << 20]
            if node.outside and readers and not killed:
                killed.append(node.name)
                rig.signal(node.name, signal.SIGKILL)

    rig.events.on_download = look
    outcomes = rig.relay(*(rig.host(n) for n in range(1, 5)), rate_limit=SLOW, retries=0)
    assert killed
    assert sorted(one.outcome for one in outcomes) == ["cached"] * 3 + ["unknown"], outcomes
    assert len(DATA) < rig.bytes_served(image) < 2 * len(DATA)


@pytest.mark.row("N20")
def test_a_host_that_hangs_in_the_middle_is_left(
    rig: RelayRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "SILENCE_S", 12.0)
    image = rig.add(DATA)
    hung = rig.when_middle_has(image, 1 << 20, lambda name: rig.signal(name, signal.SIGSTOP))
    try:
        outcomes = rig.relay(*(rig.host(n) for n in range(1, 6)), rate_limit=SLOW, retries=0)
    finally:
        if name := hung():
            rig.signal(name, signal.SIGKILL)
    others = [one for one in outcomes if one.host != hung()]
    assert [one.outcome for one in others] == ["cached"] * 4, outcomes
    # Whoever waited for the controller to notice by itself would be cached later than it gives up.
    (other,) = [one for one in outcomes if one.host == hung()]
    assert other.outcome == "unknown"
    ended = [one.outcome.host for one in rig.events.of(ItemEnded)]
    assert ended[-1] == hung()
    assert rig.bytes_served(image) == len(DATA)


@pytest.mark.row("N20")
@pytest.mark.row("M9")
@pytest.mark.row("T5")
@pytest.mark.parametrize("tls", [True, False])
def test_a_host_that_sends_wrong_bytes_is_named_and_not_used_again(
    rig: RelayRig, tls: bool
) -> None:
    image = rig.add(DATA)
    liar = rig.host(1, "lies", relay_tls=tls)
    hosts = [rig.host(n, relay_tls=tls) for n in (2, 3)]
    # One after the other: the second can read from the first alone, and the third from both.
    outcomes = rig.relay(liar, *hosts, waves=Waves(wave=Amount(count=1)))
    assert [one.outcome for one in outcomes] == ["cached"] * 3, outcomes
    rig.assert_cached(image, DATA, 1, 2, 3)
    assert [text for text in rig.events.notices if "peer-bad: h1 " in text]
    blaming = [one for one in outcomes if "peer-bad: h1 " in (one.reason or "")]
    assert len(blaming) == 1
    assert sources(outcomes) == ["relay", "service", "service"]
    assert rig.bytes_served(image) == 2 * len(DATA)


# ---- ports that cannot be reached


@pytest.mark.row("N21")
@pytest.mark.row("M9")
def test_hosts_that_cannot_reach_each_other_cost_one_attempt_per_site(rig: RelayRig) -> None:
    images = [rig.add(DATA), rig.add(DATA[:100_000])]
    hosts = [rig.host(n, address="nowhere.invalid") for n in range(1, 6)]
    outcomes = rig.relay(*hosts)
    assert [one.outcome for one in outcomes] == ["cached"] * 10, outcomes
    assert sources(outcomes) == ["service"] * 10
    assert rig.times_told(b"nowhere.invalid") == 1
    assert [rig.bytes_served(image) for image in images] == [5 * i.size_bytes for i in images]
    (notice,) = rig.events.notices
    assert "cannot read from each other" in notice


def test_a_host_that_cannot_listen_still_reads(rig: RelayRig) -> None:
    image = rig.add(DATA)
    hosts = [rig.host(1), rig.host(2, relay_address="192.0.2.1"), rig.host(3)]
    outcomes = rig.relay(*hosts)
    assert [one.outcome for one in outcomes] == ["cached"] * 3, outcomes
    assert [n for n in rig.events.notices if "cannot read from here" in n]
    assert rig.bytes_served(image) <= 2 * len(DATA)


# ---- budgets


@pytest.mark.parametrize("policy", ["service", "push"])
def test_a_sites_budget_is_kept_by_all_of_its_downloads(rig: RelayRig, policy: str) -> None:
    rig.add(DATA[:2_000_000])
    sites = {"oslo": Site("oslo", bytes_per_s=2_000_000)}
    outcomes = rig.relay(*(rig.host(n) for n in range(1, 4)), policy=policy, sites=sites)  # type: ignore[arg-type]
    assert [one.outcome for one in outcomes] == ["cached"] * 3, outcomes
    longest = max(one.duration_s for one in outcomes)
    assert longest > 6_000_000 / 2_000_000 * 0.9
    assert rig.sites.relays() == ()


def test_what_hosts_are_told_can_be_read(rig: RelayRig) -> None:
    """The frames of a relay are JSON on one line each; a recorded conversation stays readable."""
    rig.add(DATA[:100_000])
    rig.relay(rig.host(1), rig.host(2))
    frames = [
        json.loads(line)
        for sent in rig.transport.sent.values()
        for line in sent.split(b"\n")
        if line.startswith(b'{"op":"fetch"')
    ]
    assert sorted(frame["source"]["kind"] for frame in frames) == ["relay", "service"]
    assert all(set(frame["serve"]) == {"name", "key"} for frame in frames)
