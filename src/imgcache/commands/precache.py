"""``imgcache precache``: the main job."""

import typer

from imgcache.commands._options import (
    Aggregates,
    AllHosts,
    Concurrency,
    DryRun,
    Exclude,
    FetchRateLimit,
    FleetSource,
    FleetSourceOption,
    Hosts,
    ImageNames,
    KeepFor,
    LogFile,
    NoWait,
    OutputFormat,
    Quiet,
    Retries,
    Seeds,
    ShownColumns,
    Timeout,
    Verbose,
)
from imgcache.commands._output import begin_output, invocation_of
from imgcache.errors import ExitCode
from imgcache.ui.formats import Format
from imgcache.ui.report import OUTCOME_COLUMNS, report_listing


def precache(  # noqa: PLR0917 - options are parameters in Typer
    ctx: typer.Context,
    images: ImageNames,
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
    keep_for: KeepFor = None,
    no_wait: NoWait = False,
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
    from imgcache.config.load import load_inventory  # noqa: PLC0415 - `--help` loads none of it
    from imgcache.images.open import open_image_service  # noqa: PLC0415
    from imgcache.images.options import CloudOptions  # noqa: PLC0415
    from imgcache.operations.precache import PrecacheRequest, run_precache  # noqa: PLC0415
    from imgcache.operations.selection import Selection  # noqa: PLC0415

    selection = Selection(
        tuple(aggregate or ()), tuple(host or ()), tuple(exclude or ()), all_hosts
    )
    request = PrecacheRequest(
        selection=selection,
        names=tuple(images),
        concurrency=concurrency,
        retries=retries,
        timeout_s=timeout,
        source=source.value,
        seeds=seeds,
        rate_limit=rate_limit,
        dry_run=dry_run,
        keep_for_s=keep_for,
        wait=not no_wait,
    )
    called = invocation_of(ctx)
    inventory = load_inventory(called.inventory)
    options = CloudOptions(called.cloud, called.cloud_values)
    with open_image_service(inventory.image_service, options) as service, output.sink() as sink:
        report = run_precache(request, inventory, service, sink)
    return output.show(report_listing(report), report.exit_code())
