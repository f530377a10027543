"""Headers are a guest's own writing: whatever they are, reading them ends, quickly and with little."""

# mypy: disallow-untyped-calls=False

from __future__ import annotations

import os
import struct
import tempfile

from hypothesis import example, given, settings
from hypothesis import strategies as st

from imgcache.helper import headers

U32, U64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
OFFSETS = st.sampled_from([0, 1, 72, 104, 512, 4095, 4096]) | U64


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 5) | U32, OFFSETS, U32, st.binary(max_size=3000), st.integers(0, 255))
@example(3, 1 << 63, 1 << 31, b"", 4)
@example(3, 0, 0, struct.pack(">I", 104) + b"\x44\x41\x54\x41\xff\xff\xff\xff", 4)
def test_any_header(version: int, offset: int, size: int, rest: bytes, features: int) -> None:
    head = struct.pack(">4sIQI", b"QFI\xfb", version, offset, size).ljust(79, b"\0")
    with tempfile.TemporaryFile() as file:
        file.write((head + bytes([features])).ljust(100, b"\0") + rest)
        file.flush()
        found, _ = headers.references(file.fileno(), 4096)
    assert len(found) <= 2
    assert all(0 < len(name) <= 1023 and b"\0" not in name for name in found)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=1023) | st.binary(max_size=1000).map(lambda data: b"json:" + data))
@example(b"json:" + b'{"a":' * 200)
@example(b"json:" + b"[" * 1000)
@example(b'json:{"filename": "json:{\\"filename\\": \\"x\\"}"}')
@example(b'json:{"filename": "\\ud800"}')
def test_any_name(name: bytes) -> None:
    for path in headers.paths_of(name):
        assert isinstance(path, str)
        os.fsencode(path)


def test_what_is_no_image_says_nothing() -> None:
    for data in (b"", b"QFI", b"QFI\xfb", b"x" * 4096, b"QED".ljust(512, b"\xff")):
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            assert headers.references(file.fileno(), len(data)) == ((), None)
