"""A window that closes, or a deadline that comes, in the middle of a real download; and the run after it."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from imgcache.distribution import PrecachePlan
from imgcache.errors import ErrorCode, ExitCode
from imgcache.events import ItemProgress
from imgcache.model import Site
from imgcache.operations.precache import PrecacheRequest, execute_precache
from imgcache.operations.selection import Selection
from imgcache.operations.window import Clock
from imgcache.plan import OutcomeWord
from scenarios.faults_rig import Events, Rig
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from imgcache.distribution import PrecacheReport
    from imgcache.events import Event

OPEN = datetime(2026, 11, 21, 23, tzinfo=UTC)
CLOSED = datetime(2026, 11, 22, 4, tzinfo=UTC)
DATA = os.urandom(5 << 20)
MUCH = (3 << 20) + 1000


class FakeClock(Clock):
    """Shows what the test sets; nobody waits for it here."""

    def __init__(self) -> None:
        self.time = OPEN

    def now(self) -> datetime:
        return self.time

    async def sleep_until(self, moment: datetime) -> None:
        self.time = moment


class Watching(Events):
    """Sets the clock forward as soon as so much has come."""

    def __init__(self, clock: FakeClock, then: datetime) -> None:
        super().__init__()
        self._clock = clock
        self._then = then

    def emit(self, event: Event) -> None:
        super().emit(event)
        if (
            isinstance(event, ItemProgress)
            and event.phase == "download"
            and event.done_bytes >= MUCH
        ):
            self._clock.time = self._then


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with http.HttpServer() as server:
        yield Rig(tmp_path, server)


def precache(rig: Rig, clock: FakeClock, events: Events, **more: Any) -> PrecacheReport:
    hosts = tuple(replace(rig.host(number), site="oslo") for number in (1, 2))
    site = Site("oslo", None, "22:00-05:00", "Europe/Oslo")
    plan = PrecachePlan(images=tuple(rig.images), hosts=hosts, sites={"oslo": site})
    request = PrecacheRequest(
        selection=Selection(all=True), names=(), concurrency=1, source="service", **more
    )
    return asyncio.run(execute_precache(plan, request, rig.service, events, clock))


@pytest.mark.parametrize(
    ("more", "then", "code"),
    [
        ({}, CLOSED, ErrorCode.WINDOW),
        ({"deadline": OPEN + timedelta(hours=2)}, OPEN + timedelta(hours=2), ErrorCode.DEADLINE),
    ],
)
def test_it_stops_and_the_next_run_goes_on_at_the_byte_where_it_stopped(
    rig: Rig, more: dict[str, Any], then: datetime, code: ErrorCode
) -> None:
    image = rig.add(DATA, http.stall_after(MUCH), http.serve())
    clock = FakeClock()
    report = precache(rig, clock, Watching(clock, then), **more)
    assert [(one.outcome, one.code) for one in report.outcomes] == [(OutcomeWord.SKIPPED, code)] * 2
    assert report.exit_code() is ExitCode.ANSWER_IS_NO
    assert (report.outcomes[0].reason or "").endswith("the next run goes on there")
    assert report.plan
    assert (report.plan[0].cold, report.plan[0].bytes_outside) == (2, 2 * len(DATA))
    staging = [path for path in rig.leftovers() if path.endswith(".staging")]
    assert len(staging) == 1
    assert not rig.final(image).exists()

    clock.time = OPEN + timedelta(days=1)
    again = precache(rig, clock, Events())
    assert {one.outcome for one in again.outcomes} == {OutcomeWord.CACHED}
    assert again.exit_code() is ExitCode.OK
    # Whole MiB are hashed again from the disk, and the rest is asked for.
    assert [request.offset for request in rig.server.requests] == [None, 3 << 20, None]
    assert rig.final(image).read_bytes() == rig.final(image, 2).read_bytes() == DATA
    assert rig.leftovers() == []
