"""One host's part in the distribution of one image in a site, and what is known about the site's relays."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum

#: Readers of one host, as long as another host is free.
FANOUT = 1
#: Seconds over which the speed of a host is measured.
WINDOW_S = 6.0


class State(Enum):
    """What a host does about the image."""

    WAITING = "waiting"
    READING = "reading"
    WHOLE = "whole"
    """It has all bytes, verified, and lets others read them."""
    GONE = "gone"


@dataclass(eq=False)
class Node:
    """One host's part in the distribution of one image."""

    name: str
    number: int
    now: float
    can_serve: bool = True
    can_read: bool = True
    state: State = State.WAITING
    parent: Node | None = None
    outside: bool = False
    """It reads, or has read at last, from outside of the site, or had the image before."""
    begun: bool = False
    done: int = 0
    done_before: int = 0
    """What it had when it got its present source."""
    verified: bool = False
    paused: bool = False
    """It waits for the controller, and says nothing meanwhile."""
    switching: bool = False
    """It was told to leave its source, and has not answered."""
    heard_at: float = 0.0
    grown_at: float = 0.0
    since: float = 0.0
    """When it got its present source."""
    generation: int = 0
    """How often it began from zero again."""
    fed_by: set[tuple[Node, int]] = field(default_factory=set)
    """From whom its bytes are: host and that one's generation."""
    mixed: bool = False
    """Some of its bytes are from outside, or were on its disk before."""
    wrong: set[int] = field(default_factory=set)
    """Generations in which its bytes proved wrong."""
    breaks: Counter[Node] = field(default_factory=Counter)
    avoid: set[Node] = field(default_factory=set)
    readers: set[Node] = field(default_factory=set)
    """Who reads from it now."""
    has_read: bool = False
    """It got something from another host, in this run."""
    failures: int = 0
    slow: bool = False
    """It is slow to receive: nobody shall depend on it."""
    slow_to_send: bool = False
    left_for_speed: Node | None = None
    """The parent that it left since another might send faster."""
    suspect: Node | None = None
    """The parent that it left since that one seems to receive slowly."""
    speed_before: float | None = None
    """Bytes a second before it was moved for its speed."""
    best_speed: float = 0.0
    history: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.heard_at = self.grown_at = self.since = self.now

    def __repr__(self) -> str:
        return f"<node {self.name} {self.state.value}>"

    def speed(self, now: float) -> float | None:
        """Return bytes a second over the last seconds; None: not known yet."""
        while self.history and self.history[0][0] < now - WINDOW_S - 1:
            self.history.popleft()
        if not self.history or now - self.history[0][0] < WINDOW_S - 1:
            return None
        at, done = self.history[0]
        return (self.done - done) / (now - at)


class SiteState:
    """What is known about the relays of one site in one run, for all images."""

    def __init__(self, seeds: int = 1, fanout: int = FANOUT) -> None:
        self.seeds = seeds
        self.fanout = fanout
        self.proven = False
        """One host has read from another."""
        self.blocked = False
        """The first one that tried could not connect: nobody tries again."""
        self.trial: Node | None = None
        """The one that tries first; others wait for what it finds."""
        self.bad: set[str] = set()
        """Hosts that sent wrong bytes: never used again."""
