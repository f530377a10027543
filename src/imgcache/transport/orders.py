"""Orders given to a helper, and the events that come for them, checked against what may come."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from imgcache.errors import ErrorCode, HostError
from imgcache.transport.launch import PROTOCOL
from imgcache.transport.wire import Fields, protocol_error

PHASES = frozenset({"download", "inspect", "convert", "lock", "publish", "hash"})
#: Orders that are answered with rows: the bytes and frames they may take beyond those of any order.
#: A row of ``list`` has about 1 KiB: enough for tens of thousands of entries.
ROWS = {
    "list": (32 * 1024 * 1024, 8192),
    "remove": (256 * 1024, 128),
    "clean": (4 * 1024 * 1024, 4096),
}


def register_rows(op: str, more_bytes: int, more_frames: int) -> None:
    """Say that a driver's order ``op`` is answered with rows, and what these may take at most."""
    ROWS[op] = (more_bytes, more_frames)


_EVENTS = frozenset({"progress", "ready", "retry", "result", "error"})
_EVENTS_OF_ROWS = _EVENTS | {"rows"}
_CODES = frozenset(code.value for code in ErrorCode)


@dataclass(frozen=True, slots=True)
class Hello:
    """What the helper says about itself and its host; strings are sanitised."""

    python: str
    platform: str
    pid: int
    uid: int
    user: str
    clock_offset_s: float
    """The host's clock minus the controller's; right to about half the round trip."""


@dataclass(frozen=True, slots=True)
class Message:
    """One event of an order: ``progress``, ``rows``, ``ready``, ``retry`` or ``result``."""

    event: str
    fields: Fields


class OrderError(HostError):
    """The helper could not do what one order asked; the conversation can go on.

    ``fields`` holds what it said besides (numbers, paths), sanitised on reading.
    """

    def __init__(self, code: ErrorCode, message: str, fields: Fields) -> None:
        super().__init__(code, message)
        self.fields = fields


class Order:
    """One order given to the helper, and the events that came for it."""

    __slots__ = ("_inbox", "_may_begin_anew", "_progress", "_waiting", "done", "id", "op")

    def __init__(self, order_id: int, op: str) -> None:
        self.id = order_id
        self.op = op
        #: Whether its ``result`` or ``error`` has come in.
        self.done = False
        self._inbox: deque[Message | OrderError] = deque()
        self._progress: dict[str, int] = {}
        self._waiting = False
        self._may_begin_anew = False

    def __repr__(self) -> str:
        return f"<order {self.id} {self.op}>"

    def take(self) -> Message | None:
        """Return the next event that came in, or None; raises the order's error in its turn."""
        if not self._inbox:
            return None
        event = self._inbox.popleft()
        if isinstance(event, OrderError):
            raise event
        return event

    def restart(self) -> None:
        """Note that the helper was told to go on, so progress may begin anew."""
        self._progress.clear()
        self._waiting = False
        self._may_begin_anew = True

    def accept(self, fields: Fields) -> None:
        """Take one event for this order, checked against what may come now.

        Raises:
            HostError: code ``protocol``: nothing that may come here.
        """
        event = fields.get_choice("event", _EVENTS_OF_ROWS if self.op in ROWS else _EVENTS)
        if self._waiting and event not in {"result", "error"}:
            message = f"the host sent {event} while it had to wait"
            raise protocol_error(message)
        if event == "error":
            self.done = True
            self._inbox.append(_order_error(fields))
            return
        if event == "progress":
            self._check_progress(fields)
            while self._inbox and self._is_progress(self._inbox[-1]):
                self._inbox.pop()
        self.done = event == "result"
        self._waiting = event == "retry"
        self._inbox.append(Message(event, fields))

    @staticmethod
    def _is_progress(event: Message | OrderError) -> bool:
        return isinstance(event, Message) and event.event == "progress"

    def _check_progress(self, fields: Fields) -> None:
        phase = fields.get_choice("phase", PHASES)
        done, total = fields.get_int("done"), fields.get_int("total")
        # Orders about many entries look for users more than once.
        backwards = done < self._progress.get(phase, 0) and self.op not in ROWS
        if backwards and phase == "download" and self._may_begin_anew:
            # Told to go on, it said where it was, until the source turned out to begin from zero only.
            backwards = self._may_begin_anew = False
        if done > total or backwards:
            message = (
                f"the host reports impossible progress: {done} of {total} bytes in phase {phase}"
            )
            raise protocol_error(message)
        self._progress[phase] = done


def _order_error(fields: Fields) -> OrderError:
    code = ErrorCode(fields.get_choice("code", _CODES))
    more = fields.opt_object("fields") or Fields({})
    return OrderError(code, fields.get_text("message", limit=1000), more)


def read_hello(order: Order) -> Hello:
    """Return what an order ``start`` was answered with.

    Raises:
        HostError: code ``protocol``.
    """
    message = order.take()
    if message is None or message.event != "result":
        text = "the helper's first answer is not its hello"
        raise protocol_error(text)
    fields = message.fields
    protocol = fields.get_int("protocol")
    if protocol != PROTOCOL:
        text = f"the helper speaks protocol {protocol}, not {PROTOCOL}"
        raise protocol_error(text)
    return Hello(
        python=fields.get_str("python", limit=40),
        platform=fields.get_str("platform", limit=80),
        pid=fields.get_int("pid"),
        uid=fields.get_int("uid"),
        user=fields.get_str("user", limit=80),
        clock_offset_s=fields.get_float("time") - time.time(),
    )
