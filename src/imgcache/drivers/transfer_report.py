"""What the operator is told of one image's transfer, by every driver in the same words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgcache.drivers.transfer import STOP_CODES, check_all_came
from imgcache.errors import ErrorCode, HostError
from imgcache.plan import OutcomeWord

if TYPE_CHECKING:
    from imgcache.drivers.base import HostContext
    from imgcache.drivers.transfer import TransferEnd
    from imgcache.model import Image
    from imgcache.transport.conversation import Message


_UNCONFIRMED = "the host has no qemu-img that could confirm what imgcache found the image to be"


def report_failure(context: HostContext, image: Image, error: HostError) -> None:
    """Report one image's trouble; the others go on."""
    context.report(image, OutcomeWord.ERROR, code=error.code, reason=_reason(error))


def report_end(
    context: HostContext, image: Image, end: TransferEnd, *, copies: bool = False
) -> None:
    """Report how the transfer of one image ended.

    ``copies``: the helper may say that it had the bytes from another cache of its own (``copied``).

    Raises:
        HostError: code ``protocol``: what the host says cannot be true.
    """
    if not isinstance(end.ending, HostError):
        _report_answer(context, image, end, end.ending, copies=copies)
        return
    error = end.ending
    context.report(
        image,
        OutcomeWord.SKIPPED if error.code in STOP_CODES else OutcomeWord.ERROR,
        code=error.code,
        reason=_joined(_reason(error), end.remark),
        source=end.kind,
        bytes_fetched=end.bytes_fetched,
    )


def _report_answer(
    context: HostContext, image: Image, end: TransferEnd, answer: Message, *, copies: bool
) -> None:
    state = answer.fields.get_choice("state", {"cached", "existing"})
    copied = copies and answer.fields.get_bool("copied")
    if state == "cached" and not copied:
        check_all_came(image, answer)
    weak = None
    if state == "cached" and image.digest.weak:
        algo = image.digest.algo
        weak = f"verified with {algo} only, the image service has no better digest"
    # A back end that asks nobody else what an image is says nothing about it.
    unconfirmed = state == "cached" and answer.fields.opt_bool("confirmed") is False
    doubt = _UNCONFIRMED if unconfirmed else None
    context.report(
        image,
        OutcomeWord(state),
        code=ErrorCode.UNCONFIRMED if unconfirmed else None,
        reason=_joined(answer.fields.opt_text("reason", limit=1000), end.remark, weak, doubt),
        source=None if copied else end.kind,
        bytes_fetched=end.bytes_fetched,
    )


def _reason(error: HostError) -> str:
    return f"{error.message}: {error.hint}" if error.hint else error.message


def _joined(*remarks: str | None) -> str | None:
    return "; ".join(remark for remark in remarks if remark) or None
