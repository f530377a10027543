"""Every benchmark runs, with sizes that measure nothing: what nobody runs breaks unseen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"

#: Script -> options that keep it short.
TINY = {
    "bench_dead_hosts": "--hosts 20 --concurrency 4",
    "bench_fetch": "--size-mib 2 --rounds 1",
    "bench_life_fleet": "--hosts 2,3 --entries 5",
    "bench_life_host": "--entries 20 --instances 4 --size-mib 2",
    "bench_relay_host": "--size-mib 2 --rounds 1",
    "bench_relay_site": "--rounds 1 --hosts 3,4 --size-mib 16,4",
    "bench_site_budget": "--mbit 20 --hosts 2 --size-mib 4 --span-s 1",
    "bench_startup": "--rounds 1",
    "bench_warm_hosts": "--hosts 3 --rounds 1 --concurrency 2",
}


def test_every_benchmark_has_its_smoke_run() -> None:
    assert sorted(path.stem for path in BENCH.glob("bench_*.py")) == sorted(TINY)


@pytest.mark.long
@pytest.mark.openstack
@pytest.mark.sshd
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_runs_to_its_end(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / f"{name}.py"), *TINY[name].split()],
        capture_output=True, text=True, check=False, timeout=300, stdin=subprocess.DEVNULL,
        cwd=BENCH.parent, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    if done.stderr.startswith("skipped: "):
        pytest.skip(done.stderr.strip())
    assert "Traceback" not in told
    assert done.stdout.strip()
