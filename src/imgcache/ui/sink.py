"""From the run's events to the displays, without ever holding up the run.

A terminal that was stopped, or a pipe that nobody reads, blocks whoever writes to it. So ``emit`` only
queues; one thread takes the events to the displays and lets them draw.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from imgcache.events import ItemProgress
from imgcache.ui.stream import redrawable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from imgcache.events import Event

#: How often the displays see what happened; four times a second looks alive and costs nothing.
_TICK_S = 0.25
#: Progress beyond this backlog is dropped: whoever writes is stuck, and only the newest counts.
_BACKLOG = 20_000


class Display(Protocol):
    """Shows events. All methods are called from one thread; an OSError ends this display alone."""

    def emit(self, event: Event) -> None:
        """Take one event."""

    def tick(self) -> None:
        """Draw what changed; called several times a second."""

    def close(self) -> None:
        """Show what is left and give the stream back; called at most once."""


class DisplaySink:
    """An ``EventSink`` for a run's time: use as a context manager. Leaving shows all that was emitted."""

    def __init__(self, displays: Sequence[Display], *, tick_s: float = _TICK_S) -> None:
        self._displays = list(displays)
        self._tick_s = tick_s
        self._queue: deque[Event] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="imgcache-displays", daemon=True)
        self._bug: Exception | None = None

    def emit(self, event: Event) -> None:
        """See ``EventSink``; never blocks."""
        if isinstance(event, ItemProgress) and len(self._queue) > _BACKLOG:
            return
        self._queue.append(event)

    def __enter__(self) -> Self:
        if self._displays:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._displays:
            # The run is over: now a stopped terminal may make us wait, as it does with any program.
            self._thread.join()
        if self._bug is not None and value is None:
            raise self._bug

    def _work(self) -> None:
        # A bug in a display must neither stop the run nor vanish: it is raised at the run's end.
        try:
            while not self._stop.wait(self._tick_s):
                self._show()
            self._show()
            for display in list(self._displays):
                self._guarded(display, "close")
        except Exception as exc:  # noqa: BLE001 - see above
            self._bug = exc

    def _show(self) -> None:
        while self._queue:
            event = self._queue.popleft()
            for display in list(self._displays):
                self._guarded(display, "emit", event)
        for display in list(self._displays):
            self._guarded(display, "tick")

    def _guarded(self, display: Display, method: str, *args: Event) -> None:
        try:
            getattr(display, method)(*args)
        except (OSError, ValueError) as exc:
            # The stream is gone (EPIPE), full, or closed: nobody is left to tell.
            if isinstance(exc, ValueError) and "closed file" not in str(exc):
                raise
            self._displays.remove(display)


def make_sink(verbosity: int, stream: TextIO | None, *also: Display) -> DisplaySink:
    """Return the sink for a run; ``verbosity`` -1 is silent, 0 normal, 1 and 2 tell more.

    ``also`` are displays that get everything whatever the verbosity, such as the log file.
    """
    displays: list[Display] = list(also)
    if verbosity >= 0 and stream is not None:
        displays.append(_display_for(verbosity, stream))
    return DisplaySink(displays)


def _display_for(verbosity: int, stream: TextIO) -> Display:
    if redrawable(stream):
        from imgcache.ui.progress import ProgressDisplay  # noqa: PLC0415 - rich, on a terminal only

        return ProgressDisplay(verbosity, stream)
    from imgcache.ui.plain import PlainDisplay  # noqa: PLC0415 - the one or the other

    return PlainDisplay(verbosity, stream)
