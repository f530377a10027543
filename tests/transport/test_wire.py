"""Frames of a peer that lies: every limit holds, and nothing but the declared error comes out."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.hosts import is_safe
from imgcache.errors import ErrorCode, HostError
from imgcache.transport.wire import (
    BURST_FRAMES,
    MAX_LINE_BYTES,
    Fields,
    FrameReader,
    parse_frame,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKER = "feedface"
SYNC = b"\x00IMGCACHE0001 " + MARKER.encode() + b"\n"


class Bytes:
    """A session that gives these bytes, in pieces of at most ``piece``."""

    def __init__(self, data: bytes, piece: int = 65536) -> None:
        self.data = data
        self.piece = piece

    async def read(self, max_bytes: int) -> bytes:
        size = min(max_bytes, self.piece)
        given, self.data = self.data[:size], self.data[size:]
        return given

    async def write(self, data: bytes) -> None:
        raise NotImplementedError

    def unsent(self) -> int:
        raise NotImplementedError

    def stderr_tail(self) -> str:
        return ""

    async def exit_status(self) -> int | None:
        return 0

    async def close_stdin(self) -> None:
        return


def read_all(data: bytes, piece: int = 65536) -> list[Fields]:
    async def run() -> list[Fields]:
        reader = FrameReader(Bytes(data, piece), MARKER, clock=lambda: 0.0)
        frames = []
        while (frame := await reader.read_frame()) is not None:
            frames.append(frame)
        return frames

    return asyncio.run(run())


def refused(data: bytes) -> HostError:
    with pytest.raises(HostError) as caught:
        read_all(data)
    assert caught.value.code is ErrorCode.PROTOCOL
    assert is_safe(str(caught.value))
    return caught.value


@pytest.mark.parametrize("piece", [1, 7, 65536])
def test_frames_come_whole_however_they_are_cut(piece: int) -> None:
    frames = read_all(SYNC + b'{"id":1}\n{"id":2}\n', piece)
    assert [frame.get_int("id") for frame in frames] == [1, 2]


@pytest.mark.row("H3")
def test_noise_before_the_marker_is_dropped() -> None:
    noise = b"\x1b[31mWelcome\n\x00IMGCACHE0001 wrong\n" * 1000
    assert [frame.get_int("id") for frame in read_all(noise + SYNC + b'{"id":5}\n')] == [5]


@pytest.mark.row("H3")
@pytest.mark.parametrize("size", [65537, 10**6])
def test_more_than_64_kib_of_noise_is_refused(size: int) -> None:
    assert "noise" in refused(b"x" * size + SYNC + b'{"id":5}\n').message


def test_64_kib_of_noise_are_fine() -> None:
    assert len(read_all(b"x" * 65536 + SYNC + b'{"id":5}\n')) == 1


@pytest.mark.row("M2")
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_longer_than_64_kib_is_refused(end: bytes) -> None:
    refused(SYNC + b'{"a":"' + b"x" * MAX_LINE_BYTES + b'"}' + end)


@pytest.mark.row("M2")
def test_an_endless_stream_of_frames_is_refused() -> None:
    assert "frames" in refused(SYNC + b'{"id":1}\n' * (BURST_FRAMES + 1)).message


@pytest.mark.row("M2")
def test_empty_lines_are_refused() -> None:
    refused(SYNC + b"\n\n\n")


@pytest.mark.row("M1")
def test_more_bytes_than_asked_for_are_refused() -> None:
    line = b'{"a":"' + b"x" * 60000 + b'"}\n'
    assert "more data" in refused(SYNC + line * 20).message


@pytest.mark.row("M1")
def test_time_and_orders_allow_for_more() -> None:
    now = [0.0]

    async def run() -> int:
        data = SYNC + b'{"id":1}\n' * 2000
        reader = FrameReader(Bytes(data), MARKER, clock=lambda: now[0])
        for _ in range(200):
            reader.order_sent()
        count = 0
        while await reader.read_frame() is not None:
            count += 1
            now[0] += 0.02
        return count

    assert asyncio.run(run()) == 2000


@pytest.mark.row("M3")
@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b'"x"',
        b'{"a":' + b"[" * 8 + b"]" * 8 + b"}",
        b"[" * 60000,
        b'{"a":' * 9000,
        b'{"a":18446744073709551616}',
        b'{"a":-18446744073709551616}',
        b'{"a":' + b"1" * 60000 + b"}",
        b'{"a":1e400}',
        b'{"a":1.' + b"0" * 60000 + b"}",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":1}x',
    ],
)
def test_bad_json_is_refused(line: bytes) -> None:
    refused(SYNC + line + b"\n")


def test_brackets_within_strings_are_no_nesting() -> None:
    frame = parse_frame(b'{"a":"' + b"[{" * 100 + b'\\"["}')
    assert frame.get_str("a").startswith("[{[{")


@pytest.mark.row("M3")
@pytest.mark.parametrize("piece", [b'\\"', b'"', b"\\", b'"\\', b'"{'])
def test_no_frame_takes_long_to_parse(piece: bytes) -> None:
    line = (b'{"a":[[[[[[[[["' + piece * MAX_LINE_BYTES)[: MAX_LINE_BYTES - 1]
    before = time.process_time()
    with pytest.raises(HostError):
        parse_frame(line)
    assert time.process_time() - before < 1


def test_depth_of_eight_is_allowed() -> None:
    assert "a" in parse_frame(b'{"a":' + b"[" * 7 + b"]" * 7 + b"}")


class Colour(StrEnum):
    RED = "red"


GETTERS = [
    ("get_str", 1), ("get_str", None), ("get_int", "1"), ("get_int", True), ("get_int", 1.0), ("get_int", -1),
    ("get_bool", 1), ("get_bool", None), ("get_float", "1"), ("get_float", True), ("get_float", 1e300),
    ("get_object", []), ("get_strings", "ab"), ("get_strings", [1]), ("get_strings", ["a"] * 1001),
    ("opt_int", "x"), ("opt_str", 5), ("opt_bool", 0), ("opt_object", 5), ("opt_float", "x"),
    ("get_str_map", {"a": 1}), ("get_str_map", 1),
]  # fmt: skip


@pytest.mark.row("M4")
@pytest.mark.parametrize(("getter", "value"), GETTERS)
def test_a_field_of_another_type_is_refused_by_its_path(getter: str, value: object) -> None:
    fields = Fields({"outer": {"x": value}}).get_object("outer")
    with pytest.raises(HostError) as caught:
        getattr(fields, getter)("x")
    assert caught.value.code is ErrorCode.PROTOCOL
    assert "outer.x" in caught.value.message


def test_getters_give_what_is_there() -> None:
    fields = Fields(
        {"s": "a", "i": 5, "f": 1.5, "b": False, "l": ["x"], "n": None, "o": {"k": "v"}, "e": "red"}
    )
    assert (fields.get_str("s"), fields.get_int("i"), fields.get_float("f")) == ("a", 5, 1.5)
    assert fields.get_bool("b") is False
    assert fields.get_strings("l") == ["x"]
    assert fields.opt_str("n") is None
    assert fields.opt_int("missing") is None
    assert fields.get_str_map("o") == {"k": "v"}
    assert fields.get_enum("e", Colour) is Colour.RED


@pytest.mark.row("M6")
def test_strings_come_out_sanitised_and_capped() -> None:
    value = "\x1b]0;x\x07\r\n\u202e\ud800" + "a" + "\u0301" * 10**5
    text = Fields({"s": value}).get_str("s", limit=200)
    assert is_safe(text)
    assert len(text) < 2000


@contextmanager
def only_protocol_errors() -> Iterator[None]:
    """Let the one declared error pass."""
    try:
        yield
    except HostError as error:
        assert error.code is ErrorCode.PROTOCOL  # noqa: PT017 - none is fine too
        assert is_safe(error.message)  # noqa: PT017


@given(st.binary(max_size=3000), st.integers(1, 300))
@settings(max_examples=300, deadline=None)
def test_no_bytes_cause_another_error_than_the_declared_one(data: bytes, piece: int) -> None:
    for stream in (data, SYNC + data, SYNC + data + b"\n"):
        with only_protocol_errors():
            read_all(stream, piece)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)


@given(st.dictionaries(st.sampled_from(["id", "event", "message", "fields", "x"]), JSON))
@settings(max_examples=200, deadline=None)
def test_no_json_causes_another_error_than_the_declared_one(value: dict[str, object]) -> None:
    with only_protocol_errors():
        fields = parse_frame(json.dumps(value).encode())
        for getter in (
            "get_str",
            "get_int",
            "get_float",
            "opt_object",
            "get_strings",
            "get_str_map",
        ):
            for name in value:
                with only_protocol_errors():
                    getattr(fields, getter)(name)
