"""What all commands do with their output: the sink while they run, and the result at the end."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import typer

from imgcache.errors import ExitCode, ImgcacheError, UsageError
from imgcache.events import Notice
from imgcache.ui.formats import Columns, Format, Listing, render
from imgcache.ui.log import RunLog
from imgcache.ui.sink import DisplaySink, make_sink
from imgcache.ui.stream import fit, write_result


@dataclass(slots=True)
class Invocation:
    """One call of the command line: what its global options said, and what ``main`` needs at its end."""

    inventory: Path | None = None
    become: Literal["none", "sudo"] | None = None
    become_user: str | None = None
    cloud: str | None = None
    cloud_values: dict[str, str | bool] = field(default_factory=dict)
    """See ``imgcache.images.options.CloudOptions``; holds no secret."""
    verbosity: int = 0
    log: RunLog | None = None


def invocation_of(ctx: typer.Context) -> Invocation:
    """Return what the global options said."""
    invocation = ctx.find_root().obj
    assert isinstance(invocation, Invocation)  # noqa: S101 - for the type checker; cli sets it
    return invocation


@dataclass(frozen=True, slots=True)
class Output:
    """How one command shows what it does and what came of it."""

    form: Format
    wanted: tuple[str, ...]
    verbosity: int
    log: RunLog | None

    def sink(self) -> DisplaySink:
        """Return the sink for the run's events; use it as a context manager."""
        sink = make_sink(self.verbosity, sys.stderr, *([self.log] if self.log else []))
        if self.log:
            self.log.on_failure = lambda text: sink.emit(Notice(text))
        return sink

    def show(self, listing: Listing, code: ExitCode) -> ExitCode:
        """Write the result to standard output and return ``code``.

        Raises:
            ImgcacheError: it cannot be written.
        """
        text = render(listing, self.form, wanted=self.wanted, detailed=self.verbosity > 0)
        return self.show_text(text, code)

    def show_text(self, text: str, code: ExitCode) -> ExitCode:
        """Write a result that is text already to standard output and return ``code``.

        Raises:
            ImgcacheError: it cannot be written.
        """
        if sys.stdout is not None:
            for_people = self.form is Format.TABLE
            text = fit(text, sys.stdout, ascii_too=None if for_people else False)
        try:
            write_result(text, sys.stdout)
        except OSError as exc:
            if code in {ExitCode.INTERRUPTED, ExitCode.TERMINATED}:
                return code  # the terminal went away, which is what ended the run
            message = f"the run ended, but its result cannot be written to standard output: {exc.strerror}"
            raise ImgcacheError(
                message, hint="run it again: what is done is not done twice"
            ) from exc
        return code


def begin_output(
    ctx: typer.Context,
    columns: Columns,
    *,
    form: Format,
    wanted: Sequence[str] | None,
    verbose: int,
    quiet: bool,
    log_file: Path | None,
) -> Output:
    """Check the output options, before anything is done, and open the log file.

    Raises:
        UsageError: they contradict each other, or name an unknown column.
        ConfigError: the log file cannot be opened.
    """
    if quiet and verbose:
        message = "--quiet and --verbose contradict each other"
        raise UsageError(message, hint="give one of them")
    checked = columns.check(wanted or ())
    invocation = invocation_of(ctx)
    invocation.verbosity = -1 if quiet else verbose
    invocation.log = RunLog(log_file) if log_file else None
    return Output(form, checked, invocation.verbosity, invocation.log)
