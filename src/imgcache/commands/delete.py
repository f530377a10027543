"""``imgcache delete``: remove images that are named."""

from imgcache.commands._options import ImageNames, Queued
from imgcache.commands._run import Call, all_ids, command
from imgcache.errors import ExitCode
from imgcache.ui.outcomes import ENTRY_OUTCOME_COLUMNS, outcome_listing


@command(ENTRY_OUTCOME_COLUMNS, timeout="30m", dry_run=True, removes=True)
def delete(
    call: Call,
    images: ImageNames,
    queued: Queued = False,
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
    """
    from imgcache.operations.delete import DeleteRequest, run_delete

    request = DeleteRequest(
        **call.common,
        names=tuple(images),
        queued_only=queued,
    )
    report = call.run(run_delete, request, with_service=not all_ids(images))
    return call.show(outcome_listing(report), report.exit_code())
