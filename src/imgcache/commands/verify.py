"""``imgcache verify``: are the files in the caches still what was put there?"""

import typer

from imgcache.commands._fleet import all_ids, run_on_hosts, selection_of
from imgcache.commands._options import (
    Adopt,
    Aggregates,
    AllHosts,
    Concurrency,
    DryRun,
    Exclude,
    Hosts,
    LogFile,
    OutputFormat,
    Quiet,
    RateLimit,
    Repair,
    Retries,
    ShownColumns,
    SomeImageNames,
    Source,
    SourceOption,
    Timeout,
    Verbose,
)
from imgcache.commands._output import begin_output
from imgcache.errors import ExitCode
from imgcache.ui.formats import Format
from imgcache.ui.outcomes import ENTRY_OUTCOME_COLUMNS, outcome_listing


def verify(  # noqa: PLR0917 - options are parameters in Typer
    ctx: typer.Context,
    images: SomeImageNames = None,
    aggregate: Aggregates = None,
    host: Hosts = None,
    exclude: Exclude = None,
    all_hosts: AllHosts = False,
    repair: Repair = False,
    adopt: Adopt = False,
    rate_limit: RateLimit = None,
    source: SourceOption = Source.AUTO,
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
    """Read the cached images again and compare them with what was noted when they were put there.

    Each file is hashed on its host, at low priority, and no faster than --rate-limit. Ends with 5 when an
    image is damaged. Without further options it changes nothing but the note of when it was last verified.

    With --repair, a damaged image that nothing uses is removed and fetched again, under all guards of
    imgcache prune: nothing that is in use by any evidence there is, nothing pinned, nothing younger than one
    hour, nothing on a host where not all evidence can be read, and only when the image service still has the
    image. One that must stay is reported as damaged. With --adopt, an image that imgcache did not put there,
    or was cut off with before it had noted its digest, is noted as its own when its content is proven to be
    the image service's; then it can be verified, pinned and repaired like any other. An image that was
    converted is fetched again for that, converted, compared and dropped.

    \b
    Examples:
      imgcache verify --aggregate edge-1 --rate-limit 100M
      imgcache verify --all --adopt debian-12
      imgcache verify --host edge1-07 --repair
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
    from imgcache.operations.verify import VerifyRequest, run_verify  # noqa: PLC0415

    names = tuple(images or ())
    request = VerifyRequest(
        selection=selection_of(aggregate, host, exclude, all_hosts),
        concurrency=concurrency,
        retries=retries,
        timeout_s=timeout,
        dry_run=dry_run,
        names=names,
        bytes_per_s=rate_limit,
        adopt=adopt,
        repair=repair,
        source=source.value,
    )
    with_service = adopt or repair or not all_ids(names)
    report = run_on_hosts(ctx, output, run_verify, request, with_service=with_service)
    return output.show(outcome_listing(report), report.exit_code())
