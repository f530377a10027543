"""Bench (e): what a controller spends per host on list, status and a dry prune, over few hosts and many.

Every host has the same number of cache entries. Prints the controller's CPU time per host, start-up taken
off, for each number of hosts: it should not grow with their number.

    python bench/bench_life_fleet.py [--hosts 20,200] [--entries 200]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

from _sshd import PORT, address, enter_namespace, sshd
from bench_warm_hosts import Figures, measure

COMMANDS = {
    "list": ["list", "--all", "-q", "-f", "json"],
    "status": ["status", "--all", "-q", "-f", "json"],
    "prune --dry-run": ["prune", "--all", "--dry-run", "-q", "-f", "json"],
}
OLD = time.time() - 3 * 86400


def prepare(folder: Path, hosts: int, entries: int) -> None:
    """Give every host a cache of old raw base files, and write the inventory."""
    (folder / "images").mkdir()
    (folder / "images" / "images.yaml").write_text("images: []\n")
    names = [hashlib.sha1(str(number).encode()).hexdigest() for number in range(entries)]
    lines = []
    for number in range(hosts):
        cache = folder / "hosts" / str(number) / "_base"
        cache.mkdir(parents=True)
        for name in names:
            with (cache / name).open("wb") as file:
                file.truncate(1 << 20)
            os.utime(cache / name, (OLD, OLD))
        lines.append(
            f"      - {{name: h{number:04}, address: {address(number)}, instances_path: {cache.parent}}}\n"
        )
    (folder / "inventory.yaml").write_text(
        "image_service: {kind: directory, path: images/}\n"
        f"defaults: {{user: root, port: {PORT}, ssh_key: {folder}/user_key, "
        f"known_hosts: {folder}/known_hosts, reserve: 0, images_type: qcow2}}\n"
        "aggregates:\n  all:\n    hosts:\n" + "".join(lines)
    )


def run(folder: Path, arguments: list[str]) -> Figures:
    program = [sys.executable, "-m", "imgcache", "--inventory", str(folder / "inventory.yaml")]
    environment = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    return measure([*program, *arguments], environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", default="20,200")
    parser.add_argument("--entries", type=int, default=200)
    arguments = parser.parse_args()
    enter_namespace()
    for hosts in (int(number) for number in arguments.hosts.split(",")):
        with tempfile.TemporaryDirectory(prefix="imgcache-bench-") as name:
            folder = Path(name)
            prepare(folder, hosts, arguments.entries)
            with sshd(folder, hosts):
                for label, command in COMMANDS.items():
                    one = run(folder, [*command[:1], "--host", "h0000", *command[2:]])
                    every = run(folder, command)
                    per_host_ms = (every.cpu_s - one.cpu_s) / (hosts - 1) * 1000
                    print(
                        f"{hosts:4} hosts x {arguments.entries} entries, {label:15} {every.wall_s:6.2f} s, "
                        f"controller {per_host_ms:5.1f} ms a host, peak {every.peak_mib:.0f} MiB"
                    )


if __name__ == "__main__":
    main()
