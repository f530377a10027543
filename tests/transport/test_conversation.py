"""Conversations: with the real helper, and with hosts that break every rule."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from fakes.hosts import greet, is_safe, make_host, misbehaving
from imgcache.errors import ContactLostError, ErrorCode, HostError
from imgcache.model import Secret
from imgcache.transport import conversation as module
from imgcache.transport.conversation import Conversation, OrderError, start_conversation
from imgcache.transport.local import LocalTransport
from imgcache.transport.ssh import SshTransport
from servers.ssh_server import ssh_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from imgcache.model import Host
    from imgcache.transport.base import Session, Transport


def settings_of(folder: Path) -> dict[str, object]:
    names = ("cache_subdirectory", "force_raw_images", "nova_conf")
    return dict.fromkeys(names) | {"instances_path": str(folder), "images_type": "qcow2"}


async def look(transport: Transport, host: Host, folder: Path) -> list[str]:
    """Ask for three images in one go, as precache does; return the states."""
    async with start_conversation(transport, host, ("conf", "cache")) as talk:
        opened = talk.order("open", settings=settings_of(folder))
        touches = [talk.order("touch", base=digit * 40, sizes=[], dry=False) for digit in "abc"]
        await talk.result(opened, timeout_s=30)
        return [
            (await talk.result(touch, timeout_s=30)).fields.get_str("state") for touch in touches
        ]


def make_cache(tmp_path: Path) -> Path:
    (tmp_path / "instances" / "_base").mkdir(parents=True)
    (tmp_path / "instances" / "_base" / ("b" * 40)).write_bytes(b"image")
    return tmp_path / "instances"


def test_orders_sent_ahead_are_answered_in_turn_locally(tmp_path: Path) -> None:
    states = asyncio.run(look(LocalTransport(), make_host(), make_cache(tmp_path)))
    assert states == ["absent", "existing", "absent"]


def test_orders_sent_ahead_are_answered_in_turn_over_ssh(tmp_path: Path) -> None:
    async def run() -> list[str]:
        async with ssh_server(tmp_path / "server") as server, SshTransport() as ssh:
            host = make_host(**server.host_settings())
            return await look(ssh, host, make_cache(tmp_path))

    assert asyncio.run(run()) == ["absent", "existing", "absent"]


class Recording:
    """A transport that notes each write, between another and its user."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.writes: list[bytes] = []

    @asynccontextmanager
    async def open(self, host: Host, command: str) -> AsyncIterator[Session]:
        async with self.inner.open(host, command) as session:
            original = session.write

            async def write(data: bytes) -> None:
                self.writes.append(data)
                await original(data)

            session.write = write  # type: ignore[method-assign]
            yield session


def test_code_start_and_first_orders_leave_in_one_write(tmp_path: Path) -> None:
    transport = Recording(LocalTransport())
    asyncio.run(look(transport, make_host(), make_cache(tmp_path)))
    first, *rest = transport.writes
    for word in (
        b'"op":"start"',
        b'"name":"conf"',
        b'"name":"cache"',
        b'"op":"open"',
        b'"base":"ccc',
    ):
        assert word in first
    assert len(rest) == 1
    assert b'"bye"' in rest[0]


def test_a_failed_order_leaves_the_conversation_usable(tmp_path: Path) -> None:
    async def run() -> None:
        async with start_conversation(LocalTransport(), make_host(), ("conf", "cache")) as talk:
            bad = talk.order("open", settings=settings_of(tmp_path / "nowhere"))
            with pytest.raises(OrderError) as caught:
                await talk.result(bad, timeout_s=30)
            assert caught.value.code is ErrorCode.NOPATH
            good = talk.order("open", settings=settings_of(make_cache(tmp_path)))
            assert (await talk.result(good, timeout_s=30)).fields.get_bool("cache_exists")

    asyncio.run(run())


def test_modules_are_loaded_once_and_when_needed() -> None:
    async def run() -> bytes:
        transport = Recording(LocalTransport())
        async with start_conversation(transport, make_host(), ("conf",)) as talk:
            await talk.ready()
            talk.load(("conf", "cache", "cache"))
            await talk.flush()
        return b"".join(transport.writes)

    sent = asyncio.run(run())
    assert sent.count(b'"name":"conf"') == sent.count(b'"name":"cache"') == 1


# Hosts that break the rules.


async def provoke(
    mode: str,
    act: Callable[[Conversation, module.Order], Awaitable[Any]] | None = None,
    transport: Transport | None = None,
    **settings: Any,
) -> None:
    host = misbehaving(mode, **settings)
    async with start_conversation(transport or LocalTransport(), host, ()) as talk:
        order = talk.order("touch", base="a" * 40)
        if act:
            await act(talk, order)
        else:
            await talk.result(order, timeout_s=20)


def failure(mode: str, act: Any = None, **settings: Any) -> HostError:
    before = time.monotonic()
    with pytest.raises(HostError) as caught:
        asyncio.run(provoke(mode, act, **settings))
    assert time.monotonic() - before < 25
    assert is_safe(caught.value.message)
    return caught.value


BROKEN_FRAMES = [
    "not-json", "not-utf8", "not-object", "deep", "very-deep", "huge-int", "big-int", "huge-float", "nan",
    "infinity", "duplicate-key", "no-id", "bool-id", "surrogate-event", "result-null", "zero-length",
]  # fmt: skip
NONSENSE = [
    "unknown-event", "unknown-code", "foreign-id", "old-id", "wrong-phase", "above-total", "negative",
    "retry-storm", "wrong-protocol",
]  # fmt: skip


@pytest.mark.row("M3")
@pytest.mark.parametrize("mode", BROKEN_FRAMES)
def test_broken_frames_end_the_conversation(mode: str) -> None:
    assert failure(mode).code is ErrorCode.PROTOCOL


async def _until_result(talk: Conversation, order: module.Order) -> None:
    while (await talk.receive(order, 20)).event != "result":
        pass


@pytest.mark.row("M4")
@pytest.mark.parametrize("mode", NONSENSE)
def test_well_formed_nonsense_ends_the_conversation(mode: str) -> None:
    assert failure(mode, _until_result).code is ErrorCode.PROTOCOL


@pytest.mark.row("M4")
def test_progress_that_runs_backwards_ends_the_conversation() -> None:
    error = failure("backwards", _until_result)
    assert error.code is ErrorCode.PROTOCOL
    assert "49" in error.message


@pytest.mark.row("M4")
def test_a_second_result_ends_the_conversation() -> None:
    async def act(talk: Conversation, order: module.Order) -> None:
        await talk.result(order, timeout_s=20)
        await talk.result(talk.order("touch", base="b" * 40), timeout_s=20)

    assert failure("two-results", act).code is ErrorCode.PROTOCOL


@pytest.mark.row("M8")
def test_asking_for_tokens_without_waiting_for_them_ends_the_conversation() -> None:
    assert failure("retry-storm", _until_result).code is ErrorCode.PROTOCOL


@pytest.mark.row("M1")
@pytest.mark.parametrize("mode", ["noise-flood", "frame-flood", "byte-flood"])
def test_floods_on_stdout_end_the_conversation(mode: str) -> None:
    assert failure(mode, _until_result).code is ErrorCode.PROTOCOL


@pytest.mark.row("M1")
@pytest.mark.parametrize("mode", ["noise-flood", "stderr-flood"])
def test_floods_over_ssh_end_the_conversation_within_bounded_memory(
    tmp_path: Path, mode: str
) -> None:
    async def run() -> None:
        async with ssh_server(tmp_path) as server, SshTransport() as ssh:
            await provoke(mode, _until_result, ssh, **server.host_settings())

    with pytest.raises(HostError) as caught:
        asyncio.run(run())
    assert caught.value.code is ErrorCode.PROTOCOL


@pytest.mark.row("M2")
def test_a_line_without_end_ends_the_conversation() -> None:
    assert failure("long-line").code is ErrorCode.PROTOCOL


@pytest.mark.row("M6")
def test_escapes_in_what_a_host_says_are_defused(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    error = failure("escapes")
    assert isinstance(error, OrderError)
    assert is_safe(error.fields.get_str("path"))
    assert len(error.message) < 10_000
    assert is_safe(caplog.text.replace("\n", ""))

    async def user() -> str:
        async with start_conversation(LocalTransport(), misbehaving("escapes"), ()) as talk:
            return (await talk.ready()).user

    assert is_safe(asyncio.run(user()))


@pytest.mark.row("M7")
def test_one_byte_at_a_time_is_cut_off_by_the_deadline() -> None:
    async def act(talk: Conversation, order: module.Order) -> None:
        await talk.result(order, timeout_s=1.5)

    error = failure("trickle", act)
    assert isinstance(error, ContactLostError)
    assert error.code is ErrorCode.HANG


@pytest.mark.row("M7")
def test_progress_that_stands_still_is_cut_off() -> None:
    async def act(talk: Conversation, order: module.Order) -> None:
        await talk.result(order, timeout_s=1.0)

    assert failure("standstill", act).code is ErrorCode.STALL


@pytest.mark.row("S7")
def test_a_silent_host_is_given_up_after_the_hello_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert module.HELLO_TIMEOUT_S == 15
    monkeypatch.setattr(module, "HELLO_TIMEOUT_S", 1.0)
    error = failure("silent")
    assert error.code is ErrorCode.HANG
    assert not isinstance(error, ContactLostError)


@pytest.mark.row("H3")
def test_noise_around_the_hello_is_dropped() -> None:
    error = failure("noise")
    assert isinstance(error, OrderError)
    assert error.code is ErrorCode.SPACE
    assert error.fields.get_int("need") == 2


def test_a_text_of_several_lines_comes_as_one_that_can_be_read() -> None:
    error = failure("many-lines")
    assert isinstance(error, OrderError)
    assert error.message == "qemu-img: first | second \\x1b[2J | third"


def test_half_a_line_and_then_the_end_is_lost_contact() -> None:
    assert isinstance(failure("half-line"), ContactLostError)


def test_a_killed_helper_is_lost_contact() -> None:
    assert isinstance(failure("killed"), ContactLostError)


def test_a_crash_comes_with_its_sanitised_traceback() -> None:
    error = failure("crash")
    assert error.code is ErrorCode.CRASH
    assert error.message.endswith(": ValueError at staging.py:9 in \\x1b[write < core.py:7 in main")
    assert "x0a" not in error.message


ENDS = [
    ("exit-127:sh: python3: not found", "none", ErrorCode.PYTHON),
    ("exit-126:denied", "none", ErrorCode.PYTHON),
    ("exit-97:imgcache: found Python 3.4.1", "none", ErrorCode.PYTHON),
    ("exit-2:Unknown option: -I", "none", ErrorCode.PYTHON),
    ("exit-1:Traceback (most recent call last)", "none", ErrorCode.PYTHON),
    ("exit-96:", "none", ErrorCode.SHELL),
    ("exit-1:This account is currently not available.", "none", ErrorCode.SHELL),
    ("exit-0:", "none", ErrorCode.SHELL),
    ("exit-99:bad", "none", ErrorCode.CRASH),
    ("exit-137:Killed", "none", ErrorCode.LOST),
]


@pytest.mark.row("H1")
@pytest.mark.row("H4")
@pytest.mark.parametrize(("mode", "become", "code"), ENDS)
def test_an_end_before_the_hello_is_explained(mode: str, become: str, code: ErrorCode) -> None:
    error = failure(mode, become=become)
    assert error.code is code
    assert error.hint


@pytest.mark.row("H1")
def test_no_python_at_all_is_named() -> None:
    with pytest.raises(HostError) as caught:
        asyncio.run(greet(LocalTransport(), make_host(python=("/nowhere/python3",))))
    assert caught.value.code is ErrorCode.PYTHON
    assert "/nowhere/python3" in caught.value.message


@pytest.mark.row("H2")
@pytest.mark.parametrize(
    "words",
    [
        "sudo: a password is required",
        "nova is not allowed to execute '/usr/bin/python3' as nova on edge1.  sudo: bad",
        "sudo: sorry, you must have a tty to run sudo",
    ],
)
def test_sudo_that_refuses_comes_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    fake = tmp_path / "sudo"
    fake.write_text(f'#!/bin/sh\n[ "$1" = -n ] || exit 9\necho "{words}" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    host = make_host(become="sudo", become_user="nova")
    with pytest.raises(HostError) as caught:
        asyncio.run(greet(LocalTransport(), host))
    assert caught.value.code is ErrorCode.SUDO
    assert "NOPASSWD" in str(caught.value.hint)
    assert "NOLOG_INPUT" in str(caught.value.hint)


# Secrets.

CANARY = "canary-5f0c1d"


@pytest.mark.row("T1")
@pytest.mark.parametrize("mode", ["good", "crash", "killed", "not-json", "trickle", "half-line"])
def test_a_token_shows_up_nowhere_but_in_its_frame(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, mode: str
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []

    async def run() -> None:
        async with ssh_server(tmp_path) as server, SshTransport() as ssh:
            host = misbehaving(mode, **server.host_settings())
            async with start_conversation(ssh, host, ()) as talk:
                order = talk.order("fetch", source={"kind": "service", "token": CANARY})
                seen.extend(repr(value) for value in (talk, order, vars(talk)["_orders"]))
                await talk.ready()
                seen.extend(_visible())
                await talk.again(order, Secret(CANARY))
                await talk.result(order, timeout_s=2)

    with pytest.raises(HostError) as caught:
        asyncio.run(run())
    seen += [repr(caught.value), str(caught.value), str(caught.value.__cause__), caplog.text]
    assert not [text for text in seen if CANARY in text]


def _visible() -> list[str]:
    """What anybody on the machine can read about its processes."""
    texts = []
    for folder in os.listdir("/proc"):
        for name in ("cmdline", "environ"):
            try:
                with open(f"/proc/{folder}/{name}", "rb") as file:
                    texts.append(file.read().decode(errors="replace"))
            except OSError:
                continue
    return texts


# Life and death.


def test_a_living_controller_is_heard_every_three_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.PING_INTERVAL_S == 3
    monkeypatch.setattr(module, "PING_INTERVAL_S", 0.05)

    async def run() -> list[bytes]:
        transport = Recording(LocalTransport())
        async with start_conversation(transport, make_host(), ()) as talk:
            await talk.ready()
            async with talk.keep_alive():
                while len(transport.writes) < 4:  # noqa: ASYNC110 - counts what passes by
                    await asyncio.sleep(0.01)
            count = len(transport.writes)
            await asyncio.sleep(0.2)
            assert len(transport.writes) == count
        return transport.writes[1:4]

    assert asyncio.run(run()) == [b'{"op":"ping"}\n'] * 3


def test_cancelling_a_conversation_ends_helper_and_connection(tmp_path: Path) -> None:
    async def run() -> int:
        async with ssh_server(tmp_path) as server, SshTransport() as ssh:
            greeted = asyncio.Event()
            pid = 0

            async def talk_for_ever() -> None:
                nonlocal pid
                host = make_host(**server.host_settings())
                async with start_conversation(ssh, host, ()) as talk:
                    pid = (await talk.ready()).pid
                    greeted.set()
                    await talk.receive(talk.order("ping"), 1000)

            task = asyncio.create_task(talk_for_ever())
            await greeted.wait()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert server.connections[0].is_closed() or await _closed(server.connections[0])
            return pid

    pid = asyncio.run(run())
    assert not os.path.exists(f"/proc/{pid}")


async def _closed(connection: Any) -> bool:
    await asyncio.wait_for(connection.wait_closed(), 5)
    return True


@pytest.mark.row("C5")
@pytest.mark.parametrize("mode", ["not-json", "silent", "killed", "noise-flood", "good"])
def test_failures_leave_no_descriptor_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(module, "HELLO_TIMEOUT_S", 1.0)

    async def run() -> tuple[int, int]:
        async with ssh_server(tmp_path) as server, SshTransport() as ssh:
            counts = []
            for _ in range(3):
                for transport in (ssh, LocalTransport()):
                    with pytest.raises(HostError):
                        await provoke(mode, None, transport, **server.host_settings())
                while server.running:
                    await asyncio.wait(server.running)
                await asyncio.sleep(0.05)
                counts.append(len(os.listdir("/proc/self/fd")))
            return counts[0], counts[-1]

    first, last = asyncio.run(run())
    assert last <= first
