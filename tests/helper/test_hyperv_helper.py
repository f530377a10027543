"""The helper's part for Hyper-V, under real Windows Pythons in wine: files, locks, what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import LIMITS, PUSH, Controller, from_service, image_of
from helper.test_helper_tls import Authority
from imgcache.helper import hyperv
from servers.misbehaving_http import HttpServer, flip_bit, reset_after, serve, stall_after
from servers.vhd_files import differencing_vhd, fixed_vhd, footer
from servers.wine import INSTALLED, OTHER, windows_path

if TYPE_CHECKING:
    from pathlib import Path

    from servers.wine_fixtures import WindowsHost

pytestmark = [pytest.mark.wine, pytest.mark.xdist_group("wine")]

DATA = fixed_vhd(os.urandom(900_000))
IMAGE = image_of(DATA, "vhd")
DAY_S = 86400


def order_fetch(helper: Controller, image: Any = IMAGE, source: Any = PUSH, **limits: Any) -> int:
    """Order a fetch; return its id."""
    return helper.order(
        "hyperv_fetch", base="", image=image, source=dict(source), limits={**LIMITS, **limits},
        tool="imgcache test", run="run-1",
    )  # fmt: skip


def fetch(helper: Controller, data: bytes = DATA, image: Any = IMAGE, **limits: Any) -> Any:
    """Push an image; return the answer, whatever it is."""
    number = order_fetch(helper, image, **limits)
    helper.push_when_ready(number, data)
    return helper.answer(number)


def rows_of(helper: Controller, number: int) -> list[dict[str, Any]]:
    """Return the rows that came for an order, once it has ended."""
    helper.result(number, 60)
    found = [frame for frame in helper.frames if frame.get("id") == number]
    return [row for frame in found if frame["event"] == "rows" for row in frame["rows"]]


def age(path: Path, seconds: float = 2 * DAY_S) -> None:
    """Make a file look as if nobody had used it for so long."""
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize("python", [INSTALLED, OTHER], ids=["3.13", "3.8"])
def test_a_pushed_image_is_where_nova_looks_for_it(hyperv_host: WindowsHost, python: str) -> None:
    helper = hyperv_host.start(python)
    answer = fetch(helper)
    assert (answer["event"], answer["state"], answer["stored_format"]) == (
        "result",
        "cached",
        "vhd",
    )
    assert answer["bytes_fetched"] == len(DATA)
    final = hyperv_host.base / f"{IMAGE['id']}.vhd"
    assert final.read_bytes() == DATA
    assert hyperv_host.names() == [final.name]
    assert (hyperv_host.base / f"nova-{IMAGE['id']}-cache.lock").stat().st_size == 0
    manifest = json.loads((hyperv_host.base / ".imgcache" / f"{IMAGE['id']}.json").read_text())
    assert manifest["stored"]["value"] == hashlib.sha512(DATA).hexdigest()
    age(final)
    touch = helper.order("hyperv_touch", base=IMAGE["id"], sizes=[len(DATA)], dry=False)
    assert helper.result(touch)["touched"] is True
    assert time.time() - final.stat().st_mtime < 60
    assert helper.end() == 0


def test_the_hello_tells_a_windows_python(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    (hello,) = [frame for frame in helper.frames if frame.get("id") == helper.start_id]
    assert hello["platform"] == "win32"
    assert hello["user"]
    assert hyperv_host.opened["cache_path"].endswith("Instances\\_base")
    assert 0 < hyperv_host.opened["free"] <= hyperv_host.opened["capacity"]


REFUSED = {
    "differencing": (differencing_vhd("C:\\other\\parent.vhd"), "vhd", "format"),
    "too big": (fixed_vhd(os.urandom(2000))[:-512] + footer(1 << 50), "vhd", "size"),
    "checksum": (fixed_vhd(os.urandom(2000))[:-4] + b"flip", "vhd", "format"),
    "no marks": (os.urandom(5000), "vhdx", "format"),
    "no tables": (b"vhdxfile" + os.urandom(500_000), "vhdx", "format"),
    "no disc": (os.urandom(50_000), "iso", "format"),
    "qcow2": (os.urandom(5000), "qcow2", "format"),
}


def test_what_hyper_v_must_not_get_is_refused(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    for case, (data, disk_format, code) in REFUSED.items():
        answer = fetch(helper, data, image_of(data, disk_format))
        assert (answer["event"], answer.get("code")) == ("error", code), case
        assert hyperv_host.names() == [], case


def test_wrong_bytes_are_refused(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    assert fetch(helper, b"x" + DATA[1:])["code"] == "digest"
    assert fetch(helper, DATA[:-1])["code"] == "source"
    assert fetch(helper, DATA + b"x")["code"] == "size"
    assert fetch(helper, reserve=1 << 60)["code"] == "space"
    assert hyperv_host.names() == []
    assert fetch(helper)["state"] == "cached"


@pytest.mark.qemu
@pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")
def test_a_vhdx_declared_as_vhd_is_named_by_its_bytes(
    hyperv_host: WindowsHost, tmp_path: Path
) -> None:
    command = ["qemu-img", "create", "-q", "-f", "vhdx", str(tmp_path / "disk.vhdx"), "4M"]
    subprocess.run(command, check=True)
    vhdx = (tmp_path / "disk.vhdx").read_bytes()
    image = image_of(vhdx, "vhd")
    assert fetch(hyperv_host.helper(), vhdx, image)["stored_format"] == "vhdx"
    assert hyperv_host.names() == [f"{image['id']}.vhdx"]


def test_a_download_goes_on_where_it_broke(hyperv_host: WindowsHost) -> None:
    with HttpServer() as server:
        url = server.route("/file", DATA, reset_after(400_000), serve())
        helper = hyperv_host.helper()
        number = order_fetch(helper, source=from_service(url))
        retry = helper.event(number, "retry")
        assert retry["offset"] == 400_000
        helper.tell("again", number, token=None)
        answer = helper.result(number)
        asked = [request.header("range") for request in server.requests]
    assert asked == [None, "bytes=400000-"]
    assert (answer["state"], answer["bytes_fetched"]) == ("cached", len(DATA))
    assert (hyperv_host.base / f"{IMAGE['id']}.vhd").read_bytes() == DATA


def test_wrong_bytes_are_fetched_once_more(hyperv_host: WindowsHost) -> None:
    with HttpServer() as server:
        helper = hyperv_host.helper()
        number = order_fetch(helper, source=from_service(server.route("/f", DATA, flip_bit(9))))
        retry = helper.event(number, "retry")
        assert (retry["code"], retry["offset"]) == ("digest", 0)
        helper.tell("again", number, token=None)
        assert helper.error(number)["code"] == "digest"
    assert hyperv_host.names() == []


def test_a_push_takes_over_where_a_download_ended(hyperv_host: WindowsHost) -> None:
    with HttpServer() as server:
        helper = hyperv_host.helper()
        url = server.route("/file", DATA, reset_after(300_000))
        number = order_fetch(helper, source=from_service(url))
        assert helper.event(number, "retry")["offset"] == 300_000
        helper.tell("again", number, token=None, source=PUSH)
        assert helper.event(number, "ready")["offset"] == 300_000
        helper.push(number, DATA[300_000:])
        assert helper.result(number)["state"] == "cached"


@pytest.mark.parametrize("python", [INSTALLED, OTHER], ids=["3.13", "3.8"])
def test_the_controllers_end_leaves_nothing(hyperv_host: WindowsHost, python: str) -> None:
    with HttpServer() as server:
        helper = hyperv_host.start(python)
        url = server.route("/file", DATA, stall_after(500_000))
        number = order_fetch(helper, source=from_service(url), stall_s=60)
        while helper.event(number, "progress")["done"] < 500_000:
            pass
        assert any(name.endswith(".part") for name in hyperv_host.names())
        assert helper.end() == 0
    hyperv_host.wait_for([])


def test_a_stopped_fetch_leaves_nothing(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    number = order_fetch(helper)
    helper.event(number, "ready")
    helper.tell("data", number, DATA[:1000], size=1000)
    helper.tell("stop", number)
    assert helper.error(number)["code"] == "interrupted"
    assert hyperv_host.names() == []


def test_a_killed_run_is_cleaned_up_by_the_next(hyperv_host: WindowsHost) -> None:
    killed = hyperv_host.start()
    number = order_fetch(killed)
    killed.event(number, "ready")
    (part,) = hyperv_host.names()
    other = hyperv_host.helper()
    (row,) = rows_of(other, other.order("hyperv_clean", stall_age_s=0, dry=False))
    assert (row["name"], row["state"], row["code"]) == (part, "kept", "busy")
    killed.process.kill()
    killed.process.wait()
    assert hyperv_host.names() == [part]
    deadline = time.monotonic() + 60
    while row["code"] == "busy":  # Windows closes a process's files after its end
        assert time.monotonic() < deadline
        (row,) = rows_of(other, other.order("hyperv_clean", stall_age_s=0, dry=True))
    assert (row["state"], row["code"]) == ("kept", "dry-run")
    assert fetch(other)["state"] == "cached"
    assert hyperv_host.names() == [f"{IMAGE['id']}.vhd"]


def test_of_two_runs_at_once_one_fetches(hyperv_host: WindowsHost) -> None:
    first, second = hyperv_host.start(), hyperv_host.helper(OTHER)
    fetching = order_fetch(first)
    first.event(fetching, "ready")
    waiting = order_fetch(second, lock_wait_s=30)
    second.event(waiting, "progress")
    first.push(fetching, DATA)
    assert first.result(fetching)["state"] == "cached"
    answer = second.result(waiting)
    assert (answer["state"], answer["bytes_fetched"]) == ("existing", 0)
    assert hyperv_host.names() == [f"{IMAGE['id']}.vhd"]


def test_a_run_that_waits_too_long_says_busy(hyperv_host: WindowsHost) -> None:
    first, second = hyperv_host.start(), hyperv_host.helper()
    first.event(order_fetch(first), "ready")
    assert fetch(second, lock_wait_s=0.1)["code"] == "busy"


def test_novas_lock_is_honoured(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    hyperv_host.base.mkdir()
    lock = windows_path(hyperv_host.base / f"nova-{IMAGE['id']}-cache.lock")
    code = f"import msvcrt\nheld = open({lock!r}, 'a')\nmsvcrt.locking(held.fileno(), msvcrt.LK_NBLCK, 1)"
    nova = hyperv_host.run_python(code)
    answer = fetch(helper, lock_wait_s=0.2)
    assert answer["code"] == "busy", answer
    nova.end()
    assert fetch(helper)["state"] == "cached"


def test_an_image_of_nova_that_appears_meanwhile_is_left_alone(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    number = order_fetch(helper)
    helper.event(number, "ready")
    final = hyperv_host.base / f"{IMAGE['id']}.vhdx"
    final.write_bytes(b"Nova's own")
    helper.push(number, DATA)
    answer = helper.result(number)
    assert (answer["state"], answer["size"]) == ("existing", 10)
    assert hyperv_host.names() == [final.name]
    assert final.read_bytes() == b"Nova's own"


def test_a_file_of_another_size_is_damaged(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    hyperv_host.base.mkdir()
    (hyperv_host.base / f"{IMAGE['id']}.vhd").write_bytes(b"cut off")
    order = helper.order("hyperv_touch", base=IMAGE["id"], sizes=[len(DATA)], dry=False)
    assert helper.error(order)["code"] == "damaged"


def test_names_are_only_made_of_ids(hyperv_host: WindowsHost) -> None:
    helper = hyperv_host.helper()
    for name in ("..\\x", "a" * 36, "C:", "", IMAGE["id"].upper() + "/", IMAGE["id"] + ".vhd"):
        order = helper.order("hyperv_touch", base=name, sizes=[1], dry=False)
        assert helper.error(order)["code"] == "protocol", name


def opened(helper: Controller, nova_conf: str | None) -> Any:
    """Open the cache by what a nova.conf says; return the answer, whatever it is."""
    settings = {"instances_path": None, "nova_conf": nova_conf and [nova_conf]}
    return helper.answer(helper.order("hyperv_open", settings=settings))


def test_the_hosts_nova_conf_says_where_the_cache_is(
    hyperv_host: WindowsHost, tmp_path: Path
) -> None:
    helper = hyperv_host.helper()
    elsewhere = tmp_path / "state" / "instances"
    elsewhere.mkdir(parents=True)
    path = tmp_path / "nova.conf"
    state = windows_path(tmp_path / "state")
    path.write_text(f"[DEFAULT]\nstate_path = {state}\ninstances_path = $state_path\\instances\n")
    answer = opened(helper, windows_path(path))
    assert answer["cache_path"] == windows_path(elsewhere / "_base")
    assert answer["from"] == {"instances_path": windows_path(path)}
    path.write_text("[DEFAULT]\n")
    assert opened(helper, windows_path(path))["code"] == "config"
    path.write_text(f"[DEFAULT]\ninstances_path = {windows_path(tmp_path / 'no')}\n")
    assert opened(helper, windows_path(path))["code"] == "nopath"
    assert opened(helper, None)["code"] == "config"
    number = helper.order("hyperv_touch", base=IMAGE["id"], sizes=[1], dry=False)
    assert helper.error(number)["code"] == "config"


def test_the_image_service_is_trusted_by_the_certificates_given(
    hyperv_host: WindowsHost, tmp_path: Path
) -> None:
    authority = Authority()
    helper = hyperv_host.helper(OTHER)  # from 3.13 on Python wants more of a CA than this one has
    with HttpServer(authority.server(tmp_path)) as server:
        url = server.route("/file", DATA)
        refused = order_fetch(helper, source=from_service(url))
        assert helper.error(refused)["code"] == "tls"
        trusted = order_fetch(helper, source=from_service(url, ca_pem=authority.pem))
        assert helper.result(trusted)["state"] == "cached"


@pytest.mark.parametrize(
    ("command", "paths"),
    [
        ('svc.exe nova-compute --config-file "C:\\a b\\nova.conf"', ["C:\\a b\\nova.conf"]),
        ("x --config-file=C:\\a.conf --config-file C:\\b.conf", ["C:\\a.conf", "C:\\b.conf"]),
        ("C:\\svc.exe nova-compute", []),
        ("", []),
    ],
)
def test_the_services_command_names_its_configuration(command: str, paths: list[str]) -> None:
    found: Any = hyperv.config_files_of
    assert found(command) == paths
