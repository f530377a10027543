"""The one sanitizer: no string from a host, an image or a guest is shown without it."""

from __future__ import annotations

import unicodedata

#: More combining marks than this on one character draw over the lines around it.
_MAX_COMBINING = 4


def printable(value: str | bytes, limit: int = 300) -> str:
    """Return ``value`` as one line of at most about ``limit`` characters that is safe to show anywhere.

    Bytes that are not UTF-8, control characters (C0, C1, DEL), invisible format characters (bidirectional
    controls, zero-width ones), separators other than the plain space, lone surrogates and piled-up combining
    marks come out as backslash escapes.
    """
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    shortened = len(text) > limit
    parts: list[str] = []
    combining = 0
    for char in text[:limit]:
        combining = combining + 1 if unicodedata.category(char) in {"Mn", "Me"} else 0
        safe = char.isprintable() and combining <= _MAX_COMBINING
        parts.append(char if safe else _escape(char))
    return "".join(parts) + ("…" if shortened else "")


def _escape(char: str) -> str:
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
