"""Bench (g): a site's budget, shared by downloads that run at the same time.

Four hosts download the same image from Glance, each by itself, over links much faster than the site's budget.
Prints how far the bytes on Glance's interface, headers included, were from the budget over any 10 s, and how
far apart the hosts ended.

    python bench/bench_site_budget.py [--mbit 20] [--hosts 4] [--size-mib 32] [--span-s 10]
"""

from __future__ import annotations

import argparse
import sys
import threading
import time

from _site import enter_namespace, open_site


def main() -> None:
    enter_namespace()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbit", type=float, default=20)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--size-mib", type=int, default=32)
    parser.add_argument("--span-s", type=float, default=10)
    arguments = parser.parse_args()
    with open_site(arguments.hosts, 500) as site:
        site.more = f"sites:\n  bench: {{bandwidth: {arguments.mbit:g}Mbit/s}}\n"
        image_id, value = site.upload(arguments.size_mib)
        samples: list[tuple[float, int]] = []
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(0.1):
                samples.append((time.monotonic(), site.sent_bytes()))

        thread = threading.Thread(target=sample)
        thread.start()
        everyone = range(site.hosts)
        _, result, code = site.run(everyone, ["precache", "--all", "--source", "service", image_id])
        ended.set()
        thread.join()
        assert code == 0, result
        site.check_cached(everyone, image_id, value)
    # Only while the downloads run: from the first 1 % to the last 1 % of the bytes.
    total = samples[-1][1] - samples[0][1]
    busy = [s for s in samples if 0.01 * total < s[1] - samples[0][1] < 0.99 * total]
    rates = []
    for at, count in busy:
        later = next((s for s in busy if s[0] >= at + arguments.span_s), None)
        if later:
            rates.append((later[1] - count) * 8 / (later[0] - at) / 1e6)
    if not rates:
        sys.exit(f"no {arguments.span_s:g} s of downloads: give a larger --size-mib")
    durations = sorted(item["duration_s"] for item in result["outcomes"])
    print(
        f"{arguments.hosts} downloads of {arguments.size_mib} MiB, budget {arguments.mbit:g} Mbit/s:"
    )
    print(
        f"  any {arguments.span_s:g} s: {min(rates):.2f} to {max(rates):.2f} Mbit/s on Glance's interface"
    )
    worst = max(abs(rate / arguments.mbit - 1) for rate in rates)
    print(f"  farthest from the budget: {worst:.1%} (target 5 %)")
    print(f"  first and last host ended after {durations[0]:.1f} and {durations[-1]:.1f} s")


if __name__ == "__main__":
    main()
