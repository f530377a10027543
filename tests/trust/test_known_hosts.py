"""Writing known_hosts: only ever appended, under a lock, whole or not at all."""

from __future__ import annotations

import base64
import fcntl
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import asyncssh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgcache.errors import ConfigError, ErrorCode, HostError, UnsafePlanError
from imgcache.transport.base import ResolvedAddress, ScannedKey
from imgcache.transport.host_keys import KeyState, KnownHosts
from imgcache.transport.known_hosts import (
    NewKeys,
    append_keys,
    judge_keys,
    known_hosts_line,
)

if TYPE_CHECKING:
    from pathlib import Path


def make_key(algorithm: str = "ssh-ed25519") -> ScannedKey:
    key = asyncssh.generate_private_key(algorithm)
    words = key.export_public_key().decode().split()
    return ScannedKey(words[0], " ".join(words[:2]), key.get_fingerprint())


KEY, OTHER = make_key(), make_key()
ECDSA, RSA = make_key("ecdsa-sha2-nistp256"), make_key("ssh-rsa")


def address(path: Path, name: str = "h", port: int = 22) -> ResolvedAddress:
    return ResolvedAddress(name, port, (path,))


def judge(path: Path, *keys: ScannedKey, port: int = 22) -> KeyState:
    return judge_keys(KnownHosts(), address(path, port=port), keys).state


@pytest.mark.parametrize(
    ("name", "port", "start"),
    [
        ("h.example.net", 22, "h.example.net ssh-ed25519 AAAA"),
        ("h", 2222, "[h]:2222 ssh-ed25519 AAAA"),
        ("2001:db8::1", 22, "2001:db8::1 ssh-ed25519 AAAA"),
        ("2001:db8::1", 2222, "[2001:db8::1]:2222 ssh-ed25519 AAAA"),
    ],
)
def test_names_as_openssh_writes_them(tmp_path: Path, name: str, port: int, start: str) -> None:
    path = tmp_path / "known"
    append_keys(path, [NewKeys(address(path, name, port), (KEY,))])
    assert path.read_text().startswith(start)
    assert judge_keys(KnownHosts(), address(path, name, port), (KEY,)).state is KeyState.KNOWN


def test_what_is_there_stays_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "known"
    odd = b"# mine\n\n|1|broken\nx\t y\xff\r\n@cert-authority * ssh-rsa AAAA\nno newline at the end"
    path.write_bytes(odd)
    path.chmod(0o644)
    append_keys(path, [NewKeys(address(path), (KEY, ECDSA))])
    content = path.read_bytes()
    assert content.startswith(odd + b"\nh ssh-ed25519 ")
    assert content.count(b"\nh ") == 2
    assert content.endswith(b"\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    append_keys(tmp_path / "link", [NewKeys(address(tmp_path / "link"), (KEY,))])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text().startswith("h ssh-ed25519")


@pytest.mark.row("S1")
@pytest.mark.row("S2")
def test_verdicts(tmp_path: Path) -> None:
    path = tmp_path / "known"
    assert judge(path, KEY) is KeyState.NEW
    path.write_text(known_hosts_line("h", KEY))
    assert judge(path, KEY) is KeyState.KNOWN
    assert judge(path, KEY, ECDSA) is KeyState.KNOWN
    assert judge(path, OTHER) is KeyState.CHANGED
    assert judge(path, OTHER, ECDSA) is KeyState.CHANGED
    # Another kind of key only: that is what somebody in between would show.
    assert judge(path, ECDSA) is KeyState.CHANGED
    # One known key does not excuse another that contradicts.
    path.write_text(known_hosts_line("h", KEY) + known_hosts_line("h", ECDSA))
    assert judge(path, OTHER, ECDSA) is KeyState.CHANGED
    # As in OpenSSH, a key under the bare name counts for other ports, too.
    assert judge(path, KEY, port=2222) is KeyState.KNOWN
    path.write_text(known_hosts_line("h", KEY) + "@revoked h " + KEY.public_key_text + "\n")
    assert judge(path, KEY) is KeyState.REVOKED
    path.write_text("*.net,h* " + KEY.public_key_text + "\n")
    assert judge(path, OTHER) is KeyState.CHANGED


def test_added_twice_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "known"
    hosts = [NewKeys(address(path), (KEY,)), NewKeys(address(path), (KEY,))]
    append_keys(path, hosts)
    append_keys(path, hosts)
    assert path.read_text().count("\n") == 1


@pytest.mark.row("S1")
def test_another_key_that_came_meanwhile_is_not_overruled(tmp_path: Path) -> None:
    path = tmp_path / "known"
    path.write_text(known_hosts_line("h", OTHER))
    new = [NewKeys(address(path, "first"), (KEY,)), NewKeys(address(path), (KEY,))]
    with pytest.raises(UnsafePlanError, match="holds another key for h"):
        append_keys(path, new)
    assert path.read_text() == known_hosts_line("h", OTHER)


ADD_TWENTY = """
import sys
from pathlib import Path
from imgcache.transport.base import ResolvedAddress, ScannedKey
from imgcache.transport.known_hosts import NewKeys, append_keys
path, prefix, key = Path(sys.argv[1]), sys.argv[2], ScannedKey("ssh-ed25519", sys.argv[3], "x")
print("ready", flush=True)
for number in range(20):
    append_keys(path, [NewKeys(ResolvedAddress(f"{prefix}{number}", 22, (path,)), (key,))])
"""

FILL_UP = (
    """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
"""
    + ADD_TWENTY
)


def start(script: str, path: Path, prefix: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, str(path), prefix, KEY.public_key_text]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def names_in(path: Path) -> list[str]:
    return sorted(line.split()[0] for line in path.read_text().splitlines())


def test_runs_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "known"
    children = [start(ADD_TWENTY, path, prefix) for prefix in "ab"]
    for child in children:
        _, stderr = child.communicate(timeout=60)
        assert child.returncode == 0, stderr
    assert names_in(path) == sorted(f"{prefix}{number}" for prefix in "ab" for number in range(20))


def test_it_waits_for_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "known"
    path.touch()
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        child = start(ADD_TWENTY, path, "a")
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.7)
        assert path.read_bytes() == b""
    child.communicate(timeout=60)
    assert (child.returncode, len(names_in(path))) == (0, 20)


@pytest.mark.parametrize("before", [b"", b"# kept\n", b"x" * 50])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "known"
    path.write_bytes(before)
    child = start(FILL_UP, path, "a")
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "the host keys were not added" in stderr
    assert path.read_bytes() == before


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "known", tmp_path):
        with pytest.raises(ConfigError) as caught:
            append_keys(path, [NewKeys(address(path), (KEY,))])
        (problem,) = caught.value.problems
        assert problem.where == str(path)
        assert problem.what.startswith("cannot be written")


@pytest.mark.parametrize(
    "text",
    [
        "ssh-ed25519 AAAA",
        "ssh-ed25519",
        "ssh-ed25519 !",
        "ssh-x AAAAB3NzaC1lZDI1NTE5",
        "",
        "ssh-rsa \n",
    ],
)
def test_what_is_no_key_is_the_hosts_error(text: str) -> None:
    with pytest.raises(HostError) as caught:
        known_hosts_line("h", ScannedKey("x", text, "SHA256:x"))
    assert caught.value.code is ErrorCode.HOSTKEY_UNKNOWN


@pytest.mark.parametrize("name", ["a b", "a\nb", "a\tb"])
def test_a_name_never_breaks_the_line(name: str) -> None:
    with pytest.raises(HostError):
        known_hosts_line(name, KEY)


@settings(deadline=None, max_examples=300)
@given(
    key=st.sampled_from([KEY, ECDSA, RSA]),
    at=st.integers(0, 600),
    byte=st.integers(0, 255),
    length=st.integers(0, 600),
)
def test_a_damaged_key_is_an_entry_or_the_hosts_error(
    key: ScannedKey, at: int, byte: int, length: int
) -> None:
    blob = bytearray(base64.b64decode(key.public_key_text.split()[1]))
    blob[at % len(blob)] = byte
    text = f"{key.algorithm} {base64.b64encode(blob[:length] if length < 300 else blob).decode()}"
    try:
        line = known_hosts_line("h", ScannedKey(key.algorithm, text, "SHA256:x"))
    except HostError:
        return
    assert line.startswith(f"h {key.algorithm} ")
