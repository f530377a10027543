"""Bench (d): a host with 10,000 cache entries and 2,000 instance folders, seen by one helper.

Runs the helper as a host would (`python3 -I`), with no SSH between: `list` with formats and use, `list` again
(headers are remembered), and the removal of 100 entries, each with all evidence gathered anew under Nova's
locks. Then a verify of one big file against `sha512sum`. Prints times, ratios, and the helper's peak memory.

    python bench/bench_life_host.py [--entries 10000] [--instances 2000] [--size-mib 1024] [--folder DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helper.life.tree import Life, Tree, item, sha1

OLD = time.time() - 3 * 86400


def build(tree: Tree, entries: int, instances: int) -> None:
    """Make a host's files: raw bases with manifests, instances with overlays on every tenth base."""
    names = [sha1(f"image-{number}") for number in range(entries)]
    for name in names:
        path = tree.cache / name
        with path.open("wb") as file:
            file.write(os.urandom(4096))
            file.truncate(64 << 20)
        os.utime(path, (OLD, OLD))
        stored = {"algo": "sha512", "value": "0" * 128, "size": 64 << 20, "format": "raw"}
        manifest = {
            "version": 1, "image_id": name, "image_name": f"image {name}", "base": name,
            "digest": {"algo": "sha512", "value": "0" * 128, "weak": False}, "stored": stored,
            "disk_format": "raw", "source": "service", "tool": "imgcache", "run": "r",
            "cached_at": "2026-11-20T07:00:00Z", "touched_at": None, "verified_at": None, "pin": None,
        }  # fmt: skip
        (tree.own / f"{name}.json").write_text(json.dumps(manifest))
    for number in range(instances):
        folder = tree.instances / f"{number:08d}-0000-4000-8000-000000000000"
        folder.mkdir()
        backing = str(tree.cache / names[number * 10 % entries]).encode()
        header = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 512, len(backing), 16, 64 << 20)
        for disk in ("disk", "disk.eph0"):
            with (folder / disk).open("wb") as file:
                file.write(header.ljust(512, b"\0") + backing)
                file.truncate(256 << 10)
        (folder / "disk.config").write_bytes(bytes(400 << 10))
        (folder / "disk.info").write_text('{"disk": "qcow2"}')
        (folder / "console.log").write_bytes(b"login:\n" * 1000)
        for path in folder.iterdir():
            os.utime(path, (OLD, OLD))


def peak_mib(life: Life) -> float:
    """Return the helper's peak memory so far, MiB."""
    text = Path(f"/proc/{life.process.pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


def cpu_s(life: Life) -> float:
    """Return the helper's processor time so far, seconds."""
    fields = Path(f"/proc/{life.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(life: Life, name: str, work: object) -> object:
    """Run and print how long it took, the wait for this script included, and the helper's own work."""
    began, before = time.monotonic(), cpu_s(life)
    result = work()  # type: ignore[operator]
    wall, own = time.monotonic() - began, cpu_s(life) - before
    print(f"{name:<34} {wall:6.2f} s, {own:5.2f} s of it the helper's processor time")
    return result


def bench_list(tree: Tree) -> None:
    """Time the orders that look at everything."""
    with Life(python="python3") as life:
        life.result(life.start_id)
        life.start_on(tree.instances)
        rows, facts = timed(life, "list with formats and use", life.look)
        assert not facts["problems"], facts["problems"]
        print(f"{len(rows)} rows, {sum(bool(row['users']) for row in rows.values())} in use")
        timed(life, "list with formats and use, again", life.look)
        timed(life, "list only", lambda: life.look(formats=False, use=False))
        unused = [name for name, row in rows.items() if not row["users"]][:100]
        items = [item(tree.cache / name) for name in unused]
        gone, _ = timed(life, "remove 100", lambda: life.rows(life.order("remove", items=items)))
        assert all(row["state"] == "removed" for row in gone), gone[0]
        print(f"peak memory {peak_mib(life):.1f} MiB")


def bench_verify(tree: Tree, size: int) -> None:
    """Time a verify against ``sha512sum``, the file in memory for both."""
    path = tree.image("big", b"")
    digest = hashlib.sha512()
    with path.open("wb") as file:
        for _ in range(size >> 20):
            block = os.urandom(1 << 20)
            digest.update(block)
            file.write(block)
    manifest = json.loads(tree.manifest(tree.image("small", b"x")).read_text())
    manifest["base"] = path.name
    manifest["stored"].update(value=digest.hexdigest(), size=size)
    (tree.own / f"{path.name}.json").write_text(json.dumps(manifest))
    with Life(python="python3") as life:
        life.result(life.start_id)
        life.start_on(tree.instances)
        for _ in range(3):
            began = time.monotonic()
            subprocess.run(["sha512sum", path], check=True, stdout=subprocess.DEVNULL)
            yardstick = time.monotonic() - began
            began = time.monotonic()
            answer = life.result(life.order("verify", base=path.name, rate=None), 600)
            ours = time.monotonic() - began
            assert answer["state"] == "intact", answer
            print(
                f"verify {ours:.2f} s, sha512sum {yardstick:.2f} s: {yardstick / ours:.2f} of its speed"
            )
        print(f"peak memory {peak_mib(life):.1f} MiB")


def main() -> None:
    """Build, measure, remove."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--instances", type=int, default=2_000)
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        tree = Tree(Path(folder) / "instances")
        build(tree, options.entries, options.instances)
        bench_list(tree)
        if options.size_mib:
            bench_verify(tree, options.size_mib << 20)


if __name__ == "__main__":
    main()
