"""Bench (c): how long `imgcache --help` takes, installed and as the single binary.

python bench/bench_startup.py [--rounds 15] [--binary dist/imgcache]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path


def median_ms(command: list[str], rounds: int) -> float:
    """Return the median wall time after one run that warms caches, in milliseconds."""
    times = []
    for _ in range(rounds + 1):
        start = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        times.append((time.monotonic() - start) * 1000)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--binary", type=Path, default=Path("dist/imgcache"))
    arguments = parser.parse_args()
    bare = median_ms([sys.executable, "-c", "pass"], arguments.rounds)
    installed = median_ms(
        [str(Path(sys.executable).with_name("imgcache")), "--help"], arguments.rounds
    )
    print(f"python -c pass            {bare:6.0f} ms")
    print(
        f"imgcache --help           {installed:6.0f} ms (target 150), {installed / bare:.1f} x bare Python"
    )
    if arguments.binary.exists():
        binary = median_ms([str(arguments.binary), "--help"], arguments.rounds)
        size_mib = arguments.binary.stat().st_size / 2**20
        figures = f"{binary / bare:.1f} x, {size_mib:.0f} MiB"
        print(f"{arguments.binary} --help    {binary:6.0f} ms (target 400), {figures}")
    else:
        print(f"{arguments.binary}: skipped, not built (make binary)")


if __name__ == "__main__":
    main()
