"""``imgcache refresh``: renew the age of what is pinned."""

from imgcache.commands._run import Call, command
from imgcache.errors import ExitCode
from imgcache.ui.outcomes import ENTRY_OUTCOME_COLUMNS, outcome_listing


@command(ENTRY_OUTCOME_COLUMNS, timeout="30m", dry_run=True)
def refresh(
    call: Call,
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
    """
    from imgcache.operations.pin import RefreshRequest, run_refresh

    request = RefreshRequest(
        **call.common,
    )
    report = call.run(
        run_refresh,
        request,
    )
    return call.show(outcome_listing(report), report.exit_code())
