"""Bad input and broken surroundings, as whole processes: one clear message each, and nothing left."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from scenarios.faults_site import ScriptedGlance, local_fleet, outcomes, scripted_glance
from servers import misbehaving_http as http
from servers import openssh
from servers.fleet_fixtures import add_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servers.fleet_fixtures import Fleet

DATA = os.urandom(1_200_000)
IMAGE_ID = "11111111-2222-4333-8444-000000000001"


def assert_clear(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """What, where and what to do; no traceback."""
    told = done.stderr + done.stdout
    assert "Traceback" not in told
    assert "a bug in imgcache" not in told
    missing = [word for word in words if word not in told]
    assert not missing, (missing, told)


@pytest.fixture
def site(tmp_path: Path) -> Fleet:
    """Two local hosts and one image in a folder."""
    fleet = local_fleet(tmp_path, {"kind": "directory", "path": "images"}, hosts=2)
    add_image(tmp_path / "images", IMAGE_ID, "small", DATA)
    return fleet


BEFORE_ANY_HOST = [
    (("--all", "smal"), 4, ("smal", "did you mean small?")),
    (("--all", "11111111-2222-4333-8444-00000000000"), 4, ("11111111-2222-4333-8444-00000000000",)),
    (("--all", "one", "two", "../three"), 4, ("one", "two", "../three")),
    (("small",), 2, ("no hosts selected", "--aggregate NAME", "--all")),
    (("--aggregate", "edge-2", "small"), 2, ("edge-2", "did you mean edge-1?")),
    (("--host", "edge1-1", "small"), 2, ("edge1-1", "did you mean edge1-01 or edge1-02?")),
    (("--host", "edge1-[01", "small"), 2, ("edge1-[01",)),
    (("--all", "--exclude", "edge1-[01-02]", "small"), 2, ("no hosts left",)),
    (("--all", "--source", "service", "small"), 2, ("--source service", "directory")),
]


@pytest.mark.parametrize(("argv", "status", "words"), BEFORE_ANY_HOST)
def test_what_is_wrong_before_any_host_is_contacted(
    site: Fleet, argv: tuple[str, ...], status: int, words: tuple[str, ...]
) -> None:
    done = site.run("precache", *argv, "-f", "json")
    assert done.returncode == status, done.stderr
    assert_clear(done, "imgcache: ", *words)
    assert done.stdout == ""
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert error["exit_code"] == status
    assert not (site.instances("edge1-01") / "_base").exists()


def test_faults_of_the_inventory_come_all_at_once_with_their_places(site: Fleet) -> None:
    path = site.inventory()
    text = path.read_text().replace("images_type:", "images_typ:")
    path.write_text(text + "agregates: {}\n")
    command = [
        sys.executable,
        "-m",
        "imgcache",
        "--inventory",
        str(path),
        "precache",
        "--all",
        "small",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    places = re.findall(rf"{re.escape(str(path))}:\d+:\d+", done.stderr)
    assert len(places) == 2, done.stderr
    assert_clear(done, "images_typ", "images_type", "agregates", "aggregates")


def test_an_inventory_that_is_not_there(site: Fleet, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.yaml"
    command = [
        sys.executable,
        "-m",
        "imgcache",
        "--inventory",
        str(missing),
        "precache",
        "--all",
        "small",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert_clear(done, str(missing))


# ---------------------------------------------------------------------------------- hosts over real SSH


@pytest.fixture
def reached(fleet: Fleet, tmp_path: Path) -> Fleet:
    """Hosts behind a real sshd and one image in a folder."""
    add_image(tmp_path / "images", IMAGE_ID, "small", DATA)
    return fleet


def no_key(fleet: Fleet) -> None:
    fleet.defaults["ssh_key"] = str(fleet.folder / "no-such-key")


def broken_key(fleet: Fleet) -> None:
    (fleet.folder / "broken").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nnonsense\n")
    (fleet.folder / "broken").chmod(0o600)
    fleet.defaults["ssh_key"] = str(fleet.folder / "broken")


def locked_key(fleet: Fleet) -> None:
    openssh.write_key(fleet.folder / "locked", passphrase="secret")
    fleet.defaults["ssh_key"] = str(fleet.folder / "locked")


def other_key(fleet: Fleet) -> None:
    openssh.write_key(fleet.folder / "other")
    fleet.defaults["ssh_key"] = str(fleet.folder / "other")


def unknown_host(fleet: Fleet) -> None:
    (fleet.folder / "empty").touch()
    fleet.defaults["known_hosts"] = str(fleet.folder / "empty")


def changed_host(fleet: Fleet) -> None:
    other = openssh.write_key(fleet.folder / "changed")
    names = [f"[{address}]:{fleet.server.port}" for address in fleet.server.addresses]
    (fleet.folder / "former").write_text(f"{','.join(names)} {other}\n")
    fleet.defaults["known_hosts"] = str(fleet.folder / "former")


def wrong_user(fleet: Fleet) -> None:
    fleet.defaults["user"] = "no-such-user-here"


def no_python(fleet: Fleet) -> None:
    fleet.defaults["python"] = "/nonexistent/python3"


def old_python(fleet: Fleet) -> None:
    root = os.environ.get("PYENV_ROOT", "")
    found = sorted(Path(root).glob("versions/2.*/bin/python2")) if root else []
    if found or shutil.which("python2"):
        fleet.defaults["python"] = str(found[0]) if found else "python2"
        return
    stand_in = fleet.folder / "python"
    stand_in.write_text("#!/bin/sh\necho 'Unknown option: -I' >&2\nexit 2\n")
    stand_in.chmod(0o755)
    fleet.defaults["python"] = str(stand_in)


def no_instances_path(fleet: Fleet) -> None:
    fleet.overrides["edge1-01"] = {"instances_path": str(fleet.folder / "missing")}


def no_room(fleet: Fleet) -> None:
    fleet.defaults["reserve"] = "1000TiB"


def nobody_listens(fleet: Fleet) -> None:
    fleet.defaults["port"] = openssh.free_port()


HOSTS = [
    pytest.param(no_key, "login", ("no-such-key",), marks=pytest.mark.row("S3")),
    pytest.param(broken_key, "login", ("broken",), marks=pytest.mark.row("S3")),
    pytest.param(locked_key, "login", ("locked", "ssh-add"), marks=pytest.mark.row("S3")),
    pytest.param(other_key, "login", (), marks=pytest.mark.row("S3")),
    pytest.param(
        unknown_host, "hostkey-unknown", ("SHA256:", "imgcache trust"), marks=pytest.mark.row("S2")
    ),
    pytest.param(
        changed_host, "hostkey-changed", ("HAS CHANGED", "SHA256:"), marks=pytest.mark.row("S1")
    ),
    pytest.param(wrong_user, "login", ("no-such-user-here",), marks=pytest.mark.row("S3")),
    pytest.param(no_python, "python", ("/nonexistent/python3",), marks=pytest.mark.row("H1")),
    pytest.param(old_python, "python", ("too old", "3.6"), marks=pytest.mark.row("H1")),
    pytest.param(no_instances_path, "nopath", ("missing",), marks=pytest.mark.row("H11")),
    pytest.param(no_room, "space", (str(1000 << 40), str(len(DATA))), marks=pytest.mark.row("H5")),
    pytest.param(nobody_listens, "connect", (), marks=pytest.mark.row("S6")),
]


@pytest.mark.sshd
@pytest.mark.parametrize(("spoil", "code", "words"), HOSTS)
def test_what_is_wrong_with_a_host(
    reached: Fleet, spoil: Callable[[Fleet], None], code: str, words: tuple[str, ...]
) -> None:
    spoil(reached)
    done = reached.run("precache", "--host", "edge1-01", "small", "-f", "json", "--retries", "0")
    assert done.returncode == 1, done.stderr
    (outcome,) = outcomes(done.stdout)
    assert (outcome["outcome"], outcome["code"]) == ("error", code), outcome
    assert_clear(done, "edge1-01")
    assert [word for word in words if word not in outcome["reason"]] == [], outcome["reason"]
    assert not reached.final("edge1-01", IMAGE_ID).exists()
    assert not reached.leftovers("edge1-01")
    if code == "hostkey-changed":
        told = (done.stderr + outcome["reason"]).lower()
        assert "stricthostkey" not in told
        assert "ssh-keygen -r" not in told


@pytest.mark.sshd
@pytest.mark.row("H2")
def test_sudo_that_wants_a_password(reached: Fleet) -> None:
    if os.geteuid() != 0 or not shutil.which("sudo"):
        pytest.skip("needs root and sudo")
    try:
        user = pwd.getpwnam("nobody")
    except KeyError:
        pytest.skip("needs the user nobody")
    # As on a host where the SSH user is no sudoer: sudo is called by one that has to give a password.
    fake = reached.folder / "bin"
    fake.mkdir(mode=0o755)
    setpriv = shutil.which("setpriv")
    if not setpriv:
        pytest.skip("needs setpriv")
    sudo = shutil.which("sudo")
    (fake / "sudo").write_text(
        f'#!/bin/sh\nexec {setpriv} --reuid {user.pw_uid} --regid {user.pw_gid} --clear-groups {sudo} "$@"\n'
    )
    (fake / "sudo").chmod(0o755)
    reached.server.stop()
    reached.server.options["SetEnv"] = f"PATH={fake}:/usr/bin:/bin"
    (reached.server.folder / "sshd_config").write_text(reached.server._config())
    reached.server.start()
    reached.defaults |= {"become": "sudo", "become_user": "root", "python": "python3"}
    done = reached.run("precache", "--host", "edge1-01", "small", "-f", "json", timeout_s=40)
    (outcome,) = outcomes(done.stdout)
    assert (outcome["outcome"], outcome["code"]) == ("error", "sudo"), outcome
    assert "NOPASSWD" in outcome["reason"]
    assert_clear(done, "edge1-01")
    assert not reached.leftovers("edge1-01")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "imgcache-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.row("H5")
@pytest.mark.row("H6")
def test_a_full_disk_is_told_with_numbers_and_the_other_host_goes_on(
    site: Fleet, small_disk: Path
) -> None:
    site.overrides["edge1-01"] = {"instances_path": str(small_disk)}
    done = site.run("precache", "--all", "small", "-f", "json")
    assert done.returncode == 1
    good, full = sorted(outcomes(done.stdout), key=lambda one: str(one["outcome"]))
    assert full["host"] == "edge1-01"
    assert (full["outcome"], full["code"], full["bytes_fetched"]) == ("error", "space", 0)
    assert str(len(DATA)) in full["reason"]
    assert str(small_disk) in full["reason"]
    assert good["outcome"] == "cached"
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    assert_clear(done, "edge1-01")


# ------------------------------------------------------------------------------------- the image service


@pytest.fixture
def glance() -> Iterator[ScriptedGlance]:
    with scripted_glance() as running:
        yield running


def json_of(text: bytes) -> http.Behaviour:
    return http.serve(body=text)


SERVICE = [
    pytest.param(http.status(401), ("401",), id="401"),
    pytest.param(http.status(403), ("403",), id="403"),
    pytest.param(http.status(404), ("no such image",), id="404"),
    pytest.param(http.status(500), ("500",), id="500", marks=pytest.mark.long),
    pytest.param(http.status(503, retry_after=0), ("503",), id="503", marks=pytest.mark.long),
    pytest.param(http.status(302, location="http://127.0.0.1:9/"), ("redirects",), id="302"),
    pytest.param(http.truncate_after(20), (), id="truncated", marks=pytest.mark.long),
    pytest.param(json_of(b"<html>hello</html>"), ("JSON",), id="html"),
    pytest.param(json_of(b'["list"]'), ("object",), id="list"),
    pytest.param(json_of(b"[" * 100_000), (), id="deep"),
    pytest.param(json_of(b'{"id": 7}'), (), id="no-record"),
]


@pytest.mark.parametrize(("answer", "words"), SERVICE)
def test_an_image_service_that_cannot_be_used(
    glance: ScriptedGlance, tmp_path: Path, answer: http.Behaviour, words: tuple[str, ...]
) -> None:
    site = local_fleet(tmp_path, glance.settings)
    image_id = glance.add(DATA)
    glance.server.route(f"/v2/images/{image_id}", b"{" + b" " * 500 + b"}", answer)
    done = site.run("precache", "--all", image_id, "-f", "json")
    assert done.returncode == 4, done.stderr
    assert_clear(done, "imgcache: ", *words)
    assert done.stdout == ""
    assert not (site.instances("edge1-01") / "_base").exists()


@pytest.mark.long
def test_an_image_service_that_is_down(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{openssh.free_port()}"
    site = local_fleet(tmp_path, {"kind": "glance", "endpoint": url})
    done = site.run("precache", "--all", IMAGE_ID, "-f", "json")
    assert done.returncode == 4
    assert_clear(done, url.removeprefix("http://").partition(":")[2], "hint")


FILES: list[Any] = [
    pytest.param([http.status(403)], {}, "forbidden", marks=pytest.mark.row("N9"), id="403"),
    pytest.param([http.status(404)], {}, "gone", marks=pytest.mark.row("N10"), id="404"),
    pytest.param([http.status(401)], {}, "auth", marks=pytest.mark.row("N8"), id="401"),
    pytest.param([http.status(500)], {}, "download", marks=pytest.mark.row("N14"), id="500"),
    pytest.param([http.truncate_after(7)], {}, "download", marks=pytest.mark.row("N4"), id="short"),
    pytest.param([http.flip_bit(1000)], {}, "digest", marks=pytest.mark.row("N6"), id="corrupt"),
    pytest.param(
        [http.serve()], {"disk_format": "vdi"}, "format", marks=pytest.mark.row("R2"), id="no-vdi"
    ),
]


@pytest.mark.parametrize(("script", "changes", "code"), FILES)
def test_an_image_that_cannot_be_fetched(
    glance: ScriptedGlance, tmp_path: Path, script: list[http.Behaviour], changes: Any, code: str
) -> None:
    site = local_fleet(tmp_path, glance.settings)
    image_id = glance.add(DATA, *script, **changes)
    done = site.run("precache", "--all", image_id, "-f", "json", "--retries", "0")
    assert done.returncode == 1, done.stderr
    (outcome,) = outcomes(done.stdout)
    assert (outcome["outcome"], outcome["code"]) == ("error", code), outcome
    assert outcome["reason"]
    assert_clear(done, "edge1-01")
    assert not site.final("edge1-01", image_id).exists()
    assert not site.leftovers("edge1-01")


@pytest.mark.row("N19")
def test_an_image_that_becomes_another_is_never_cached(site: Fleet) -> None:
    # The digest is known from before; the file's bytes are others by the time they are pushed.
    path = site.folder / "images" / "small.img"
    site.run("precache", "--host", "edge1-02", "small")
    entries = yaml.safe_load((site.folder / "images" / "images.yaml").read_text())
    entries["images"][0]["sha512"] = "0" * 128
    (site.folder / "images" / "images.yaml").write_text(yaml.safe_dump(entries))
    assert path.exists()
    done = site.run("precache", "--host", "edge1-01", "small", "-f", "json")
    assert done.returncode == 1
    assert outcomes(done.stdout)[0]["code"] in {"digest", "changed"}
    assert not site.final("edge1-01", IMAGE_ID).exists()
    assert not site.leftovers("edge1-01")
