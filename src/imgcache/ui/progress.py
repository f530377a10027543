"""Progress on a terminal: overall state, and a capped list of the hosts at work, redrawn in place."""

from __future__ import annotations

import errno
import os
import time
from itertools import islice
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from imgcache.events import RunEnded
from imgcache.text import printable
from imgcache.ui.messages import Messages, status_line, summary_line
from imgcache.ui.tally import Tally
from imgcache.units import size_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from imgcache.events import Event
    from imgcache.ui.tally import Activity

#: Hosts at work that get a row of their own.
_ROWS = 10
#: Lines of the terminal that stay free for what is above.
_FREE_LINES = 5


class _Console(Console):
    """Rich's own ends the thread when nobody reads any more; that is for the sink to deal with."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class ProgressDisplay:
    """See ``imgcache.ui.sink.Display``. Strings are never read as Rich's markup."""

    def __init__(
        self,
        verbosity: int,
        stream: TextIO,
        *,
        clock: Callable[[], float] = time.monotonic,
        console: Console | None = None,
    ) -> None:
        self._messages = Messages(verbosity)
        self._tally = Tally(clock)
        self._console = console or _Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            get_renderable=self._render,
        )
        self._summary: str | None = None

    def emit(self, event: Event) -> None:
        """See ``Display``."""
        self._tally.take(event)
        for line in self._messages.lines(event):
            self._say(line)
        if isinstance(event, RunEnded):
            self._summary = summary_line(self._tally, interrupted=event.interrupted)

    def tick(self) -> None:
        """See ``Display``."""
        if self._summary is None and self._tally.hosts:
            if not self._live.is_started:
                self._live.start()
                # A second Ctrl-C ends the process at once: nobody could show it again.
                self._console.show_cursor(True)
            self._live.refresh()

    def close(self) -> None:
        """See ``Display``."""
        self._live.stop()
        if self._summary is not None:
            self._say(self._summary)

    def _say(self, line: str) -> None:
        self._console.print(Text(f"imgcache: {line}"), soft_wrap=True)

    def _render(self) -> RenderableType:
        room = max(self._console.height - _FREE_LINES, 1)
        shown = min(_ROWS, room)
        active = self._tally.active
        parts: list[RenderableType] = [
            Text(f"imgcache: {status_line(self._tally)}", no_wrap=True, overflow="ellipsis"),
            _bar(self._tally.fraction(), min(self._console.width, 60)),
            _rows(list(islice(active.values(), shown))),
        ]
        if len(active) > shown:
            parts.append(Text(f"… and {len(active) - shown} more"))
        return Group(*parts)


def _bar(fraction: float, columns: int) -> Table:
    # By itself, a bar does not end its line.
    line = Table.grid()
    line.add_row(
        ProgressBar(
            total=1.0,
            completed=fraction,
            width=columns,
            complete_style="blue",
            finished_style="green",
        )
    )
    return line


def _rows(active: list[Activity]) -> Table:
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "left", "right"):
        table.add_column(justify=justify, no_wrap=True, overflow="ellipsis")
    for one in active:
        table.add_row(
            Text(printable(one.host, 60)),
            Text(printable(one.image_name, 40)),
            Text(printable(one.phase, 20)),
            _amount(one),
        )
    return table


def _amount(one: Activity) -> Text:
    if one.total_bytes <= 0:
        return Text("")
    percent = min(100 * one.done_bytes // one.total_bytes, 100)
    return Text(f"{percent}% of {size_text(one.total_bytes)}")
