"""``imgcache precache``: the main job."""

from typing import TYPE_CHECKING

import typer

from imgcache.commands._fleet import run_on_hosts, selection_of
from imgcache.commands._options import (
    Aggregates,
    AllHosts,
    Concurrency,
    DryRun,
    Exclude,
    Hosts,
    KeepFor,
    LogFile,
    NoWait,
    OutputFormat,
    Quiet,
    Retries,
    ShownColumns,
    Timeout,
    Verbose,
)
from imgcache.commands._output import begin_output
from imgcache.commands._when import (
    Canary,
    Deadline,
    FetchRateLimit,
    FleetSource,
    FleetSourceOption,
    ImageNamesOrEarlier,
    LimitFailed,
    MaxFailures,
    MinCoverage,
    Partial,
    Seeds,
    WaveOption,
    WindowOption,
)
from imgcache.errors import ExitCode, UsageError
from imgcache.ui.formats import Format
from imgcache.ui.report import OUTCOME_COLUMNS, report_listing

if TYPE_CHECKING:
    from imgcache.distribution import PrecacheReport
    from imgcache.events import EventSink
    from imgcache.images.base import ImageService
    from imgcache.model import Inventory
    from imgcache.operations.precache import PrecacheRequest


def precache(  # noqa: PLR0917 - options are parameters in Typer
    ctx: typer.Context,
    images: ImageNamesOrEarlier = None,
    aggregate: Aggregates = None,
    host: Hosts = None,
    exclude: Exclude = None,
    all_hosts: AllHosts = False,
    concurrency: Concurrency = 10,
    retries: Retries = 3,
    timeout: Timeout = "30m",  # type: ignore[assignment]  # Typer parses it
    source: FleetSourceOption = FleetSource.AUTO,
    seeds: Seeds = 1,
    rate_limit: FetchRateLimit = None,
    window: WindowOption = None,
    no_wait: NoWait = False,
    deadline: Deadline = None,
    partial: Partial = False,
    canary: Canary = 0,
    wave: WaveOption = None,
    max_failures: MaxFailures = None,
    min_coverage: MinCoverage = None,
    limit_failed: LimitFailed = None,
    keep_for: KeepFor = None,
    dry_run: DryRun = False,
    form: OutputFormat = Format.TABLE,
    column: ShownColumns = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    log_file: LogFile = None,
) -> ExitCode:
    """Put images into the caches of hosts before they are needed, or renew those that are there.

    An image that a host has is not fetched again: its age is renewed, so that Nova keeps it for another 24h.
    Each image that it lacks is downloaded there (or pushed over SSH), verified against the image service's
    digest, inspected, converted to raw where the host's nova.conf wants that, and published under the name
    at which Nova looks, whole or not at all. --keep-for pins the images as it goes; see imgcache pin.

    \b
    Examples:
      imgcache precache --aggregate edge-1 debian-12 rescue
      imgcache precache --all --keep-for 72h debian-12
      imgcache precache --host edge1-[01-05] --dry-run debian-12
      imgcache precache --all --window 22:00-05:00 --canary 2 --wave 10% --max-failures 5% debian-12
      imgcache precache --limit-failed run.json
    """  # noqa: D301 - \b is how a paragraph keeps its lines
    output = begin_output(
        ctx,
        OUTCOME_COLUMNS,
        form=form,
        wanted=column,
        verbose=verbose,
        quiet=quiet,
        log_file=log_file,
    )
    if not images and limit_failed is None:
        message = "Missing argument 'IMG'"
        raise UsageError(
            message, hint="name images, by UUID or by name; see 'imgcache precache --help'"
        )
    from imgcache.operations.earlier import read_failed  # noqa: PLC0415 - `--help` loads none of it
    from imgcache.operations.precache import PrecacheRequest  # noqa: PLC0415
    from imgcache.operations.rollout import Waves  # noqa: PLC0415

    request = PrecacheRequest(
        selection=selection_of(aggregate, host, exclude, all_hosts),
        names=tuple(images or ()),
        concurrency=concurrency,
        retries=retries,
        timeout_s=timeout,
        source=source.value,
        seeds=seeds,
        rate_limit=rate_limit,
        dry_run=dry_run,
        keep_for_s=keep_for,
        window=window,
        wait=not no_wait,
        deadline=deadline,
        partial=partial,
        waves=Waves(canary, wave, max_failures),
        min_coverage=min_coverage,
        only=read_failed(limit_failed) if limit_failed else None,
    )
    report = run_on_hosts(ctx, output, _run, request, with_service=True)
    return output.show(report_listing(report), report.exit_code())


def _run(
    request: "PrecacheRequest",
    inventory: "Inventory",
    service: "ImageService | None",
    sink: "EventSink",
) -> "PrecacheReport":
    from imgcache.operations.precache import run_precache  # noqa: PLC0415

    assert service is not None  # noqa: S101 - for the type checker; it was asked for
    return run_precache(request, inventory, service, sink)
