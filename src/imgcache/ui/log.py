"""The log file: every event of a run with its time, run id and host, through ``logging``."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING

from imgcache import __version__
from imgcache.errors import ConfigError, Problem
from imgcache.events import (
    EntryEnded,
    HostEnded,
    HostFailed,
    HostStarted,
    ItemEnded,
    ItemRetry,
    Notice,
    Planned,
    RunEnded,
    RunStarted,
    Waiting,
)
from imgcache.plan import FAILED_ENTRY_WORDS, FAILED_WORDS
from imgcache.text import printable
from imgcache.ui.messages import (
    entry_line,
    failure_line,
    notice_text,
    outcome_line,
    retry_line,
    site_line,
)
from imgcache.ui.redact import redact

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from imgcache.events import Event

#: Longer than any message, shorter than what could fill a disk.
_LINE_LIMIT = 4000


class _LineFormatter(logging.Formatter):
    """One line per record, sanitised and without secrets; times in UTC."""

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)sZ %(levelname)s run=%(run)s host=%(host)s %(message)s",
            "%Y-%m-%dT%H:%M:%S",
            defaults={"run": "-", "host": "-"},
        )
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        return printable(redact(super().format(record)), _LINE_LIMIT)


class _LogFile(logging.FileHandler):
    """A file that only its owner can read; tells the first failure to write, then keeps silent."""

    def __init__(self, path: Path, owner: RunLog) -> None:
        self._owner: RunLog | None = owner
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(_LineFormatter())

    def _open(self):  # type: ignore[no-untyped-def]  # noqa: ANN202 - as FileHandler's own
        descriptor = os.open(
            self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        return open(descriptor, "a", encoding=self.encoding, errors=self.errors)  # noqa: PTH123

    def handleError(self, record: logging.LogRecord) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            cause = sys.exc_info()[1]
            owner.on_failure(f"the log file {owner.path} cannot be written any more: {cause}")


class RunLog:
    """Writes events to a file. See ``imgcache.ui.sink.Display``; also takes tracebacks of bugs."""

    def __init__(self, path: Path) -> None:
        """Open the file for appending.

        Raises:
            ConfigError: it cannot be opened.
        """
        self.path = path
        self.on_failure: Callable[[str], None] = lambda text: None
        """Called once, with a sentence, when the file cannot be written any more; the run goes on."""
        try:
            self._handler = _LogFile(path, self)
        except OSError as exc:
            problem = Problem(
                str(path), exc.strerror or str(exc), "name a file that can be written"
            )
            message = "the log file cannot be opened; nothing was done"
            raise ConfigError(message, [problem]) from exc
        self._run = "-"
        self._waited: str | None = None
        # Warnings of libraries have no other place; our own entries do not come this way.
        self._handler.setLevel(logging.WARNING)
        logging.getLogger().addHandler(self._handler)

    def emit(self, event: Event) -> None:
        """See ``Display``."""
        if isinstance(event, RunStarted):
            self._run = event.run_id
        if isinstance(event, Planned):
            for one in event.sites:
                self._write(logging.INFO, None, site_line(one))
            return
        if isinstance(event, Waiting) and event.what is not None:
            if event.what == self._waited:
                return  # the end of any host wakes who waits
            self._waited = event.what
        level, host, message = _entry(event)
        if message:
            # The host has a field of its own.
            self._write(level, host, message.removeprefix(f"{printable(host or '')}: "))

    def tick(self) -> None:
        """See ``Display``."""

    def close(self) -> None:
        """See ``Display``; idempotent."""
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()

    def bug(self, exc: BaseException) -> None:
        """Write a traceback, one line per line, without the values of variables."""
        for line in traceback_lines(exc):
            self._write(logging.CRITICAL, None, line)
        self.close()

    def _write(self, level: int, host: str | None, message: str) -> None:
        record = logging.LogRecord("imgcache", level, "", 0, message, None, None)
        record.run, record.host = printable(self._run), printable(host or "-")
        self._handler.handle(record)


def traceback_lines(exc: BaseException) -> list[str]:
    """Return a traceback with its causes as safe lines: no values of variables, no secrets."""
    lines = "".join(traceback.format_exception(exc)).splitlines()
    return [printable(redact(line), 500) for line in lines]


def _entry(event: Event) -> tuple[int, str | None, str]:
    """Return an event's level, host and sentence; an empty sentence is not worth a line."""
    level, host, text = logging.INFO, getattr(event, "host", None), ""
    match event:
        case RunStarted():
            text = (
                f"{event.command} started: {event.hosts} hosts, {event.images} images, "
                f"{event.bytes_per_cold_host} bytes per cold host, concurrency {event.concurrency}, "
                f"imgcache {__version__} with helper sha256:{event.helper_digest}"
            )
        case HostStarted():
            text = "started"
        case ItemRetry():
            level, text = logging.WARNING, retry_line(event)
        case ItemEnded():
            host, text = event.outcome.host, _outcome_text(event)
            level = logging.ERROR if event.outcome.outcome in FAILED_WORDS else logging.INFO
        case EntryEnded() | HostFailed():
            return _life_entry(event)
        case HostEnded():
            text = "failed" if event.failed else "done"
        case Notice():
            level = logging.INFO if event.level == "info" else logging.WARNING
            text = notice_text(event)
        case Waiting():
            text = f"waits: {event.what}" if event.what else ""
        case RunEnded():
            text = "interrupted" if event.interrupted else "ended"
        case _:
            pass
    return level, host, text


def _life_entry(event: EntryEnded | HostFailed) -> tuple[int, str, str]:
    if isinstance(event, HostFailed):
        failed = event.failure.outcome in FAILED_WORDS
        level = logging.ERROR if failed else logging.WARNING
        return level, event.failure.host, failure_line(event.failure)
    one = event.outcome
    level = logging.ERROR if one.outcome in FAILED_ENTRY_WORDS else logging.INFO
    entry = f" entry={printable(one.entry)} bytes={one.bytes}" if one.entry else ""
    return level, one.host, f"{entry_line(one)}{entry} freed={one.bytes_freed}"


def _outcome_text(event: ItemEnded) -> str:
    one = event.outcome
    source = f" source={one.source.value}" if one.source else ""
    moved = f"{source} bytes={one.bytes_fetched} seconds={one.duration_s:.1f}"
    return f"{outcome_line(one)} image={printable(one.image_id)}{moved}"
