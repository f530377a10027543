"""The binary: one file that does the whole job where no Python is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from servers.openssh import OpenSshServer, free_port

ROOT = Path(__file__).resolve().parents[2]
BINARY = ROOT / "dist/imgcache"
IMAGE_ID = "0d5c1f9a-6c5a-4f0e-9a52-1f6b4f6f3f10"
USER = {"OS_USERNAME": "u", "OS_PASSWORD": "p", "OS_USER_DOMAIN_NAME": "Default"}
PROJECT = {"OS_PROJECT_NAME": "demo", "OS_PROJECT_DOMAIN_NAME": "Default"}

pytestmark = pytest.mark.xdist_group("binary")


@pytest.fixture(scope="module")
def binary() -> Path:
    """Return dist/imgcache, built anew when the sources have changed since."""
    subprocess.run([ROOT / "tools/make_binary.sh"], check=True, stdin=subprocess.DEVNULL)
    return BINARY


@pytest.fixture
def bare_path(tmp_path: Path) -> str:
    """Return a PATH with what the launcher needs and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in (
        "sh",
        "tar",
        "gzip",
        "tail",
        "mkdir",
        "mktemp",
        "mv",
        "rm",
        "chmod",
        "id",
        "ls",
        "env",
    ):
        program = shutil.which(name)
        assert program
        (folder / name).symlink_to(program)
    assert not shutil.which("python3", path=str(folder))
    return str(folder)


def run(
    binary: Path, *args: str, env: dict[str, str], status: int = 0
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [binary, *args], env=env, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.sshd
def test_whole_job_over_ssh_with_no_python_on_the_path(
    binary: Path, bare_path: str, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "disk.raw").write_bytes(os.urandom(1 << 20))
    (images / "images.yaml").write_text(
        f"images:\n  - {{id: {IMAGE_ID}, name: disk, file: disk.raw, disk_format: raw}}\n"
    )
    instances = tmp_path / "instances"
    instances.mkdir()
    # A home without rc files: what those of this machine's user do is no part of the test.
    with OpenSshServer(tmp_path / "sshd", options={"SetEnv": f"HOME={tmp_path}"}) as server:
        inventory = tmp_path / "inventory.yaml"
        inventory.write_text(
            f"image_service: {{kind: directory, path: {json.dumps(str(images))}}}\n"
            "defaults:\n"
            f"  user: {server.user}\n"
            f"  python: {json.dumps(sys.executable)}\n"
            f"  ssh_key: {json.dumps(str(server.client_key))}\n"
            f"  known_hosts: {json.dumps(str(server.known_hosts))}\n"
            "aggregates:\n"
            "  edge-1:\n"
            f"    hosts: [{{name: edge1-01, address: 127.0.0.1, port: {server.port},"
            f" images_type: qcow2, instances_path: {json.dumps(str(instances))}}}]\n"
        )
        # The host that we log in to plays the operator's machine too: no Python is on its PATH.
        command = (
            f"exec env -i HOME={tmp_path} PATH={bare_path} {binary} --inventory {inventory}"
            " precache --aggregate edge-1 -f json disk"
        )
        done = subprocess.run(
            ["ssh", "-F", "none", "-o", "BatchMode=yes", "-i", str(server.client_key),
             "-o", f"UserKnownHostsFile={server.known_hosts}", "-p", str(server.port),
             f"{server.user}@127.0.0.1", command],
            capture_output=True, text=True, check=False, timeout=120, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [item["outcome"] for item in result["outcomes"]] == ["cached"]
    assert [path.stat().st_size for path in (instances / "_base").iterdir() if path.is_file()] == [
        1 << 20
    ]


@pytest.mark.parametrize(
    "auth",
    [
        {"OS_AUTH_TYPE": "password", **USER, **PROJECT},
        {"OS_AUTH_TYPE": "v3password", **USER, **PROJECT},
        {"OS_AUTH_TYPE": "token", "OS_TOKEN": "t", **PROJECT},
        {
            "OS_AUTH_TYPE": "v3applicationcredential",
            "OS_APPLICATION_CREDENTIAL_ID": "i",
            "OS_APPLICATION_CREDENTIAL_SECRET": "s",
        },
    ],
    ids=lambda auth: auth["OS_AUTH_TYPE"],
)
def test_login_methods_are_inside_and_get_as_far_as_keystone(
    binary: Path, private_home: Path, auth: dict[str, str]
) -> None:
    inventory = private_home / "inventory.yaml"
    inventory.write_text("image_service: {kind: glance}\naggregates: {a: {hosts: [h1]}}\n")
    env = {
        "HOME": str(private_home),
        "PATH": os.environ["PATH"],
        "OS_AUTH_URL": f"http://127.0.0.1:{free_port()}/v3",
        **auth,
    }
    done = run(
        binary, "--inventory", str(inventory), "precache", "--all", "disk", env=env, status=4
    )
    assert "refused" in done.stderr.lower()


def test_every_command_is_inside(binary: Path, private_home: Path) -> None:
    env = {"HOME": str(private_home), "PATH": os.environ["PATH"]}
    assert run(binary, "--version", env=env).stdout.startswith("imgcache ")
    root = run(binary, "--help", env=env).stdout
    commands = [
        line.split()[0]
        for line in root.partition("Commands:")[2].splitlines()
        if line.startswith("  ") and line[2:3].isalpha()
    ]
    for command in ("precache", "trust", "check"):
        assert command in commands
        assert f"imgcache {command}" in run(binary, command, "--help", env=env).stdout


def test_every_driver_is_inside(binary: Path, private_home: Path) -> None:
    env = {"HOME": str(private_home), "PATH": os.environ["PATH"]}
    inside = run(binary, "drivers", "-f", "json", env=env).stdout
    outside = run(Path(sys.executable), "-m", "imgcache", "drivers", "-f", "json", env=env).stdout
    assert json.loads(inside) == json.loads(outside)
    names = {one["driver"] for one in json.loads(inside)["capabilities"]}
    assert names == {"libvirt", "glance-cache", "vmwareapi", "hyperv"}


def test_first_starts_at_once_unpack_one_private_copy(binary: Path, private_home: Path) -> None:
    env = {"HOME": str(private_home), "PATH": os.environ["PATH"]}
    starts = [
        subprocess.Popen([binary, "--version"], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = {start.communicate(timeout=120)[0] for start in starts}
    assert [start.returncode for start in starts] == [0, 0, 0]
    assert len(outputs) == 1
    folder = private_home / ".cache/imgcache/bin"
    assert [len(path.name) for path in folder.iterdir()] == [64]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_without_a_home_it_unpacks_below_tmpdir(binary: Path, tmp_path: Path) -> None:
    env = {"TMPDIR": str(tmp_path), "PATH": "/nonexistent"}
    run(binary, "--version", env=env)
    assert [path.name for path in tmp_path.iterdir()] == [f"imgcache-{os.getuid()}"]


def test_a_copy_behind_a_symbolic_link_is_not_run(binary: Path, tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path / "home"), "TMPDIR": "/proc", "PATH": os.environ["PATH"]}
    run(binary, "--version", env=env)
    cache = tmp_path / "home/.cache/imgcache/bin"
    cache.rename(tmp_path / "elsewhere")
    cache.symlink_to(tmp_path / "elsewhere")
    assert "cannot unpack" in run(binary, "--version", env=env, status=2).stderr


def test_a_place_that_cannot_be_written_is_said(binary: Path) -> None:
    env = {"HOME": "/proc", "TMPDIR": "/proc", "PATH": os.environ["PATH"]}
    assert "XDG_CACHE_HOME" in run(binary, "--version", env=env, status=2).stderr


@pytest.mark.parametrize("place", ["writable by all", "of another user"])
def test_the_launcher_starts_nothing_below_a_folder_that_others_may_change(
    binary: Path, place: str, tmp_path: Path
) -> None:
    """Who may rename a parent folder may put a program there under the same name."""
    if os.geteuid():
        pytest.skip("needs root, to be two users")
    shared, home = tmp_path / "shared", tmp_path / "tmp"
    cache = shared / "root/cache"
    cache.mkdir(parents=True)
    home.mkdir(mode=0o700)
    if place == "writable by all":
        shared.chmod(0o777)
    else:
        os.chown(shared, 65534, 65534)
    digest = next(
        line.partition("=")[2]
        for line in binary.read_bytes()[:4096].decode("utf-8", "replace").splitlines()
        if line.startswith("digest=")
    )
    planted = cache / "imgcache/bin" / digest / "imgcache"
    planted.parent.mkdir(parents=True)
    planted.write_text("#!/bin/sh\necho planted\n")
    planted.chmod(0o755)
    env = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(cache), "TMPDIR": str(home)}
    assert "planted" not in run(binary, "--version", env=env).stdout
    shared.chmod(0o755)
    os.chown(shared, 0, 0)
    assert "planted" in run(binary, "--version", env=env).stdout
