"""Bench: one helper lets one other host read an image, on loopback, with TLS 1.3 and without.

The helper runs as on a host (`python3 -I`), with no SSH between. The reader is a process of its own, the same
for all, which throws the bytes away. Yardsticks: a bare sendfile() server without TLS, and with TLS
`openssl s_server -WWW`. Prints rates, the server's processor time per GiB, and ratios, all medians.

    python bench/bench_relay_host.py [--size-mib 1024] [--rounds 5] [--folder DIR]
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helper.controller import Controller, base_name
from imgcache.transport.relay_certificate import make_certificate
from imgcache.transport.relay_secret import RelayKey

if TYPE_CHECKING:
    from collections.abc import Iterator

#: port, path, a header, whether TLS; prints the seconds from the request to the last byte.
READER = """
import socket, ssl, sys, time
port, path, header, kind, size = sys.argv[1:]
port, tls, size = int(port), kind == "tls", int(size)
sock = socket.create_connection(("127.0.0.1", port))
if tls:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    sock = context.wrap_socket(sock)
buffer, count, start = memoryview(bytearray(1 << 20)), 0, time.monotonic()
sock.sendall(("GET %s HTTP/1.1\\r\\n%s\\r\\n\\r\\n" % (path, header)).encode())
while count < size:
    got = sock.recv_into(buffer)
    if not got:
        sys.exit("only %d bytes came" % count)
    count += got
print(time.monotonic() - start)
"""
SENDFILE = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    sock, _ = listener.accept()
    sock.recv(65536)
    with open(sys.argv[1], "rb") as file, sock:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            at += os.sendfile(sock.fileno(), file.fileno(), at, 1 << 24)
"""


def cpu_s(pid: int) -> float:
    """Return a process's processor time so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read(pid: int, port: int, path: str, header: str, kind: str, size: int) -> tuple[float, float]:
    """Read once; return MB/s and the server's processor seconds per GiB."""
    before = cpu_s(pid)
    done = subprocess.run(
        [sys.executable, "-I", "-c", READER, str(port), path, header, kind, str(size)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return size / float(done.stdout) / 1e6, (cpu_s(pid) - before) * (1 << 30) / size


@contextmanager
def helper(folder: Path, image: dict, kind: str) -> Iterator[tuple[int, int, str, RelayKey]]:
    """Run a helper that serves the final of ``image``."""
    key = RelayKey()
    cert_pem, key_pem = make_certificate()
    with Controller() as controller:
        controller.load("conf", "cache", "watch", "staging", "offers", "relay")
        controller.open(folder)
        order = controller.order(
            "relay", address="127.0.0.1", ports=None, max_readers=2,
            cert_pem=cert_pem if kind == "tls" else None,
            key_pem=key_pem.reveal() if kind == "tls" else None,
        )  # fmt: skip
        port = controller.result(order)["port"]
        base = base_name(image["id"])
        serving = controller.order("serve", base=base, image=image, name="it", key=key.hex.reveal())
        assert controller.result(serving)["state"] == "serving"
        yield controller.process.pid, port, "/it", key


@contextmanager
def sendfile_server(path: Path) -> Iterator[tuple[int, int, str, None]]:
    """Run the yardstick without TLS."""
    server = subprocess.Popen(
        [sys.executable, "-I", "-c", SENDFILE, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield server.pid, int(server.stdout.readline()), "/", None
    finally:
        server.kill()
        server.communicate()


@contextmanager
def openssl_server(path: Path, folder: Path) -> Iterator[tuple[int, int, str, None]]:
    """Run the yardstick with TLS."""
    cert_pem, key_pem = make_certificate()
    (folder / "server.pem").write_text(cert_pem + key_pem.reveal())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", folder / "server.pem",
         "-tls1_3", "-WWW", "-quiet"],
        cwd=path.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        yield server.pid, port, f"/{path.name}", None
    finally:
        server.kill()
        server.wait()


def measure(
    server: tuple[int, int, str, RelayKey | None], kind: str, size: int
) -> tuple[float, float]:
    """Read once from a server."""
    pid, port, path, key = server
    header = f"X-Auth-Token: {key.ticket('it').reveal()}" if key else "Host: x"
    return read(pid, port, path, header, kind, size)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    size = options.size_mib << 20
    image = {
        "id": "00000000-0000-4000-8000-000000000000", "name": "bench", "size": size, "disk_format": "raw",
        "virtual_size": size, "digest": {"algo": "sha512", "value": "0" * 128},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        path = folder / "_base" / base_name(image["id"])
        path.parent.mkdir()
        with path.open("wb") as file:
            for _ in range(options.size_mib):
                file.write(os.urandom(1 << 20))
        with (
            helper(folder, image, "plain") as plain,
            helper(folder, image, "tls") as tls,
            sendfile_server(path) as bare,
        ):
            servers = {
                "sendfile, bare": (bare, "plain"),
                "helper, plain": (plain, "plain"),
                "helper, TLS 1.3": (tls, "tls"),
            }
            found: dict[str, list[tuple[float, float]]] = {}
            for _ in range(options.rounds):
                for label, (server, kind) in servers.items():
                    found.setdefault(label, []).append(measure(server, kind, size))
                if shutil.which("openssl"):
                    with openssl_server(path, folder) as other:
                        found.setdefault("openssl s_server", []).append(measure(other, "tls", size))
    show(found)


def show(found: dict[str, list[tuple[float, float]]]) -> None:
    """Print the table and the ratios."""
    medians = {
        label: tuple(statistics.median(column) for column in zip(*rows, strict=True))
        for label, rows in found.items()
    }
    print(f"one reader on loopback, medians of {len(found['helper, plain'])}")
    for label, (rate, cpu) in medians.items():
        print(f"  {label:<18} {rate:7.0f} MB/s   {cpu:5.2f} s of processor per GiB")
    for ours, theirs in (
        ("helper, plain", "sendfile, bare"),
        ("helper, TLS 1.3", "openssl s_server"),
    ):
        if theirs in medians:
            print(f"  {ours} / {theirs}: {medians[ours][0] / medians[theirs][0]:.2f}")


if __name__ == "__main__":
    main()
