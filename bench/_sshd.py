"""One real sshd for thousands of loopback addresses, in a network namespace of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from _skip import skip

if TYPE_CHECKING:
    from collections.abc import Iterator

_INSIDE = "IMGCACHE_BENCH_NAMESPACE"
PORT = 2222


def enter_namespace() -> None:
    """Run this script again inside a network namespace where only loopback exists.

    There sshd may listen on every address, so one process answers for all of 127.0.0.0/8.
    """
    if os.environ.get(_INSIDE):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        # bash reads it at every login over ssh; what it does there is not what is measured.
        if (rc_file := Path.home() / ".bashrc").exists():
            subprocess.run(["mount", "--bind", "/dev/null", rc_file], check=True)
        return
    if os.geteuid() != 0:
        skip("network namespaces need root")
    environment = {**os.environ, _INSIDE: "1"}
    os.execvpe("unshare", ["unshare", "--net", "--mount", sys.executable, *sys.argv], environment)


def address(number: int) -> str:
    """Return the loopback address of host ``number``, from 0."""
    return f"127.1.{number // 250}.{number % 250 + 1}"


@contextmanager
def sshd(folder: Path, hosts: int) -> Iterator[None]:
    """Serve ``hosts`` addresses; leaves keys, config and known_hosts in ``folder``."""
    for name in ("host_key", "user_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
        )
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    config = folder / "sshd_config"
    config.write_text(
        f"Port {PORT}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "PidFile none\nUsePAM no\nStrictModes no\nMaxStartups 1000\nPasswordAuthentication no\n"
        "PrintMotd no\nLogLevel ERROR\nPermitRootLogin yes\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    lines = [f"[{address(number)}]:{PORT} {key}\n" for number in range(hosts)]
    (folder / "known_hosts").write_text("".join(lines))
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", config])
    try:
        _wait_until_up()
        yield
    finally:
        server.terminate()
        server.wait(10)


def _wait_until_up() -> None:
    for _ in range(100):
        try:
            socket.create_connection((address(0), PORT), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    sys.exit("sshd did not start")
