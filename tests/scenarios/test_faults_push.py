"""Pushes whose source or whose host breaks, and hosts that lie about a fetch."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgcache.drivers import transfer
from imgcache.errors import ErrorCode
from imgcache.images.directory import DirectoryImageService
from imgcache.operations import host_run
from imgcache.operations.interrupt import Interrupt
from imgcache.plan import OutcomeWord, SourceKind
from imgcache.transport import conversation
from scenarios.faults_rig import Rig, failed_with
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgcache.model import Host, Image
    from imgcache.operations.sources import SourcePolicy

DATA = os.urandom(3_000_000)
GOOD = os.urandom(50_000)
HALF = 1_400_000
LIAR = Path(__file__).parents[1] / "fakes" / "lying_helper.py"


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """One host; short pauses and short limits."""
    monkeypatch.setattr(host_run, "FIRST_BACK_OFF_S", 0.01)
    monkeypatch.setattr(transfer, "SILENCE_S", 3.0)
    monkeypatch.setattr(conversation, "GOODBYE_TIMEOUT_S", 0.5)
    (tmp_path / "hosts").mkdir()
    with http.HttpServer() as server:
        yield Rig(tmp_path / "hosts", server)


@pytest.mark.row("N1")
@pytest.mark.row("N4")
@pytest.mark.parametrize("fault", [http.reset_after(HALF), http.truncate_after(HALF)])
def test_a_source_that_breaks_off_is_resumed(rig: Rig, fault: http.Behaviour) -> None:
    image = rig.add(DATA, fault, http.serve())
    (outcome,) = rig.run(policy="push")
    assert outcome.outcome == "cached", outcome.reason
    assert rig.final(image).read_bytes() == DATA
    assert outcome.bytes_fetched == len(DATA)
    assert rig.server.requests[1].offset
    assert len(rig.events.retries) == 1


@pytest.mark.row("N1")
@pytest.mark.row("N14")
@pytest.mark.parametrize(
    ("script", "requests"),
    [
        ([http.reset_after(1000)], 4),
        ([http.truncate_after(HALF), http.truncate_after(0)], 4),
        ([http.status(503)], 4),
        ([http.status(404)], 1),
    ],
)
def test_a_source_that_stays_broken_fails_its_image_alone(
    rig: Rig, script: list[http.Behaviour], requests: int
) -> None:
    bad = rig.add(DATA, *script)
    good = rig.add(GOOD)
    first, second = rig.run(policy="push", retries=3)
    assert failed_with(first, ErrorCode.SOURCE), first
    assert first.source is SourceKind.PUSH
    assert len([one for one in rig.server.requests if bad.id in one.target]) == requests
    assert second.outcome == "cached", second.reason
    rig.assert_resumable(bad)
    assert rig.final(good).read_bytes() == GOOD


@pytest.mark.row("N6")
def test_what_was_pushed_after_a_refusal_disturbs_nobody(rig: Rig) -> None:
    # Wrong bytes, and so many that some are still on their way when the host has refused.
    images = [rig.add(DATA, http.flip_bit(7)), rig.add(DATA[:-1]), rig.add(GOOD)]
    first, second, third = rig.run(policy="push")
    assert failed_with(first, ErrorCode.DIGEST)
    assert first.bytes_fetched == len(DATA)
    assert (second.outcome, third.outcome) == ("cached", "cached")
    rig.assert_absent(images[0])


@pytest.mark.row("H5")
def test_an_image_refused_before_its_first_byte_leaves_the_next_alone(rig: Rig) -> None:
    bad, good = rig.add(DATA, disk_format="qcow2"), rig.add(GOOD)
    first, second = rig.run(policy="push")
    assert first.outcome == "error"
    assert first.code in {ErrorCode.FORMAT, ErrorCode.QEMU}
    assert second.outcome == "cached"
    rig.assert_absent(bad)
    assert rig.final(good).exists()


class Cutting(DirectoryImageService):
    """Cuts the file ``cut`` once its first block was read."""

    @contextlib.contextmanager
    def read(self, image: Image, *, offset: int = 0) -> Iterator[Iterator[bytes]]:
        with super().read(image, offset=offset) as blocks:
            yield self._cutting(blocks, image)

    def _cutting(self, blocks: Iterator[bytes], image: Image) -> Iterator[bytes]:
        for block in blocks:
            if image.name == "cut":
                os.truncate(self._path / "cut", 2_000_000)
            yield block


@pytest.mark.row("N4")
def test_a_file_that_is_cut_while_it_is_pushed(rig: Rig, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    lines = ["images:"]
    for number, (name, data) in enumerate((("cut", DATA * 4), ("whole", GOOD)), 1):
        (folder / name).write_bytes(data)
        image_id = f"00000000-0000-4000-8000-{number:012}"
        lines.append(f"- {{id: {image_id}, name: {name}, file: {name}, disk_format: raw}}")
    (folder / "images.yaml").write_text("\n".join(lines))
    service = Cutting(folder)
    rig.images = list(service.find_images(["cut", "whole"]))
    rig.service = service  # type: ignore[assignment]

    first, second = rig.run(policy="push", retries=1)
    assert failed_with(first, ErrorCode.SOURCE), first
    assert str(folder / "cut") in str(first.reason)
    assert second.outcome == "cached"
    rig.assert_resumable(rig.images[0])


@pytest.mark.row("C1")
def test_an_interrupt_does_not_wait_for_a_source_that_fell_silent(rig: Rig) -> None:
    image = rig.add(DATA, http.stall_after(HALF))

    async def run() -> list[OutcomeWord]:
        interrupt = Interrupt()
        running = asyncio.create_task(rig.execute(policy="push", interrupt=interrupt))
        while not list(rig.folder.rglob("*.staging")):  # noqa: ASYNC110 - a file tells it
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        interrupt.ask(signal.SIGINT)
        return [one.outcome for one in await running]

    began = time.monotonic()
    assert asyncio.run(run()) == [OutcomeWord.UNKNOWN]
    assert time.monotonic() - began < 10
    rig.assert_resumable(image)


def liar(rig: Rig, mode: str) -> Host:
    return rig.host(python=(sys.executable, str(LIAR), mode))


@pytest.mark.row("M5")
@pytest.mark.row("T14")
@pytest.mark.parametrize(
    ("mode", "policy"),
    [
        ("nothing-fetched", "service"),
        ("nothing-fetched", "push"),
        ("more-than-there-is", "service"),
        ("before-the-bytes", "push"),
        ("swollen", "service"),
    ],
)
def test_a_claim_that_cannot_be_true_is_no_success(rig: Rig, mode: str, policy: str) -> None:
    rig.add(DATA)
    rig.add(GOOD)
    first, second = rig.run(liar(rig, mode), policy=policy)  # type: ignore[arg-type]
    assert failed_with(first, ErrorCode.PROTOCOL), first
    assert second.outcome == "error"


@pytest.mark.row("M4")
@pytest.mark.row("T1")
@pytest.mark.parametrize("mode", ["token", "tokens"])
def test_a_host_that_is_pushed_to_gets_no_token_by_asking(rig: Rig, mode: str) -> None:
    rig.add(DATA)
    (outcome,) = rig.run(liar(rig, mode), policy="push")
    assert failed_with(outcome, ErrorCode.PROTOCOL)
    assert rig.service.granted == 0


@pytest.mark.row("M8")
def test_a_host_that_asks_for_tokens_again_and_again_gets_one_more(rig: Rig) -> None:
    rig.add(DATA)
    (outcome,) = rig.run(liar(rig, "tokens"), retries=100)
    assert outcome.outcome in {"error", "unknown"}
    assert rig.service.granted == 2


@pytest.mark.row("M8")
@pytest.mark.parametrize("policy", ["service", "push"])
def test_a_host_that_leaves_its_source_unasked_is_not_followed_for_ever(
    rig: Rig, policy: SourcePolicy
) -> None:
    rig.add(DATA)
    (outcome,) = rig.run(liar(rig, "switches"), policy=policy)
    assert failed_with(outcome, ErrorCode.PROTOCOL)
    assert "not told to leave" in str(outcome.reason)


@pytest.mark.row("M4")
def test_a_host_that_wants_bytes_which_it_was_not_offered(rig: Rig) -> None:
    rig.add(DATA)
    (outcome,) = rig.run(liar(rig, "ready"), policy="service")
    assert failed_with(outcome, ErrorCode.PROTOCOL)
    assert rig.server.requests == []


@pytest.mark.row("M7")
@pytest.mark.parametrize(("mode", "policy"), [("hang", "service"), ("hang-in-push", "push")])
def test_a_helper_that_hangs_in_a_fetch(rig: Rig, mode: str, policy: str) -> None:
    rig.add(DATA)
    rig.add(GOOD)
    began = time.monotonic()
    first, second = rig.run(liar(rig, mode), policy=policy)  # type: ignore[arg-type]
    assert (first.outcome, first.code) == ("unknown", ErrorCode.HANG)
    assert (second.outcome, second.code) == ("unknown", ErrorCode.HANG)
    assert time.monotonic() - began < 15


@pytest.mark.row("M7")
def test_progress_that_does_not_grow_is_a_hang(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "STANDSTILL_S", 0.5)
    rig.add(DATA)
    (outcome,) = rig.run(liar(rig, "standstill"))
    assert failed_with(outcome, ErrorCode.HANG)
    assert "no progress" in str(outcome.reason)
