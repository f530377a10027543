"""Proves that unmanaged entries are what images become on a libvirt host, and adopts those that are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgcache.drivers.base import Verdict, VerdictState
from imgcache.drivers.entry_rows import proof_from
from imgcache.drivers.libvirt_life import VERIFY_MODULES, note_adopted, opened_cache
from imgcache.drivers.transfer import check_all_came, transfer
from imgcache.errors import ErrorCode, HostError
from imgcache.transport.conversation import OrderError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgcache.drivers.base import HostContext
    from imgcache.model import Image
    from imgcache.plan import SourceKind
    from imgcache.transport.conversation import Conversation

_MORE = ("journal", "qemu", "download", "body", "sources", "fetch", "prove")
PROVE_MODULES = (*VERIFY_MODULES, *_MORE)


async def prove(
    context: HostContext,
    images: Sequence[Image],
    *,
    bytes_per_s: int | None,
    on_verdict: Callable[[Verdict], None],
) -> None:
    """See ``Driver.prove``."""
    given_up: set[SourceKind] = set()
    async with opened_cache(context, PROVE_MODULES) as (talk, _):
        for image in images:
            on_verdict(await _prove(context, talk, image, given_up, bytes_per_s))


async def _prove(
    context: HostContext,
    talk: Conversation,
    image: Image,
    given_up: set[SourceKind],
    bytes_per_s: int | None,
) -> Verdict:
    end = await transfer(context, talk, image, given_up, "prove", rate=bytes_per_s)
    if isinstance(end.ending, HostError):
        return _failed(image, end.ending)
    verdict = proof_from(image.base_name, end.ending.fields)
    if verdict.digest is None:
        return verdict
    check_all_came(image, end.ending)
    try:
        return await note_adopted(context, talk, image, verdict)
    except OrderError as error:
        return _failed(image, error)


def _failed(image: Image, error: HostError) -> Verdict:
    text = f"{error.message}: {error.hint}" if error.hint else error.message
    if error.code is ErrorCode.CHANGED:
        return Verdict(image.base_name, VerdictState.FAILED, error.code, text)
    reason = f"its content could not be proven: {text}"
    return Verdict(image.base_name, VerdictState.FAILED, error.code, reason)
