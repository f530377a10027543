"""What holds for every way in which bytes come to a host: the same suite for each ``--source``.

Whole runs with the real engine, driver and helper; a server that breaks stands for the image service, and
two hosts of one site need the image, so that one of them reads from the other where the source is a relay.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from imgcache.errors import ErrorCode
from imgcache.operations import host_run
from imgcache.plan import SourceKind
from scenarios.relay_rig import RelayRig
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from imgcache.model import Image
    from imgcache.operations.sources import SourcePolicy
    from imgcache.plan import Outcome

DATA = os.urandom(3_000_001)
HALF = 1_400_000
#: What a journal says of that, see ``helper.journal``.
SAVED = 1 << 20
NUMBERS = (1, 2)
#: Policy -> the kinds that its hosts end with.
KINDS: dict[SourcePolicy, set[SourceKind]] = {
    "service": {SourceKind.SERVICE},
    "push": {SourceKind.PUSH},
    "relay": {SourceKind.SERVICE, SourceKind.RELAY},
    "push-relay": {SourceKind.PUSH, SourceKind.RELAY},
}


class SourceBench(RelayRig):
    """Two hosts that need what the service has."""

    policy: SourcePolicy

    def fetch(self, **limits: Any) -> list[Outcome]:
        """Run over both hosts; all images for each."""
        return self.relay(*(self.host(n) for n in NUMBERS), policy=self.policy, **limits)

    def copies(self) -> int:
        """How many copies of an image leave the service for the two."""
        return 1 if "relay" in self.policy else 2

    def assert_there(self, image: Image, data: bytes) -> None:
        """Both have the right bytes under the final name, and a manifest that says so."""
        for number in NUMBERS:
            final = self.final(image, number)
            assert final.read_bytes() == data
            assert final.stat().st_nlink == 1
            (file,) = (final.parent / ".imgcache").glob(f"{final.name}*.json")
            assert (
                json.loads(file.read_text())["stored"]["value"] == hashlib.sha512(data).hexdigest()
            )
        assert self.leftovers() == []


@pytest.fixture(params=KINDS)
def bench(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SourceBench]:
    """Return one per source."""
    monkeypatch.setattr(host_run, "FIRST_BACK_OFF_S", 0.01)
    (tmp_path / "hosts").mkdir()
    with http.HttpServer() as server:
        bench = SourceBench(tmp_path / "hosts", server)
        bench.policy = request.param
        yield bench


def words(outcomes: list[Outcome]) -> list[str]:
    return [str(one.outcome) for one in outcomes]


def test_every_host_gets_the_bytes_and_a_second_run_moves_none(bench: SourceBench) -> None:
    image = bench.add(DATA)
    outcomes = bench.fetch()
    assert words(outcomes) == ["cached", "cached"], outcomes
    assert {one.source for one in outcomes} == KINDS[bench.policy]
    assert [one.bytes_fetched for one in outcomes] == [len(DATA)] * 2
    bench.assert_there(image, DATA)
    assert bench.bytes_served(image) == bench.copies() * len(DATA)
    again = bench.fetch()
    assert [(one.outcome, one.bytes_fetched) for one in again] == [("existing", 0)] * 2
    assert bench.bytes_served(image) == bench.copies() * len(DATA)


def test_images_of_any_size_come_whole(bench: SourceBench) -> None:
    sizes = (1, 511, (1 << 16), (1 << 20) + 1)
    images = [bench.add(os.urandom(size)) for size in sizes]
    assert words(bench.fetch()) == ["cached"] * 8
    assert [bench.final(one, 2).stat().st_size for one in images] == [*sizes]


@pytest.mark.row("N1")
def test_a_transfer_that_breaks_off_goes_on_where_it_was(bench: SourceBench) -> None:
    image = bench.add(DATA, http.truncate_after(HALF), http.serve())
    outcomes = bench.fetch()
    assert words(outcomes) == ["cached", "cached"], outcomes
    bench.assert_there(image, DATA)
    offsets = [one.offset or 0 for one in bench.server.requests]
    assert len([offset for offset in offsets if offset]) == 1


@pytest.mark.row("N6")
def test_wrong_bytes_never_get_the_final_name(bench: SourceBench) -> None:
    image = bench.add(DATA, http.flip_bit(HALF))
    outcomes = bench.fetch()
    assert words(outcomes) == ["error", "error"], outcomes
    assert {one.code for one in outcomes} == {ErrorCode.DIGEST}
    assert [n for n in NUMBERS if bench.final(image, n).exists()] == []
    assert bench.leftovers() == []


@pytest.mark.row("N6")
def test_wrong_bytes_once_are_no_reason_to_give_the_image_up(bench: SourceBench) -> None:
    image = bench.add(DATA, http.flip_bit(HALF), http.serve())
    outcomes = bench.fetch()
    # A host asks for bytes again; the controller, whose own read was wrong, leaves that to the next run.
    pushed_wrong = [one for one in outcomes if one.code is ErrorCode.DIGEST]
    assert len(pushed_wrong) <= ("push" in bench.policy), outcomes
    assert bench.bytes_served(image) <= (bench.copies() + 2) * len(DATA)
    if pushed_wrong:
        assert sorted(words(bench.fetch())) == ["cached", "existing"]
    bench.assert_there(image, DATA)


@pytest.mark.row("N5")
def test_more_bytes_than_the_image_has_are_not_taken(bench: SourceBench) -> None:
    image = bench.add(DATA, http.too_long(1000, "close"))
    for one in bench.fetch(retries=0):
        # A push takes what was announced, and no more; who downloads sees that it goes on, and refuses.
        assert one.outcome in {"cached", "error"}, one
    for number in NUMBERS:
        final = bench.final(image, number)
        assert not final.exists() or final.read_bytes() == DATA


@pytest.mark.row("N2")
def test_a_source_that_ends_early_for_good_is_an_error_and_the_next_run_goes_on(
    bench: SourceBench,
) -> None:
    image = bench.add(DATA, http.truncate_after(HALF), *[http.status(500)] * 12, http.serve())
    outcomes = bench.fetch(retries=1)
    assert "error" in words(outcomes), outcomes
    assert [n for n in NUMBERS if bench.final(image, n).exists()] == []
    bench.server.route(bench.service.target(image), DATA)
    asked = bench.bytes_served(image)
    assert words(bench.fetch()) == ["cached", "cached"]
    bench.assert_there(image, DATA)
    # With a relay it may be the other one, without a byte, that reads from outside.
    kept = 0 if "relay" in bench.policy else SAVED
    assert bench.bytes_served(image) - asked <= bench.copies() * len(DATA) - kept


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")
def test_what_is_no_raw_image_is_converted_on_each_host(bench: SourceBench, tmp_path: Path) -> None:
    plain = os.urandom(2 << 20)
    raw, made = tmp_path / "raw", tmp_path / "made"
    raw.write_bytes(plain)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, made], check=True)
    image = bench.add(made.read_bytes(), disk_format="qcow2", virtual_size_bytes=len(plain))
    bench.settings["force_raw_images"] = True
    assert words(bench.fetch()) == ["cached", "cached"]
    bench.assert_there(image, plain)


def test_a_format_that_lies_is_refused(bench: SourceBench) -> None:
    image = bench.add(b"QFI\xfb" + bytes(100_000), disk_format="raw")
    outcomes = bench.fetch()
    assert words(outcomes) == ["error", "error"], outcomes
    assert {one.code for one in outcomes} == {ErrorCode.FORMAT}
    assert [n for n in NUMBERS if bench.final(image, n).exists()] == []


def test_a_dry_run_moves_nothing(bench: SourceBench) -> None:
    image = bench.add(DATA)
    outcomes = bench.fetch(dry_run=True)
    assert not {"cached", "error"} & {*words(outcomes)}, outcomes
    assert bench.bytes_served(image) == 0
    assert not list(bench.folder.rglob("_base/*"))
