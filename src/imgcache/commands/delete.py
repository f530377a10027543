"""``imgcache delete``: remove images that are named."""

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
    Queued,
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


def delete(  # noqa: PLR0917 - options are parameters in Typer
    ctx: typer.Context,
    images: ImageNames,
    aggregate: Aggregates = None,
    host: Hosts = None,
    exclude: Exclude = None,
    all_hosts: AllHosts = False,
    queued: Queued = False,
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
    """Remove these images from the caches of hosts now, with the resized copies that Nova made of them.

    This deletes files, at once and without a question; --dry-run shows what it would do. Age does not
    matter for an image that imgcache itself put there or renewed last; others must be unused for one hour.

    Never removed: an entry that any instance, process or device of the host uses, by all evidence there is;
    a pinned one (imgcache unpin first); on a host where not all evidence can be read, anything; from a
    cache that hosts share, anything unless all of them are examined in the same run. The host decides all of
    it again, under Nova's lock, right before each removal. What is kept is reported with the reason, and
    makes the exit code 1. A host that does not have the image is no failure.

    An image that waits to be fetched by the host itself (a Glance node) is taken back, too; with --queued
    only that is done.

    An image that is gone from the image service can be named by its UUID only.

    \b
    Examples:
      imgcache delete --aggregate edge-1 --dry-run debian-11
      imgcache delete --all 6b8e1c3a-9f0d-4a57-8a86-0d8d4c0e9b11
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
    from imgcache.operations.delete import DeleteRequest, run_delete  # noqa: PLC0415

    request = DeleteRequest(
        selection=selection_of(aggregate, host, exclude, all_hosts),
        concurrency=concurrency,
        retries=retries,
        timeout_s=timeout,
        dry_run=dry_run,
        names=tuple(images),
        queued_only=queued,
    )
    report = run_on_hosts(ctx, output, run_delete, request, with_service=not all_ids(images))
    return output.show(outcome_listing(report), report.exit_code())
