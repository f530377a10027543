"""Whom commands become on hosts: those that remove files may be root where all others are nova.

Real sshd and real sudo, in a mount namespace whose /etc has a user ``nova`` and README's sudoers line.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

from imgcache.config.become import users_to_become
from imgcache.errors import UsageError
from imgcache.model import HostSettings
from servers import openssh
from servers.fleet_fixtures import add_image
from servers.life_fixtures import DAY, IDS, schema

if TYPE_CHECKING:
    from collections.abc import Iterator

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
#: Of the user ``nova`` that only the hosts have.
UID = 64123
QEMU_USER = "libvirt-qemu"


@dataclass
class NovaHost:
    """A host at which ``nova`` logs in, with instances that run as another user."""

    folder: Path
    server: openssh.OpenSshServer

    @property
    def instances(self) -> Path:
        return self.folder / "instances"

    def final(self, image: str) -> Path:
        return self.instances / "_base" / hashlib.sha1(IDS[image].encode()).hexdigest()

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run ``imgcache`` as cron does: no terminal, next to no environment."""
        return subprocess.run(
            [sys.executable, "-m", "imgcache", *argv],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd="/",
            stdin=subprocess.DEVNULL,
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(self.folder),
                "IMGCACHE_INVENTORY": str(self.folder / "inventory.yaml"),
                "PYTHONPATH": str(Path("src").absolute()),
            },
        )

    def outcomes(self, *argv: str, code: int = 0) -> dict[str, tuple[str, str | None]]:
        done = self.run(*argv, "-f", "json")
        assert done.returncode == code, done.stdout + done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        jsonschema.validate(document, schema(next(word for word in argv if word[0] != "-")))
        return {
            one["image_name"] or one.get("entry"): (one["outcome"], one["code"])
            for one in document["outcomes"]
        }

    def sudo_users(self) -> set[str]:
        """Return whom sudo made of nova since this was asked last."""
        log = self.folder / "sudo.log"
        users = re.findall(r"USER=(\w+)", log.read_text()) if log.exists() else []
        log.write_text("")
        return set(users)

    def write_inventory(self, **defaults: Any) -> None:
        """Write the inventory of README.md, for this host."""
        (text,) = [
            one
            for one in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
            if "aggregates" in one
        ]
        inventory = yaml.safe_load(text)
        inventory["image_service"] = {"kind": "directory", "path": "images"}
        inventory["defaults"] |= defaults
        inventory["aggregates"]["edge-1"]["hosts"] = [
            {
                "name": "edge1-01",
                "address": "127.0.0.1",
                "port": self.server.port,
                "ssh_key": str(self.server.client_key),
                "known_hosts": str(self.server.known_hosts),
                "instances_path": str(self.instances),
                "images_type": "qcow2",
                "force_raw_images": False,
                "nova_conf": str(self.folder / "nova.conf"),
                "reserve": 0,
            }
        ]
        path = self.folder / "inventory.yaml"
        path.write_text(yaml.safe_dump(inventory))
        path.chmod(0o600)


def write_etc(folder: Path) -> None:
    """Write what /etc has on the host."""
    etc = folder / "etc"
    etc.mkdir()
    passwd = Path("/etc/passwd").read_text() + f"nova:x:{UID}:{UID}::{folder}/home:/bin/sh\n"
    (etc / "passwd").write_text(passwd)
    (etc / "group").write_text(Path("/etc/group").read_text() + f"nova:x:{UID}:\n")
    (etc / "shadow").write_text(Path("/etc/shadow").read_text() + "nova:*:19000:0:99999:7:::\n")
    lines = re.findall(r"```sudoers\n(.*?)```", README, re.DOTALL)
    (line,) = [
        one.strip() for one in "".join(lines).splitlines() if one.strip().startswith("nova ")
    ]
    (etc / "sudoers").write_text(
        f"Defaults logfile={folder}/sudo.log, env_reset\nroot ALL=(ALL) ALL\n{line}\n"
    )
    (etc / "shadow").chmod(0o600)
    (etc / "sudoers").chmod(0o440)
    subprocess.run(["visudo", "-c", "-q", "-f", etc / "sudoers"], check=True)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """Return a folder that other users reach; pytest closes the one above its own at each start."""
    with tempfile.TemporaryDirectory(prefix="imgcache-become-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def host(reachable: Path) -> Iterator[NovaHost]:
    if os.geteuid() != 0 or not shutil.which("sudo") or not openssh.available():
        pytest.skip("needs root, sudo and sshd")
    write_etc(reachable)
    mounts = "; ".join(
        f"mount --bind {reachable}/etc/{name} /etc/{name}"
        for name in ("passwd", "group", "shadow", "sudoers")
    )
    script = f'set -e; {mounts}; exec "$@"'
    server = openssh.OpenSshServer(
        reachable / "sshd",
        user="nova",
        within=("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"),
    )
    (reachable / "home").mkdir()
    made = NovaHost(reachable, server)
    (made.instances / "_base").mkdir(parents=True)
    (reachable / "nova.conf").write_text("[DEFAULT]\n")
    for name, image_id in IDS.items():
        add_image(reachable / "images", image_id, name, f"bytes of {name}\n".encode() * 4000)
    subprocess.run(["chown", "-R", f"{UID}:{UID}", made.instances, reachable / "home"], check=True)
    with server:
        os.chown(server.folder / "authorized_keys", UID, UID)
        made.write_inventory()
        yield made


@pytest.fixture
def busy(host: NovaHost) -> Iterator[NovaHost]:
    """Both images are cached and old; a real qemu of another user has a disk on ``debian-12``."""
    try:
        user = pwd.getpwnam(QEMU_USER)
    except KeyError:
        user = pwd.getpwnam("nobody")
    assert host.run("precache", "--all", "debian-12", "rescue").returncode == 0
    disk = host.instances / "0b5e2f4e-1111-4222-8333-444444444444" / "disk"
    disk.parent.mkdir()
    base = host.final("debian-12")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, disk], check=True
    )
    os.chown(disk.parent, UID, UID)
    os.chown(disk, user.pw_uid, user.pw_gid)
    disk.chmod(0o600)
    old = time.time() - 3 * DAY
    for image in IDS:
        os.utime(host.final(image), (old, old))
    words = [
        "-display",
        "none",
        "-nodefaults",
        "-S",
        "-machine",
        "none",
        "-drive",
        f"if=none,file={disk}",
    ]
    command = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    with subprocess.Popen([*command, "qemu-system-x86_64", *words]) as qemu:
        deadline = time.monotonic() + 20
        while str(disk) not in open_files(qemu.pid) and time.monotonic() < deadline:
            assert qemu.poll() is None
            time.sleep(0.05)
        yield host
        qemu.kill()


def open_files(pid: int) -> set[str]:
    folder = Path(f"/proc/{pid}/fd")
    return {os.readlink(link) for link in folder.iterdir() if link.is_symlink()}


@pytest.mark.sshd
@pytest.mark.qemu
def test_the_inventory_of_the_readme_prunes_from_cron_on_a_host_with_instances(
    busy: NovaHost,
) -> None:
    # What caches and looks needs no sudo, and its files are nova's.
    assert (
        busy.outcomes("precache", "--all", "--dry-run", "debian-12")["debian-12"][0] == "existing"
    )
    assert busy.run("check", "--all").returncode == 0
    assert busy.run("list", "--all").returncode == 0
    assert busy.sudo_users() == set()
    assert busy.final("rescue").stat().st_uid == UID
    done = busy.run("prune", "--all", "--max-delete", "20", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert busy.sudo_users() == {"root"}
    assert busy.final("debian-12").exists()
    assert not busy.final("rescue").exists()
    # Root has left nothing that nova could not write.
    foreign = [path for path in (busy.instances / "_base").rglob("*") if path.stat().st_uid != UID]
    assert foreign == []
    assert busy.outcomes("precache", "--all", "rescue") == {"rescue": ("cached", None)}
    assert busy.sudo_users() == set()


@pytest.mark.sshd
@pytest.mark.qemu
def test_each_command_becomes_whom_it_needs(busy: NovaHost) -> None:
    assert busy.outcomes("delete", "--all", "--dry-run", "debian-12", code=1) == {
        "debian-12": ("kept", "in-use")
    }
    assert busy.sudo_users() == {"root"}
    assert busy.outcomes("clean", "--all") == {}
    assert busy.sudo_users() == {"root"}
    assert busy.outcomes("verify", "--all")["rescue"] == ("intact", None)
    assert busy.sudo_users() == set()
    assert busy.outcomes("verify", "--all", "--repair")["rescue"] == ("intact", None)
    assert busy.sudo_users() == {"root"}
    # The options win for one run, in both directions.
    assert busy.run("--become-user", "root", "list", "--all").returncode == 0
    assert busy.sudo_users() == {"root"}
    done = busy.run("prune", "--all", "--become", "none")
    assert done.returncode == 1
    assert "evidence" in done.stdout
    assert busy.sudo_users() == set()
    assert busy.final("rescue").exists()
    # Without the setting, as with --become none.
    busy.write_inventory(removal_become="none")
    assert busy.run("prune", "--all").returncode == 1
    assert busy.outcomes("prune", "--all", "--become", "sudo")["rescue"] == ("removed", None)


PLAIN = HostSettings(user="imgcache", become="sudo")


@pytest.mark.parametrize(
    ("given", "removes", "expected"),
    [
        ({}, True, ("sudo", "nova")),
        ({"removal_become": "sudo"}, True, ("sudo", "root")),
        ({"removal_become": "sudo"}, False, ("sudo", "nova")),
        ({"removal_become_user": "root"}, True, ("sudo", "root")),
        ({"become": "none", "removal_become_user": "root"}, True, ("sudo", "root")),
        (
            {"become": "none", "removal_become": "sudo", "removal_become_user": "op"},
            True,
            ("sudo", "op"),
        ),
        ({"removal_become": "none"}, True, ("none", "root")),
    ],
)
def test_whom_the_settings_mean(
    given: dict[str, Any], removes: bool, expected: tuple[str, str]
) -> None:
    from dataclasses import replace

    settings = replace(PLAIN, **given)
    change = users_to_become(None, None, removes=removes)
    changed = change(settings) if change else settings
    assert (changed.become, changed.become_user) == expected


@pytest.mark.parametrize(
    ("become", "user", "removes", "expected"),
    [
        ("sudo", "root", False, ("sudo", "root")),
        (None, "root", False, ("sudo", "root")),
        (None, "root", True, ("sudo", "root")),
        ("sudo", None, False, ("sudo", "nova")),
        ("sudo", None, True, ("sudo", "op")),
        ("none", None, True, ("none", "op")),
    ],
)
def test_the_options_win(
    become: Any, user: str | None, removes: bool, expected: tuple[str, str]
) -> None:
    change = users_to_become(become, user, removes=removes)
    assert change
    changed = change(HostSettings(removal_become_user="op"))
    assert (changed.become, changed.become_user) == expected


@pytest.mark.parametrize(("become", "user"), [("none", "root"), (None, "-s"), ("sudo", "a b")])
def test_options_that_make_no_sense(become: Any, user: str) -> None:
    with pytest.raises(UsageError, match="--become"):
        users_to_become(become, user, removes=False)
