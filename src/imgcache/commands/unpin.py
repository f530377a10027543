"""``imgcache unpin``: let images age again."""

from imgcache.commands._options import ImageNames
from imgcache.commands._run import Call, all_ids, command
from imgcache.errors import ExitCode
from imgcache.ui.outcomes import ENTRY_OUTCOME_COLUMNS, outcome_listing


@command(ENTRY_OUTCOME_COLUMNS, dry_run=True)
def unpin(
    call: Call,
    images: ImageNames,
) -> ExitCode:
    """Let these images age as any other in the caches of hosts: take back what imgcache pin said.

    Removes nothing. A host that does not have the image, or on which it is not pinned, is no failure.

    \b
    Example:
      imgcache unpin --all debian-12
    """
    from imgcache.operations.pin import PinRequest, run_pin

    request = PinRequest(
        **call.common,
        names=tuple(images),
        until=None,
    )
    report = call.run(run_pin, request, with_service=not all_ids(images))
    return call.show(outcome_listing(report), report.exit_code())
