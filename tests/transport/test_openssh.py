"""The same against OpenSSH's own sshd: what asyncssh's server cannot show."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest

from fakes.hosts import greet, make_host
from imgcache.errors import ErrorCode, HostError
from imgcache.transport.ssh import SshTransport, fetch_host_keys
from servers import openssh
from servers.openssh import OpenSshServer

if TYPE_CHECKING:
    from pathlib import Path

    from imgcache.transport.conversation import Hello

pytestmark = [
    pytest.mark.sshd,
    pytest.mark.skipif(not openssh.available(), reason="sshd is not installed"),
]


def greet_all(
    server: OpenSshServer, count: int = 1, **settings: object
) -> list[Hello | BaseException]:
    async def run() -> list[Hello | BaseException]:
        async with SshTransport() as ssh:
            hosts = []
            for number in range(count):
                address = server.addresses[number % len(server.addresses)]
                more = {"address": address} | settings
                hosts.append(make_host(f"h{number}", **server.host_settings(**more)))
            return await asyncio.gather(
                *(greet(ssh, host) for host in hosts), return_exceptions=True
            )

    return asyncio.run(run())


def only_error(results: list[Hello | BaseException]) -> HostError:
    (result,) = results
    assert isinstance(result, HostError), result
    return result


def test_many_hosts_on_aliases_of_one_sshd(tmp_path: Path) -> None:
    addresses = tuple(f"127.0.7.{number}" for number in range(1, 9))
    with OpenSshServer(tmp_path, addresses=addresses) as server:
        results = greet_all(server, 16)
        assert all(getattr(result, "python", "").startswith("3.") for result in results), results
        assert server.log.count("Accepted publickey") == 16


@pytest.mark.row("S4")
def test_max_startups_is_ridden_out(tmp_path: Path) -> None:
    # Every connection above two at a time is dropped before the version.
    with OpenSshServer(tmp_path, options={"MaxStartups": "2:100:2"}) as server:
        results = greet_all(server, 8, connect_timeout_s=60.0)
        assert all(getattr(result, "python", "") for result in results), results


@pytest.mark.row("S5")
def test_max_sessions_is_told(tmp_path: Path) -> None:
    with OpenSshServer(tmp_path, options={"MaxSessions": "0"}) as server:
        assert only_error(greet_all(server)).code is ErrorCode.SESSION


@pytest.mark.row("H4")
def test_a_forced_command_is_told(tmp_path: Path) -> None:
    with OpenSshServer(
        tmp_path, authorized_prefix='command="echo no shell for you",restrict'
    ) as server:
        error = only_error(greet_all(server))
        assert error.code is ErrorCode.SHELL
        assert "no shell for you" in error.message


@pytest.mark.row("H3")
def test_banner_and_restrict_do_no_harm(tmp_path: Path) -> None:
    banner = tmp_path / "banner"
    banner.write_text("\x1b[31mauthorized use only\x1b[0m\n" * 50)
    options = {"Banner": str(banner), "PrintMotd": "yes"}
    with OpenSshServer(tmp_path / "s", options=options, authorized_prefix="restrict") as server:
        (hello,) = greet_all(server)
        assert getattr(hello, "user", None) == server.user


@pytest.mark.row("S3")
def test_too_many_and_foreign_keys_are_a_refused_login(tmp_path: Path) -> None:
    with OpenSshServer(tmp_path / "s") as server:
        openssh.write_key(tmp_path / "other")
        error = only_error(greet_all(server, ssh_key=tmp_path / "other"))
        assert error.code is ErrorCode.LOGIN


def test_all_kinds_of_client_and_host_keys_work(tmp_path: Path) -> None:
    for number, algorithm in enumerate(("ssh-ed25519", "ecdsa-sha2-nistp384", "ssh-rsa")):
        folder = tmp_path / str(number)
        folder.mkdir()
        openssh.write_key(folder / "key", algorithm)
        with OpenSshServer(
            folder, host_key_types=(algorithm,), client_key=folder / "key"
        ) as server:
            (hello,) = greet_all(server)
            assert getattr(hello, "python", ""), hello


def test_fetched_host_keys_are_those_of_the_files(tmp_path: Path) -> None:
    kinds = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")
    with OpenSshServer(tmp_path, host_key_types=kinds) as server:
        keys = asyncio.run(fetch_host_keys(make_host(**server.host_settings()), timeout_s=20))
        assert [key.algorithm for key in keys] == list(kinds)
        files = [" ".join(line.split()[:2]) for line in server.host_public_keys()]
        assert sorted(key.public_key_text for key in keys) == sorted(files)


@pytest.mark.row("S2")
def test_hashed_known_hosts_are_found(tmp_path: Path) -> None:
    if not shutil.which("ssh-keygen"):
        pytest.skip("ssh-keygen is not installed")
    with OpenSshServer(tmp_path) as server:
        import subprocess

        command = ["ssh-keygen", "-q", "-H", "-f", str(server.known_hosts)]
        subprocess.run(command, check=True, capture_output=True)
        assert server.known_hosts.read_text().startswith("|1|")
        (hello,) = greet_all(server)
        assert getattr(hello, "python", ""), hello


def test_a_restarted_sshd_is_reached_again(tmp_path: Path) -> None:
    with OpenSshServer(tmp_path) as server:
        server.stop()
        assert only_error(greet_all(server)).code is ErrorCode.CONNECT
        server.start()
        (hello,) = greet_all(server)
        assert getattr(hello, "python", ""), hello
