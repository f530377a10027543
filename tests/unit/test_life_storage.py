"""Hosts that share a storage work there one after the other, and hold up nobody else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from imgcache.errors import ErrorCode, HostError
from imgcache.plan import OutcomeWord
from unit.test_engine import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgcache.model import Image
    from imgcache.operations.host_run import HostRun


@pytest.mark.row("H14")
def test_one_at_a_time_on_one_storage_and_at_once_on_others() -> None:
    at_work: dict[str, int] = {}
    most: dict[str, int] = {}

    async def work(context: HostRun, images: Sequence[Image]) -> None:
        storage = "shared" if context.host.name in {"h0", "h1", "h2"} else context.host.name
        async with context.alone_on(storage):
            for key in (storage, "all"):
                at_work[key] = at_work.get(key, 0) + 1
                most[key] = max(most.get(key, 0), at_work[key])
            await asyncio.sleep(0.02)
            at_work[storage] -= 1
            at_work["all"] -= 1
            context.report(images[0], OutcomeWord.CACHED)

    outcomes = run(work, hosts=5, concurrency=5)
    assert [one.outcome for one in outcomes] == [OutcomeWord.CACHED] * 5
    assert most["shared"] == 1
    assert most["all"] == 3


@pytest.mark.row("S8")
def test_whoever_waits_for_a_storage_lends_its_place() -> None:
    third_was_here = asyncio.Event()

    async def work(context: HostRun, images: Sequence[Image]) -> None:
        if context.host.name == "h2":
            third_was_here.set()
        else:
            async with context.alone_on("shared"):
                # h1 waits for h0, and h0 for h2, which needs h1's place.
                await third_was_here.wait()
        assert context.has_place
        context.report(images[0], OutcomeWord.CACHED)

    outcomes = run(work, hosts=3, concurrency=2, timeout_s=10)
    assert [one.outcome for one in outcomes] == [OutcomeWord.CACHED] * 3


def test_a_host_that_fails_there_frees_the_storage() -> None:
    async def work(context: HostRun, images: Sequence[Image]) -> None:
        async with context.alone_on("shared"):
            await asyncio.sleep(0)
            if context.host.name == "h0":
                raise HostError(ErrorCode.IO, "broken")
        context.report(images[0], OutcomeWord.CACHED)

    words = [one.outcome for one in run(work, hosts=3, concurrency=3, timeout_s=5)]
    assert words == [OutcomeWord.ERROR, OutcomeWord.CACHED, OutcomeWord.CACHED]
