"""``imgcache refresh``: renew the age of what is pinned."""

import typer

from imgcache.commands._fleet import run_on_hosts, selection_of
from imgcache.commands._options import (
    Aggregates,
    AllHosts,
    Concurrency,
    DryRun,
    Exclude,
    Hosts,
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


def refresh(  # noqa: PLR0917 - options are parameters in Typer
    ctx: typer.Context,
    aggregate: Aggregates = None,
    host: Hosts = None,
    exclude: Exclude = None,
    all_hosts: AllHosts = False,
    concurrency: Concurrency = 10,
    retries: Retries = 3,
    timeout: Timeout = "30m",  # type: ignore[assignment]  # Typer parses it
    dry_run: DryRun = False,
    form: OutputFormat = Format.TABLE,
    column: ShownColumns = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    log_file: LogFile = None,
) -> ExitCode:
    """Renew the age of all pinned images on hosts, so that Nova's own manager keeps them; made for cron.

    Nova's cache manager removes images that were not used for 24h (remove_unused_original_minimum_age_seconds
    in nova.conf), by the time of the file. This sets that time to now, on pinned entries whose size is right,
    and on nothing else. Run it at least twice as often as that. Needs no image service. Pins that have run
    out are left as they are.

    \b
    Examples:
      imgcache refresh --all
      imgcache refresh --aggregate edge-1 --dry-run
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
    from imgcache.operations.pin import RefreshRequest, run_refresh  # noqa: PLC0415

    request = RefreshRequest(
        selection=selection_of(aggregate, host, exclude, all_hosts),
        concurrency=concurrency,
        retries=retries,
        timeout_s=timeout,
        dry_run=dry_run,
    )
    report = run_on_hosts(
        ctx,
        output,
        run_refresh,
        request,
        with_service=False,
    )
    return output.show(outcome_listing(report), report.exit_code())
