"""``imgcache pin``: keep images in the caches."""

from datetime import UTC, datetime, timedelta

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
    PinFor,
    PinForever,
    PinUntil,
    Quiet,
    Retries,
    ShownColumns,
    Timeout,
    Verbose,
)
from imgcache.commands._output import begin_output
from imgcache.errors import ExitCode, UsageError
from imgcache.model import PIN_FOREVER
from imgcache.ui.formats import Format
from imgcache.ui.outcomes import ENTRY_OUTCOME_COLUMNS, outcome_listing


def pin(  # noqa: PLR0917 - options are parameters in Typer
    ctx: typer.Context,
    images: ImageNames,
    aggregate: Aggregates = None,
    host: Hosts = None,
    exclude: Exclude = None,
    all_hosts: AllHosts = False,
    keep_for: PinFor = None,
    until: PinUntil = None,
    forever: PinForever = False,
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
    """Keep these images in the caches of hosts: imgcache removes no pinned entry, whatever the command.

    The pin is noted on the host, beside the image, so every controller honours it. Nova's own cache manager
    knows nothing of pins: it goes by the age of the file, which imgcache refresh renews. Run that from cron,
    more often than the hosts' remove_unused_original_minimum_age_seconds (Nova's default: 24h).

    Only images that imgcache put there or adopted can be pinned (imgcache verify --adopt); any other, and one
    that a host does not have, is an error. Say until when: --for, --until or --forever. A pin that is there
    already is replaced. A name is looked up in the image service; a UUID needs none.

    \b
    Examples:
      imgcache pin --aggregate edge-1 --for 30d debian-12
      imgcache pin --all --until 2027-01-31 6b8e1c3a-9f0d-4a57-8a86-0d8d4c0e9b11
    """  # noqa: D301 - \b is how a paragraph keeps its lines
    end = _end_of_pin(keep_for, until, forever=forever)
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
        until=end,
    )
    report = run_on_hosts(ctx, output, run_pin, request, with_service=not all_ids(images))
    return output.show(outcome_listing(report), report.exit_code())


def _end_of_pin(keep_for: float | None, until: datetime | None, *, forever: bool) -> datetime:
    """Return until when to pin.

    Raises:
        UsageError: not exactly one of the options is given.
    """
    if (keep_for is not None) + (until is not None) + forever != 1:
        message = "say until when: exactly one of --for, --until and --forever"
        raise UsageError(message, hint="such as --for 30d")
    if until is not None:
        return until
    return PIN_FOREVER if keep_for is None else datetime.now(UTC) + timedelta(seconds=keep_for)
