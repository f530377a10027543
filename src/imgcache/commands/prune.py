"""``imgcache prune``: remove what is old and unused."""

from imgcache.commands._options import (
    IncludeTemplates,
    Keep,
    MaxDelete,
    MaxSize,
    MinAge,
    MinFree,
    OverrideHost,
    RemoveGone,
    ResizedMinAge,
)
from imgcache.commands._run import Call, command
from imgcache.errors import ExitCode
from imgcache.ui.outcomes import ENTRY_OUTCOME_COLUMNS, outcome_listing


@command(ENTRY_OUTCOME_COLUMNS, timeout="30m", dry_run=True, removes=True)
def prune(
    call: Call,
    min_age: MinAge = None,
    resized_min_age: ResizedMinAge = None,
    max_size: MaxSize = None,
    min_free: MinFree = None,
    gone: RemoveGone = False,
    keep: Keep = None,
    max_delete: MaxDelete = None,
    include_templates: IncludeTemplates = False,
    override_host: OverrideHost = False,
) -> ExitCode:
    """Remove cached images that nothing uses and that are old, or in the way; made for cron.

    This deletes files, at once and without a question; --dry-run shows what it would do. Without further
    options it removes what Nova itself would: images unused for 24h, and resized copies unused for 1h, or
    whatever the host's own nova.conf says.

    Never removed, whatever the options: an entry that any instance, process or device of the host uses, by
    all evidence there is; a pinned one; one last used less than one hour ago, or in the host's future; a
    file that is not Nova's. When not all evidence can be read on a host, nothing is removed there, and that
    is an error. A cache that hosts share is pruned only when all of them are examined in the same run. The
    host decides all of it again, under Nova's lock, right before each removal.

    Every entry is reported with the reason why it went or stayed. Exit code 0: done; 1: some host failed;
    3: refused, nothing was removed anywhere.

    \b
    Examples:
      imgcache prune --aggregate edge-1 --dry-run
      imgcache prune --all --min-age 7d --max-size 200G --keep debian-12
      imgcache prune --all --gone --min-free 15% --max-delete 25%
    """
    from imgcache.operations.prune import PruneRequest, run_prune
    from imgcache.operations.removal import PlanRefusedError
    from imgcache.policy import PrunePolicy

    policy = PrunePolicy(
        min_age_s=min_age,
        resized_min_age_s=resized_min_age,
        max_size_bytes=max_size,
        min_free=min_free,
        include_templates=include_templates,
        override_host=override_host,
        max_delete=max_delete,
    )
    request = PruneRequest(
        **call.common,
        policy=policy,
        keep=tuple(keep or ()),
        gone=gone,
    )
    try:
        report = call.run(run_prune, request, with_service=bool(gone or keep), shows_names=True)
    except PlanRefusedError as refused:
        call.show(outcome_listing(refused.report), refused.exit_code)
        raise
    return call.show(outcome_listing(report), report.exit_code())
