"""Logging in to vCenter, trust in it, which datastores count, dying in the middle, and secrets."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from helper.controller import Controller, from_service, pythons
from helper.vmware.conftest import Bench
from helper.vmware.disks import kinds, plain, vmdk
from servers.misbehaving_http import HttpServer, serve
from servers.vcenter import MACHINE, PASSWORD

if TYPE_CHECKING:
    from pathlib import Path

    from helper.controller import Frame
    from servers.vcenter import VCenter

pytestmark = [pytest.mark.vcenter, pytest.mark.qemu]


def opened(vcenter: VCenter, tmp_path: Path, more: str = "", **vmware: Any) -> Frame:
    """Return the answer to ``vmware_open`` with these settings in nova.conf."""
    with Controller() as helper:
        return Bench(vcenter, helper, vcenter.nova_conf(tmp_path, more, **vmware)).open()


def test_a_wrong_password_is_told_without_it(vcenter: VCenter, tmp_path: Path) -> None:
    answer = opened(vcenter, tmp_path, host_password="canary-wrong")
    assert (answer["event"], answer["code"]) == ("error", "auth")
    assert "canary-wrong" not in str(answer)
    assert "host_password" in answer["message"]


@pytest.mark.row("T1")
@pytest.mark.parametrize(
    ("password", "more"), [("se$canary-word", ""), ("$db_password", "db_password = a$canary_word")]
)
def test_a_dollar_in_a_password_tells_no_word_of_it(
    vcenter: VCenter, tmp_path: Path, password: str, more: str
) -> None:
    conf = vcenter.nova_conf(tmp_path, host_password=password)
    conf.write_text(conf.read_text().replace("[DEFAULT]", f"[DEFAULT]\n{more}"))
    with Controller() as helper:
        answer = Bench(vcenter, helper, conf).open()
    assert (answer["event"], answer["code"]) == ("error", "config")
    assert "canary" not in str(answer)
    assert "host_password" in answer["message"] or "db_password" in answer["message"]
    assert "$$" in answer["message"]


@pytest.mark.row("N16")
def test_an_unknown_certificate_is_refused(vcenter: VCenter, tmp_path: Path) -> None:
    answer = opened(vcenter, tmp_path, insecure="false")
    assert (answer["event"], answer["code"]) == ("error", "tls")
    assert "ca_file" in answer["message"]


def test_the_ca_file_of_nova_conf_is_trusted(vcenter: VCenter, tmp_path: Path) -> None:
    trusted = tmp_path / "ca.pem"
    trusted.write_text(vcenter.certificate())
    assert opened(vcenter, tmp_path, insecure="false", ca_file=trusted)["event"] == "result"
    answer = opened(vcenter, tmp_path, ca_file=tmp_path / "missing.pem")
    assert (answer["event"], answer["code"]) == ("error", "tls")


@pytest.mark.row("N17")
def test_a_vcenter_that_is_not_there_is_unreachable(vcenter: VCenter, tmp_path: Path) -> None:
    answer = opened(vcenter, tmp_path, host_port=1)
    assert (answer["event"], answer["code"]) == ("error", "unreachable")


@pytest.mark.parametrize(
    ("settings", "code", "reason"),
    [
        ({"cluster_name": "other"}, "config", "cluster_name"),
        ({"datastore_regex": "nas.*"}, "backend", "datastore_regex"),
        ({"datastore_regex": "("}, "config", "no regex"),
        ({"host_ip": ""}, "config", "host_ip"),
        ({"cache_prefix": "../../x"}, "config", "cannot be the folder"),
    ],
)
def test_settings_that_lead_nowhere_are_told(
    vcenter: VCenter, tmp_path: Path, settings: dict[str, str], code: str, reason: str
) -> None:
    answer = opened(vcenter, tmp_path, **settings)
    assert (answer["event"], answer["code"]) == ("error", code), answer
    assert reason in answer["message"]


@pytest.mark.parametrize(
    ("more", "vmware", "base"),
    [
        ("", {}, "10.0.0.5_base"),
        ("", {"cache_prefix": "edge"}, "edge_base"),
        ("[image_cache]\nremove_unused_base_images = false", {}, "_base"),
        ("[image_cache]\nsubdirectory_name = _other", {}, "10.0.0.5_other"),
    ],
)
def test_the_folder_is_the_one_that_nova_takes(
    vcenter: VCenter, tmp_path: Path, more: str, vmware: dict[str, str], base: str
) -> None:
    answer = opened(vcenter, tmp_path, more, **vmware)
    assert set(answer["cache_path"].split("; ")) == {f"[LocalDS_0] {base}", f"[LocalDS_1] {base}"}
    shared = answer["storage_id"] is not None
    assert shared is ("10.0.0.5" not in base)


def test_a_folder_from_the_inventory_is_taken_whole(bench: Bench) -> None:
    answer = bench.open(cache_subdirectory="team_base")
    assert "[LocalDS_0] team_base" in answer["cache_path"]
    assert answer["storage_id"] is not None
    refused = bench.open(cache_subdirectory="../x")
    assert (refused["event"], refused["code"]) == ("error", "config")


def test_a_guess_that_fits_no_folder_is_told(vcenter: VCenter, tmp_path: Path) -> None:
    conf = vcenter.nova_conf(tmp_path)
    conf.write_text(conf.read_text().replace("my_ip = 10.0.0.5", ""))
    with Controller() as helper:
        bench = Bench(vcenter, helper, conf)
        assert bench.open()["notice"] is None
        (vcenter.stores["LocalDS_1"] / "192.0.2.77_base").mkdir()
        assert "192.0.2.77_base" in bench.open()["notice"]


def test_only_datastores_that_nova_would_take_count(vcenter: VCenter, tmp_path: Path) -> None:
    assert opened(vcenter, tmp_path, datastore_regex="LocalDS_1")["datastores"] == ["LocalDS_1"]
    vcenter.ask("store", name="LocalDS_1", mode="inMaintenance")
    assert opened(vcenter, tmp_path)["datastores"] == ["LocalDS_0"]
    vcenter.ask("store", name="LocalDS_1", mode="normal", type="CIFS")
    assert opened(vcenter, tmp_path)["datastores"] == ["LocalDS_0"]


def test_an_inventory_may_choose_among_them(bench: Bench) -> None:
    assert bench.open(datastores=["LocalDS_0"])["datastores"] == ["LocalDS_0"]
    assert len(bench.open(datastores=["emptiest"])["datastores"]) == 1
    answer = bench.open(datastores=["LocalDS_0", "nas-7"])
    assert (answer["event"], answer["code"]) == ("error", "config")
    assert "nas-7" in answer["message"]


def test_vsan_takes_imported_disks_only(bench: Bench) -> None:
    for name in bench.vcenter.stores:
        bench.vcenter.ask("store", name=name, type="vsan")
    bench.open()
    answer = bench.fetch(bench.image(plain()))
    assert (answer["event"], answer["code"]) == ("error", "backend")
    stream = bench.image(vmdk("streamOptimized"), properties={"vmware_disktype": "streamOptimized"})
    answer = bench.fetch(stream)
    assert answer.get("state") == "cached", answer
    assert len(bench.vcenter.cached(stream["image"]["id"])) == 2
    assert bench.vcenter.leftovers() == []


@pytest.mark.row("H20")
def test_a_helper_whose_controller_is_gone_removes_what_it_began(bench: Bench) -> None:
    order = bench.begin(bench.image(plain()))
    bench.helper.event(order, "ready")
    bench.helper.tell("data", order, plain()[: 256 << 10], size=256 << 10)
    assert bench.vcenter.leftovers() != []
    assert bench.helper.end() == 0
    deadline = time.monotonic() + 20
    while bench.vcenter.leftovers() and time.monotonic() < deadline:
        time.sleep(0.05)  # vCenter's task goes on without us
    assert bench.vcenter.leftovers() == []


def work_machines(vcenter: VCenter) -> set[str]:
    """Return the names of the machines that imports of ours have made."""
    names = vcenter.ask("machines").splitlines()
    return {name for name in names if name.startswith("imgcache-")}


@pytest.mark.row("H20")
@pytest.mark.parametrize("end", ["controller", "bytes"])
def test_an_import_that_ends_early_leaves_no_machine(bench: Bench, end: str) -> None:
    data = vmdk("streamOptimized")
    fields = bench.image(data, properties={"vmware_disktype": "streamOptimized"})
    if end == "bytes":
        assert bench.fetch(fields, sent=data[:-1] + b"x")["code"] == "digest"
    else:
        order = bench.begin(fields)
        bench.helper.event(order, "ready")
        for at in range(0, 5 * (256 << 10), 256 << 10):
            part = data[at : at + (256 << 10)]
            bench.helper.tell("data", order, part, size=len(part))
        deadline = time.monotonic() + 30
        while not work_machines(bench.vcenter) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(work_machines(bench.vcenter)) == 1
        assert bench.helper.end() == 0
    deadline = time.monotonic() + 20
    while work_machines(bench.vcenter) and time.monotonic() < deadline:
        time.sleep(0.05)  # vCenter's task goes on without us
    assert work_machines(bench.vcenter) == set()
    assert bench.vcenter.leftovers() == []


@pytest.mark.row("H19")
@pytest.mark.parametrize("kind", ["preallocated", "streamOptimized"])
def test_what_a_killed_helper_left_is_cleaned(bench: Bench, kind: str) -> None:
    data = plain() if kind == "preallocated" else vmdk("streamOptimized")
    fields = bench.image(data, properties={"vmware_disktype": kind})
    order = bench.begin(fields)
    bench.helper.event(order, "ready")
    for at in range(0, 5 * (256 << 10), 256 << 10):
        part = data[at : at + (256 << 10)]
        bench.helper.tell("data", order, part, size=len(part))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if any(path.name.startswith("imgcache-") for path in bench.vcenter.leftovers()):
            break
        time.sleep(0.02)
    with Controller() as other:
        second = Bench(bench.vcenter, other, bench.conf)
        second.open()
        live = second.rows("vmware_clean", stall_age_s=0, dry=False)
        assert {row["code"] for row in live} == {"busy"}
        os.kill(bench.helper.process.pid, signal.SIGKILL)
        bench.helper.process.wait()
        dry = second.rows("vmware_clean", stall_age_s=3600, dry=True)
        assert {row["code"] for row in dry} == {"dry-run"}
        done = second.rows("vmware_clean", stall_age_s=3600, dry=False)
        assert {row["state"] for row in done} == {"removed"}
        assert bench.vcenter.leftovers() == []
        assert bench.vcenter.cached(fields["image"]["id"]) == []
        second.images = bench.images
        assert second.fetch(fields)["state"] == "cached"


def test_others_leftovers_are_cleaned_when_they_are_old(bench: Bench) -> None:
    store = bench.vcenter.stores["LocalDS_0"]
    theirs = store / "vmware_temp" / "imgcache-0123456789ab-77-5-deadbeef"
    novas = store / "vmware_temp" / "0a3e9a0b-6d0f-4b2c-9a53-6c1d7a6c7d11"
    for folder in (theirs, novas):
        folder.mkdir(parents=True)
        (folder / "x.vmdk").write_bytes(b"x")
    [row] = bench.rows("vmware_clean", stall_age_s=3600, dry=False)
    assert (row["state"], row["code"]) == ("kept", "young")
    old = time.time() - 7200
    for path in (theirs / "x.vmdk", theirs):
        os.utime(path, (old, old))
    [row] = bench.rows("vmware_clean", stall_age_s=3600, dry=False)
    assert row["state"] == "removed"
    assert novas.exists()


@pytest.mark.row("D14")
def test_a_transfer_that_another_host_has_just_begun_is_not_cleaned(bench: Bench) -> None:
    theirs = bench.vcenter.stores["LocalDS_0"] / "vmware_temp/imgcache-0123456789ab-77-5-deadbeef"
    (theirs / "00000000-0000-4000-8000-000000000001").mkdir(parents=True)  # and no file yet
    [row] = bench.rows("vmware_clean", stall_age_s=3600, dry=False)
    assert (row["state"], row["code"]) == ("kept", "young")
    assert theirs.exists()


@pytest.mark.row("D4")
def test_a_machine_that_is_called_like_the_tool_is_never_destroyed(bench: Bench) -> None:
    bench.vcenter.ask("machine", name=MACHINE, rename="imgcache-web")
    folder = bench.vcenter.stores["LocalDS_0"] / "imgcache-web"
    folder.mkdir()
    (folder / "imgcache-web.vmdk").write_bytes(b"x")
    for path in (folder / "imgcache-web.vmdk", folder):
        os.utime(path, (1, 1))
    assert bench.rows("vmware_clean", stall_age_s=3600, dry=False) == []
    assert (folder / "imgcache-web.vmdk").exists()
    bench.vcenter.ask("machine", name="imgcache-web", unreadable=1)
    assert bench.list() == {}
    order = bench.helper.order("vmware_list", use=True)
    [problem] = bench.helper.result(order)["problems"]
    assert "imgcache-web" in problem


@pytest.mark.row("H18")
def test_two_helpers_fetch_an_image_once(bench: Bench) -> None:
    fields = bench.image(plain())
    order = bench.begin(fields)
    bench.helper.event(order, "ready")
    with Controller() as other:
        second = Bench(bench.vcenter, other, bench.conf)
        second.open()
        waiting = second.begin(fields, lock_wait_s=30)
        bench.helper.push(order, plain())
        assert bench.helper.result(order)["state"] == "cached"
        answer = second.helper.result(waiting)
        assert (answer["state"], answer["bytes_fetched"]) == ("existing", 0)


@pytest.mark.row("H20")
@pytest.mark.parametrize("what", ["touch", "fetch", "list", "remove"])
def test_a_session_that_vcenter_has_ended_is_begun_anew(bench: Bench, what: str) -> None:
    fields = bench.image(plain())
    if what != "fetch":
        assert bench.fetch(fields)["state"] == "cached"
    row = bench.list().get(fields["image"]["id"], {})
    bench.vcenter.ask("expire")  # as after half an hour in which another host was waited for
    if what == "touch":
        assert bench.touch(fields)["state"] == "existing"
    elif what == "fetch":
        assert bench.fetch(fields)["state"] == "cached"
    elif what == "list":
        assert bench.list().keys() == {row["name"]}
    else:
        assert bench.remove(row)["state"] == "removed"
    bench.helper.result(bench.helper.order("vmware_close"))


@pytest.mark.row("T1")
def test_secrets_are_seen_nowhere(bench: Bench, tmp_path: Path) -> None:
    seen: list[bytes] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for name in ("cmdline", "environ"):
                with open(f"/proc/{bench.helper.process.pid}/{name}", "rb") as file:
                    seen.append(file.read())
            done.wait(0.05)

    watching = threading.Thread(target=look)
    watching.start()
    try:
        fields = bench.image(plain())
        with HttpServer() as server:
            url = server.route("/v2/images/x/file", plain(), serve())
            order = bench.begin(fields, from_service(url, token="canary-t0ken"))
            assert bench.helper.result(order)["state"] == "cached"
        bench.helper.result(bench.helper.order("vmware_close"))
    finally:
        done.set()
        watching.join()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    conf = bench.conf.read_bytes()
    everything = b"\n".join(
        [*seen, *[data for data in written if data != conf], str(bench.helper.frames).encode(),
         bench.helper.stderr]
    )  # fmt: skip
    assert seen
    assert PASSWORD.encode() not in everything
    assert b"canary-t0ken" not in everything


@pytest.mark.row("H1")
@pytest.mark.parametrize("python", [pythons()[0], pythons()[-1]])
def test_the_oldest_and_the_newest_python_do(vcenter: VCenter, tmp_path: Path, python: str) -> None:
    trusted = tmp_path / "ca.pem"
    trusted.write_text(vcenter.certificate())
    conf = vcenter.nova_conf(tmp_path, insecure="false", ca_file=trusted)
    with Controller(python) as helper:
        bench = Bench(vcenter, helper, conf)
        assert bench.open()["event"] == "result"
        for data, more in kinds().values():
            answer = bench.fetch(bench.image(data, **more))
            assert answer.get("state") == "cached", answer
        for name, row in bench.list().items():
            verified = bench.helper.result(
                bench.helper.order("vmware_verify", base=name, rate=None)
            )
            assert verified["state"] in {"intact", "unmanaged"}
            assert bench.remove(dict(row, mtime_ns=bench.list()[name]["mtime_ns"]))["state"]
        order = bench.helper.order(
            "vmware_probe", settings={"nova_conf": [str(conf)]}, url=None, ca_pem=None,
            insecure=False, reserve=0,
        )  # fmt: skip
        assert bench.helper.answer(order)["event"] == "error"  # its module is not loaded
        bench.helper.load("cache", "qemu", "probe", "vmware_probe")
        order = bench.helper.order(
            "vmware_probe", settings={"nova_conf": [str(conf)]}, url=None, ca_pem=None,
            insecure=False, reserve=0,
        )  # fmt: skip
        states = {one["name"]: one["state"] for one in bench.helper.result(order)["checks"]}
        assert states["vcenter"] == states["config"] == states["space"] == "ok"
