"""Who has no secret learns nothing, and nobody can hold the fetch up or take what is not bounded."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from helper.relay.rig import TIMES, Answer, Rig
from imgcache.transport.relay_secret import RelayKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helper.controller import Controller

MIB = 1 << 20
DATA = os.urandom(2 * MIB)


@pytest.fixture(params=["tls", "plain"])
def quick(request: pytest.FixtureRequest, helper: Controller, instances: Path) -> Iterator[Rig]:
    """Return a relay that refuses soon, with one file that is there."""
    with Rig(helper, instances, tls=request.param == "tls", times=TIMES) as rig:
        rig.grow("image", DATA)
        rig.append("image", len(DATA))
        rig.end("image", "complete")
        yield rig
        assert rig.ask("image").read(len(DATA)) == DATA  # whatever was done, others are served


def shown(answer: Answer) -> tuple[int, dict[str, str], bytes]:
    answer.read_head()
    return answer.status, answer.headers, answer.rest()


@pytest.mark.row("T4")
def test_names_cannot_be_guessed(quick: Rig) -> None:
    """The same answer after the same time, whether there is such a name or not."""
    wrong = RelayKey().ticket("image")
    answers = []
    for name, ticket in (("image", wrong), ("other", wrong), ("image", ""), ("image", "a.b")):
        start = time.monotonic()
        answers.append(shown(quick.send(name, ticket)))
        assert time.monotonic() - start >= TIMES["wait_s"]
    assert answers[0][0] == 403
    assert answers == [answers[0]] * 4


@pytest.mark.row("T4")
def test_a_secret_is_for_one_file(quick: Rig) -> None:
    quick.grow("second", DATA)
    key = quick.key("image")
    assert quick.ask("second", key.ticket("second")).status == 403
    assert quick.ask("second", key.ticket("image")).status == 403
    assert quick.ask("image", quick.key("second").ticket("image")).status == 403
    nonce, _, proof = key.ticket("image").reveal().partition(".")
    for ticket in (
        f"{nonce}.{proof[:-1]}", f"{nonce[:-1]}.{proof}", f"{'0' * 32}.{proof}", f"{nonce}.{proof} x",
        f".{proof}", proof, f"{nonce}.{'0' * 64}",
    ):  # fmt: skip
        assert quick.ask("image", ticket).status == 403, ticket


@pytest.mark.row("T4")
def test_a_secret_is_for_one_reader_at_a_time(quick: Rig) -> None:
    quick.grow("second", DATA)
    ticket = quick.key("second").ticket("second")
    reader = quick.ask("second", ticket)
    newer = quick.ask("second", ticket)
    assert reader.rest() == b""  # the older one was ended
    quick.append("second", MIB)
    assert newer.read(MIB) == DATA[:MIB]
    for _ in range(14):
        assert quick.ask("second", ticket).status == 200
    assert quick.ask("second", ticket).status == 403
    assert quick.ask("second").status == 200  # another reader's


def test_readers_are_counted(quick: Rig) -> None:
    quick.grow("second", DATA)
    readers = [quick.ask("second") for _ in range(4)]
    assert quick.ask("second").status == 503
    readers.pop().close()
    quick.wait_until(lambda held: held["connections"] == 3)
    assert quick.ask("second").status == 200
    for reader in readers:
        reader.close()
    quick.wait_until(lambda held: held["connections"] <= 1)


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /image HTTP/1.1\r\n\r\n", b"HEAD /image HTTP/1.1\r\n\r\n", b"GET image HTTP/1.1\r\n\r\n",
        b"GET /../image HTTP/1.1\r\n\r\n", b"GET /%00 HTTP/1.1\r\n\r\n", b"\r\n\r\n", b"\0" * 100,
        b"GET /" + b"a" * 101 + b" HTTP/1.1\r\n\r\n", b"GET /image HTTP/2\r\n\r\n", b"GET /image\r\n\r\n",
        b"GET http://x/image HTTP/1.1\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_request_gets_400(quick: Rig, request_: bytes) -> None:
    answer = Answer(quick.connect())
    answer.sock.sendall(request_)
    assert shown(answer)[0] == 400
    answer.close()


@pytest.mark.parametrize("head", [b"x" * 9000, b"GET /image HTTP/1.1\r\n" + b"a: b\r\n" * 2000])
def test_a_head_is_bounded(quick: Rig, head: bytes) -> None:
    answer = Answer(quick.connect())
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        answer.sock.sendall(head)
    assert not answer.rest().startswith(b"HTTP/1.1 2")
    answer.close()


@pytest.mark.parametrize("tls", [True, False])
def test_tls_and_plain_do_not_mix(helper: Controller, instances: Path, tls: bool) -> None:
    """Both sides learn it at once: not after the time that a head may take."""
    with Rig(helper, instances, tls=tls, times={"head_s": 600}) as rig:
        rig.grow("image", DATA)
        sock = rig.connect(bare=True)
        if tls:
            sock.sendall(b"GET /image HTTP/1.1\r\nX-Auth-Token: x\r\n\r\n")
            answer = Answer(sock)
            assert b"HTTP" not in answer.rest()
            answer.close()
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                rig.context().wrap_socket(sock)


@pytest.mark.parametrize("tls", [True, False])
def test_a_head_that_comes_byte_by_byte_has_a_deadline(
    helper: Controller, instances: Path, tls: bool
) -> None:
    with Rig(helper, instances, tls=tls, times={"head_s": 2.0}) as rig:
        answer = Answer(rig.connect())
        answer.sock.sendall(b"GET /image HTTP/1.1\r\nX: ")
        with pytest.raises((ConnectionError, ssl.SSLError)):  # noqa: PT012 - any of the sends
            while True:
                answer.sock.sendall(b"x")
                time.sleep(0.05)
        rig.wait_until(lambda held: held["connections"] == 0)
        answer.close()


def test_a_handshake_has_a_deadline(helper: Controller, instances: Path) -> None:
    with Rig(helper, instances, times={"head_s": 1.0}) as rig:
        sock = rig.connect(bare=True)
        sock.sendall(b"\x16\x03\x01")
        assert sock.recv(100) == b""
        rig.wait_until(lambda held: held["connections"] == 0)


@pytest.mark.row("M9")
def test_idle_connections_keep_nobody_out(rig: Rig) -> None:
    """100 that say nothing: a bounded number of them is held, and a reader is served meanwhile."""
    rig.grow("image", DATA)
    rig.append("image", len(DATA))
    before = rig.count()
    for _ in range(100):
        rig.connect(bare=True)
    reader = rig.ask("image")
    held = rig.count()
    assert reader.read(len(DATA)) == DATA
    assert held["connections"] <= 4 + 16
    assert held["threads"] - before["threads"] <= 4 + 16
    assert held["descriptors"] - before["descriptors"] <= 4 + 16 + 1


@pytest.mark.parametrize("tls", [True, False])
def test_a_reader_that_never_reads_holds_nothing_up(
    helper: Controller, instances: Path, tls: bool
) -> None:
    data = os.urandom(MIB) * 32
    with Rig(helper, instances, tls=tls, times={"idle_s": 4.0}) as rig:
        rig.grow("image", data)
        lazy = rig.ask("image", buffer=4096)
        rig.append("image", len(data) // 2)
        reader = rig.ask("image")
        rig.append("image", len(data))
        rig.end("image", "complete")
        assert reader.read(len(data)) == data
        reader.close()
        rig.wait_until(lambda held: held["connections"] == 0)
        assert len(lazy.rest()) < len(data)


def test_a_connection_on_which_nothing_is_sent_ends(helper: Controller, instances: Path) -> None:
    """Also when it is for want of bytes: the reader may find them elsewhere."""
    with Rig(helper, instances, tls=False, times={"idle_s": 2.0}) as rig:
        rig.grow("image", DATA)
        rig.append("image", 1000)
        reader = rig.ask("image")
        assert reader.read(1000) == DATA[:1000]
        assert reader.rest() == b""
        assert rig.count()["offers"] == ["image"]


def test_readers_that_die_leave_nothing(rig: Rig) -> None:
    rig.grow("image", DATA)
    rig.append("image", 1000)
    before = rig.count()["descriptors"]
    for linger in (True, False):
        for _ in range(4):
            reader = rig.ask("image")
            assert reader.read(1000) == DATA[:1000]
            if linger:  # a reset
                reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            reader.close()
        held = rig.wait_until(lambda held: held["connections"] == 0)
        assert held["descriptors"] == before
    rig.append("image", len(DATA))
    assert rig.ask("image").read(len(DATA)) == DATA


@pytest.mark.row("N20")
def test_a_reader_that_is_killed(helper: Controller, instances: Path) -> None:
    with Rig(helper, instances, tls=False) as rig:
        rig.grow("image", DATA)
        rig.append("image", MIB)
        ticket = rig.key("image").ticket("image").reveal()
        script = (
            "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])));"
            "s.sendall(sys.stdin.buffer.read()); print(len(s.recv(100)), flush=True); s.recv(1 << 30);"
            "import time; time.sleep(600)"
        )
        request = f"GET /image HTTP/1.1\r\nX-Auth-Token: {ticket}\r\n\r\n".encode()
        with subprocess.Popen(
            [sys.executable, "-I", "-c", script, str(rig.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as reader:
            assert reader.stdin
            assert reader.stdout
            reader.stdin.write(request)
            reader.stdin.close()
            assert reader.stdout.readline() == b"100\n"
            reader.send_signal(signal.SIGKILL)
        rig.wait_until(lambda held: held["connections"] == 0)
        rig.append("image", len(DATA))
        assert rig.ask("image").read(len(DATA)) == DATA


def test_memory_is_bounded(rig: Rig) -> None:
    data = os.urandom(MIB) * 64
    rig.grow("image", data)
    rig.append("image", len(data))
    before = rig.count()["memory_kib"]
    readers = [rig.ask("image", buffer=4096) for _ in range(4)]
    for reader in readers:
        assert reader.read(8 * MIB) == data[: 8 * MIB]
    held = rig.count()
    assert held["connections"] == 4
    assert held["memory_kib"] - before < 16 << 10
