"""``imgcache list``: what is in the caches of the hosts."""

import sys

import typer

from imgcache.commands._fleet import run_on_hosts, selection_of
from imgcache.commands._options import (
    Aggregates,
    AllHosts,
    Concurrency,
    Exclude,
    Gone,
    Hosts,
    LogFile,
    Matrix,
    Missing,
    OlderThan,
    OutputFormat,
    Quiet,
    Retries,
    ShownColumns,
    SomeImageNames,
    Timeout,
    Unused,
    Verbose,
)
from imgcache.commands._output import begin_output
from imgcache.errors import ExitCode, UsageError
from imgcache.ui.entries import (
    ENTRY_COLUMNS,
    MISSING_COLUMNS,
    entry_listing,
    failure_listing,
)
from imgcache.ui.formats import Format, render
from imgcache.ui.stream import screen_width


def list_entries(  # noqa: PLR0917 - options are parameters in Typer
    ctx: typer.Context,
    images: SomeImageNames = None,
    aggregate: Aggregates = None,
    host: Hosts = None,
    exclude: Exclude = None,
    all_hosts: AllHosts = False,
    matrix: Matrix = False,
    unused: Unused = False,
    older_than: OlderThan = None,
    gone: Gone = False,
    missing: Missing = None,
    concurrency: Concurrency = 10,
    retries: Retries = 3,
    timeout: Timeout = "5m",  # type: ignore[assignment]  # Typer parses it
    form: OutputFormat = Format.TABLE,
    column: ShownColumns = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    log_file: LogFile = None,
) -> ExitCode:
    """Show what is in the caches of hosts: images, resized copies, templates, transfers, and foreign files.

    Per entry: which image it is, as far as the host noted it or the image service knows it; its size on the
    disk, format, and age since its last known use; how many instances and processes use it; until when it
    is pinned; whether imgcache put or adopted it (managed), and whether its image is gone from the image
    service. Filters add up. Changes nothing.

    With --missing it lists the hosts that lack an image instead, and ends with 5 when there are any: a gate
    for rollouts. A host that cannot be looked at makes the exit code 1.

    \b
    Examples:
      imgcache list --aggregate edge-1
      imgcache list --all --matrix
      imgcache list --all --unused --older-than 30d
      imgcache list --aggregate edge-1 --missing debian-12 --missing rescue
    """  # noqa: D301 - \b is how a paragraph keeps its lines
    if matrix and (form is not Format.TABLE or column):
        message = "--matrix is drawn for people; it takes neither --format nor --column"
        raise UsageError(message, hint="leave --matrix out: -f json tells the same")
    output = begin_output(
        ctx,
        MISSING_COLUMNS if missing else ENTRY_COLUMNS,
        form=form,
        wanted=column,
        verbose=verbose,
        quiet=quiet,
        log_file=log_file,
    )
    from imgcache.operations.listing import ListRequest, run_list  # noqa: PLC0415

    request = ListRequest(
        selection=selection_of(aggregate, host, exclude, all_hosts),
        concurrency=concurrency,
        retries=retries,
        timeout_s=timeout,
        names=tuple(images or ()),
        unused=unused,
        older_than_s=older_than,
        gone=gone,
        missing=tuple(missing or ()),
    )
    report = run_on_hosts(ctx, output, run_list, request, with_service=True)
    code = report.exit_code()
    if not matrix:
        return output.show(entry_listing(report, missing_only=bool(missing)), code)
    from imgcache.ui.matrix import matrix_text  # noqa: PLC0415 - for who asks

    parts = (
        matrix_text(report, screen_width(sys.stdout)),
        render(failure_listing(report.failures, report.drivers), Format.TABLE),
    )
    return output.show_text("\n".join(part for part in parts if part), code)
