"""Who reads one image from whom in one site: planning and repair, without any input or output.

The first hosts that ask read from outside; every other one reads from the last of the row, while that is
still receiving: a chain, whose hosts all end at nearly the same time (``docs/distribution.md``). When a host
fails, stands still or falls silent, those that read from it get another parent, never one below themselves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcache.errors import ErrorCode
from imgcache.operations.relay.node import Node, State
from imgcache.operations.relay.speed import review

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imgcache.operations.relay.node import SiteState

#: Readers of one host, however few others there are.
MOST_READERS = 8
#: A reader that gets nothing for so long, while its parent has more or is silent, is given another.
STILL_S = 3.0
#: A host at work says something every second; after so long it is not given new readers.
SILENT_S = 3.0
#: The first that tries may need so long to connect; others wait for it, so it must not take for ever.
TRIAL_S = 20.0
#: A parent that has got more for so long after its reader last did, has something that the reader lacks.
AHEAD_S = 2.0
#: A reader that had so many failures with other hosts reads from outside.
MOST_FAILURES = 8
#: A reader that got all bytes, and wrong ones, so often reads from outside.
MOST_WRONG = 2
#: The same, of one that never got a byte from another.
_MOST_VAIN_FAILURES = 3
#: So often a parent that broke off may be tried again by the same reader.
_MOST_BREAKS = 3
#: Phases that no host comes to before it has verified all bytes.
_JUDGED = frozenset({"inspect", "convert", "publish"})
#: Failures that a parent may not be to blame for: it started again, or had nothing to send itself.
_PASSING = frozenset({ErrorCode.DOWNLOAD, ErrorCode.STALL})


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a host reads from now: a parent, or outside, or it waits."""

    parent: Node | None = None
    wait: bool = False

    @property
    def outside(self) -> bool:
        """Whether it reads from outside."""
        return self.parent is None and not self.wait


class Tree:
    """See the module. One per image and site."""

    def __init__(
        self, site: SiteState, size: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.site = site
        self.size = size
        self.nodes: dict[str, Node] = {}
        self.clock = clock
        self._count = 0
        self._seeded: set[Node] = set()
        """Those that read from outside and that others can read from, also when they have left since."""
        self._victims: set[Node] = set()
        """Those whose bytes proved wrong, while it is being found out who sent them."""

    # ---- what hosts do

    def join(self, name: str, *, can_serve: bool = True, can_read: bool = True) -> Node:
        """Add a host that needs the image; one of the same name is gone."""
        if name in self.nodes:
            self.gone(self.nodes[name])
        self._count += 1
        node = Node(name, self._count, self.clock(), can_serve, can_read)
        self.nodes[name] = node
        return node

    def add_whole(self, name: str) -> Node:
        """Add a host that has had the image before and lets others read it."""
        node = self.join(name)
        node.state, node.verified, node.outside = State.WHOLE, True, True
        node.done = self.size
        return node

    def place(self, node: Node) -> Placement:
        """Decide where a host reads from now on; it left its last source."""
        placement = self.look(node)
        if placement.parent is not None:
            if not self.site.proven:
                self.site.trial = node
            self._attach(node, placement.parent)
        elif placement.outside:
            self._read_outside(node)
        return placement

    def look(self, node: Node) -> Placement:
        """Return where a host that left its last source would be placed now."""
        self._leave_parent(node)
        site = self.site
        most = MOST_FAILURES if node.has_read else _MOST_VAIN_FAILURES
        lied_to = len(node.wrong) >= MOST_WRONG
        if site.blocked or not node.can_read or lied_to or node.failures >= most:
            return Placement()
        depths = self._depths()
        able = sorted(self._able(node), key=lambda one: self._rank(node, one, depths[one]))
        accused = self._accused()
        parents = [parent for parent in able if parent not in accused]
        if self._is_seed(node) and not any(parent.state is State.WHOLE for parent in parents):
            return Placement()
        if not parents:
            return Placement(wait=bool(able))
        if not site.proven and site.trial is not None and site.trial is not node:
            return Placement(wait=True)
        return Placement(parents[0])

    def _is_seed(self, node: Node) -> bool:
        return not node.begun and len(self._seeded) < self.site.seeds

    def progress(self, node: Node, phase: str, done: int) -> None:
        """Note how far a host is."""
        now = self.clock()
        node.heard_at = now
        node.paused = False
        if phase in _JUDGED:
            node.verified, node.done = True, self.size
        if phase == "hash" and not node.verified:
            node.mixed, node.grown_at = True, now  # bytes of an earlier run
        if phase != "download":
            return
        if done < node.done:
            self.anew(node)
        if done != node.done:
            node.grown_at = now
        node.done = done
        node.history.append((now, done))
        speed = node.speed(now)
        node.best_speed = max(node.best_speed, speed or 0.0)
        if node.parent is not None and done > node.done_before:
            node.has_read = True
            if not self.site.proven:
                self.site.proven, self.site.trial = True, None

    def anew(self, node: Node) -> None:
        """Note that it begins from zero, with the source that it has."""
        self._begin_anew(node)
        node.mixed = node.parent is None
        self._note_offset(node, 0)

    def pause(self, node: Node) -> None:
        """Note that it waits for the controller."""
        node.paused = True

    def whole(self, node: Node) -> None:
        """Note that it has all bytes, and verified them."""
        self._leave_parent(node)
        node.state, node.verified, node.done = State.WHOLE, True, self.size

    def gone(self, node: Node) -> None:
        """Note that nobody can read from it any more, and that it reads no more."""
        self._leave_parent(node)
        self._victims.discard(node)
        if node.state is not State.WHOLE:
            self._seeded.discard(node)
        node.state = State.GONE
        if self.nodes.get(node.name) is node:
            del self.nodes[node.name]

    def failed(self, node: Node, code: ErrorCode, offset: int) -> None:
        """Note why a host could not read on from its parent."""
        parent, was_trial = node.parent, self.site.trial is node
        node.paused, node.switching = True, False
        self._note_offset(node, offset)
        self._leave_parent(node)
        if parent is None or code is ErrorCode.SWITCHED:
            return
        node.failures += 1
        node.breaks[parent] += 1
        if code is ErrorCode.UNREACHABLE and was_trial and self._is_heard(parent):
            self.site.blocked = True
        alive = self._is_heard(parent)
        if code is ErrorCode.STALL and alive and not parent.verified and parent.done <= node.done:
            node.failures -= 1
            node.breaks[parent] -= 1
        elif code not in _PASSING or not alive or node.breaks[parent] >= _MOST_BREAKS:
            node.avoid.add(parent)

    # ---- wrong bytes

    def suspects(self, node: Node) -> tuple[set[Node], set[Node]]:
        """Return who may have sent a host wrong bytes: those who had the right ones, and the undecided.

        Both are empty when it is explained already: a parent's own bytes were wrong, or the host's own.
        """
        told: set[Node] = set()
        undecided: set[Node] = set()
        if node.mixed:
            return told, undecided
        for parent, generation in node.fed_by:
            if generation in parent.wrong:
                return set(), set()
            if parent.generation == generation and parent.verified:
                told.add(parent)
            elif parent.generation == generation and parent.state is not State.GONE:
                undecided.add(parent)
            else:
                return set(), set()
        return told, undecided

    def wrong_bytes(self, node: Node) -> Node | None:
        """Note that a host's bytes proved wrong, so that it starts from zero; return the host to blame."""
        told, undecided = self.suspects(node)
        blamed = next(iter(told)) if len(told) == 1 and not undecided else None
        node.avoid |= {parent for parent, _ in node.fed_by if parent.verified}
        node.breaks.update(undecided)  # tried last
        self._victims.discard(node)
        self._leave_parent(node)  # first: none of the bytes to come will be from there
        self._begin_anew(node)
        node.mixed = False
        node.failures += 1
        self._note_offset(node, 0)
        if blamed is not None:
            self.site.bad.add(blamed.name)
        return blamed

    def note_wrong(self, node: Node) -> None:
        """Note at once that its bytes are wrong, so that nobody takes it for a witness or blames it."""
        node.wrong.add(node.generation)
        node.verified = False
        node.paused, node.switching = True, False
        self._victims.add(node)

    def _accused(self) -> set[Node]:
        """Return who may have sent wrong bytes, as long as that is being found out."""
        return {one for node in self._victims for group in self.suspects(node) for one in group}

    # ---- repair

    def tick(self) -> list[Node]:
        """Return the hosts that shall leave their source now; they get another one, if there is any."""
        leaving = []
        for node in list(self.nodes.values()):
            parent = node.parent
            if parent is None or node.state is not State.READING or node.paused or node.switching:
                continue
            lost = parent.state is State.GONE or parent.name in self.site.bad
            if lost or self._starves(node):
                node.breaks[parent] += 1
                node.failures += 1
                if lost or node.breaks[parent] >= _MOST_BREAKS:
                    node.avoid.add(parent)
                node.switching = True
                self._end_trial(node)  # now: a host that is up to no good need not answer
                leaving.append(node)
        for node in review(self, self.clock()):
            node.switching = True
            leaving.append(node)
        return leaving

    def candidates(self, node: Node) -> Iterator[Node]:
        """Give the hosts that one may read from."""
        accused = self._accused()
        return (parent for parent in self._able(node) if parent not in accused)

    def _able(self, node: Node) -> Iterator[Node]:
        """Give the hosts that one may read from, or may if they turn out to be honest."""
        below = self._below(node)
        for parent in self.nodes.values():
            if (
                parent not in below
                and parent.can_serve
                and parent.state in {State.READING, State.WHOLE}
                and parent.name not in self.site.bad
                and parent not in node.avoid
                and not parent.slow
                and self._is_heard(parent)
                and len(parent.readers) < MOST_READERS
            ):
                yield parent

    def is_alone(self, node: Node) -> bool:
        """Whether a host could read from others, but there is nobody to read from, nor a seed to come."""
        usable = node.can_read and not self.site.blocked
        return usable and not any(
            other.can_serve
            and other.state is not State.WAITING
            and not other.slow
            and other.name not in self.site.bad
            and other not in node.avoid
            for other in self.nodes.values()
            if other is not node
        )

    @staticmethod
    def _below(node: Node) -> set[Node]:
        """Return a host and all that get their bytes from it, over however many hosts."""
        below, todo = {node}, [node]
        while todo:
            more = todo.pop().readers - below
            below |= more
            todo += more
        return below

    def _depths(self) -> dict[Node, int]:
        """Return over how many hosts each gets its bytes; in time that grows with their number only."""
        depths: dict[Node, int] = {}
        for node in self.nodes.values():
            row = []
            step: Node | None = node
            while step is not None and step not in depths:
                row.append(step)
                step = step.parent
            depth = -1 if step is None else depths[step]
            depths.update((one, depth + up) for up, one in enumerate(reversed(row), 1))
        return depths

    def _rank(self, node: Node, parent: Node, depth: int) -> tuple[object, ...]:
        # One that has just failed this host will hardly go on reading itself.
        readers = sum(1 for one in parent.readers if not node.breaks[one] and one not in node.avoid)
        return (
            node.breaks[parent],
            parent.slow_to_send,
            max(0, readers - self.site.fanout + 1),
            parent.done < node.done,
            parent.state is not State.WHOLE,
            depth,
            -parent.number,
        )

    def _is_heard(self, node: Node) -> bool:
        """Whether a host is as talkative as it should be."""
        if node.state is State.GONE:
            return False
        waits = node.paused or node.state is not State.READING
        return waits or self.clock() - node.heard_at <= SILENT_S

    def _starves(self, node: Node) -> bool:
        """Whether a reader gets nothing although its parent has something, or is silent."""
        now, parent = self.clock(), node.parent
        last = max(node.grown_at, node.since)
        if parent is None or node.verified or now - last <= STILL_S or not self._is_heard(node):
            return False
        if not self._is_heard(parent):
            return True
        if not self.site.proven and now - last <= TRIAL_S:
            return False  # whether it can connect at all is what it finds out
        return parent.verified or (not parent.paused and parent.grown_at - last > AHEAD_S)

    def _read_outside(self, node: Node) -> None:
        self._end_trial(node)
        node.outside = node.mixed = True
        if node.can_serve:
            self._seeded.add(node)
        self._begin(node)

    def _attach(self, node: Node, parent: Node) -> None:
        node.parent, node.outside = parent, False
        parent.readers.add(node)
        node.fed_by.add((parent, parent.generation))
        self._begin(node)

    def _begin(self, node: Node) -> None:
        now = self.clock()
        node.state, node.begun = State.READING, True
        node.paused, node.switching = True, False  # until it says something
        node.since = node.heard_at = now
        node.done_before = node.done
        node.history.clear()

    def _leave_parent(self, node: Node) -> None:
        self._end_trial(node)
        if node.parent is not None:
            node.parent.readers.discard(node)
            node.parent = None

    def _end_trial(self, node: Node) -> None:
        if self.site.trial is node:
            self.site.trial = None

    @staticmethod
    def _begin_anew(node: Node) -> None:
        node.wrong.add(node.generation)
        node.generation += 1
        node.fed_by = {(node.parent, node.parent.generation)} if node.parent else set()
        node.verified = False

    def _note_offset(self, node: Node, offset: int) -> None:
        node.done = offset
        node.history.clear()
