"""What a program on a host writes, kept until it is read: bounded, whatever the program does."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Unread output at which the program is told to wait.
HIGH_WATER_BYTES = 256 * 1024


class Output:
    """A queue of bytes with back-pressure, filled by callbacks and read by one task."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._changed = asyncio.Event()
        self.pause: Callable[[], None] | None = None
        self.resume: Callable[[], None] | None = None

    def add(self, data: bytes) -> None:
        """Take what came in."""
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered > HIGH_WATER_BYTES and not self._paused and self.pause:
            self._paused = True
            self.pause()
        self._changed.set()

    def wake(self) -> None:
        """Let the reader look again: something other than data has changed."""
        self._changed.set()

    async def take(self, max_bytes: int, ended: Callable[[], bool]) -> bytes:
        """Return at least one byte, or ``b""`` when there is none and ``ended()`` says so.

        ``ended`` may raise what the reader should get instead.
        """
        while not self._chunks:
            if ended():
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = self._chunks.popleft()
        if len(data) > max_bytes:
            self._chunks.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        self._buffered -= len(data)
        if self._paused and self._buffered < HIGH_WATER_BYTES // 4 and self.resume:
            self._paused = False
            self.resume()
        return data
