"""``imgcache trust`` against OpenSSH's sshd: new, known and changed keys (S1, S2)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh
import jsonschema
import pytest

from fakes.hosts import greet, make_host
from imgcache.errors import HostError
from imgcache.transport.ssh import SshTransport
from servers.openssh import OpenSshServer, available, free_port, write_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = [
    pytest.mark.sshd,
    pytest.mark.skipif(not available(), reason="OpenSSH's sshd is not installed"),
]


@dataclass
class Site:
    """Two hosts of one sshd, one dead host, and an inventory."""

    folder: Path
    server: OpenSshServer

    @property
    def known_hosts(self) -> Path:
        return self.folder / "keys" / "known_hosts"

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run the command without a terminal."""
        return subprocess.run(
            self.command(*args),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def command(self, *args: str) -> list[str]:
        inventory = str(self.folder / "inventory.yaml")
        return [sys.executable, "-m", "imgcache", "--inventory", inventory, "trust", *args]

    def answer(self, text: str, *args: str) -> tuple[int, str, str]:
        """Run it on a terminal and answer its question; return status, terminal, stdout."""
        terminal, other = pty.openpty()
        process = subprocess.Popen(
            self.command(*args), stdin=other, stdout=subprocess.PIPE, stderr=other, text=True
        )
        os.close(other)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal's end, once the process is gone
            while select.select([terminal], [], [], 60)[0]:
                shown += os.read(terminal, 65536)
                if shown.endswith(b"[y/N]: "):
                    os.write(terminal, text.encode() + b"\n")
        stdout, _ = process.communicate(timeout=60)
        os.close(terminal)
        return process.returncode, shown.decode(), stdout

    def fingerprint(self) -> str:
        """Return the server's fingerprint as OpenSSH's own tool prints it."""
        return fingerprint(self.server.folder / "host_0.pub")

    def states(self, *args: str) -> dict[str, str]:
        """Return host -> state, as the JSON result says."""
        result = self.run("--dry-run", "-f", "json", *args)
        return {row["host"]: row["state"] for row in json.loads(result.stdout)["keys"]}


def fingerprint(public_key: Path) -> str:
    listed = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(public_key)], capture_output=True, text=True, check=True
    )
    return listed.stdout.split()[1]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    server = OpenSshServer(tmp_path / "sshd", addresses=("127.0.0.1", "127.0.0.2"))
    with server:
        (tmp_path / "inventory.yaml").write_text(f"""
defaults: {{port: {server.port}, known_hosts: keys/known_hosts, connect_timeout_s: 10}}
aggregates:
  edge:
    hosts:
      - {{name: e1, address: 127.0.0.1}}
      - {{name: e2, address: 127.0.0.2}}
  dead:
    hosts: [{{name: gone, address: 127.0.0.1, port: {free_port()}}}]
  here:
    hosts: [{{name: me, transport: local}}]
""")
        yield Site(tmp_path, server)


def renew_host_key(server: OpenSshServer) -> None:
    server.stop()
    write_key(server.folder / "host_0")
    server.start()


def openssh_accepts(site: Site, name: str) -> bool:
    """Whether OpenSSH's client, which checks strictly, takes the key from our file."""
    ssh = subprocess.run(
        [
            "ssh", "-F", "none", "-p", str(site.server.port), "-i", str(site.server.client_key),
            "-o", f"UserKnownHostsFile={site.known_hosts}", "-o", "GlobalKnownHostsFile=none",
            "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes",
            f"{site.server.user}@{name}", "true",
        ],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    return ssh.returncode == 0


@pytest.mark.row("S2")
def test_new_keys_are_shown_folded_and_added_with_yes(site: Site) -> None:
    assert not openssh_accepts(site, "127.0.0.1")
    result = site.run("--aggregate", "edge", "--yes")
    assert result.returncode == 0, result.stderr
    header, row = result.stdout.splitlines()
    assert header.split() == ["HOST", "STATE", "ALGORITHM", "FINGERPRINT", "ADDED", "REASON"]
    assert row.split() == ["e[1-2]", "new", "ssh-ed25519", site.fingerprint(), "yes"]
    assert site.known_hosts.stat().st_mode & 0o777 == 0o600
    assert site.known_hosts.parent.stat().st_mode & 0o777 == 0o700
    assert openssh_accepts(site, "127.0.0.1")
    assert openssh_accepts(site, "127.0.0.2")


@pytest.mark.row("S2")
def test_known_keys_are_left_alone(site: Site) -> None:
    site.run("--host", "e1", "--yes")
    before = site.known_hosts.read_bytes()
    assert site.states("--aggregate", "edge") == {"e1": "known", "e2": "new"}
    again = site.run("--host", "e1")
    assert (again.returncode, again.stderr) == (0, "")
    assert site.known_hosts.read_bytes() == before
    site.run("--aggregate", "edge", "--yes")
    assert site.known_hosts.read_bytes().startswith(before)
    assert site.states("--aggregate", "edge") == {"e1": "known", "e2": "known"}


@pytest.mark.row("S1")
def test_a_changed_key_is_refused_loudly_and_nothing_is_added_for_any_host(site: Site) -> None:
    assert site.run("--host", "e1", "--yes").returncode == 0
    before, old = site.known_hosts.read_bytes(), site.fingerprint()
    renew_host_key(site.server)
    result = site.run("--aggregate", "edge", "--yes")
    assert result.returncode == 3
    assert "THE HOST KEY HAS CHANGED, no key was added for any host" in result.stderr
    assert old in result.stderr
    assert site.fingerprint() in result.stderr
    assert str(site.known_hosts) in result.stderr
    assert "--yes" not in result.stderr
    assert "ssh-keygen -R" in result.stderr
    states = [line.split()[:2] for line in result.stdout.splitlines()[1:]]
    assert states == [["e1", "changed"], ["e2", "new"]]
    assert site.known_hosts.read_bytes() == before
    # The others can be added when it is left out.
    assert site.run("--aggregate", "edge", "--exclude", "e1", "--yes").returncode == 0
    assert openssh_accepts(site, "127.0.0.2")
    assert not openssh_accepts(site, "127.0.0.1")


@pytest.mark.row("S1")
def test_a_dry_run_tells_of_a_changed_key_by_its_exit_code(site: Site) -> None:
    site.run("--host", "e1", "--yes")
    renew_host_key(site.server)
    result = site.run("--host", "e1", "--dry-run", "-f", "json")
    assert result.returncode == 3
    (row,) = json.loads(result.stdout)["keys"]
    assert (row["state"], row["code"], row["added"]) == ("changed", "hostkey-changed", False)
    assert row["known_fingerprint"] != row["fingerprint"] == site.fingerprint()


def test_a_dry_run_adds_nothing(site: Site) -> None:
    result = site.run("--aggregate", "edge", "--dry-run", "--yes")
    assert (result.returncode, result.stderr) == (0, "")
    assert "new" in result.stdout
    assert not site.known_hosts.exists()


@pytest.mark.row("S1")
def test_a_revoked_key_is_refused(site: Site) -> None:
    key = (site.server.folder / "host_0.pub").read_text()
    site.known_hosts.parent.mkdir()
    site.known_hosts.write_text(f"@revoked * {key}")
    result = site.run("--host", "e1", "--yes")
    assert result.returncode == 3
    assert "A HOST SHOWS A REVOKED KEY, no key was added for any host" in result.stderr
    assert "a key marked as revoked" in result.stderr
    assert "ssh-keygen -R" not in result.stderr
    assert site.known_hosts.read_text() == f"@revoked * {key}"


@pytest.mark.row("S2")
def test_without_a_terminal_and_without_yes_nothing_is_added(site: Site) -> None:
    result = site.run("--aggregate", "edge")
    assert result.returncode == 2
    assert site.fingerprint() in result.stdout
    assert "no key was added: 2 hosts are new" in result.stderr
    assert "--yes" in result.stderr
    assert not site.known_hosts.exists()


@pytest.mark.row("S2")
@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("n", 3), ("", 3)])
def test_on_a_terminal_it_asks_once(site: Site, answer: str, status: int) -> None:
    code, terminal, stdout = site.answer(answer, "--aggregate", "edge")
    assert code == status
    assert terminal.count("[y/N]") == 1
    # The fingerprints come before the question, with the file that would be written.
    question = terminal.index("[y/N]")
    assert -1 < terminal.index(site.fingerprint()) < question
    assert -1 < terminal.index(str(site.known_hosts)) < question
    assert site.known_hosts.exists() == (answer == "y")
    assert ("yes" in stdout) == (answer == "y")


def test_a_dead_host_is_listed_and_the_others_are_added(site: Site) -> None:
    result = site.run("--all", "--yes", "-f", "json")
    assert result.returncode == 1
    document = json.loads(result.stdout)
    schema = Path(__file__).parents[2] / "docs" / "schemas" / "trust.json"
    jsonschema.validate(document, json.loads(schema.read_text()))
    rows = {row["host"]: row for row in document["keys"]}
    assert {name: row["state"] for name, row in rows.items()} == {
        "e1": "new",
        "e2": "new",
        "gone": "error",
        "me": "skipped",
    }
    assert rows["gone"]["code"] == "connect"
    assert (rows["e1"]["added"], rows["gone"]["added"]) == (True, False)
    assert document["totals"] == {"new": 2, "known": 0, "changed": 0, "error": 1, "skipped": 1}


def test_all_types_of_keys_are_added(tmp_path: Path) -> None:
    types = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")
    with OpenSshServer(tmp_path / "sshd", host_key_types=types) as server:
        (tmp_path / "inventory.yaml").write_text(
            f"aggregates: {{a: {{port: {server.port}, hosts: [127.0.0.1]}}}}"
        )
        site = Site(tmp_path, server)
        result = site.run("--all", "--yes", "-f", "json")
        keys = {row["algorithm"]: row["fingerprint"] for row in json.loads(result.stdout)["keys"]}
        assert keys == {
            kind: fingerprint(server.folder / f"host_{number}.pub")
            for number, kind in enumerate(types)
        }
        # Without a word about it, into the user's own file.
        home_file = Path("~/.ssh/known_hosts").expanduser()
        written = {line.split(maxsplit=1)[1] for line in home_file.read_text().splitlines()}
        assert written == {" ".join(key.split()[:2]) for key in server.host_public_keys()}


def test_ssh_config_decides_name_and_file(site: Site) -> None:
    ssh = Path("~/.ssh").expanduser()
    ssh.mkdir(mode=0o700)
    (ssh / "config").write_text(
        f"Host edge-a\n HostName 127.0.0.2\n Port {site.server.port}\n UserKnownHostsFile ~/.ssh/mine\n"
    )
    (site.folder / "inventory.yaml").write_text("aggregates: {a: {hosts: [edge-a]}}")
    assert site.run("--all", "--yes").returncode == 0
    assert (ssh / "mine").read_text().startswith(f"[127.0.0.2]:{site.server.port} ssh-ed25519 ")
    assert site.states("--all") == {"edge-a": "known"}


@pytest.mark.parametrize("args", [(), ("--host", "e7"), ("--aggregate", "edges")])
def test_a_wrong_selection_contacts_nobody(site: Site, args: Sequence[str]) -> None:
    result = site.run(*args)
    assert (result.returncode, result.stdout) == (2, "")
    # Its second address: the first is probed when the server starts.
    contact = re.compile(r"Connection from \S+ port \d+ on 127\.0\.0\.2 port ")
    assert not contact.search(site.server.log)
    site.run("--host", "e2", "--dry-run")
    assert contact.search(site.server.log)


@pytest.mark.row("S1")
@pytest.mark.parametrize(
    ("case", "expected"),
    [("certified", "known"), ("stranger", "new"), ("revoked", "changed"), ("other", "new")],
)
def test_trust_says_what_a_connection_would(tmp_path: Path, case: str, expected: str) -> None:
    authority, stranger = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    (tmp_path / "sshd").mkdir()
    write_key(tmp_path / "sshd" / "host_0")
    signing = stranger if case == "stranger" else authority
    certificate = signing.generate_host_certificate(
        asyncssh.read_public_key(tmp_path / "sshd" / "host_0.pub"), "e1", principals=["127.0.0.1"]
    )
    certificate.write_certificate(tmp_path / "sshd" / "certificate.pub")
    options = {"HostCertificate": str(tmp_path / "sshd" / "certificate.pub")}
    types = ("ssh-ed25519", "ecdsa-sha2-nistp256")
    with OpenSshServer(tmp_path / "sshd", host_key_types=types, options=options) as server:
        (tmp_path / "inventory.yaml").write_text(
            f"aggregates: {{a: {{port: {server.port}, known_hosts: known, hosts: [127.0.0.1]}}}}"
        )
        revoked = certificate.export_certificate().decode()
        lines = {
            "certified": [f"@cert-authority * {authority.export_public_key().decode()}"],
            "stranger": [f"@cert-authority * {authority.export_public_key().decode()}"],
            "revoked": [
                f"@cert-authority * {authority.export_public_key().decode()}",
                f"@revoked * {revoked}",
            ],
            "other": [f"@revoked * {stranger.export_public_key().decode()}"],
        }[case]
        (tmp_path / "known").write_text("".join(lines))
        site = Site(tmp_path, server)
        assert site.states("--all") == {"127.0.0.1": expected}
        # What was added is what a connection then takes: no circle of hints.
        assert site.run("--all", "--yes").returncode == (3 if case == "revoked" else 0)
        settings = server.host_settings(known_hosts=tmp_path / "known")

        async def logs_in() -> None:
            async with SshTransport() as ssh:
                await greet(ssh, make_host(**settings))

        if case == "revoked":
            with pytest.raises(HostError, match="IS REVOKED"):
                asyncio.run(logs_in())
        else:
            asyncio.run(logs_in())
            assert site.states("--all") == {"127.0.0.1": "known"}
