"""The one sanitizer: no string from a host, an image or a guest is shown without it."""

from __future__ import annotations

import re
import unicodedata

#: More combining marks than this on one character draw over the lines around it.
_MAX_COMBINING = 4
_AUTHORITY = re.compile(r"://\S+")


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


def without_user_info(text: str) -> str:
    """Return ``text`` with ``<secret>`` in the place of each URL's user and password.

    All up to the last ``@`` of the word goes: a password may hold any of ``/``, ``:`` and ``@``.
    """
    return _AUTHORITY.sub(_without_user_info, text) if "@" in text else text


def _without_user_info(found: re.Match[str]) -> str:
    _, at, rest = found[0].rpartition("@")
    return f"://<secret>@{rest}" if at else found[0]
