"""Bench (b): one host, one big raw image from a web server on loopback, against curl, tee and sha512sum.

Runs the helper as a host would (`python3 -I`), with no SSH between, so that only its own work counts:
download, digest, inspection, sync, publish. The yardstick does the same with a pipe:
`curl | tee FILE | sha512sum`, and a sync of FILE. Prints the ratio of wall times, pair by pair, and the
helper's peak memory.

    python bench/bench_fetch.py [--size-mib 1024] [--rounds 5] [--folder DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from _skip import skip

from imgcache.drivers.libvirt import FETCH_MODULES, WARM_MODULES
from imgcache.drivers.transfer import DEFAULT_LIMITS
from imgcache.model import Host, HostSettings
from imgcache.operations.feeds import MIN_RATE
from imgcache.transport.conversation import start_conversation
from imgcache.transport.local import LocalTransport

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def serve(path: Path) -> Iterator[str]:
    """Serve one file over HTTP from a process of its own (sendfile); gives its URL."""
    script = (
        "import http.server, os, sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "  def do_GET(self):\n"
        "    with open(sys.argv[1], 'rb') as f:\n"
        "      size = os.fstat(f.fileno()).st_size\n"
        "      self.send_response(200); self.send_header('Content-Length', str(size)); self.end_headers()\n"
        "      self.wfile.flush(); at = 0\n"
        "      while at < size: at += os.sendfile(self.connection.fileno(), f.fileno(), at, 1 << 24)\n"
        "  def log_message(self, *a): pass\n"
        "s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), H)\n"
        "print(s.server_port, flush=True); s.serve_forever()\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}/image"
    finally:
        server.terminate()
        server.wait(10)


def make_image(path: Path, size_mib: int) -> str:
    """Write random bytes; return their SHA-512."""
    digest = hashlib.sha512()
    with path.open("wb") as file:
        for _ in range(size_mib):
            block = os.urandom(1 << 20)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def curl_tee(url: str, target: Path, value: str) -> float:
    """Time the yardstick: the same bytes fetched, written, hashed and synced."""
    start = time.monotonic()
    command = (
        f"set -o pipefail; curl -sS --no-buffer {url} | tee {target} | sha512sum && sync {target}"
    )
    done = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True)
    elapsed = time.monotonic() - start
    assert done.stdout.split()[0] == value
    target.unlink()
    return elapsed


class Memory(threading.Thread):
    """Watches the greatest resident size of a process, in MiB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak_mib = pid, 0.0

    def run(self) -> None:
        while True:
            try:
                status = Path(f"/proc/{self.pid}/status").read_text()
            except OSError:
                return
            for line in status.splitlines():
                if line.startswith("VmHWM"):
                    self.peak_mib = max(self.peak_mib, int(line.split()[1]) / 1024)
            time.sleep(0.05)


async def fetch(url: str, folder: Path, size: int, value: str) -> tuple[float, float]:
    """Time the helper from `fetch` to its answer; returns seconds and its peak MiB."""
    image_id = str(uuid.uuid4())
    base = hashlib.sha1(image_id.encode()).hexdigest()
    settings = HostSettings(transport="local", instances_path=str(folder), images_type="qcow2")
    host = Host("bench", "bench", None, None, settings)
    async with start_conversation(LocalTransport(), host, WARM_MODULES) as talk:
        opened = talk.order(
            "open",
            settings={
                "instances_path": str(folder),
                "cache_subdirectory": "_base",
                "force_raw_images": True,
                "images_type": "qcow2",
                "nova_conf": [],
            },
        )
        await talk.result(opened, timeout_s=30)
        talk.load(FETCH_MODULES)
        memory = Memory(talk.hello.pid)
        memory.start()
        start = time.monotonic()
        order = talk.order(
            "fetch",
            base=base,
            image={
                "id": image_id, "name": "bench", "size": size, "disk_format": "raw", "virtual_size": None,
                "digest": {"algo": "sha512", "value": value},
            },
            source={"kind": "service", "url": url, "token": None, "ca_pem": None, "insecure": False},
            limits={**DEFAULT_LIMITS, "min_rate": MIN_RATE, "rate": None, "reserve": 0},
            serve=None,
            tool="bench",
            run="bench",
        )  # fmt: skip
        async with talk.keep_alive():
            await talk.result(order, timeout_s=60)
        elapsed = time.monotonic() - start
    (folder / "_base" / base).unlink()
    return elapsed, memory.peak_mib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write; default a temporary folder"
    )
    arguments = parser.parse_args()
    if not shutil.which("curl"):
        skip("curl is missing")
    with tempfile.TemporaryDirectory(prefix="imgcache-bench-", dir=arguments.folder) as name:
        folder = Path(name)
        image = folder / "image.raw"
        value = make_image(image, arguments.size_mib)
        ours, theirs, peak = [], [], 0.0
        with serve(image) as url:
            for _ in range(arguments.rounds):
                theirs.append(curl_tee(url, folder / "copy", value))
                elapsed, memory = asyncio.run(fetch(url, folder, image.stat().st_size, value))
                ours.append(elapsed)
                peak = max(peak, memory)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"{arguments.size_mib} MiB raw, median of {arguments.rounds}:")
    print(f"  helper            {statistics.median(ours):6.2f} s, peak {peak:.0f} MiB")
    print(f"  curl|tee|sha512   {statistics.median(theirs):6.2f} s")
    print(f"  helper / curl|tee|sha512sum: {ratio:.2f} (target 1.1)")


if __name__ == "__main__":
    main()
