"""Progress where nothing can be redrawn: a plain line every few seconds, no control bytes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TextIO

from imgcache.events import RunEnded, RunStarted
from imgcache.ui.messages import Messages, status_line, summary_line
from imgcache.ui.stream import ascii_only, fit
from imgcache.ui.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgcache.events import Event

#: Seconds between two lines about a run that goes on.
INTERVAL_S = 5.0


class PlainDisplay:
    """See ``imgcache.ui.sink.Display``. Nothing but printable characters and newlines is written."""

    def __init__(
        self, verbosity: int, stream: TextIO, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._ascii = ascii_only(stream)
        self._clock = clock
        self._messages = Messages(verbosity)
        self._tally = Tally(clock)
        self._running = False
        self._last_at = clock()

    def emit(self, event: Event) -> None:
        """See ``Display``."""
        self._tally.take(event)
        for line in self._messages.lines(event):
            self._say(line)
        if isinstance(event, RunStarted):
            self._running, self._last_at = True, self._clock()
        elif isinstance(event, RunEnded):
            self._running = False
            self._say(summary_line(self._tally, interrupted=event.interrupted))

    def tick(self) -> None:
        """See ``Display``."""
        if self._running and self._clock() - self._last_at >= INTERVAL_S:
            self._last_at = self._clock()
            self._say(status_line(self._tally))

    def close(self) -> None:
        """See ``Display``."""
        self._stream.flush()

    def _say(self, line: str) -> None:
        self._stream.write(fit(f"imgcache: {line}\n", self._stream, ascii_too=self._ascii))
        self._stream.flush()
