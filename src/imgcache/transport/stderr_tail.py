"""The last of what a program wrote to its standard error, safe to show."""

from __future__ import annotations

from imgcache.text import printable

KEPT_BYTES = 64 * 1024


class StderrTail:
    """Keeps the last 64 KiB."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """Take what came in."""
        self._data += data[-KEPT_BYTES:]
        if len(self._data) > 2 * KEPT_BYTES:
            del self._data[:-KEPT_BYTES]

    def text(self) -> str:
        """Return it as one line, its lines separated by `` | ``; sanitised, possibly empty."""
        lines = bytes(self._data[-KEPT_BYTES:]).splitlines()
        return " | ".join(printable(line.strip(), KEPT_BYTES) for line in lines if line.strip())
