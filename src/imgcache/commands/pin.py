"""``imgcache pin``: keep images in the caches."""

from datetime import UTC, datetime, timedelta

from imgcache.commands._options import ImageNames, PinFor, PinForever, PinUntil
from imgcache.commands._run import Call, all_ids, command
from imgcache.errors import ExitCode, UsageError
from imgcache.model import PIN_FOREVER
from imgcache.ui.outcomes import ENTRY_OUTCOME_COLUMNS, outcome_listing


@command(ENTRY_OUTCOME_COLUMNS, dry_run=True)
def pin(
    call: Call,
    images: ImageNames,
    keep_for: PinFor = None,
    until: PinUntil = None,
    forever: PinForever = False,
) -> ExitCode:
    """Keep these images in the caches of hosts: imgcache removes no pinned entry, whatever the command.

    The pin is noted on the host, beside the image, so every controller honours it. Nova's own cache manager
    knows nothing of pins: it goes by the age of the file, which imgcache refresh renews. Run that from cron,
    more often than the hosts' remove_unused_original_minimum_age_seconds (Nova's default: 24h).

    Only images that imgcache put there or adopted can be pinned (imgcache verify --adopt); any other, and one
    that a host does not have, is an error. Say until when: --for, --until or --forever. A pin that is there
    already is replaced. A name is looked up in the image service; a UUID needs none.

    \b
    Examples:
      imgcache pin --aggregate edge-1 --for 30d debian-12
      imgcache pin --all --until 2027-01-31 6b8e1c3a-9f0d-4a57-8a86-0d8d4c0e9b11
    """
    end = _end_of_pin(keep_for, until, forever=forever)
    from imgcache.operations.pin import PinRequest, run_pin

    request = PinRequest(
        **call.common,
        names=tuple(images),
        until=end,
    )
    report = call.run(run_pin, request, with_service=not all_ids(images))
    return call.show(outcome_listing(report), report.exit_code())


def _end_of_pin(keep_for: float | None, until: datetime | None, *, forever: bool) -> datetime:
    """Return until when to pin.

    Raises:
        UsageError: not exactly one of the options is given.
    """
    if (keep_for is not None) + (until is not None) + forever != 1:
        message = "say until when: exactly one of --for, --until and --forever"
        raise UsageError(message, hint="such as --for 30d")
    if until is not None:
        return until
    return PIN_FOREVER if keep_for is None else datetime.now(UTC) + timedelta(seconds=keep_for)
