"""A site in a world with its own clock: links, deaths and what hosts tell; the planning is the real one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from imgcache.errors import ErrorCode
from imgcache.operations.relay.node import Node, SiteState, State
from imgcache.operations.relay.tree import Tree

STEP_S = 0.1
#: How long the controller takes to notice that a machine is off the net.
LOST_S = 30.0


@dataclass(eq=False)
class Machine:
    """One host."""

    name: str
    up: float
    """Bytes a second that it can send."""
    down: float
    starts_at: float = 0.0
    killed_at: float | None = None
    """Its helper dies, and its connections with it."""
    cut_at: float | None = None
    """It is off the net: nothing is heard of it or its connections."""
    node: Node | None = None
    done: float = 0.0
    source: str | None = None
    """``outside``, or the name of the one it reads from; None: it waits."""
    answers_at: float | None = None
    """When it answers a switch, or a failure."""
    failure: ErrorCode | None = None
    ended_at: float | None = None
    told_at: float = 0.0
    from_outside: float = 0.0


@dataclass
class World:
    """See the module."""

    size: float
    outside: float = 1e9
    """Bytes a second that the image service gives to all together."""
    seeds: int = 1
    fanout: int = 1
    blocked: bool = False
    """Hosts cannot connect to each other."""
    now: float = 0.0
    machines: dict[str, Machine] = field(default_factory=dict)
    switches: int = 0
    connects: int = 0

    def __post_init__(self) -> None:
        self.site = SiteState(self.seeds, self.fanout)
        self.tree = Tree(self.site, int(self.size), clock=lambda: self.now)

    def add(self, name: str, **facts: float | None) -> Machine:
        """Add a host; links of 1 MB/s unless said otherwise."""
        machine = Machine(name, **{"up": 1e6, "down": 1e6, **facts})  # type: ignore[arg-type]
        machine.told_at = (len(self.machines) % 10) / 10
        self.machines[name] = machine
        return machine

    def run(self, limit_s: float = 3000.0) -> float:
        """Let time pass until all hosts that live have the image; return when the last had it."""
        for tick in itertools.count():
            self.now = tick * STEP_S
            assert self.now < limit_s, self.story()
            for machine in self.machines.values():
                self._live(machine)
            self._move()
            if tick % 5 == 0:
                for node in self.tree.tick():
                    self._leave(self.machines[node.name], ErrorCode.SWITCHED)
                    self.switches += 1
            self.check()
            alive = [one for one in self.machines.values() if not self._is_off(one)]
            if all(one.ended_at is not None for one in alive):
                return max(one.ended_at or 0 for one in alive)
        raise AssertionError

    def story(self) -> str:
        return "\n".join(
            f"{one.name}: {one.source} {one.done:.0f} {one.node} {one.failure}"
            for one in self.machines.values()
        )

    def check(self) -> None:
        """Nobody gets its bytes from itself, over however many others; who reads has a source."""
        for node in self.tree.nodes.values():
            seen, step = set(), node.parent
            while step is not None:
                assert step is not node
                assert step not in seen
                seen.add(step)
                step = step.parent
            if node.parent is not None:
                assert node in node.parent.readers
            assert all(reader.parent is node for reader in node.readers)

    # ---- what happens

    def _is_off(self, machine: Machine) -> bool:
        return any(at is not None and at <= self.now for at in (machine.killed_at, machine.cut_at))

    def _live(self, machine: Machine) -> None:
        if self._is_off(machine):
            self._die(machine)
        elif machine.ended_at is not None or self.now < machine.starts_at:
            return
        elif machine.node is None:
            machine.node = self.tree.join(machine.name)
            self._place(machine)
        elif machine.failure is not None:
            if self.now >= (machine.answers_at or 0):
                self._answer(machine)
        elif machine.source is None:
            self._place(machine)
        elif self.now - machine.told_at >= 1 or (machine.done and not machine.node.done):
            machine.told_at = self.now
            self.tree.progress(machine.node, "download", int(machine.done))

    def _die(self, machine: Machine) -> None:
        node = machine.node
        if node is None or node.state is State.GONE:
            return
        if machine.killed_at is not None and machine.killed_at <= self.now:
            for reader in self.machines.values():
                if reader.source == machine.name and reader.failure is None:
                    self._leave(reader, ErrorCode.DOWNLOAD)
            if self.now - machine.killed_at >= 2 * STEP_S:
                self.tree.gone(node)
        elif machine.cut_at is not None and self.now - machine.cut_at >= LOST_S:
            self.tree.gone(node)

    def _leave(self, machine: Machine, code: ErrorCode) -> None:
        machine.failure, machine.answers_at = code, self.now + STEP_S
        machine.source = None

    def _answer(self, machine: Machine) -> None:
        assert machine.node
        assert machine.failure
        self.tree.failed(machine.node, machine.failure, int(machine.done))
        machine.failure = None
        self._place(machine)

    def _place(self, machine: Machine) -> None:
        assert machine.node
        placement = self.tree.place(machine.node)
        if placement.wait:
            machine.source = None
            return
        if placement.parent is None:
            machine.source = "outside"
            return
        machine.source = placement.parent.name
        self.connects += 1
        parent = self.machines[machine.source]
        if self.blocked or (parent.killed_at is not None and parent.killed_at <= self.now):
            machine.failure = ErrorCode.UNREACHABLE
            machine.answers_at = self.now + (10 if self.blocked else STEP_S)

    def _move(self) -> None:
        active = [
            one
            for one in self.machines.values()
            if one.source and one.failure is None and one.ended_at is None and not self._is_off(one)
        ]
        direct = [one for one in active if one.source == "outside"]
        for one in direct:
            self._get(one, min(self.outside / len(direct), one.down), self.size)
        for parent in self.machines.values():
            readers = [one for one in active if one.source == parent.name]
            left = 0.0 if self._is_off(parent) else parent.up
            for count, one in enumerate(sorted(readers, key=lambda reader: reader.down)):
                rate = min(one.down, left / (len(readers) - count))
                left -= rate
                self._get(one, rate, parent.done)

    def _get(self, machine: Machine, rate: float, most: float) -> None:
        step = max(0.0, min(rate * STEP_S, most - machine.done))
        machine.done += step
        if machine.source == "outside":
            machine.from_outside += step
        if machine.done >= self.size - 1 and machine.node:
            machine.done = self.size
            machine.ended_at = self.now
            self.tree.whole(machine.node)
