"""The life of the caches on a cluster's datastores: list, remove, clean, verify, pin, renew."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from imgcache import __version__
from imgcache.drivers.base import NoteRow, NoteState, Verdict, VerdictState
from imgcache.drivers.entry_rows import EntryRows, cache_from, removal_rows, verdict_from
from imgcache.drivers.order_fields import image_fields
from imgcache.drivers.vmwareapi_talk import ANSWER_S, LIFE_MODULES, SHAPES, VERIFY_MODULES, opened
from imgcache.errors import ErrorCode
from imgcache.model import PIN_FOREVER
from imgcache.transport.conversation import OrderError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from imgcache.drivers.base import HostContext, RemovalItem, RemovalRow
    from imgcache.model import HostCache, Image
    from imgcache.transport.wire import Fields

#: Items that one ``vmware_remove`` may have: each is looked at anew, with all machines.
_ITEMS_PER_ORDER = 20
#: Looking at many machines takes its time, and so does what vCenter does about big disks.
_LONG_S = 600.0


async def inspect(context: HostContext, *, formats: bool, use: bool) -> HostCache:
    """See ``Driver.inspect``. What an image's file is its name tells: ``formats`` costs nothing."""
    del formats
    async with opened(context, LIFE_MODULES) as (talk, cluster):
        rows = EntryRows(SHAPES)
        order = talk.order("vmware_list", use=use)
        answer = await talk.result(order, timeout_s=_LONG_S, on_rows=rows.take)
        return cache_from(cluster, answer.fields, rows.entries)


async def remove(
    context: HostContext, items: Sequence[RemovalItem], on_row: Callable[[RemovalRow], None]
) -> None:
    """See ``Driver.remove``."""
    async with opened(context, LIFE_MODULES) as (talk, _):
        for start in range(0, len(items), _ITEMS_PER_ORDER):
            part = items[start : start + _ITEMS_PER_ORDER]
            missing = {item.name for item in part}

            def take(fields: Fields, missing: set[str] = missing) -> None:
                for row in removal_rows(fields, missing):
                    missing.discard(row.name)
                    on_row(row)

            order = talk.order("vmware_remove", items=[_item_fields(item) for item in part])
            await talk.result(order, timeout_s=_LONG_S, on_rows=take)


def _item_fields(item: RemovalItem) -> dict[str, object]:
    return {
        "name": item.name,
        "inode": item.inode,
        "mtime_ns": item.mtime_ns,
        "min_age_s": item.min_age_s,
        "ours_ok": item.ours_ok,
        "pinned_ok": item.pinned_ok,
    }


async def clean(
    context: HostContext, stall_age_s: float, on_row: Callable[[RemovalRow], None]
) -> None:
    """See ``Driver.clean``."""

    def take(fields: Fields) -> None:
        for row in removal_rows(fields, None):
            on_row(row)

    async with opened(context, LIFE_MODULES) as (talk, _):
        order = talk.order("vmware_clean", stall_age_s=stall_age_s, dry=context.dry_run)
        await talk.result(order, timeout_s=_LONG_S, on_rows=take)


async def verify(
    context: HostContext,
    names: Sequence[str],
    *,
    adopt: Mapping[str, Image],
    bytes_per_s: int | None,
    on_verdict: Callable[[Verdict], None],
    on_progress: Callable[[str, int, int], None],
) -> None:
    """See ``Driver.verify``."""
    async with opened(context, VERIFY_MODULES) as (talk, _):
        for name in names:
            image = adopt.get(name)

            def progress(_: str, done: int, total: int, name: str = name) -> None:
                on_progress(name, done, total)

            fields = _adopt_fields(context, image) if image else None
            dry = context.dry_run
            order = talk.order("vmware_verify", base=name, rate=bytes_per_s, adopt=fields, dry=dry)
            try:
                answer = await talk.result(order, timeout_s=_LONG_S, on_progress=progress)
                verdict = _verdict(name, image, answer.fields)
            except OrderError as error:
                verdict = Verdict(name, VerdictState.FAILED, error.code, error.message)
            on_verdict(verdict)


def _adopt_fields(context: HostContext, image: Image) -> dict[str, object]:
    return {
        "image": image_fields(image),
        "tool": f"imgcache {__version__}",
        "run": context.run_id,
    }


def _verdict(name: str, image: Image | None, fields: Fields) -> Verdict:
    if fields.opt_str("state", limit=20) == "adopted":
        return Verdict(name, VerdictState.ADOPTED)
    verdict = verdict_from(name, fields)
    if image and verdict.state is VerdictState.UNMANAGED and verdict.digest:
        reason = (
            f"its {image.digest.algo} is not the image's: other bytes, or made of them by vSphere"
        )
        return replace(verdict, code=ErrorCode.UNPROVEN, reason=reason)
    return verdict


async def pin(
    context: HostContext,
    names: Sequence[str],
    until: datetime | None,
    on_row: Callable[[NoteRow], None],
    *,
    extend: bool,
) -> None:
    """See ``Driver.pin``. The end of a pin is a moment, told by the host's own clock."""
    async with opened(context, LIFE_MODULES) as (talk, _):
        when: object = None
        if until is not None:
            end = until.timestamp() + talk.hello.clock_offset_s
            when = "forever" if until == PIN_FOREVER else end
        for name in names:
            order = talk.order("vmware_pin", base=name, until=when, extend=extend)
            try:
                answer = await talk.result(order, timeout_s=ANSWER_S)
            except OrderError as error:
                on_row(NoteRow(name, NoteState.FAILED, error.code, error.message))
            else:
                state = answer.fields.get_choice("state", _PIN_STATES)
                on_row(NoteRow(name, NoteState(state)))


_PIN_STATES = frozenset({"pinned", "unpinned", "unmanaged", "absent"})


async def renew(
    context: HostContext, names: Sequence[str], on_row: Callable[[NoteRow], None]
) -> None:
    """See ``Driver.renew``: the timestamps by which Nova counts images as unused are taken away."""
    async with opened(context, LIFE_MODULES) as (talk, _):
        for name in names:
            order = talk.order("vmware_renew", base=name, dry=context.dry_run)
            try:
                answer = await talk.result(order, timeout_s=ANSWER_S)
            except OrderError as error:
                on_row(NoteRow(name, NoteState.FAILED, error.code, error.message))
                continue
            there = answer.fields.get_choice("state", {"existing", "absent"}) == "existing"
            on_row(NoteRow(name, NoteState.RENEWED if there else NoteState.ABSENT))
