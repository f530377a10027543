"""Bench (f): one image to all hosts of a site, host to host, over links of a given rate.

Every host is a network namespace with its own sshd; `tc` limits each host's link, and Glance's, to the same
rate. Prints, side by side from one run: the time until all have the image against one host alone, the bytes
that left Glance's interface, BitTorrent (aria2) with the same bytes, and a host that vanishes in the middle.
With `--plot FILE` it draws what each host had at what time.

    python bench/bench_relay_site.py [--rounds 3] [--only hosts8,hosts32,torrent,lost] [--plot docs/relay.svg]

`--hosts` and `--size-mib` take two numbers: for the smaller site with faster links, and for the bigger one.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from _plot import draw
from _site import enter_namespace, open_site
from _torrent import bittorrent_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _site import Site

ALONE = ["--source", "service"]
RELAY = ["--source", "relay"]


class Watcher(threading.Thread):
    """Notes how many bytes each host has, ten times a second."""

    def __init__(self, site: Site, numbers: Sequence[int]) -> None:
        super().__init__(daemon=True)
        self.site, self.numbers = site, numbers
        self.series: dict[int, list[tuple[float, int]]] = {number: [] for number in numbers}
        self.ended = threading.Event()
        self.start_at = time.monotonic()

    def run(self) -> None:
        while not self.ended.wait(0.1):
            at = time.monotonic() - self.start_at
            for number in self.numbers:
                self.series[number].append((at, self.bytes_of(number)))

    def bytes_of(self, number: int) -> int:
        cache = self.site.instances(number) / "_base"
        files = [*cache.glob(".imgcache/*.staging"), *cache.glob("?" * 40)]
        sizes = [0]
        for file in files:
            try:
                sizes.append(file.stat().st_size)
            except OSError:
                continue
        return max(sizes)


def one_run(
    site: Site, numbers: Sequence[int], image: tuple[str, str], options: Sequence[str]
) -> tuple[float, float]:
    """Fill the caches of these hosts; return seconds, and bytes sent by Glance / bytes of the image."""
    image_id, value = image
    site.clear()
    before = site.sent_bytes()
    elapsed, result, code = site.run(numbers, ["precache", "--all", *options, image_id])
    sent = site.sent_bytes() - before
    bad = [item for item in result["outcomes"] if item["outcome"] != "cached"]
    assert not bad, bad
    assert code == 0
    site.check_cached(numbers, image_id, value)
    size = site.glance.stored(image_id).stat().st_size
    return elapsed, sent / size


def compare(site: Site, mib: int, rounds: int, target: float, plot: Path | None) -> float:
    """One host alone against all of the site; returns the median time of all."""
    image = site.upload(mib)
    everyone = range(site.hosts)
    ratios, alone, together, sent = [], [], [], []
    for number in range(rounds):
        alone.append(one_run(site, [0], image, ALONE)[0])
        watcher = Watcher(site, everyone)
        watcher.start()
        elapsed, share = one_run(site, everyone, image, RELAY)
        watcher.ended.set()
        together.append(elapsed)
        sent.append(share)
        ratios.append(elapsed / alone[-1])
        if plot and number == rounds - 1:
            watcher.join()
            draw(plot, watcher.series, mib << 20, alone[-1])
    print(f"{site.hosts} hosts, {site.mbit:g} Mbit/s, {mib} MiB, median of {rounds}:")
    print(f"  one host alone    {statistics.median(alone):6.2f} s")
    print(f"  all hosts         {statistics.median(together):6.2f} s")
    print(f"  all / one: {statistics.median(ratios):.2f} (target {target})")
    print(f"  bytes from Glance / image: {max(sent):.3f} (target 1.06)", flush=True)
    return statistics.median(together)


def torrent(site: Site, mib: int, rounds: int) -> None:
    if not shutil.which("aria2c"):
        print("skipped: aria2 is missing")
        return
    image_id, value = site.upload(mib)
    seed = site.folder / "seed" / "image.raw"
    seed.parent.mkdir(exist_ok=True)
    shutil.copy(site.glance.stored(image_id), seed)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(one_run(site, range(site.hosts), (image_id, value), RELAY)[0])
        site.clear()
        theirs.append(bittorrent_s(site, seed, value))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"  BitTorrent        {statistics.median(theirs):6.2f} s")
    print(f"  ours / BitTorrent: {ratio:.2f} (target below 1)", flush=True)


def last_end_s(site: Site, mib: int, lost: int | None, how: str) -> float:
    """Return when the last of the hosts that stay was done; ``lost`` vanishes at 40 %."""
    image_id, value = site.upload(mib)
    site.clear()
    everyone = range(site.hosts)
    watcher = Watcher(site, everyone)
    child = site.start(everyone, ["precache", "--all", *RELAY, "--retries", "1", image_id])
    stay = [number for number in everyone if number != lost]
    start = time.monotonic()
    ends: dict[int, float] = {}
    gone = lost is None
    while len(ends) < len(stay):
        time.sleep(0.05)
        if not gone and lost is not None and watcher.bytes_of(lost) > 0.4 * (mib << 20):
            (site.cut_off if how == "cut off" else site.kill)(lost)
            gone = True
        for number in stay:
            final = list((site.instances(number) / "_base").glob("?" * 40))
            if number not in ends and final:
                ends[number] = time.monotonic() - start
        if time.monotonic() - start > 300:
            child.kill()
            sys.exit(f"hosts never ended:\n{(site.folder / 'stderr').read_text()[-3000:]}")
    child.terminate()
    child.communicate(timeout=60)
    if lost is not None and how == "cut off":
        site.reconnect(lost)
    site.check_cached(stay, image_id, value)
    return max(ends.values())


def lost_host(site: Site, mib: int, rounds: int) -> None:
    middle = site.hosts // 2
    for how in ("killed", "cut off"):
        pairs = []
        for _ in range(rounds):
            undisturbed = last_end_s(site, mib, None, how)
            pairs.append((undisturbed, last_end_s(site, mib, middle, how)))
        ratio = statistics.median(b / a for a, b in pairs)
        print(
            f"  one of {site.hosts} {how} at 40 %: the others end in {ratio:.2f} x (target 1.3)",
            flush=True,
        )


def main() -> None:
    enter_namespace()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="hosts8,hosts32,torrent,lost")
    parser.add_argument("--hosts", type=_pair, default=(8, 32))
    parser.add_argument("--size-mib", type=_pair, default=(256, 64))
    parser.add_argument("--plot", type=Path, default=None)
    parser.add_argument("--folder", type=Path, default=None, help="where the caches are")
    arguments = parser.parse_args()
    wanted = set(arguments.only.split(","))
    (few, many), (big, small) = arguments.hosts, arguments.size_mib
    if wanted & {"hosts8", "torrent", "lost"}:
        with open_site(few, 200, arguments.folder) as site:
            if "hosts8" in wanted:
                compare(site, big, arguments.rounds, 1.15, arguments.plot)
            if "torrent" in wanted:
                torrent(site, big, arguments.rounds)
            if "lost" in wanted:
                lost_host(site, big, arguments.rounds)
    if "hosts32" in wanted:
        with open_site(many, 50, arguments.folder) as site:
            compare(site, small, arguments.rounds, 1.35, None)


def _pair(text: str) -> tuple[int, int]:
    few, many = text.split(",")
    return int(few), int(many)


if __name__ == "__main__":
    main()
