"""What is read of ssh's own files: its configuration and the known host keys."""

from __future__ import annotations

import os
from pathlib import Path

import asyncssh
import pytest

from fakes.hosts import make_host
from imgcache.errors import ConfigError, HostError
from imgcache.transport.host_keys import KnownHosts
from imgcache.transport.ssh_config import SshConfig, matches, resolve

PUBLIC = [
    asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    for _ in range(3)
]


def config(tmp_path: Path, text: str) -> SshConfig:
    path = tmp_path / "config"
    path.write_text(text)
    return SshConfig(path)


def test_the_first_value_wins_and_files_add_up(tmp_path: Path) -> None:
    found = config(
        tmp_path,
        'Host other\n  User nobody\nhost=edge1-01\n  Port=2201\n IdentityFile "/keys/a b"\n'
        "Host edge* !edge2-*\n  Port 2202\n  User ops\n  IdentityFile ~/.ssh/%r-%h\n  ProxyJump jump\n"
        "Host *\n  User last\n  HostName %h.example.net\n",
    ).settings_for(make_host())
    assert (found.hostname, found.port, found.user) == ("edge1-01.example.net", 2201, "ops")
    assert found.key_files == (
        Path("/keys/a b"),
        Path(os.environ["HOME"], ".ssh", "ops-edge1-01.example.net"),
    )
    assert found.proxy_jump == "jump"


def test_the_inventory_wins(tmp_path: Path) -> None:
    text = "Port 1\nUser a\nIdentityFile /x\nProxyJump b\nUserKnownHostsFile /y\n"
    host = make_host(
        port=2, user="c", ssh_key=Path("/k"), proxy_jump="none", known_hosts=Path("/h")
    )
    found = config(tmp_path, text).settings_for(host)
    assert (found.port, found.user, found.key_files, found.proxy_jump) == (
        2,
        "c",
        (Path("/k"),),
        None,
    )
    assert found.known_hosts == (Path("/h"),)
    assert found.only_named_keys


def test_match_sections_are_skipped_save_match_all(tmp_path: Path) -> None:
    found = config(tmp_path, "Match host edge1-01\n  Port 1\nMatch all\n  Port 2\n").settings_for(
        make_host()
    )
    assert found.port == 2


def test_includes_are_followed_and_bounded(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Host edge1-01\n  Port 7\n")
    text = f"Include {tmp_path}/mor*\nHost edge1-01\n  Port 8\n"
    assert config(tmp_path, text).settings_for(make_host()).port == 7
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, f"Include {tmp_path}/config\n")
    assert "nested" in caught.value.problems[0].what


@pytest.mark.parametrize("line", ["Port ten", "Port 0", "Port 65536", 'User "open'])
def test_faults_come_with_file_and_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, f"# comment\n\n{line}\n")
    assert caught.value.problems[0].where == f"{tmp_path}/config:3"


def test_without_a_file_openssh_defaults_hold() -> None:
    home = Path(os.environ["HOME"])
    address = resolve(make_host())
    assert (address.hostname, address.port, address.known_hosts_name) == (
        "edge1-01",
        22,
        "edge1-01",
    )
    assert address.known_hosts_files[0] == home / ".ssh" / "known_hosts"


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("edge1-01",), True), (("EDGE1-*",), True), (("edge?-01",), True), (("*", "!edge1-*"), False),
        (("!other",), False), (("edge1-0",), False), ((), False), (("edge1.01",), False),
    ],
)  # fmt: skip
def test_patterns(patterns: tuple[str, ...], expected: bool) -> None:
    assert matches("edge1-01", patterns) is expected


# known_hosts


def lookup(tmp_path: Path, text: str, name: str = "Edge1-01", port: int = 22) -> list[int]:
    """Return which of PUBLIC are trusted."""
    path = tmp_path / "known_hosts"
    path.write_text(text)
    trusted = KnownHosts().lookup((tmp_path / "absent", path), name, port)
    return [PUBLIC.index(key.export_public_key().decode().strip()) for key in trusted.keys]


def test_names_ports_patterns_and_lists(tmp_path: Path) -> None:
    a, b, c = PUBLIC
    assert lookup(tmp_path, f"edge1-01,192.0.2.1 {a}\nother {b}\n") == [0]
    assert lookup(tmp_path, f"edge* {a}\n!edge1-01,* {b}\n") == [0]
    assert lookup(tmp_path, f"[edge1-01]:2222 {a}\nedge1-01 {b}\n", port=2222) == [0]
    assert lookup(tmp_path, f"edge1-01 {b}\n", port=2222) == [1]
    assert lookup(tmp_path, f"[edge1-01]:2222 {a}\n") == []
    assert lookup(tmp_path, f"edge1-01 {a}\nedge1-01 {c} a comment\n") == [0, 2]


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    lines = "\n# c\nedge1-01\nedge1-01 ssh-ed25519\n"
    lines += "edge1-01 ssh-ed25519 AAAA\n|1|x|y ssh-ed25519 AAAA\n\xff\n"
    assert lookup(tmp_path, lines + f"edge1-01 {PUBLIC[0]}\n") == [0]


def test_authorities_and_revoked_keys_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"@cert-authority * {PUBLIC[0]}\n@revoked * {PUBLIC[1]}\n@odd * {PUBLIC[2]}\n")
    trusted = KnownHosts().lookup((path,), "h", 22)
    assert (len(trusted.keys), len(trusted.authorities), len(trusted.revoked)) == (0, 1, 1)
    assert trusted.algorithms()[0].endswith("cert-v01@openssh.com")


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError):
        KnownHosts().lookup((tmp_path,), "h", 22)


def test_ten_thousand_entries_are_read_once_and_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text("".join(f"host{number} {PUBLIC[number % 3]}\n" for number in range(10_000)))
    known = KnownHosts()
    assert len(known.lookup((path,), "host9999", 22).keys) == 1
    path.unlink()
    assert len(known.lookup((path,), "host1", 22).keys) == 1
