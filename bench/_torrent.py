"""The same image through BitTorrent: a torrent, a tracker, and aria2 on each host of a ``_site.Site``."""

from __future__ import annotations

import hashlib
import shutil
import socket
import struct
import subprocess
import threading
import time
import urllib.parse
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from _site import GLANCE_ADDRESS, Site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PIECE_BYTES = 1 << 20
PORT = 6881
_OPTIONS = [
    "aria2c", "--quiet", "--enable-dht=false", "--enable-peer-exchange=true", "--bt-enable-lpd=false",
    "--file-allocation=none", "--allow-overwrite=true", "--auto-save-interval=0", "--seed-time=600",
    "--seed-ratio=0", f"--listen-port={PORT}", "--bt-tracker-interval=1", "--disk-cache=32M",
    "--bt-min-crypto-level=plain", "--no-conf=true", "--follow-torrent=false", "--async-dns=false",
]  # fmt: skip


def _bencode(value: Any) -> bytes:
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    return b"d" + b"".join(_bencode(key) + _bencode(value[key]) for key in sorted(value)) + b"e"


def make_torrent(image: Path, tracker: str) -> Path:
    """Write a torrent of one file beside it."""
    pieces = bytearray()
    with image.open("rb") as file:
        while block := file.read(PIECE_BYTES):
            pieces += hashlib.sha1(block).digest()
    info = {
        "name": image.name, "piece length": PIECE_BYTES, "length": image.stat().st_size,
        "pieces": bytes(pieces),
    }  # fmt: skip
    path = image.with_suffix(".torrent")
    path.write_bytes(_bencode({"announce": tracker, "info": info}))
    return path


@contextmanager
def _tracker() -> Iterator[str]:
    """Tell every peer of all others; gives the announce URL."""
    peers: dict[bytes, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urllib.parse.parse_qs(self.path.partition("?")[2], encoding="latin-1")
            port = int(asked["port"][0])
            address = socket.inet_aton(self.client_address[0]) + struct.pack(">H", port)
            peers[asked["peer_id"][0].encode("latin-1")] = address
            others = b"".join(peer for peer in peers.values() if peer != address)
            body = _bencode({"interval": 1, "min interval": 1, "peers": others})
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((GLANCE_ADDRESS, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{GLANCE_ADDRESS}:{server.server_port}/announce"
    finally:
        server.shutdown()
        server.server_close()


def _end(child: subprocess.Popen[Any]) -> None:
    child.kill()
    child.wait(10)


def bittorrent_s(site: Site, image: Path, value: str) -> float:
    """Return how long aria2 takes until every host has the image; the seed is ready beforehand."""
    with ExitStack() as stack:
        torrent = make_torrent(image, stack.enter_context(_tracker()))
        seed = subprocess.Popen(
            [
                *_OPTIONS,
                "-V",
                f"--dir={image.parent}",
                f"--interface={GLANCE_ADDRESS}",
                str(torrent),
            ]
        )
        stack.callback(_end, seed)
        hook = image.parent / "hook"
        hook.write_text(
            '#!/bin/sh\ntouch "$(dirname "$3")/complete"\n'
        )  # aria2 calls it with the file
        hook.chmod(0o755)
        time.sleep(3)  # it hashes the file, and announces itself
        start = time.monotonic()
        for number in range(site.hosts):
            folder = site.instances(number)
            shutil.copy(torrent, folder)
            words = [*_OPTIONS, f"--dir={folder}", "--interface=data0", str(folder / torrent.name)]
            words.insert(1, f"--on-bt-download-complete={hook}")
            stack.callback(_end, site.in_namespace(number, words))
        waiting = set(range(site.hosts))
        while waiting:
            time.sleep(0.05)
            waiting = {n for n in waiting if not (site.instances(n) / "complete").exists()}
            if time.monotonic() - start > 600:
                message = f"hosts {waiting} never ended"
                raise TimeoutError(message)
        elapsed = time.monotonic() - start
    for number in range(site.hosts):
        assert (
            hashlib.sha512((site.instances(number) / image.name).read_bytes()).hexdigest() == value
        )
    return elapsed
