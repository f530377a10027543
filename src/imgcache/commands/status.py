"""``imgcache status``: the room that the caches take."""

import typer

from imgcache.commands._fleet import run_on_hosts, selection_of
from imgcache.commands._options import (
    Aggregates,
    AllHosts,
    CheckStatus,
    Concurrency,
    Exclude,
    Hosts,
    LogFile,
    MaxUsed,
    OutputFormat,
    Quiet,
    Retries,
    ShownColumns,
    Timeout,
    Verbose,
)
from imgcache.commands._output import begin_output
from imgcache.errors import ExitCode, UsageError
from imgcache.ui.formats import Format
from imgcache.ui.status import STATUS_COLUMNS, status_listing

#: How full a file system may be when --check is given without --max-used.
_DEFAULT_MAX_USED = 0.8


def status(  # noqa: PLR0917 - options are parameters in Typer
    ctx: typer.Context,
    aggregate: Aggregates = None,
    host: Hosts = None,
    exclude: Exclude = None,
    all_hosts: AllHosts = False,
    check: CheckStatus = False,
    max_used: MaxUsed = None,
    concurrency: Concurrency = 10,
    retries: Retries = 3,
    timeout: Timeout = "5m",  # type: ignore[assignment]  # Typer parses it
    form: OutputFormat = Format.TABLE,
    column: ShownColumns = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    log_file: LogFile = None,
) -> ExitCode:
    """Show the room that the caches of hosts take, what prune would give back, what Nova should reserve.

    Per host: the cache's size on the disk, as Nova counts, and its share of its file system; what imgcache
    prune without options would free now; what is free, and how full the file system is by whatever;
    whether that file system is the cache's own; reserved_host_disk_mb of the host's nova.conf, and how much
    of it (MiB) the cache needs, unless Nova adds that by itself (reserve_disk_resource_for_image_cache).
    Below: sums per aggregate and cell, in which a cache that hosts share counts once. Changes nothing.

    With --check it ends with 5 when a file system is fuller than --max-used. A host that cannot be looked at
    makes the exit code 1.

    \b
    Examples:
      imgcache status --aggregate edge-1
      imgcache status --all --check --max-used 85% -q
    """  # noqa: D301 - \b is how a paragraph keeps its lines
    if max_used is not None and not check:
        message = "--max-used is the limit of --check"
        raise UsageError(message, hint="add --check, or leave --max-used out")
    output = begin_output(
        ctx,
        STATUS_COLUMNS,
        form=form,
        wanted=column,
        verbose=verbose,
        quiet=quiet,
        log_file=log_file,
    )
    from imgcache.operations.status import StatusRequest, run_status  # noqa: PLC0415

    request = StatusRequest(
        selection=selection_of(aggregate, host, exclude, all_hosts),
        concurrency=concurrency,
        retries=retries,
        timeout_s=timeout,
        max_used=(max_used or _DEFAULT_MAX_USED) if check else None,
    )
    report = run_on_hosts(
        ctx,
        output,
        run_status,
        request,
        with_service=False,
    )
    return output.show(status_listing(report), report.exit_code())
