"""What the helper tells ``imgcache check``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import ALL, Controller
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [
    "python",
    "user",
    "config",
    "cache",
    "locks",
    "space",
    "images_type",
    "qemu-img",
    "glance",
    "nova",
]


def probe(
    helper: Controller, instances: Path, url: str | None = None, **settings: Any
) -> dict[str, Any]:
    helper.load("conf", "cache", "watch", "qemu", "download", "probe")
    given = {
        "instances_path": str(instances), "cache_subdirectory": "_base", "force_raw_images": True,
        "images_type": "qcow2", "nova_conf": None, **settings,
    }  # fmt: skip
    order = helper.order("probe", settings=given, url=url, ca_pem=None, insecure=False, reserve=0)
    checks = helper.result(order)["checks"]
    assert [check["name"] for check in checks] == NAMES
    return {check["name"]: (check["state"], check["detail"]) for check in checks}


def test_all_well(helper: Controller, instances: Path) -> None:
    with http.HttpServer() as server:
        server.route("/", b"", http.status(300))
        checks = probe(helper, instances, server.url + "/v2/images/x/file")
        assert [request.target for request in server.requests] == ["/"]
        assert server.requests[0].header("x-auth-token") is None
    states = {name: state for name, (state, _) in checks.items()}
    expected = dict.fromkeys(NAMES, "ok")
    if shutil.which("qemu-img") is None:
        expected["qemu-img"] = "warn"
    assert states == expected
    assert sorted(os.listdir(instances)) == []  # it only looks


def test_one_failure_hides_no_other(helper: Controller, tmp_path: Path) -> None:
    checks = probe(helper, tmp_path / "missing", "http://127.0.0.1:1/", images_type="rbd")
    states = {name: state for name, (state, _) in checks.items()}
    assert states["python"] == states["user"] == states["config"] == "ok"
    for name in ("cache", "locks", "space", "images_type", "glance"):
        assert states[name] == "fail", name
    assert "missing" in checks["cache"][1]


def test_no_url_is_a_warning(helper: Controller, instances: Path) -> None:
    assert probe(helper, instances)["glance"][0] == "warn"


def test_a_wrong_configuration_is_told_and_the_rest_goes_on(
    helper: Controller, instances: Path
) -> None:
    checks = probe(helper, instances, nova_conf=[str(instances / "no.conf")], images_type=None)
    assert checks["config"][0] == "fail"
    assert "no.conf" in checks["config"][1]
    assert checks["python"][0] == "ok"


def test_a_nova_compute_with_another_file_is_told(
    helper: Controller, instances: Path, tmp_path: Path
) -> None:
    conf = tmp_path / "other.conf"
    conf.write_text("[DEFAULT]\n")
    program = tmp_path / "nova-compute"
    program.write_text("import sys\nprint('up', flush=True)\nsys.stdin.read()\n")
    nova = subprocess.Popen(
        [sys.executable, program, "--config-file", "/etc/nova/else.conf"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert nova.stdin
    assert nova.stdout
    try:
        assert nova.stdout.readline() == b"up\n"
        state, detail = probe(helper, instances, nova_conf=[str(conf)], images_type=None)["nova"]
        assert (state, "/etc/nova/else.conf" in detail, str(conf) in detail) == ("warn", True, True)
        assert probe(helper, instances)["nova"][0] == "ok"  # nothing is read from any file
    finally:
        nova.communicate(b"")


@pytest.mark.row("H25")
def test_all_modules_load_together(helper: Controller) -> None:
    helper.load(*ALL)
    for number in range(helper.start_id, helper.last_id + 1):
        helper.result(number)
