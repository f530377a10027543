"""``imgcache clean``: remove what broken transfers left behind."""

from imgcache.commands._options import Invalid, MaxDelete, RateLimit, StallAge
from imgcache.commands._run import Call, command
from imgcache.errors import ExitCode
from imgcache.ui.outcomes import ENTRY_OUTCOME_COLUMNS, outcome_listing


@command(ENTRY_OUTCOME_COLUMNS, timeout="12h", dry_run=True, removes=True)
def clean(
    call: Call,
    stall_age: StallAge = "24h",  # type: ignore[assignment]  # Typer parses it
    invalid: Invalid = False,
    rate_limit: RateLimit = None,
    max_delete: MaxDelete = None,
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
    """
    from imgcache.operations.clean import CleanRequest, run_clean
    from imgcache.operations.removal import PlanRefusedError

    request = CleanRequest(
        **call.common,
        stall_age_s=stall_age,
        invalid=invalid,
        max_delete=max_delete,
        bytes_per_s=rate_limit,
    )
    try:
        report = call.run(
            run_clean,
            request,
            wants_service=invalid,
        )
    except PlanRefusedError as refused:
        call.show(outcome_listing(refused.report), refused.exit_code)
        raise
    return call.show(outcome_listing(report), report.exit_code())
