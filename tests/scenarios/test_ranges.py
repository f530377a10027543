"""Image services that do not go on in the middle, whatever they answer then, and stores that break again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from scenarios.faults_site import ScriptedGlance, local_fleet, outcomes, scripted_glance
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers.fleet_fixtures import Fleet

DATA = os.urandom(3_500_000)
HALF = 2_200_000
CUT = http.truncate_after(HALF)
#: Those that ``tests/helper/test_helper_resume.py`` has as well are long here.
UNUSABLE = [
    "403", "whole-length", "500",
    *(
        pytest.param(ranges, marks=pytest.mark.long)
        for ranges in ("400", "404", "302", "416", "503", "ignore", "wrong", "short-length", "part", "empty",
                       "encoded")
    ),
]  # fmt: skip


@pytest.fixture
def glance() -> Iterator[ScriptedGlance]:
    with scripted_glance() as glance:
        yield glance


@pytest.fixture
def site(tmp_path: Path, glance: ScriptedGlance) -> Fleet:
    return local_fleet(tmp_path, glance.settings)


def run(site: Fleet, policy: str, image_id: str, retries: int) -> tuple[str, str]:
    """Return the outcome and its reason."""
    argv = ("precache", "--all", image_id, "--source", policy, "--retries", str(retries))
    done = site.run(*argv, "-f", "json")
    assert "Traceback" not in done.stderr
    (one,) = outcomes(done.stdout)
    return one["outcome"], one["reason"] or ""


@pytest.mark.row("N11")
@pytest.mark.parametrize("policy", ["service", "push"])
@pytest.mark.parametrize("ranges", UNUSABLE)
def test_a_later_run_is_not_stopped_by_ranges_that_do_not_work(
    site: Fleet, glance: ScriptedGlance, policy: str, ranges: http.Ranges
) -> None:
    image_id = glance.add(DATA, CUT, http.serve(ranges=ranges))
    word, reason = run(site, policy, image_id, 0)
    assert word == "error", reason
    assert list(site.instances("edge1-01").rglob("*.staging"))
    word, reason = run(site, policy, image_id, 3)
    assert word == "cached", reason
    assert site.final("edge1-01", image_id).read_bytes() == DATA


@pytest.mark.row("N11")
@pytest.mark.parametrize("policy", ["service", "push"])
@pytest.mark.parametrize("ranges", ["404", "part"])
def test_a_download_cut_in_the_middle_ends_well_where_ranges_do_not_work(
    site: Fleet, glance: ScriptedGlance, policy: str, ranges: http.Ranges
) -> None:
    image_id = glance.add(DATA, CUT, http.serve(ranges=ranges))
    word, reason = run(site, policy, image_id, 1)
    assert word == "cached", reason
    assert site.final("edge1-01", image_id).read_bytes() == DATA


@pytest.mark.row("N1")
@pytest.mark.parametrize("policy", ["service", "push"])
def test_a_store_that_cannot_seek_and_breaks_at_the_same_byte_is_asked_as_often_as_allowed(
    site: Fleet, glance: ScriptedGlance, policy: str
) -> None:
    # Each request for a range is answered with 400, then all is sent: cut again at the same byte.
    script = [CUT] + 2 * [http.serve(ranges="400"), CUT] if policy == "push" else []
    image_id = glance.add(
        DATA, *(script or [CUT, http.serve(ranges="400"), CUT, CUT]), http.serve()
    )
    word, reason = run(site, policy, image_id, 3)
    assert word == "cached", reason
    assert site.final("edge1-01", image_id).read_bytes() == DATA


@pytest.mark.row("N1")
@pytest.mark.parametrize("policy", ["service", "push"])
def test_repetitions_have_the_same_end_from_the_service_and_by_push(
    site: Fleet, glance: ScriptedGlance, policy: str
) -> None:
    image_id = glance.add(DATA, CUT)
    before = glance.file_requests()
    word, reason = run(site, policy, image_id, 2)
    assert word == "error", reason
    assert glance.file_requests() - before == 3
    told = (
        f"{HALF} of {len(DATA)}" if policy == "service" else f"ended {len(DATA) - HALF} bytes early"
    )
    assert told in reason
