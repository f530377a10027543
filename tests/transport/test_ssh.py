"""Hosts over SSH, against a server in this process: every row of the fault matrix about SSH."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest

from fakes.hosts import greet, is_safe, make_host
from imgcache.errors import ContactLostError, ErrorCode, HostError
from imgcache.transport import ssh as module
from imgcache.transport import ssh_config
from imgcache.transport.ssh import SshTransport
from imgcache.transport.ssh_config import resolve
from servers.ssh_server import raw_server, ssh_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from servers.ssh_server import SshServer


async def shout(
    transport: SshTransport, name: str = "edge1-01", **settings: Any
) -> tuple[bytes, str, int | None]:
    """Run a small program on a host; return its output, errors and status."""
    async with transport.open(make_host(name, **settings), "cat; echo oops >&2; exit 7") as session:
        await session.write(b"hello")
        await session.close_stdin()
        data = b""
        while block := await session.read(65536):
            data += block
        status = await session.exit_status()
        return data, session.stderr_tail(), status


def refused(run: Callable[[SshTransport], Awaitable[object]]) -> HostError:
    """Return the error that ``run`` ends with, after checking that nothing is left open."""

    async def all_of_it() -> HostError:
        before = len(os.listdir("/proc/self/fd"))
        async with SshTransport() as transport:
            with pytest.raises(HostError) as caught:
                await run(transport)
            await asyncio.sleep(0.02)
        assert len(os.listdir("/proc/self/fd")) <= before
        return caught.value

    error = asyncio.run(all_of_it())
    assert is_safe(error.message)
    return error


def with_server(
    folder: Path, check: Callable[[SshTransport, SshServer], Awaitable[Any]], **settings: Any
) -> Any:
    """Run ``check`` beside a server."""

    async def run() -> Any:
        async with ssh_server(folder, **settings) as server, SshTransport() as transport:
            return await check(transport, server)

    return asyncio.run(run())


def failure_with_server(
    folder: Path, more: dict[str, Any] | None = None, **settings: Any
) -> HostError:
    async def check(transport: SshTransport, server: SshServer) -> HostError:
        with pytest.raises(HostError) as caught:
            await shout(transport, **server.host_settings(**(more or {})))
        return caught.value

    error: HostError = with_server(folder, check, **settings)
    assert is_safe(error.message)
    return error


def test_bytes_errors_and_status_come_back(tmp_path: Path) -> None:
    result = with_server(tmp_path, lambda ssh, server: shout(ssh, **server.host_settings()))
    assert result == (b"hello", "oops", 7)


def test_nothing_is_sent_but_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_SECRET", "x")

    async def check(ssh: SshTransport, server: SshServer) -> SshServer:
        await shout(ssh, **server.host_settings())
        return server

    server = with_server(tmp_path, check)
    assert server.commands == ["cat; echo oops >&2; exit 7"]
    assert (server.environment, server.terminals) == ({}, [None])


def test_megabytes_pass_both_ways_in_bounded_memory(tmp_path: Path) -> None:
    async def check(ssh: SshTransport, server: SshServer) -> int:
        async with ssh.open(make_host(**server.host_settings()), "cat") as session:

            async def feed() -> None:
                for _ in range(64):
                    await session.write(b"x" * 100_000)
                await session.close_stdin()

            feeding = asyncio.create_task(feed())
            count = 0
            while data := await session.read(65536):
                count += len(data)
            await feeding
            return count

    assert with_server(tmp_path, check) == 6_400_000


# Host keys.


@pytest.mark.row("S1")
def test_a_changed_host_key_is_loud_and_has_no_way_around(tmp_path: Path) -> None:
    async def check(ssh: SshTransport, server: SshServer) -> HostError:
        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {other}\n")
        with pytest.raises(HostError) as caught:
            await shout(ssh, **server.host_settings())
        assert not server.logins
        return caught.value

    error = with_server(tmp_path, check)
    assert error.code is ErrorCode.HOSTKEY_CHANGED
    assert "CHANGED" in error.message
    assert error.message.count("SHA256:") == 2
    text = f"{error.message} {error.hint}".lower()
    assert not [
        word
        for word in ("no-check", "insecure", "force", "stricthostkey", "ssh-keygen -r")
        if word in text
    ]


@pytest.mark.row("S1")
def test_a_key_of_another_type_than_those_on_record_is_a_changed_key(tmp_path: Path) -> None:
    async def check(ssh: SshTransport, server: SshServer) -> HostError:
        other = asyncssh.generate_private_key("ecdsa-sha2-nistp256").export_public_key().decode()
        server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {other}\n")
        with pytest.raises(HostError) as caught:
            await shout(ssh, **server.host_settings())
        return caught.value

    error = with_server(tmp_path, check)
    assert error.code is ErrorCode.HOSTKEY_CHANGED
    assert "ssh-ed25519 SHA256:" in error.message


def test_of_several_host_keys_the_one_on_record_is_asked_for(tmp_path: Path) -> None:
    async def check(ssh: SshTransport, server: SshServer) -> object:
        lines = server.known_hosts.read_text().splitlines()
        server.known_hosts.write_text(next(line for line in lines if "ecdsa" in line) + "\n")
        return await shout(ssh, **server.host_settings())

    keys = ("ssh-ed25519", "ecdsa-sha2-nistp256")
    assert with_server(tmp_path, check, host_keys=keys)


@pytest.mark.row("S1")
def test_a_revoked_host_key_is_refused(tmp_path: Path) -> None:
    async def check(ssh: SshTransport, server: SshServer) -> HostError:
        line = server.known_hosts.read_text()
        server.known_hosts.write_text(f"{line}@revoked {line}")
        with pytest.raises(HostError) as caught:
            await shout(ssh, **server.host_settings())
        return caught.value

    assert with_server(tmp_path, check).code is ErrorCode.HOSTKEY_CHANGED


@pytest.mark.row("S2")
def test_an_unknown_host_key_comes_with_fingerprint_and_the_command(tmp_path: Path) -> None:
    async def check(ssh: SshTransport, server: SshServer) -> tuple[HostError, str]:
        key = asyncssh.import_public_key(server.known_hosts.read_text().split(None, 1)[1])
        server.known_hosts.write_text("")
        with pytest.raises(HostError) as caught:
            await shout(ssh, **server.host_settings())
        assert not server.logins
        assert server.known_hosts.read_text() == ""
        return caught.value, key.get_fingerprint()

    error, fingerprint = with_server(tmp_path, check)
    assert error.code is ErrorCode.HOSTKEY_UNKNOWN
    assert fingerprint in error.message
    assert "imgcache trust --host edge1-01" in str(error.hint)


def test_the_keys_a_server_offers_can_be_fetched_without_a_login(tmp_path: Path) -> None:
    async def check(ssh: SshTransport, server: SshServer) -> None:
        host = make_host(**server.host_settings(known_hosts=tmp_path / "none"))
        keys = await ssh.fetch_host_keys(host, timeout_s=10)
        assert [key.algorithm for key in keys] == ["ssh-ed25519", "ecdsa-sha2-nistp256"]
        lines = server.known_hosts.read_text()
        assert all(key.public_key_text in lines for key in keys)
        assert all(key.fingerprint.startswith("SHA256:") for key in keys)
        assert not server.logins

    with_server(tmp_path, check, host_keys=("ssh-ed25519", "ecdsa-sha2-nistp256"))


# Logging in.


@pytest.mark.row("S3")
def test_a_refused_login_is_tried_once(tmp_path: Path) -> None:
    async def check(ssh: SshTransport, server: SshServer) -> HostError:
        with pytest.raises(HostError) as caught:
            await shout(ssh, **server.host_settings())
        assert len(server.connections) == 1
        return caught.value

    error = with_server(tmp_path, check, admitted=False)
    assert error.code is ErrorCode.LOGIN
    assert "client_key" in error.message
    assert "nova" in error.message


@pytest.mark.row("S3")
@pytest.mark.parametrize("kind", ["missing", "garbage", "open", "encrypted"])
def test_a_key_that_cannot_be_used_is_named_before_anybody_is_contacted(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "some_key"
    key = asyncssh.generate_private_key("ssh-ed25519")
    if kind == "garbage":
        path.write_text("not a key")
    elif kind == "encrypted":
        path.write_bytes(key.export_private_key(passphrase="secret"))
    elif kind == "open":
        path.write_bytes(key.export_private_key())
    if path.exists():
        path.chmod(0o644 if kind == "open" else 0o600)
    error = failure_with_server(tmp_path / "server", {"ssh_key": path})
    assert error.code is ErrorCode.LOGIN
    assert str(path) in error.message
    wanted = {"open": "chmod 600", "encrypted": "ssh-add"}.get(kind, "ssh_key")
    assert wanted in str(error.hint)


@pytest.mark.row("S3")
def test_no_key_at_all_is_an_error_of_its_own(tmp_path: Path) -> None:
    error = failure_with_server(tmp_path, {"ssh_key": None})
    assert error.code is ErrorCode.LOGIN
    assert "no SSH key" in error.message


@asynccontextmanager
async def agent_with(key: asyncssh.SSHKey, folder: Path) -> AsyncIterator[str]:
    """A real ssh-agent that holds one key."""
    socket = str(folder / "agent.sock")
    process = await asyncio.create_subprocess_exec(
        "ssh-agent", "-D", "-a", socket, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        while not os.path.exists(socket):  # noqa: ASYNC110, ASYNC240 - another program's file
            await asyncio.sleep(0.02)
        async with asyncssh.connect_agent(socket) as agent:
            await agent.add_keys([key])
        yield socket
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.row("S3")
def test_an_encrypted_key_works_when_the_agent_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with ssh_server(tmp_path / "server") as server:
            key = asyncssh.read_private_key(server.client_key)
            path = tmp_path / "encrypted"
            path.write_bytes(key.export_private_key(passphrase="secret"))
            path.chmod(0o600)
            (tmp_path / "encrypted.pub").write_bytes(key.export_public_key())
            async with agent_with(key, tmp_path) as socket:
                monkeypatch.setenv("SSH_AUTH_SOCK", socket)
                async with SshTransport() as ssh:
                    settings = server.host_settings(ssh_key=path)
                    results = await asyncio.gather(*(shout(ssh, **settings) for _ in range(5)))
            assert [result[2] for result in results] == [7] * 5

    asyncio.run(run())


# Servers that fail.


@pytest.mark.row("S4")
def test_a_server_that_hangs_up_at_once_is_tried_again_within_the_deadline() -> None:
    async def run(ssh: SshTransport) -> None:
        async with raw_server(b"Exceeded MaxStartups\r\n", close=True) as port:
            await shout(
                ssh,
                address="127.0.0.1",
                port=port,
                user="nova",
                ssh_key=None,
                connect_timeout_s=2.0,
            )

    async def with_key(ssh: SshTransport) -> None:
        await run(ssh)

    before = time.monotonic()
    home_key()
    error = refused(with_key)
    assert error.code is ErrorCode.CONNECT
    assert "MaxStartups" in str(error.hint)
    assert "times" in error.message
    assert time.monotonic() - before < 6


def home_key() -> None:
    """Make a default key in this test's HOME."""
    folder = os.path.expanduser("~/.ssh")
    os.makedirs(folder, mode=0o700)
    path = os.path.join(folder, "id_ed25519")
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(path)
    os.chmod(path, 0o600)


@pytest.mark.row("S4")
def test_a_server_that_comes_to_its_senses_is_used(tmp_path: Path) -> None:
    async def run() -> object:
        async with ssh_server(tmp_path) as server, SshTransport() as ssh:
            refusals = 2

            async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                nonlocal refusals
                if refusals:
                    refusals -= 1
                    writer.close()
                    return
                inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", server.port)
                await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))

            listener = await asyncio.start_server(proxy, "127.0.0.1", 0)
            port = listener.sockets[0].getsockname()[1]
            text = server.known_hosts.read_text().replace(str(server.port), str(port))
            server.known_hosts.write_text(text)
            try:
                return await shout(ssh, **server.host_settings(port=port))
            finally:
                listener.close()
                await asyncio.sleep(0.05)

    assert asyncio.run(run()) == (b"hello", "oops", 7)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


@pytest.mark.row("S4")
def test_handshakes_are_capped_but_slow_ones_lend_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (module.HANDSHAKES, module.SLOT_S) == (10, 2.0)
    monkeypatch.setattr(module, "SLOT_S", 0.3)
    home_key()
    seen: list[int] = []

    async def run() -> None:
        now = 0

        async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal now
            now += 1
            seen.append(now)
            await asyncio.sleep(1.0)
            now -= 1
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with SshTransport() as ssh:
            calls = [
                shout(ssh, address="127.0.0.1", port=port, user="u", connect_timeout_s=0.9)
                for _ in range(25)
            ]
            begun = time.monotonic()
            running = asyncio.gather(*calls, return_exceptions=True)
            await asyncio.sleep(0.2)
            assert len(seen) == 10
            results = await running
            assert time.monotonic() - begun < 4
            assert all(isinstance(result, HostError) for result in results)
        listener.close()
        await asyncio.sleep(1.1)

    asyncio.run(run())
    assert len(seen) == 25


@pytest.mark.row("S4")
def test_handshakes_behind_one_jump_host_are_capped_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOT_S", 60.0)
    enough = asyncio.Event()
    seen: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(len(seen))
        if len(seen) == module.HANDSHAKES:
            enough.set()
        await reader.read(-1)
        writer.close()

    async def run() -> None:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with ssh_server(tmp_path / "jump", forward=True) as jump, SshTransport() as ssh:
            settings = jump.host_settings(
                address="127.0.0.1",
                port=listener.sockets[0].getsockname()[1],
                proxy_jump=f"nova@127.0.0.1:{jump.port}",
                connect_timeout_s=60.0,
            )
            # Other files, so connections of their own to the jump host.
            other = tmp_path / "other_known_hosts"
            other.write_text(jump.known_hosts.read_text())
            calls = [
                asyncio.ensure_future(shout(ssh, **{**settings, **more}))
                for more in ({}, {"known_hosts": other})
                for _ in range(module.HANDSHAKES)
            ]
            await asyncio.wait_for(enough.wait(), 30)
            await asyncio.sleep(0.3)
            assert len(seen) == module.HANDSHAKES
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            assert len(jump.connections) == 2
        listener.close()
        await asyncio.sleep(0.1)

    asyncio.run(run())


@pytest.mark.row("S5")
def test_a_server_that_opens_no_session_says_so(tmp_path: Path) -> None:
    error = failure_with_server(tmp_path, sessions=False)
    assert error.code is ErrorCode.SESSION
    assert "MaxSessions" in str(error.hint)


@pytest.mark.row("S6")
@pytest.mark.parametrize("first", [b"", b"SSH-2.0-slow\r\n"])
def test_silence_after_tcp_or_version_ends_with_the_deadline(first: bytes) -> None:
    home_key()

    async def run(ssh: SshTransport) -> None:
        async with raw_server(first) as port:
            await shout(ssh, address="127.0.0.1", port=port, user="nova", connect_timeout_s=0.5)

    before = time.monotonic()
    error = refused(run)
    assert error.code is ErrorCode.CONNECT
    assert ("speak SSH" in error.message) is (first == b"")
    assert time.monotonic() - before < 3


@pytest.mark.parametrize(
    "first", [b"HTTP/1.1 400 Bad Request\r\n\r\n" * 2000, b"SSH-1.5-old\r\n", b"\xff" * 9000]
)
def test_what_is_no_ssh_server_is_told(first: bytes) -> None:
    home_key()

    async def run(ssh: SshTransport) -> None:
        async with raw_server(first) as port:
            await shout(ssh, address="127.0.0.1", port=port, user="nova", connect_timeout_s=2)

    assert refused(run).code is ErrorCode.CONNECT


def test_nobody_at_home_is_told() -> None:
    home_key()

    async def run(ssh: SshTransport) -> None:
        async with raw_server() as port:
            pass
        await shout(ssh, address="127.0.0.1", port=port, user="nova")

    error = refused(run)
    assert error.code is ErrorCode.CONNECT
    assert "refused" in error.message


def test_a_name_that_nobody_knows_is_told() -> None:
    home_key()
    error = refused(lambda ssh: shout(ssh, address="no-such-host.invalid", user="nova"))
    assert error.code is ErrorCode.CONNECT
    assert "resolved" in error.message


def test_a_connection_that_ends_in_the_middle_is_lost_contact(tmp_path: Path) -> None:
    async def check(ssh: SshTransport, server: SshServer) -> HostError:
        async with ssh.open(make_host(**server.host_settings()), "cat") as session:
            server.connections[0].abort()
            with pytest.raises(HostError) as caught:
                await session.read(100)
            with pytest.raises(ContactLostError):
                await session.write(b"x")
            return caught.value

    error = with_server(tmp_path, check)
    assert isinstance(error, ContactLostError)
    assert error.code is ErrorCode.LOST


@pytest.mark.row("S7")
def test_keepalive_is_on() -> None:
    async def run() -> tuple[float, int]:
        async with SshTransport() as ssh:
            options = vars(ssh)["_options"]
            return options.keepalive_interval, options.keepalive_count_max

    assert asyncio.run(run()) == (15, 3)


# Jump hosts.


@pytest.mark.row("S9")
def test_hosts_behind_a_jump_host_share_its_connection(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            ssh_server(tmp_path / "jump", forward=True) as jump,
            ssh_server(tmp_path / "host") as server,
            SshTransport() as ssh,
        ):
            settings = behind(jump, server)
            results = await asyncio.gather(*(shout(ssh, **settings) for _ in range(4)))
            assert [result[2] for result in results] == [7] * 4
            assert len(jump.connections) == 1
            assert len(server.connections) == 4

    asyncio.run(run())


def behind(jump: SshServer, server: SshServer) -> dict[str, Any]:
    """Return settings for a host behind a jump host: one key and one known_hosts for both."""
    server.client_key.write_bytes(jump.client_key.read_bytes())
    both = jump.known_hosts.read_text() + server.known_hosts.read_text()
    server.known_hosts.write_text(both)
    return server.host_settings(proxy_jump=f"nova@127.0.0.1:{jump.port}", connect_timeout_s=3.0)


@pytest.mark.row("S9")
def test_a_dead_jump_host_is_the_cause_for_all_its_hosts_and_tried_once(tmp_path: Path) -> None:
    async def run() -> list[Any]:
        async with (
            ssh_server(tmp_path / "jump", forward=True, admitted=False) as jump,
            ssh_server(tmp_path / "host") as server,
            SshTransport() as ssh,
        ):
            calls = [shout(ssh, **behind(jump, server)) for _ in range(4)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert len(jump.connections) == 1
            return list(results)

    results = asyncio.run(run())
    assert all(
        isinstance(result, HostError) and result.code is ErrorCode.JUMP for result in results
    )


@pytest.mark.row("S9")
def test_a_jump_host_that_dies_in_the_middle_is_named(tmp_path: Path) -> None:
    async def run() -> HostError:
        async with (
            ssh_server(tmp_path / "jump", forward=True) as jump,
            ssh_server(tmp_path / "host") as server,
            SshTransport() as ssh,
        ):
            async with ssh.open(make_host(**behind(jump, server)), "cat") as session:
                jump.connections[0].abort()
                with pytest.raises(HostError) as caught:
                    await session.read(100)
            return caught.value

    error = asyncio.run(run())
    assert error.code is ErrorCode.JUMP
    assert isinstance(error, ContactLostError)


@pytest.mark.row("S9")
def test_a_host_that_the_jump_host_cannot_reach_is_that_hosts_failure(tmp_path: Path) -> None:
    async def run() -> HostError:
        async with ssh_server(tmp_path / "jump", forward=True) as jump, SshTransport() as ssh:
            async with ssh_server(tmp_path / "host") as server:
                settings = behind(jump, server)
            with pytest.raises(HostError) as caught:
                await shout(ssh, **settings)
            return caught.value

    assert asyncio.run(run()).code is ErrorCode.CONNECT


# Many hosts, some dead.


@pytest.mark.row("S8")
def test_dead_hosts_do_not_hold_up_the_living(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOT_S", 0.2)

    async def run() -> tuple[float, int]:
        async with ssh_server(tmp_path) as server, raw_server() as dead, SshTransport() as ssh:
            alive = server.host_settings()
            gone = server.host_settings(port=dead, connect_timeout_s=6.0)
            waiting = [asyncio.create_task(shout(ssh, **gone)) for _ in range(12)]
            await asyncio.sleep(0.05)
            begun = time.monotonic()
            await asyncio.gather(*(shout(ssh, **alive) for _ in range(12)))
            took = time.monotonic() - begun
            done = [task for task in waiting if task.done()]
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            return took, len(done)

    took, done = asyncio.run(run())
    assert done == 0
    assert took < 5


# What is honoured of the user's configuration.


def write_config(text: str) -> None:
    """Write this test's ~/.ssh/config."""
    folder = os.path.expanduser("~/.ssh")
    os.makedirs(folder)
    with open(os.path.join(folder, "config"), "w") as file:
        file.write(text)


@pytest.mark.row("S10")
def test_ssh_config_is_honoured_as_documented_and_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    async def check(_: SshTransport, server: SshServer) -> tuple[object, SshServer]:
        write_config(
            f'Match exec "touch {mark}"\n  Port 1\nHost edge1-*\n  HostName 127.0.0.1\n'
            f"  Port {server.port}\n  User fromconfig\n  IdentityFile {server.client_key}\n"
            f"  UserKnownHostsFile {server.known_hosts}\n  ProxyCommand touch {mark}\n"
            f"  PermitLocalCommand yes\n  LocalCommand touch {mark}\n  RemoteCommand touch {mark}\n"
            "  SetEnv A=b\n  SendEnv *\n  ForwardAgent yes\n  ForwardX11 yes\n  RequestTTY force\n"
            "  StrictHostKeyChecking no\n"
        )
        async with SshTransport() as ssh:
            return await shout(ssh), server

    result, server = with_server(tmp_path / "server", check)
    assert result == (b"hello", "oops", 7)
    assert not mark.exists()
    assert server.commands == ["cat; echo oops >&2; exit 7"]
    assert (server.environment, server.terminals) == ({}, [None])
    assert server.connections[0].get_extra_info("username") == "fromconfig"


@pytest.mark.row("S10")
def test_strict_host_key_checking_no_changes_nothing(tmp_path: Path) -> None:
    write_config("StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n")
    error = failure_with_server(tmp_path, {"known_hosts": None})
    assert error.code is ErrorCode.HOSTKEY_UNKNOWN


@pytest.mark.row("S11")
@pytest.mark.parametrize(
    "settings",
    [
        {"address": "-oProxyCommand=id"}, {"address": "a b"}, {"address": "root@host"}, {"address": "a;id"},
        {"address": "a\nb"}, {"address": "$(id)"}, {"user": "-l"}, {"user": "a b"}, {"user": "a@b"},
        {"proxy_jump": "-oX"}, {"proxy_jump": "host:99999"}, {"proxy_jump": "a b"},
    ],
)  # fmt: skip
def test_odd_addresses_and_users_are_refused_before_anybody_is_contacted(
    settings: dict[str, str],
) -> None:
    home_key()
    given: dict[str, Any] = {"address": "127.0.0.1", "port": 1, "user": "u"} | settings
    error = refused(lambda ssh: shout(ssh, **given))
    assert error.code in {ErrorCode.CONNECT, ErrorCode.JUMP}
    assert "not a" in error.message or "no valid port" in error.message


@pytest.mark.row("S11")
def test_ipv6_and_odd_ports_work(tmp_path: Path) -> None:
    address = resolve(make_host(address="::1", port=2222, user="u", known_hosts=tmp_path))
    assert (address.hostname, address.port, address.known_hosts_name) == ("::1", 2222, "[::1]:2222")
    assert ssh_config.split_port("[::1]:22") == ("::1", 22)
    assert ssh_config.split_port("::1") == ("::1", None)


@pytest.mark.row("H4")
@pytest.mark.parametrize(
    ("shell", "code"),
    [
        (("/usr/sbin/nologin", "-c"), ErrorCode.SHELL),
        (("/bin/echo", "only sftp here:"), ErrorCode.SHELL),
    ],
)
def test_login_shells_that_start_no_helper_are_told(
    tmp_path: Path, shell: tuple[str, ...], code: ErrorCode
) -> None:
    async def check(ssh: SshTransport, server: SshServer) -> HostError:
        with pytest.raises(HostError) as caught:
            await asyncio.wait_for(greet(ssh, make_host(**server.host_settings())), 25)
        return caught.value

    error = with_server(tmp_path, check, shell=shell)
    assert error.code in {code, ErrorCode.HANG}
    assert error.hint
