"""Hosts that take nothing, or little: no write waits without a deadline, and none that moves is ended."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from fakes.hosts import make_host, misbehaving
from imgcache.errors import ContactLostError, ErrorCode, HostError
from imgcache.transport import conversation as module
from imgcache.transport import launch
from imgcache.transport.conversation import MAX_DATA_BYTES, start_conversation
from imgcache.transport.local import LocalTransport
from imgcache.transport.orders import OrderError
from imgcache.transport.ssh import SshTransport
from servers.ssh_server import ssh_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from imgcache.model import Host
    from imgcache.transport.base import Transport
    from imgcache.transport.conversation import Conversation

#: More than any pipe, window or buffer between a test and its host holds.
MANY_MODULES = tuple(name for name in launch.helper_modules() if name != "core")

Act: TypeAlias = "Callable[[Transport, dict[str, Any]], Awaitable[None]]"


async def over_ssh(folder: Path, act: Act, **server: Any) -> None:
    async with ssh_server(folder, **server) as running, SshTransport() as ssh:
        await act(ssh, running.host_settings())


async def behind_a_jump_host(folder: Path, act: Act, **server: Any) -> None:
    async with (
        ssh_server(folder / "jump", forward=True) as jump,
        ssh_server(folder / "host", **server) as running,
        SshTransport() as ssh,
    ):
        known = jump.known_hosts.read_text() + running.known_hosts.read_text()
        jump.known_hosts.write_text(known)
        settings = running.host_settings(
            ssh_key=jump.client_key,
            known_hosts=jump.known_hosts,
            proxy_jump=f"nova@127.0.0.1:{jump.port}",
        )
        running.client_key.write_bytes(jump.client_key.read_bytes())
        await act(ssh, settings)


async def locally(folder: Path, act: Act, **server: Any) -> None:
    del folder, server
    await act(LocalTransport(), {})


WAYS = [locally, over_ssh, behind_a_jump_host]


def failure(way: Any, folder: Path, act: Act, **server: Any) -> tuple[HostError, float]:
    """Return why a conversation ended, and after how many seconds."""
    began = time.monotonic()
    with pytest.raises(HostError) as caught:
        asyncio.run(way(folder, act, **server))
    return caught.value, time.monotonic() - began


@pytest.mark.row("S7")
@pytest.mark.parametrize("way", WAYS)
def test_a_host_that_reads_nothing_is_given_up_at_the_hello_deadline(
    way: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELLO_TIMEOUT_S", 1.0)

    async def act(transport: Transport, settings: dict[str, Any]) -> None:
        host = make_host(python=(sys.executable, "-c", "import time; time.sleep(60)"), **settings)
        async with start_conversation(transport, host, MANY_MODULES) as talk:
            await talk.ready()

    error, took_s = failure(way, tmp_path, act, window=16384, reads=False)
    assert error.code is ErrorCode.HANG
    assert not isinstance(error, ContactLostError)
    assert "did not answer within 1 s" in error.message
    assert took_s < 12


def test_what_a_host_says_instead_of_reading_is_in_the_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HELLO_TIMEOUT_S", 1.5)
    code = "import time; print('Choose a cluster: ', flush=True); time.sleep(60)"

    async def act() -> None:
        host = make_host(python=(sys.executable, "-c", code))
        async with start_conversation(LocalTransport(), host, MANY_MODULES) as talk:
            await talk.ready()

    with pytest.raises(HostError) as caught:
        asyncio.run(act())
    assert caught.value.code is ErrorCode.HANG
    assert "Choose a cluster:" in caught.value.message


async def _push(transport: Transport, host: Host, *, blocks: int = 64) -> None:
    """Send blocks to a helper that is there."""
    async with start_conversation(transport, host, ()) as talk:
        order = talk.order("fetch")
        await talk.ready()
        for _ in range(blocks):
            await talk.send_data(order, bytes(MAX_DATA_BYTES))
        await talk.result(order, timeout_s=20)


@pytest.mark.parametrize("way", WAYS)
def test_a_helper_that_stops_reading_is_given_up_at_the_write_deadline(
    way: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.WRITE_STALL_S == 60
    monkeypatch.setattr(module, "WRITE_STALL_S", 1.0)
    monkeypatch.setattr(module, "WRITE_LOOK_S", 0.1)

    async def act(transport: Transport, settings: dict[str, Any]) -> None:
        await _push(transport, misbehaving("deaf", **settings))

    error, took_s = failure(way, tmp_path, act)
    assert isinstance(error, ContactLostError)
    assert error.code is ErrorCode.HANG
    assert "takes no more" in error.message
    assert took_s < 15


@pytest.mark.parametrize("way", WAYS)
def test_a_helper_that_reads_slowly_is_waited_for(
    way: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_STALL_S", 1.5)
    monkeypatch.setattr(module, "WRITE_LOOK_S", 0.1)
    spans: list[float] = []

    async def act(transport: Transport, settings: dict[str, Any]) -> None:
        began = time.monotonic()
        try:
            await _push(transport, misbehaving("slow-reader", **settings), blocks=3)
        finally:
            spans.append(time.monotonic() - began)

    error, _ = failure(way, tmp_path, act, window=65536)
    assert isinstance(error, OrderError)  # what the helper says when all has come
    assert spans[0] > 3


def test_what_a_helper_says_is_heard_while_it_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "GOODBYE_TIMEOUT_S", 0.5)

    async def act() -> None:
        async with start_conversation(LocalTransport(), misbehaving("refuses-data"), ()) as talk:
            order = talk.order("fetch")
            await talk.ready()
            sending = asyncio.create_task(_send_for_ever(talk, order))
            await asyncio.sleep(0.5)  # it is stuck by then
            try:
                with pytest.raises(OrderError) as caught:
                    await talk.receive(order, 10)
                assert caught.value.code is ErrorCode.SPACE
                assert not sending.done()
            finally:
                sending.cancel()
                await asyncio.wait((sending,))

    asyncio.run(act())


async def _send_for_ever(talk: Conversation, order: module.Order) -> None:
    while True:
        await talk.send_data(order, bytes(MAX_DATA_BYTES))
