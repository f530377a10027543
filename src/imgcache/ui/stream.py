"""What a stream can show, and writing to it without surprises."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

#: Narrower than this, a display that redraws itself shows nothing of use.
_MIN_COLUMNS = 20


def ascii_only(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether only ASCII is safe there: its encoding has no more, or the locale is C by name."""
    locale = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG") or ""
    if locale in {"C", "POSIX"}:
        return True
    try:
        "…é漢".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return True
    return False


def fit(text: str, stream: TextIO, *, ascii_too: bool | None = None) -> str:
    """Return ``text`` with everything that the stream cannot show as backslash escapes.

    ``ascii_too`` overrides the judgement of ``ascii_only``.
    """
    if ascii_only(stream) if ascii_too is None else ascii_too:
        return text.replace("…", "...").encode("ascii", "backslashreplace").decode("ascii")
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def redrawable(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether a display may move the cursor there: a capable terminal, and no wish against it."""
    if not _is_terminal(stream) or environ.get("NO_COLOR") or ascii_only(stream, environ):
        return False
    if environ.get("TERM", "dumb") in {"", "dumb", "unknown"}:
        return False
    return columns_of(stream) >= _MIN_COLUMNS


def columns_of(stream: TextIO) -> int:
    """Return the terminal's width in columns; 0 when it has none or does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return 0


def screen_width(stream: TextIO | None, environ: Mapping[str, str] = os.environ) -> int:
    """Return how wide a drawing for this stream may be: COLUMNS, else the terminal's width, else 80."""
    wanted = environ.get("COLUMNS", "")
    if wanted.isascii() and wanted.isdigit() and int(wanted[:6]) > 0:
        return int(wanted[:6])
    return (columns_of(stream) if stream is not None else 0) or 80


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def write_result(text: str, stream: TextIO | None) -> None:
    """Write a result whole, or quietly nothing when the reader went away.

    Raises:
        OSError: the result could not be written for another reason, such as a full disk.
    """
    if stream is None:  # Python's stand-in for a descriptor that was closed before the start
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError as exc:
        # Python flushes once more at its end, and would complain then.
        discard(stream)
        if exc.errno != errno.EPIPE:
            raise


def settle(stream: TextIO | None) -> None:
    """Write out what the stream still holds; send it to nowhere when nobody reads any more."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        discard(stream)


def discard(stream: TextIO) -> None:
    """Send all that is still to come on this stream, buffers included, to nowhere."""
    try:
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, descriptor)
        finally:
            os.close(nowhere)
    except (OSError, ValueError):
        return
