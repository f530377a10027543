"""Bench (a): a run over hosts that have everything, against the least that could be done.

Prints ratios: controller CPU and wall time of `imgcache precache` over a bare asyncssh connect and
exec, over clush, and over pssh, all on the same hosts in turn; and the controller's peak memory.

    python bench/bench_warm_hosts.py [--hosts 1000] [--rounds 3] [--concurrency 10]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from _sshd import PORT, address, enter_namespace, sshd

IMAGE_ID = str(uuid.UUID(int=0x1234567812345678))


@dataclass
class Figures:
    wall_s: float
    cpu_s: float
    peak_mib: float


def measure(command: list[str], environment: dict[str, str]) -> Figures:
    """Run a command; its own CPU and memory, its children's and the hosts' not included."""
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    output, errors = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(
            f"{command[:3]} exited with {process.returncode}:\n{output.decode()}{errors.decode()}"
        )
    return Figures(
        time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    )


def prepare(folder: Path, hosts: int) -> None:
    """Write the inventory and give every host a folder with the image already cached."""
    images = folder / "images"
    images.mkdir()
    content = b"\0" * 65536
    (images / "tiny.raw").write_bytes(content)
    (images / "images.yaml").write_text(
        f"images:\n  - {{id: {IMAGE_ID}, name: tiny, file: tiny.raw, disk_format: raw,"
        f" sha512: {hashlib.sha512(content).hexdigest()}}}\n"
    )
    base = hashlib.sha1(IMAGE_ID.encode()).hexdigest()
    lines = []
    for number in range(hosts):
        cache = folder / "hosts" / str(number) / "_base"
        cache.mkdir(parents=True)
        (cache / base).write_bytes(content)
        lines.append(
            f"      - {{name: h{number:04}, address: {address(number)}, instances_path: {cache.parent}}}\n"
        )
    (folder / "inventory.yaml").write_text(
        "image_service: {kind: directory, path: images/}\n"
        f"defaults: {{user: root, port: {PORT}, ssh_key: {folder}/user_key, "
        f"known_hosts: {folder}/known_hosts, reserve: 0, force_raw_images: true, images_type: qcow2}}\n"
        "aggregates:\n  warm:\n    hosts:\n" + "".join(lines)
    )
    (folder / "targets").write_text("".join(f"{address(number)}\n" for number in range(hosts)))


def contenders(folder: Path, hosts: int, concurrency: int) -> dict[str, list[str]]:
    here = Path(__file__).parent
    ssh_options = [
        "-oBatchMode=yes", f"-oUserKnownHostsFile={folder}/known_hosts", f"-oIdentityFile={folder}/user_key",
        f"-oPort={PORT}",
    ]  # fmt: skip
    found: dict[str, list[str]] = {
        "imgcache": [
            sys.executable, "-m", "imgcache", "--inventory", str(folder / "inventory.yaml"), "precache",
            "--aggregate", "warm", "--concurrency", str(concurrency), "-q", "-f", "json", "tiny",
        ],
        "bare asyncssh": [
            sys.executable, str(here / "bare_connect.py"), str(folder), str(hosts), str(concurrency),
        ],
    }  # fmt: skip
    if shutil.which("clush"):
        found["clush"] = [
            "clush", "-q", "-S", "-f", str(concurrency), "-l", "root", "-o", " ".join(ssh_options),
            "--hostfile", str(folder / "targets"), "python3 -I -c pass",
        ]  # fmt: skip
    if shutil.which("parallel-ssh"):
        options = [part for option in ssh_options for part in ("-O", option[2:])]
        found["pssh"] = [
            "parallel-ssh", "-p", str(concurrency), "-l", "root", *options, "-h", str(folder / "targets"),
            "python3 -I -c pass",
        ]  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=10)
    parser.add_argument("--only", default="", help="comma-separated contenders")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    enter_namespace()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    with tempfile.TemporaryDirectory(prefix="imgcache-bench-") as name:
        folder = Path(name)
        prepare(folder, arguments.hosts)
        environment = {**os.environ, "HOME": name, "XDG_CONFIG_HOME": name}
        commands = contenders(folder, arguments.hosts, arguments.concurrency)
        if arguments.only:
            commands = {key: commands[key] for key in arguments.only.split(",")}
        figures: dict[str, list[Figures]] = {key: [] for key in commands}
        with sshd(folder, arguments.hosts):
            for _ in range(arguments.rounds):
                for key, command in commands.items():
                    figures[key].append(measure(command, environment))
    show(figures, arguments)


def show(figures: dict[str, list[Figures]], arguments: argparse.Namespace) -> None:
    def middle(key: str, field: str) -> float:
        return statistics.median(getattr(item, field) for item in figures[key])

    print(
        f"{arguments.hosts} warm hosts, {arguments.concurrency} at a time, median of {arguments.rounds}:"
    )
    for key in figures:
        print(
            f"  {key:14} wall {middle(key, 'wall_s'):7.2f} s  controller CPU {middle(key, 'cpu_s'):6.2f} s"
            f"  peak {middle(key, 'peak_mib'):5.0f} MiB"
        )
    for key, theirs_all in figures.items():
        if key == "imgcache":
            continue
        ratios = {
            field: statistics.median(
                getattr(ours, field) / getattr(theirs, field)
                for ours, theirs in zip(figures["imgcache"], theirs_all, strict=True)
            )
            for field in ("wall_s", "cpu_s")
        }
        print(
            f"  imgcache / {key}: wall {ratios['wall_s']:.2f}, controller CPU {ratios['cpu_s']:.2f}"
        )
    if arguments.json:
        print(json.dumps({key: [vars(item) for item in items] for key, items in figures.items()}))


if __name__ == "__main__":
    main()
