"""Why a helper did not start: the part of the command that failed is named, and no other."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from fakes.hosts import greet, make_host
from imgcache.errors import ErrorCode, HostError
from imgcache.transport.diagnosis import explain_end
from imgcache.transport.local import LocalTransport
from imgcache.transport.ssh import SshTransport
from servers.ssh_server import ssh_server

if TYPE_CHECKING:
    from pathlib import Path


def script(folder: Path, name: str, body: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def failure(**settings: Any) -> HostError:
    with pytest.raises(HostError) as caught:
        asyncio.run(greet(LocalTransport(), make_host(**settings)))
    return caught.value


@pytest.fixture
def unresolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the real sudo run on a host that cannot resolve its name."""
    sudo = shutil.which("sudo")
    if os.geteuid() != 0 or not sudo:
        pytest.skip("needs root and sudo")
    rename = f'hostname imgcache-nowhere; exec {sudo} "$@"'
    probe = subprocess.run(["unshare", "-u", "true"], check=False, capture_output=True)
    if probe.returncode:
        pytest.skip("needs namespaces")
    script(tmp_path, "sudo", f"exec unshare -u sh -c '{rename}' sudo \"$@\"")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.row("H1")
@pytest.mark.row("H2")
@pytest.mark.usefixtures("unresolved")
@pytest.mark.parametrize("python", [("/nowhere/python3",), ("env", "nowhere-python3")])
def test_python_is_missing_where_sudo_cannot_resolve_the_host(python: tuple[str, ...]) -> None:
    error = failure(become="sudo", become_user="root", python=python)
    assert error.code is ErrorCode.PYTHON
    assert python[-1] in error.message
    assert "not found" in error.message
    assert "resolve" not in error.message
    assert "sudoers" not in str(error.hint)


@pytest.mark.usefixtures("unresolved")
def test_a_helper_starts_where_sudo_cannot_resolve_the_host() -> None:
    host = make_host(become="sudo", become_user="root", python=(sys.executable,))
    assert asyncio.run(greet(LocalTransport(), host)).user == "root"


PODMAN_DOWN = "Error: can only create exec sessions on running containers: container state improper"
DOCKER_DOWN = "Error response from daemon: Container 5f1c is not running"
DENIED = "permission denied while trying to connect to the Docker daemon socket"
NOT_IN_CONTAINER = 'OCI runtime exec failed: exec: "python3": executable file not found in $PATH'


@pytest.mark.row("H1")
@pytest.mark.parametrize("become", ["none", "sudo"])
@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("podman", 125, PODMAN_DOWN),
        ("podman", 125, ""),
        ("docker", 1, DOCKER_DOWN),
        ("docker", 1, DENIED),
        ("podman", 127, NOT_IN_CONTAINER),
        ("docker", 126, NOT_IN_CONTAINER),
    ],
)
def test_a_container_that_is_down_or_denied_is_named_not_the_shell_or_sudo(
    tmp_path: Path, become: str, name: str, status: int, said: str
) -> None:
    if become == "sudo" and (os.geteuid() != 0 or not shutil.which("sudo")):
        pytest.skip("needs root and sudo")
    client = script(tmp_path, name, f"echo '{said}' >&2\nexit {status}")
    python = (client, "exec", "-i", "nova_compute", "python3")
    error = failure(python=python, become=become, become_user="root")
    assert error.code is ErrorCode.PYTHON
    assert said in error.message
    assert name in error.message
    assert "exec -i nova_compute" in error.message
    for word in ("login shell", "nologin", "sudoers"):
        assert word not in f"{error.message} {error.hint}"


MISSING_SUDO = [
    "sh: 1: sudo: not found",
    "bash: line 1: sudo: command not found",
    "sudo: Command not found.",
    "zsh:1: command not found: sudo",
    "fish: Unknown command: sudo",
    "ksh: sudo: not found",
]


@pytest.mark.row("H2")
@pytest.mark.parametrize("said", MISSING_SUDO)
def test_a_host_without_sudo_is_told_so(said: str) -> None:
    error = explain_end(make_host(become="sudo"), 127, said, "", started=False)
    assert error.code is ErrorCode.SUDO
    assert "sudo is not found" in error.message


@pytest.mark.row("H1")
@pytest.mark.row("H4")
@pytest.mark.parametrize(
    "shell", ["sh", "bash", "dash", "rbash", "zsh", "ksh", "mksh", "csh", "tcsh", "fish"]
)
@pytest.mark.parametrize("become", ["none", "sudo"])
def test_a_missing_command_is_named_under_every_login_shell(
    tmp_path: Path, shell: str, become: str
) -> None:
    if not (path := shutil.which(shell)):
        pytest.skip(f"{shell} is not installed")
    words = ("/usr/bin/env", f"PATH={tmp_path}", path, "-c")  # there is neither sudo nor Python

    async def run() -> None:
        async with ssh_server(tmp_path / "server", shell=words) as server, SshTransport() as ssh:
            settings = server.host_settings(python=("python3",), become=become)
            await greet(ssh, make_host(**settings))

    with pytest.raises(HostError) as caught:
        asyncio.run(run())
    assert "not found" in caught.value.message
    assert caught.value.code is (ErrorCode.SUDO if become == "sudo" else ErrorCode.PYTHON)


@pytest.mark.row("H2")
@pytest.mark.parametrize(
    "said",
    [
        "sudo: a password is required",
        "Sorry, user ops is not allowed to execute '/usr/bin/python3 -I' as nova on edge1.",
        "ops is not in the sudoers file.",
        "sudo: unable to resolve host edge1: Name or service not known | sudo: a password is required",
    ],
)
def test_a_refusal_of_sudo_is_told_with_what_it_said_last(said: str) -> None:
    error = explain_end(make_host(become="sudo"), 1, said, "", started=False)
    assert error.code is ErrorCode.SUDO
    assert said.rpartition(" | ")[2] in error.message
    assert "resolve" not in error.message


def test_a_login_shell_that_refuses_is_not_blamed_on_a_container() -> None:
    host = make_host(python=("podman", "exec", "-i", "nova_compute", "python3"))
    error = explain_end(host, 1, "", "This account is currently not available.", started=False)
    assert error.code is ErrorCode.SHELL
