"""``imgcache check``: would precache work on these hosts?"""

import typer

from imgcache.commands._options import (
    Aggregates,
    AllHosts,
    Concurrency,
    Exclude,
    Hosts,
    LogFile,
    OutputFormat,
    Quiet,
    ShownColumns,
    Timeout,
    Verbose,
)
from imgcache.commands._output import begin_output, invocation_of
from imgcache.errors import ExitCode
from imgcache.ui.checks import CHECK_COLUMNS, check_listing
from imgcache.ui.formats import Format


def check(  # noqa: PLR0917 - options are parameters in Typer
    ctx: typer.Context,
    aggregate: Aggregates = None,
    host: Hosts = None,
    exclude: Exclude = None,
    all_hosts: AllHosts = False,
    concurrency: Concurrency = 10,
    timeout: Timeout = "2m",  # type: ignore[assignment]  # Typer parses it
    form: OutputFormat = Format.TABLE,
    column: ShownColumns = None,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    log_file: LogFile = None,
) -> ExitCode:
    """Tell per host whether precache would work there: login, sudo, Python, cache, room, Glance.

    Changes nothing. Exit code 5 when something fails on some host.
    """
    output = begin_output(
        ctx,
        CHECK_COLUMNS,
        form=form,
        wanted=column,
        verbose=verbose,
        quiet=quiet,
        log_file=log_file,
    )
    from imgcache.config.load import load_inventory  # noqa: PLC0415 - `--help` loads none of it
    from imgcache.images.open import open_image_service  # noqa: PLC0415
    from imgcache.images.options import CloudOptions  # noqa: PLC0415
    from imgcache.operations.check import CheckRequest, run_check  # noqa: PLC0415
    from imgcache.operations.selection import Selection  # noqa: PLC0415

    selection = Selection(
        tuple(aggregate or ()), tuple(host or ()), tuple(exclude or ()), all_hosts
    )
    request = CheckRequest(selection=selection, concurrency=concurrency, timeout_s=timeout)
    called = invocation_of(ctx)
    inventory = load_inventory(called.inventory)
    options = CloudOptions(called.cloud, called.cloud_values)
    with open_image_service(inventory.image_service, options) as service, output.sink() as sink:
        report = run_check(request, inventory, service, sink)
    return output.show(check_listing(report), report.exit_code())
