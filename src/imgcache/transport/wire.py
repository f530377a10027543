"""What a host says: frames read under limits, and typed access to their fields.

Everything here is written for a peer that lies: lines and numbers are bounded, nesting is bounded, the
rate of bytes and frames is bounded, and every string is sanitised before anybody else sees it.
"""

from __future__ import annotations

import json
import math
import re
import time
from typing import TYPE_CHECKING, NoReturn, TypeVar

from imgcache.errors import ErrorCode, HostError
from imgcache.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from enum import StrEnum

    from imgcache.transport.base import Session

E = TypeVar("E", bound="StrEnum")

MAX_LINE_BYTES = 65536
MAX_NOISE_BYTES = 65536
MAX_DEPTH = 8
MAX_INT = 2**63 - 1
#: Only numbers that name a file may be so big.
MAX_UNSIGNED = 2**64 - 1
_READ_BYTES = 65536
_SYNC = b"\x00IMGCACHE0001 "

#: A host may send this much at once, this much a second for ever, and this much more per order.
BURST_BYTES, BYTES_PER_S, BYTES_PER_ORDER = 1024 * 1024, 100 * 1024, 4096
BURST_FRAMES, FRAMES_PER_S, FRAMES_PER_ORDER = 500, 50, 4

_ENDLESS_NOISE = "noise without end before the helper's answer"
#: Never goes back, and takes a string without an end as well: else a host could make it search anew from
#: every quote, half a minute for one frame.
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = re.compile(rb"[^{}\[\]]+")


def protocol_error(message: str) -> HostError:
    """Return the error for a host that breaks the protocol."""
    hint = (
        "the host's answers cannot be trusted; look at what runs there, and at imgcache's version"
    )
    return HostError(ErrorCode.PROTOCOL, message, hint=hint)


def _refuse(what: str) -> NoReturn:
    message = f"the host sent a frame with {what}"
    raise protocol_error(message)


def _refuse_long(what: str, data: bytearray) -> NoReturn:
    message = f"the host sent {what}: {printable(bytes(data[:60]), 60)}"
    raise protocol_error(message)


def _parse_int(digits: str) -> int:
    if len(digits) > 20 or abs(value := int(digits)) > MAX_UNSIGNED:
        _refuse("an integer out of range")
    return value


def _parse_float(digits: str) -> float:
    if len(digits) > 64 or not math.isfinite(value := float(digits)):
        _refuse("a number out of range")
    return value


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        _refuse("a key given twice")
    return result


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_duplicates,
    parse_int=_parse_int,
    parse_float=_parse_float,
    parse_constant=lambda name: _refuse(f"the constant {printable(name)}"),
)


def parse_frame(line: bytes) -> Fields:
    """Parse one line into the fields of a frame.

    Raises:
        HostError: code ``protocol``: not one JSON object within our limits.
    """
    if line.count(b"{") + line.count(b"[") > MAX_DEPTH and _depth(line) > MAX_DEPTH:
        _refuse("too deep nesting")
    try:
        value = _DECODER.decode(line.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        message = f"the host sent a frame that is not JSON: {printable(line, 80)}"
        raise protocol_error(message) from exc
    if not isinstance(value, dict):
        _refuse("something other than an object")
    return Fields(value)


def _depth(line: bytes) -> int:
    depth = deepest = 0
    for byte in _NOT_BRACKETS.sub(b"", _STRINGS.sub(b"", line)):
        if byte in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


class Fields:
    """The fields of a frame or of an object in it, read by type; strings come out sanitised.

    Every getter raises ``HostError`` with code ``protocol``, naming the field's path, when the field is
    missing or of another type. ``opt_*`` getters give None for null or a missing field.
    """

    __slots__ = ("_path", "_values")

    def __init__(self, values: Mapping[str, object], path: str = "") -> None:
        self._values = values
        self._path = path

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __repr__(self) -> str:
        return f"<fields {printable(', '.join(self._values))}>"

    def _wrong(self, name: str, wanted: str) -> NoReturn:
        where = printable(f"{self._path}{name}", 100)
        message = f"the host sent a frame whose field {where} is not {wanted}"
        raise protocol_error(message)

    def _missing(self, name: str) -> bool:
        return self._values.get(name) is None

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return not self._missing(name)

    def get_str(self, name: str, *, limit: int = 4096) -> str:
        """Return a string as one safe line of at most about ``limit`` characters."""
        value = self._values.get(name)
        if not isinstance(value, str):
            self._wrong(name, "a string")
        return printable(value, limit)

    def get_text(self, name: str, *, limit: int = 4096) -> str:
        """Return a text as one safe line; its own lines are separated by `` | ``."""
        value = self._values.get(name)
        if not isinstance(value, str):
            self._wrong(name, "a string")
        return printable(" | ".join(filter(None, map(str.strip, value.split("\n")))), limit)

    def get_match(self, name: str, pattern: re.Pattern[str]) -> str:
        """Return a string exactly as sent that ``pattern`` matches in full; it must be safe to show."""
        value = self._values.get(name)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            self._wrong(name, f"like {pattern.pattern}")
        return value

    def get_int(self, name: str, *, low: int = 0, high: int = MAX_INT) -> int:
        """Return an integer between ``low`` and ``high``, both included."""
        value = self._values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self._wrong(name, f"an integer from {low} to {high}")
        return value

    def get_float(self, name: str, *, low: float = -1e15, high: float = 1e15) -> float:
        """Return a finite number between ``low`` and ``high``, both included."""
        value = self._values.get(name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            self._wrong(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def get_bool(self, name: str) -> bool:
        """Return a boolean."""
        value = self._values.get(name)
        if not isinstance(value, bool):
            self._wrong(name, "true or false")
        return value

    def get_choice(self, name: str, choices: Collection[str]) -> str:
        """Return a string that is exactly one of ``choices``."""
        value = self._values.get(name)
        if not isinstance(value, str) or value not in choices:
            self._wrong(name, "one of " + ", ".join(sorted(choices)))
        return value

    def get_enum(self, name: str, kind: type[E]) -> E:
        """Return a member of a string enumeration, by its value."""
        return kind(self.get_choice(name, {member.value for member in kind}))

    def get_object(self, name: str) -> Fields:
        """Return an object's fields."""
        value = self._values.get(name)
        if not isinstance(value, dict):
            self._wrong(name, "an object")
        return Fields(value, f"{self._path}{name}.")

    def get_strings(self, name: str, *, limit: int = 4096, most: int = 1000) -> list[str]:
        """Return a list of at most ``most`` strings, each as in ``get_str``."""
        value = self._values.get(name)
        if not isinstance(value, list) or len(value) > most:
            self._wrong(name, "a list of strings")
        if not all(isinstance(item, str) for item in value):
            self._wrong(name, "a list of strings")
        return [printable(item, limit) for item in value]

    def get_objects(self, name: str, *, most: int = 1000) -> list[Fields]:
        """Return a list of at most ``most`` objects' fields."""
        value = self._values.get(name)
        if not isinstance(value, list) or len(value) > most:
            self._wrong(name, "a list of objects")
        if not all(isinstance(item, dict) for item in value):
            self._wrong(name, "a list of objects")
        return [Fields(item, f"{self._path}{name}[{index}].") for index, item in enumerate(value)]

    def get_str_map(self, name: str, *, limit: int = 4096) -> dict[str, str]:
        """Return an object whose values are all strings, both sides sanitised."""
        inner = self.get_object(name)
        return {printable(key, limit): inner.get_str(key, limit=limit) for key in inner.names()}

    def names(self) -> list[str]:
        """Return the fields' names as sent; never show them unsanitised."""
        return list(self._values)

    def opt_str(self, name: str, *, limit: int = 4096) -> str | None:
        """Return a string or None."""
        return None if self._missing(name) else self.get_str(name, limit=limit)

    def opt_text(self, name: str, *, limit: int = 4096) -> str | None:
        """Return a text as ``get_text`` does, or None."""
        return None if self._missing(name) else self.get_text(name, limit=limit)

    def opt_int(self, name: str, *, low: int = 0, high: int = MAX_INT) -> int | None:
        """Return an integer or None."""
        return None if self._missing(name) else self.get_int(name, low=low, high=high)

    def opt_float(self, name: str, *, low: float = -1e15, high: float = 1e15) -> float | None:
        """Return a number or None."""
        return None if self._missing(name) else self.get_float(name, low=low, high=high)

    def opt_bool(self, name: str) -> bool | None:
        """Return a boolean or None."""
        return None if self._missing(name) else self.get_bool(name)

    def opt_object(self, name: str) -> Fields | None:
        """Return an object's fields or None."""
        return None if self._missing(name) else self.get_object(name)


class _Allowance:
    """How much may still come: a bucket that fills with time, and with orders sent."""

    def __init__(self, burst: int, per_s: int, clock: Callable[[], float]) -> None:
        self._burst = burst
        self._per_s = per_s
        self._clock = clock
        self._left = float(burst)
        self._extra = 0.0
        self._at = clock()

    def add(self, amount: int) -> None:
        """Allow ``amount`` more, once."""
        self._extra += amount

    def spend(self, amount: int) -> bool:
        """Take ``amount``; False when it is more than allowed."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s) - amount
        self._at = now
        if self._left < 0:
            self._extra += self._left
            self._left = 0.0
        return self._extra >= 0


class FrameReader:
    """Reads frames from a session: first the synchronising line with our marker, then line by line.

    At most 64 KiB are held besides what one read gives, whatever the host sends.
    """

    def __init__(
        self, session: Session, marker: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._session = session
        self._sync = _SYNC + marker.encode() + b"\n"
        self._synced = False
        self._noise = b""
        self._buffer = bytearray()
        self._bytes = _Allowance(BURST_BYTES, BYTES_PER_S, clock)
        self._frames = _Allowance(BURST_FRAMES, FRAMES_PER_S, clock)

    @property
    def synced(self) -> bool:
        """Whether the helper has answered with our marker."""
        return self._synced

    def noise(self) -> str:
        """Return what came instead of, or before, the helper's first line, sanitised."""
        return printable(bytes(self._noise if self._synced else self._buffer).strip(), 4096)

    def order_sent(self, *, more_bytes: int = 0, more_frames: int = 0) -> None:
        """Allow what one more order may be answered with; more when it is answered with many rows."""
        self._bytes.add(BYTES_PER_ORDER + more_bytes)
        self._frames.add(FRAMES_PER_ORDER + more_frames)

    async def read_frame(self) -> Fields | None:
        """Return the next frame, or None at the end of the stream.

        Raises:
            HostError: code ``protocol``: noise without end, too long a line, too many frames, bad JSON.
            ContactLostError: the connection is gone.
        """
        while not self._synced:
            if not await self._more(MAX_NOISE_BYTES + len(self._sync), _ENDLESS_NOISE):
                return None
            self._find_sync()
        start = 0
        while (end := self._buffer.find(b"\n", start)) < 0:
            start = len(self._buffer)
            if not await self._more(MAX_LINE_BYTES, "a line longer than 64 KiB"):
                return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        if end >= MAX_LINE_BYTES:
            _refuse("a line longer than 64 KiB")
        if not self._frames.spend(1):
            message = "the host sends more frames than it was asked for"
            raise protocol_error(message)
        return parse_frame(line)

    async def _more(self, limit: int, what: str) -> bool:
        if len(self._buffer) >= limit:
            _refuse_long(what, self._buffer)
        data = await self._session.read(_READ_BYTES)
        if not self._bytes.spend(len(data)):
            message = "the host sends more data than it was asked for"
            raise protocol_error(message)
        self._buffer += data
        return bool(data)

    def _find_sync(self) -> None:
        at = self._buffer.find(self._sync)
        if at > MAX_NOISE_BYTES:
            _refuse_long(_ENDLESS_NOISE, self._buffer)
        if at >= 0:
            self._noise = bytes(self._buffer[:at])[-4096:]
            del self._buffer[: at + len(self._sync)]
            self._synced = True
