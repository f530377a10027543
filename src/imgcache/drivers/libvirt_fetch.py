"""One image into a cache in a host's file system: the transfer, and what the operator is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgcache.drivers.transfer import STOP_CODES, check_all_came, transfer
from imgcache.errors import HostError
from imgcache.plan import OutcomeWord

if TYPE_CHECKING:
    from imgcache.drivers.base import HostContext
    from imgcache.drivers.transfer import TransferEnd
    from imgcache.model import Image
    from imgcache.plan import SourceKind
    from imgcache.transport.conversation import Conversation, Message


async def fetch_image(
    context: HostContext, talk: Conversation, image: Image, given_up: set[SourceKind]
) -> None:
    """Fetch one absent image and report its outcome; raises only for trouble with the whole host.

    Sources that this host cannot reach are added to ``given_up``; they are not tried for the next image.
    """
    keep = context.host.settings.keep_original
    more = {"keep_original": keep, "keep_partial": True}
    end = await transfer(context, talk, image, given_up, "fetch", relays=True, **more)
    if not isinstance(end.ending, HostError):
        _report(context, image, end, end.ending)
        return
    error = end.ending
    reason = f"{error.message}: {error.hint}" if error.hint else error.message
    context.report(
        image,
        OutcomeWord.SKIPPED if error.code in STOP_CODES else OutcomeWord.ERROR,
        code=error.code,
        reason=f"{reason}; {end.remark}" if end.remark else reason,
        source=end.kind,
        bytes_fetched=end.bytes_fetched,
    )


def _report(context: HostContext, image: Image, end: TransferEnd, answer: Message) -> None:
    state = answer.fields.get_choice("state", {"cached", "existing"})
    reason = answer.fields.opt_str("reason", limit=1000)
    if state == "cached":
        check_all_came(image, answer)
    remarks = [reason, end.remark]
    if state == "cached" and image.digest.weak:
        algo = image.digest.algo
        remarks.append(f"verified with {algo} only, the image service has no better digest")
    context.report(
        image,
        OutcomeWord(state),
        reason="; ".join(remark for remark in remarks if remark) or None,
        source=end.kind,
        bytes_fetched=end.bytes_fetched,
    )
