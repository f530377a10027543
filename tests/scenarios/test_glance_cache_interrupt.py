"""A Glance node that says nothing does not hold up who interrupts the run."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from pathlib import Path


def test_an_interrupt_does_not_wait_for_a_silent_node(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        inventory = {
            "image_service": {"endpoint": "http://127.0.0.1:1"},
            "aggregates": {
                "nodes": {"driver": "glance-cache", "hosts": [{"name": "g1", "endpoint": url}]}
            },
        }
        path = tmp_path / "inventory.yaml"
        path.write_text(yaml.safe_dump(inventory))
        words = ["--inventory", str(path), "status", "--all", "-f", "json"]
        process = subprocess.Popen(
            [sys.executable, "-m", "imgcache", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            connection, _ = silent.accept()
            with connection:
                connection.settimeout(60)
                assert connection.recv(1000).startswith(b"GET /v2/cache ")
                process.send_signal(signal.SIGINT)
                # far less than the minute for which an answer would be waited
                out, err = process.communicate(timeout=40)
        finally:
            process.kill()
            process.wait(10)
    assert process.returncode == 130, err
    assert '"skipped"' in out
