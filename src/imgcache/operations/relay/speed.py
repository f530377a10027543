"""Finds out who holds up a chain: a host that sends slowly, or one that receives slowly.

Of a reader that falls behind only its own speed is known. It gets another parent, once: does it go faster
there, its last parent sends slowly; else it receives slowly itself, and its readers read from somebody else.
They are the test where there is no other parent: go they no faster, it was their new parent that sends
slowly. What was found out is not tried again, so that nobody is moved to and fro.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgcache.operations.relay.node import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgcache.operations.relay.node import Node
    from imgcache.operations.relay.tree import Tree

#: A reader with less than this part of the speed that its parent has shown falls behind.
_SLOW = 0.5
#: By so many seconds of its parent's speed it must be behind.
_BEHIND_S = 3.0
#: With less than this left to do, nobody is moved.
_WORTH_S = 5.0
#: So much faster elsewhere proves where the trouble is.
_BETTER = 1.3


def review(tree: Tree, now: float) -> Iterator[Node]:
    """Give the hosts that shall read from another one, for the sake of speed."""
    for node in list(tree.nodes.values()):
        parent, speed = node.parent, node.speed(now)
        if parent is None or speed is None or not _is_judged(node):
            continue
        if node.speed_before is not None:
            yield from _conclude(node, parent, speed)
        elif not parent.slow_to_send and _falls_behind(tree, node, parent, speed, now):
            yield from _try_elsewhere(tree, node, parent, speed)


def _is_judged(node: Node) -> bool:
    return not (node.state is not State.READING or node.paused or node.switching or node.verified)


def _falls_behind(tree: Tree, node: Node, parent: Node, speed: float, now: float) -> bool:
    able = parent.best_speed if parent.verified else parent.speed(now)
    if not able or speed >= able * _SLOW or parent.done - node.done < able * _BEHIND_S:
        return False
    return (tree.size - node.done) / max(speed, 1.0) > _WORTH_S


def _try_elsewhere(tree: Tree, node: Node, parent: Node, speed: float) -> Iterator[Node]:
    others = [one for one in tree.candidates(node) if one is not parent and one.done > node.done]
    if others and node.left_for_speed is None:
        node.left_for_speed, node.speed_before = parent, speed
        node.avoid.add(parent)
        yield node
    elif not node.slow:
        yield from _free_readers(node, speed)


def _free_readers(node: Node, speed: float) -> Iterator[Node]:
    """Have nobody depend on a host that seems to receive slowly."""
    node.slow = True
    for reader in node.readers:
        if _is_judged(reader):
            reader.suspect, reader.speed_before = node, speed
            yield reader


def _conclude(node: Node, parent: Node, speed: float) -> Iterator[Node]:
    """Learn from a host's speed with its new parent."""
    better = speed >= _BETTER * (node.speed_before or 0.0)
    node.speed_before = None
    if node.suspect is not None:
        suspect, node.suspect = node.suspect, None
        if not better:
            suspect.slow, parent.slow_to_send = False, True
            yield node  # back to where it read from: that one is as fast as it gets
    elif node.left_for_speed is not None and better:
        node.left_for_speed.slow_to_send = True
    elif not node.slow:
        yield from _free_readers(node, speed)
