"""``imgcache unpin``: let images age again."""

import typer

from imgcache.commands._fleet import all_ids, run_on_hosts, selection_of
from imgcache.commands._options import (
    Aggregates,
    AllHosts,
    Concurrency,
    DryRun,
    Exclude,
    Hosts,
    ImageNames,
    LogFile,
    OutputFormat,
    Quiet,
    Retries,
    ShownColumns,
    Timeout,
    Verbose,
)
from imgcache.commands._output import begin_output
from imgcache.errors import ExitCode
from imgcache.ui.formats import Format
from imgcache.ui.outcomes import ENTRY_OUTCOME_COLUMNS, outcome_listing


def unpin(  # noqa: PLR0917 - options are parameters in Typer
    ctx: typer.Context,
    images: ImageNames,
    aggregate: Aggregates = None,
    host: Hosts = None,
    exclude: Exclude = None,
    all_hosts: AllHosts = False,
    concurrency: Concurrency = 10,
    retries: Retries = 3,
    timeout: Timeout = "5m",  # type: ignore[assignment]  # Typer parses it
    dry_run: DryRun = False,
    form: OutputFormat = Format.TABLE,
    column: ShownColumns = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    log_file: LogFile = None,
) -> ExitCode:
    """Let these images age as any other in the caches of hosts: take back what imgcache pin said.

    Removes nothing. A host that does not have the image, or on which it is not pinned, is no failure.

    \b
    Example:
      imgcache unpin --all debian-12
    """  # noqa: D301 - \b is how a paragraph keeps its lines
    output = begin_output(
        ctx,
        ENTRY_OUTCOME_COLUMNS,
        form=form,
        wanted=column,
        verbose=verbose,
        quiet=quiet,
        log_file=log_file,
    )
    from imgcache.operations.pin import PinRequest, run_pin  # noqa: PLC0415

    request = PinRequest(
        selection=selection_of(aggregate, host, exclude, all_hosts),
        concurrency=concurrency,
        retries=retries,
        timeout_s=timeout,
        dry_run=dry_run,
        names=tuple(images),
        until=None,
    )
    report = run_on_hosts(ctx, output, run_pin, request, with_service=not all_ids(images))
    return output.show(outcome_listing(report), report.exit_code())
