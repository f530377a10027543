"""Hosts that are slow to answer, or never do: the others go on in their place."""

from __future__ import annotations

import asyncio
import shlex
import sys
from typing import TYPE_CHECKING

import pytest

from fakes.hosts import make_host, misbehaving
from imgcache.errors import ErrorCode
from imgcache.events import NullSink
from imgcache.operations import host_run
from imgcache.operations.engine import Engine, Limits
from imgcache.operations.interrupt import Interrupt
from imgcache.operations.rollout import Rollout, Waves
from imgcache.operations.sources import NoSources
from imgcache.policy import Amount
from imgcache.transport import conversation
from imgcache.transport.local import LocalTransport

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from imgcache.model import Host, Image
    from imgcache.operations.host_run import HostRun


class Run:
    """Greets hosts, some of which answer only after a file is there."""

    def __init__(self, folder: Path) -> None:
        self.gate = folder / "gate"
        self.slow = folder / "slow-python"
        wait = f"while [ ! -e {shlex.quote(str(self.gate))} ]; do sleep 0.05; done"
        self.slow.write_text(
            f'#!/bin/sh\n{wait}\nexec {shlex.quote(sys.executable)} "$@"\n', "utf-8"
        )
        self.slow.chmod(0o755)
        self.hosts: list[Host] = []
        self.ended: list[str] = []
        self.at_work = 0
        self.most_at_work = 0
        self.open_gate_after = 0
        self.open_gate_after_s: float | None = None
        self.engine: Engine | None = None

    def add(self, name: str, *, slow: bool = False) -> None:
        python = str(self.slow) if slow else sys.executable
        self.hosts.append(make_host(name, python=(python,)))

    def never(self) -> None:
        """Have slow hosts end without an answer."""
        text = self.slow.read_text("utf-8")
        self.slow.write_text(text.replace("exec ", "exit 7\nexec "), "utf-8")

    async def work(self, context: HostRun, images: Sequence[Image]) -> None:
        del images
        async with context.converse(()) as talk:
            await talk.ready()
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
            await asyncio.sleep(0.05)
            self.at_work -= 1
        self.ended.append(context.host.name)
        if len(self.ended) == self.open_gate_after:
            self.gate.touch()

    def run(self, *, waves: Waves | None = None, lenders: int = 256) -> dict[str, ErrorCode]:
        """Return host name -> why it failed."""

        async def main() -> dict[str, ErrorCode]:
            engine = Engine(
                run_id="test",
                transport=LocalTransport(),
                sources=NoSources(),
                limits=Limits(concurrency=1, retries=0, timeout_s=60, lenders=lenders),
                sink=NullSink(),
                interrupt=Interrupt(),
            )
            if self.open_gate_after_s is not None:
                asyncio.get_running_loop().call_later(self.open_gate_after_s, self.gate.touch)
            await engine.run(self.hosts, (), self.work, rollout=Rollout(self.hosts, waves=waves))
            return {name: failure.code for name, failure in engine.failures.items()}

        return asyncio.run(main())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(host_run, "PATIENCE_S", 0.05)
    return Run(tmp_path)


@pytest.mark.row("S8")
def test_a_host_that_is_slow_to_answer_lends_its_place_and_waits_for_one_again(run: Run) -> None:
    run.add("slow-1", slow=True)
    run.add("slow-2", slow=True)
    for number in range(5):
        run.add(f"quick-{number}")
    run.open_gate_after = 3
    assert run.run() == {}
    assert all(name.startswith("quick") for name in run.ended[:3])
    assert sorted(run.ended) == sorted(host.name for host in run.hosts)
    assert run.most_at_work == 1


@pytest.mark.row("S8")
def test_hosts_that_never_answer_cost_the_others_no_place(run: Run) -> None:
    for number in range(6):
        run.add(f"hanging-{number}", slow=True)
    for number in range(4):
        run.add(f"quick-{number}")
    run.never()
    run.open_gate_after = 4
    assert set(run.run()) == {f"hanging-{number}" for number in range(6)}
    assert sorted(run.ended) == [f"quick-{number}" for number in range(4)]


@pytest.mark.row("S8")
def test_a_wave_goes_on_without_those_that_do_not_answer(run: Run) -> None:
    run.add("slow", slow=True)
    for number in range(3):
        run.add(f"quick-{number}")
    run.open_gate_after = 3
    assert run.run(waves=Waves(canary=1, wave=Amount(count=1))) == {}
    assert sorted(run.ended[:3]) == ["quick-0", "quick-1", "quick-2"]
    assert run.ended[3:] == ["slow"]


@pytest.mark.row("S8")
def test_hosts_that_stop_reading_cost_the_others_no_place(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "WRITE_STALL_S", 4.0)
    monkeypatch.setattr(conversation, "WRITE_LOOK_S", 0.1)
    deaf = [f"deaf-{number}" for number in range(3)]
    run.hosts += [misbehaving("deaf", name=name) for name in deaf]
    for number in range(4):
        run.add(f"quick-{number}")

    async def work(context: HostRun, images: Sequence[Image]) -> None:
        if context.host.name not in deaf:
            return await Run.work(run, context, images)
        try:
            async with context.converse(()) as talk:
                order = talk.order("fetch")
                await talk.ready()
                while True:
                    await talk.send_data(order, bytes(conversation.MAX_DATA_BYTES))
        finally:
            run.ended.append(context.host.name)

    monkeypatch.setattr(run, "work", work)
    assert run.run() == dict.fromkeys(deaf, ErrorCode.HANG)
    assert sorted(run.ended[:4]) == [f"quick-{number}" for number in range(4)]


def test_where_nobody_may_wait_beside_each_host_keeps_its_place(run: Run) -> None:
    run.add("slow", slow=True)
    run.add("quick")
    run.open_gate_after_s = 0.5
    assert run.run(lenders=0) == {}
    assert run.ended == ["slow", "quick"]
