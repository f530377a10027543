"""``imgcache status``: the room that the caches take."""

from imgcache.commands._options import CheckStatus, MaxUsed
from imgcache.commands._run import Call, command
from imgcache.errors import ExitCode, UsageError
from imgcache.ui.status import STATUS_COLUMNS, status_listing

#: How full a file system may be when --check is given without --max-used.
_DEFAULT_MAX_USED = 0.8


@command(STATUS_COLUMNS)
def status(
    call: Call,
    check: CheckStatus = False,
    max_used: MaxUsed = None,
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
    """
    if max_used is not None and not check:
        message = "--max-used is the limit of --check"
        raise UsageError(message, hint="add --check, or leave --max-used out")
    from imgcache.operations.status import StatusRequest, run_status

    request = StatusRequest(
        **call.common,
        max_used=(max_used or _DEFAULT_MAX_USED) if check else None,
    )
    report = call.run(
        run_status,
        request,
    )
    return call.show(status_listing(report), report.exit_code())
