"""Bench: what dead hosts cost the others. A tenth refuses, is a black hole, or hangs after the login.

Prints how long it takes until the last good host has ended, with the dead ones among them and without, all
of them warm; and the ratio.

    python bench/bench_dead_hosts.py [--hosts 1000] [--rounds 1] [--concurrency 10]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from _sshd import enter_namespace, sshd
from bench_warm_hosts import prepare

#: The inventory's default, ``connect_timeout_s``.
CONNECT_DEADLINE_S = 20.0
#: Nobody listens here.
DEAD_PORT = 2223


def black_holes() -> None:
    """Let everything that is sent to 10.99.0.0/16 vanish without an answer."""
    for command in (
        ["ip", "link", "add", "hole", "type", "veth", "peer", "name", "nowhere"],
        ["ip", "link", "set", "nowhere", "up"],
        ["ip", "addr", "add", "10.99.0.1/16", "dev", "hole"],
        ["ip", "link", "set", "hole", "up", "arp", "off"],
    ):
        subprocess.run(command, check=True)


def write_inventories(folder: Path, hosts: int) -> None:
    """Write one with all hosts, each tenth of them dead, and one without the dead."""
    hang = folder / "hang"
    hang.write_text("#!/bin/sh\nexec cat >/dev/null\n")
    hang.chmod(0o755)
    lines = (folder / "inventory.yaml").read_text().splitlines(keepends=True)
    head = [line for line in lines if "{name: h" not in line]
    good, mixed = [], []
    for number, line in enumerate(line for line in lines if "{name: h" in line):
        if number % 10 != 3:
            good.append(line)
            mixed.append(line)
            continue
        inside = line.rstrip().removesuffix("}")
        kind = (number // 10) % 3
        if kind == 0:
            mixed.append(f"{inside}, port: {DEAD_PORT}}}\n")
        elif kind == 1:
            path = f"{folder}/hosts/{number}"
            hole = f"10.99.{number // 250}.{number % 250 + 2}"
            mixed.append(
                f"      - {{name: h{number:04}, address: {hole}, instances_path: {path}}}\n"
            )
        else:
            mixed.append(f"{inside}, python: {hang}}}\n")
    (folder / "good.yaml").write_text("".join(head + good))
    (folder / "mixed.yaml").write_text("".join(head + mixed))


def run(folder: Path, inventory: str, concurrency: int) -> tuple[float, float, int]:
    """Return seconds until the last good host has ended, and until the run has; and the good hosts."""
    log = folder / f"{inventory}.log"
    log.unlink(missing_ok=True)
    environment = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    begin, clock = time.time(), time.monotonic()
    done = subprocess.run(
        [
            sys.executable, "-m", "imgcache", "--inventory", str(folder / f"{inventory}.yaml"),
            "precache", "--all", "--concurrency", str(concurrency), "-q", "-f", "json", "tiny",
            "--log-file", str(log),
        ],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    total = time.monotonic() - clock
    if done.returncode not in {0, 1}:
        sys.exit(f"imgcache exited with {done.returncode}:\n{done.stderr}")
    ends = [line for line in log.read_text().splitlines() if line.endswith(" done")]
    last = max(datetime.fromisoformat(line.split()[0]).timestamp() for line in ends)
    return last - begin, total, len(ends)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=10)
    arguments = parser.parse_args()
    enter_namespace()
    black_holes()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    with tempfile.TemporaryDirectory(prefix="imgcache-bench-") as name:
        folder = Path(name)
        prepare(folder, arguments.hosts)
        write_inventories(folder, arguments.hosts)
        figures: dict[str, list[tuple[float, float, int]]] = {"good": [], "mixed": []}
        with sshd(folder, arguments.hosts):
            for _ in range(arguments.rounds):
                for inventory, found in figures.items():
                    found.append(run(folder, inventory, arguments.concurrency))
    show(figures, arguments)


def show(figures: dict[str, list[tuple[float, float, int]]], arguments: argparse.Namespace) -> None:
    alone = statistics.median(one[0] for one in figures["good"])
    among = statistics.median(one[0] for one in figures["mixed"])
    total = statistics.median(one[1] for one in figures["mixed"])
    good, ended = figures["good"][0][2], figures["mixed"][0][2]
    print(
        f"{arguments.hosts} hosts, {arguments.hosts - good} of them dead, {arguments.concurrency} at a time:"
    )
    print(f"  {good} good hosts alone: {alone:.1f} s until the last has ended")
    print(
        f"  {ended} good hosts among dead ones: {among:.1f} s; {total:.1f} s until the run has ended"
    )
    print(
        f"  ratio {among / alone:.2f}; target: the run within {1.15 * alone + CONNECT_DEADLINE_S:.1f} s"
    )


if __name__ == "__main__":
    main()
