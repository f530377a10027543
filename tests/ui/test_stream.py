from __future__ import annotations

import io
import os
import pty
from typing import TYPE_CHECKING

import pytest

from imgcache.ui.stream import ascii_only, fit, redrawable, write_result

if TYPE_CHECKING:
    from collections.abc import Iterator

TERM = {"TERM": "xterm-256color", "LANG": "C.UTF-8"}


def text_stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


@pytest.fixture
def terminal() -> Iterator[io.TextIOWrapper]:
    """A real pseudo-terminal of 80 columns."""
    master, slave = pty.openpty()
    stream = os.fdopen(slave, "w", encoding="utf-8")
    set_size(stream, 80)
    yield stream
    stream.close()
    os.close(master)


def set_size(stream: io.TextIOWrapper, columns: int) -> None:
    import fcntl
    import struct
    import termios

    fcntl.ioctl(stream.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


@pytest.mark.row("C10")
@pytest.mark.parametrize(
    ("encoding", "environ", "ascii_is_all"),
    [
        ("utf-8", {"LANG": "C.UTF-8"}, False),
        ("utf-8", {}, False),
        ("utf-8", {"LANG": "de_DE.UTF-8", "LC_ALL": "C"}, True),
        ("utf-8", {"LC_CTYPE": "POSIX"}, True),
        ("ascii", {"LANG": "C.UTF-8"}, True),
        ("latin-1", {}, True),
    ],
)
def test_ascii_only_where_no_more_can_be_shown(
    encoding: str, environ: dict[str, str], *, ascii_is_all: bool
) -> None:
    assert ascii_only(text_stream(encoding), environ) is ascii_is_all


@pytest.mark.row("C10")
def test_fit_escapes_what_the_stream_cannot_show() -> None:
    assert fit("é…漢", text_stream("ascii")) == "\\xe9...\\u6f22"
    assert fit("é漢", text_stream("latin-1"), ascii_too=False) == "é\\u6f22"
    assert fit("é…漢", text_stream("utf-8"), ascii_too=False) == "é…漢"


@pytest.mark.row("C10")
def test_only_a_capable_terminal_is_redrawn(terminal: io.TextIOWrapper) -> None:
    assert redrawable(terminal, TERM)
    for change in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": ""}, {"LC_ALL": "C"}):
        assert not redrawable(terminal, TERM | change), change
    assert not redrawable(text_stream("utf-8"), TERM)


@pytest.mark.row("C10")
def test_a_terminal_without_width_is_not_redrawn(terminal: io.TextIOWrapper) -> None:
    set_size(terminal, 0)
    assert not redrawable(terminal, TERM)


@pytest.mark.row("C2")
def test_a_reader_that_went_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        write_result("result\n" * 100_000, stream)
        write_result("more\n", stream)
    write_result("nobody listens", None)


def test_a_full_disk_is_an_error() -> None:
    with (
        open("/dev/full", "w", encoding="utf-8") as stream,
        pytest.raises(OSError, match="No space left"),
    ):
        write_result("result\n", stream)
