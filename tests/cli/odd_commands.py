"""Commands that end in odd ways; tests put them into the table of commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

# Typer reads annotations at run time.
from imgcache.commands._options import LogFile, OutputFormat, ShownColumns, Verbose  # noqa: TC001
from imgcache.commands._output import begin_output, invocation_of
from imgcache.errors import ConfigError, ExitCode, ImgcacheError, Problem
from imgcache.events import Notice
from imgcache.ui.formats import Format
from imgcache.ui.report import OUTCOME_COLUMNS, report_listing
from ui.samples import HOSTILE, outcome, report


def end(
    ctx: typer.Context,
    how: str,
    verbose: Verbose = 0,
    log_file: LogFile = None,
    form: OutputFormat = Format.TABLE,
) -> int:
    """End in an odd way."""
    begin_output(
        ctx, OUTCOME_COLUMNS, form=form, wanted=(), verbose=verbose, quiet=False, log_file=log_file
    )
    secret_local = "hunter22"
    match how:
        case "bug":
            raise ValueError(f"\x1b[31m X-Auth-Token: {secret_local}")
        case "interrupt":
            raise KeyboardInterrupt
        case "abort":
            raise typer.Abort
        case "config":
            raise ConfigError(HOSTILE, [Problem(HOSTILE, "unknown key", "did you mean hosts?")])
        case "plain":
            raise ImgcacheError("the result cannot be written")
        case _:
            return 5


def show(
    ctx: typer.Context,
    rows: int,
    form: OutputFormat = Format.TABLE,
    column: ShownColumns = None,
    verbose: Verbose = 0,
    log_file: LogFile = None,
    name: Annotated[str, typer.Option()] = "debian-12",
) -> ExitCode:
    """Show a notice and a result of some rows."""
    output = begin_output(
        ctx,
        OUTCOME_COLUMNS,
        form=form,
        wanted=column,
        verbose=verbose,
        quiet=False,
        log_file=log_file,
    )
    with output.sink() as sink:
        for number in range(200 if rows > 1 else 1):
            sink.emit(Notice(f"notice {number} {name}"))
    made = report(*[outcome(f"edge1-{number:05}", image_name=name) for number in range(rows)])
    return output.show(report_listing(made), ExitCode.OK)


def tell(ctx: typer.Context) -> int:
    """Write down what the global options said."""
    called = invocation_of(ctx)
    Path("told.txt").write_text(
        f"{called.inventory} {called.cloud} {sorted(called.cloud_values.items())}", "utf-8"
    )
    return 0


if __name__ == "__main__":
    from imgcache.cli import COMMANDS, main

    COMMANDS.update(show=("cli.odd_commands:show", "-"), end=("cli.odd_commands:end", "-"))
    sys.exit(main(sys.argv[1:]))
