"""Whole processes whose hosts read from each other, ended in the middle; and the runs after them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scenarios.faults_site import (
    helpers_below,
    local_fleet,
    outcomes,
    scripted_glance,
    staging_files,
    started,
    wait_until,
)
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from servers.fleet_fixtures import Fleet

DATA = os.urandom(3_000_000)
HALF = 1_500_000
NAMES = tuple(f"edge1-{number:02}" for number in range(1, 5))


def all_have_some(site: Fleet) -> bool:
    """Whether every host has a part of the image."""
    return all(any(path.stat().st_size for path in staging_files(site, name)) for name in NAMES)


@pytest.mark.row("C1")
@pytest.mark.row("C2")
@pytest.mark.row("C3")
@pytest.mark.parametrize(("name", "status"), [("INT", 130), ("TERM", 143), ("KILL", -9)])
def test_hosts_that_read_from_each_other_end_with_the_controller(
    tmp_path: Path, name: str, status: int
) -> None:
    with scripted_glance() as glance:
        site = local_fleet(tmp_path, glance.settings, hosts=4)
        site.server.addresses = ("127.0.0.1",) * len(NAMES)
        image_id = glance.add(DATA, http.stall_after(HALF), http.serve())
        argv = ("precache", "--all", "--source", "relay", image_id, "-f", "json")
        with started(site, *argv) as process:
            wait_until(lambda: all_have_some(site))
            helpers = helpers_below(process.pid)
            assert len(helpers) >= len(NAMES)
            process.send_signal(getattr(signal, f"SIG{name}"))
            stdout, stderr = process.communicate(timeout=30)
            assert process.returncode == status
        if name != "KILL":
            assert "Traceback" not in stderr
            ended = {(one["host"], one["outcome"], one["code"]) for one in outcomes(stdout)}
            assert ended == {(one, "unknown", "interrupted") for one in NAMES}
        wait_until(lambda: not [pid for pid in helpers if Path(f"/proc/{pid}").exists()], 20)
        assert not [one for one in NAMES if site.final(one, image_id).exists()]

        asked = glance.file_requests()
        again = site.run(*argv)
        assert again.returncode == 0, again.stderr
        assert {one["outcome"] for one in outcomes(again.stdout)} == {"cached"}
        assert all(site.final(one, image_id).read_bytes() == DATA for one in NAMES)
        assert not [left for one in NAMES for left in site.leftovers(one)]
        assert glance.file_requests() == asked + 1
        last = [one for one in glance.server.requests if one.target.endswith("/file")][-1]
        assert (last.offset or 0) > 0
