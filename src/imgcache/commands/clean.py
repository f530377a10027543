"""``imgcache clean``: remove what broken transfers left behind."""

import typer

from imgcache.commands._fleet import run_on_hosts, selection_of
from imgcache.commands._options import (
    Aggregates,
    AllHosts,
    Concurrency,
    DryRun,
    Exclude,
    Hosts,
    Invalid,
    LogFile,
    MaxDelete,
    OutputFormat,
    Quiet,
    RateLimit,
    Retries,
    ShownColumns,
    StallAge,
    Timeout,
    Verbose,
)
from imgcache.commands._output import begin_output
from imgcache.errors import ExitCode
from imgcache.ui.formats import Format
from imgcache.ui.outcomes import ENTRY_OUTCOME_COLUMNS, outcome_listing


def clean(  # noqa: PLR0917 - options are parameters in Typer
    ctx: typer.Context,
    aggregate: Aggregates = None,
    host: Hosts = None,
    exclude: Exclude = None,
    all_hosts: AllHosts = False,
    stall_age: StallAge = "24h",  # type: ignore[assignment]  # Typer parses it
    invalid: Invalid = False,
    rate_limit: RateLimit = None,
    max_delete: MaxDelete = None,
    concurrency: Concurrency = 10,
    retries: Retries = 3,
    timeout: Timeout = "12h",  # type: ignore[assignment]  # Typer parses it
    dry_run: DryRun = False,
    form: OutputFormat = Format.TABLE,
    column: ShownColumns = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    log_file: LogFile = None,
) -> ExitCode:
    """Remove what broken transfers left behind: dead staging files, of imgcache and of Nova; made for cron.

    This deletes files, at once and without a question; --dry-run shows what it would do. A transfer's file
    (imgcache's own, or Nova's .part and .converted) goes when nothing has changed it for --stall-age, never
    less than one hour, when nobody holds its lock, and when no process has it open; a live transfer is kept,
    also one of another controller. On a host where not all evidence of use can be read nothing goes, which is
    an error.

    With --invalid it also looks at the images that could be removed, and removes those whose size, format or
    digest is not what was noted, under all guards of imgcache prune: nothing that is in use by any evidence
    there is, nothing pinned, nothing younger than one hour, nothing on a host where not all evidence can be
    read. What Nova fetched has no note: where the image service can be asked, a raw image of another size
    than there is removed, too; its bytes are not compared. To see what is damaged, use imgcache verify; to
    have it fetched again, imgcache verify --repair.

    \b
    Examples:
      imgcache clean --all --dry-run
      imgcache clean --aggregate edge-1 --invalid --rate-limit 100M
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
    from imgcache.operations.clean import CleanRequest, run_clean  # noqa: PLC0415
    from imgcache.operations.removal import PlanRefusedError  # noqa: PLC0415

    request = CleanRequest(
        selection=selection_of(aggregate, host, exclude, all_hosts),
        concurrency=concurrency,
        retries=retries,
        timeout_s=timeout,
        dry_run=dry_run,
        stall_age_s=stall_age,
        invalid=invalid,
        max_delete=max_delete,
        bytes_per_s=rate_limit,
    )
    try:
        report = run_on_hosts(
            ctx,
            output,
            run_clean,
            request,
            with_service=False,
            wants_service=invalid,
        )
    except PlanRefusedError as refused:
        output.show(outcome_listing(refused.report), refused.exit_code)
        raise
    return output.show(outcome_listing(report), report.exit_code())
