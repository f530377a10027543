"""The life of a Hyper-V host's cache: one conversation each to list, remove, clean, verify, pin, renew."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from imgcache import __version__
from imgcache.drivers import hyperv_start
from imgcache.drivers.base import NoteRow, NoteState, Verdict, VerdictState
from imgcache.drivers.entry_rows import (
    EntryRows,
    Shapes,
    cache_from,
    removal_rows,
    verdict_from,
)
from imgcache.drivers.order_fields import image_fields
from imgcache.errors import ErrorCode
from imgcache.model import PIN_FOREVER, EntryKind
from imgcache.transport.conversation import OrderError
from imgcache.transport.orders import register_rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from datetime import datetime

    from imgcache.drivers.base import HostContext, RemovalItem, RemovalRow
    from imgcache.model import HostCache, HostSettings, Image
    from imgcache.transport.conversation import Conversation
    from imgcache.transport.wire import Fields

BASE_MODULES = ("conf", "vhd", "winstore", "hyperv")
LIFE_MODULES = (*BASE_MODULES, "watch", "hyperv_use", "hyperv_life")
REMOVE_MODULES = (*LIFE_MODULES, "hyperv_remove")
FETCH_MODULES = ("watch", "download", "body", "hyperv_fetch")
VERIFY_MODULES = (*LIFE_MODULES, *FETCH_MODULES, "hyperv_keep")

ITEMS_PER_ORDER = 100
#: Longer than any single look at a host.
_ANSWER_S = 120.0
#: The helper reports its progress far more often while it hashes.
_SILENCE_S = 60.0
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_SHAPES = Shapes(
    {
        EntryKind.ORIGINAL: re.compile(_UUID, re.ASCII),
        EntryKind.RESIZED: re.compile(_UUID + r"_[0-9]{1,9}", re.ASCII),
    },
    36,
)
_PIN_STATES = {"pinned", "unpinned", "unmanaged", "absent"}

register_rows("hyperv_list", 32 * 1024 * 1024, 8192)
register_rows("hyperv_remove", 256 * 1024, 128)
register_rows("hyperv_clean", 4 * 1024 * 1024, 4096)


def settings_for_helper(settings: HostSettings) -> dict[str, object]:
    """Return the part of the settings that overrides the host's nova.conf."""
    return {
        "instances_path": settings.instances_path,
        "nova_conf": list(settings.nova_conf) if settings.nova_conf else None,
    }


@asynccontextmanager
async def opened_cache(
    context: HostContext, modules: Sequence[str]
) -> AsyncIterator[tuple[Conversation, Fields]]:
    """Start the helper and open the cache; gives the conversation and what ``hyperv_open`` answered.

    Raises:
        UnsupportedError, HostError: see ``hyperv_start.converse``.
    """
    async with hyperv_start.converse(context, modules) as talk:
        order = talk.order("hyperv_open", settings=settings_for_helper(context.host.settings))
        answer = await talk.result(order, timeout_s=_ANSWER_S)
        async with talk.keep_alive():
            yield talk, answer.fields


async def inspect(context: HostContext, *, formats: bool, use: bool) -> HostCache:
    """See ``Driver.inspect``."""
    async with opened_cache(context, LIFE_MODULES) as (talk, opened):
        rows = EntryRows(_SHAPES)
        settings = settings_for_helper(context.host.settings)
        order = talk.order("hyperv_list", formats=formats, use=use, settings=settings)
        answer = await talk.result(order, timeout_s=_ANSWER_S, on_rows=rows.take)
        return cache_from(opened, answer.fields, rows.entries)


async def remove(
    context: HostContext, items: Sequence[RemovalItem], on_row: Callable[[RemovalRow], None]
) -> None:
    """See ``Driver.remove``."""
    async with opened_cache(context, REMOVE_MODULES) as (talk, _):
        for start in range(0, len(items), ITEMS_PER_ORDER):
            part = items[start : start + ITEMS_PER_ORDER]
            missing = {item.name for item in part}

            def take(fields: Fields, missing: set[str] = missing) -> None:
                for row in removal_rows(fields, missing):
                    missing.discard(row.name)
                    on_row(row)

            order = talk.order("hyperv_remove", items=[_item_fields(item) for item in part])
            await talk.result(order, timeout_s=_ANSWER_S, on_rows=take)


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

    async with opened_cache(context, REMOVE_MODULES) as (talk, _):
        order = talk.order("hyperv_clean", stall_age_s=stall_age_s, dry=context.dry_run)
        await talk.result(order, timeout_s=_ANSWER_S, on_rows=take)


async def verify(
    context: HostContext,
    base_names: Sequence[str],
    *,
    adopt: Mapping[str, Image],
    bytes_per_s: int | None,
    on_verdict: Callable[[Verdict], None],
    on_progress: Callable[[str, int, int], None],
) -> None:
    """See ``Driver.verify``."""
    async with opened_cache(context, VERIFY_MODULES) as (talk, _):
        for name in base_names:
            image = adopt.get(name)

            def progress(_: str, done: int, total: int, name: str = name) -> None:
                on_progress(name, done, total)

            algo = image.digest.algo if image else None
            dry = context.dry_run
            order = talk.order("hyperv_verify", base=name, rate=bytes_per_s, algo=algo, dry=dry)
            try:
                answer = await talk.result(order, timeout_s=_SILENCE_S, on_progress=progress)
                verdict = verdict_from(name, answer.fields)
                if image and verdict.state is VerdictState.UNMANAGED:
                    verdict = await _adopt(context, talk, image, verdict)
            except OrderError as error:
                verdict = Verdict(name, VerdictState.FAILED, error.code, error.message)
            on_verdict(verdict)


async def _adopt(
    context: HostContext, talk: Conversation, image: Image, verdict: Verdict
) -> Verdict:
    """Note the entry as the image's when its bytes are; nothing is ever converted on these hosts."""
    digest = verdict.digest
    if digest is None or digest != image.digest:
        reason = f"its {image.digest.algo} is not the image's: it has other bytes"
        return replace(verdict, code=ErrorCode.UNPROVEN, reason=reason)
    stored = {"algo": digest.algo, "value": digest.value, "size": verdict.size_bytes}
    order = talk.order(
        "hyperv_adopt",
        base=verdict.base_name,
        image=image_fields(image),
        stored=stored,
        tool=f"imgcache {__version__}",
        run=context.run_id,
    )
    answer = await talk.result(order, timeout_s=_ANSWER_S)
    state = answer.fields.get_choice("state", {"adopted", "absent", "changed"})
    if state == "changed":
        reason = "it changed after it was hashed"
        return replace(verdict, state=VerdictState.FAILED, code=ErrorCode.CHANGED, reason=reason)
    return replace(verdict, state=VerdictState(state), reason=None)


async def pin(
    context: HostContext,
    base_names: Sequence[str],
    until: datetime | None,
    on_row: Callable[[NoteRow], None],
    *,
    extend: bool,
) -> None:
    """See ``Driver.pin``. The end of a pin is a moment, told by the host's own clock."""
    async with opened_cache(context, VERIFY_MODULES) as (talk, _):
        when: object = None
        if until is not None:
            end = until.timestamp() + talk.hello.clock_offset_s
            when = "forever" if until == PIN_FOREVER else end
        for name in base_names:
            order = talk.order("hyperv_pin", base=name, until=when, extend=extend)
            try:
                answer = await talk.result(order, timeout_s=_ANSWER_S)
            except OrderError as error:
                on_row(NoteRow(name, NoteState.FAILED, error.code, error.message))
            else:
                on_row(NoteRow(name, NoteState(answer.fields.get_choice("state", _PIN_STATES))))


async def renew(
    context: HostContext,
    sizes: Sequence[tuple[str, int]],
    on_row: Callable[[NoteRow], None],
) -> None:
    """See ``Driver.renew``."""
    async with opened_cache(context, BASE_MODULES) as (talk, _):
        for name, size in sizes:
            order = talk.order("hyperv_touch", image_id=name, size=size, dry=context.dry_run)
            try:
                answer = await talk.result(order, timeout_s=_ANSWER_S)
            except OrderError as error:
                on_row(NoteRow(name, NoteState.FAILED, error.code, error.message))
                continue
            if answer.fields.get_choice("state", {"existing", "absent"}) == "absent":
                on_row(NoteRow(name, NoteState.ABSENT))
            else:
                reason = answer.fields.opt_str("reason", limit=1000)
                on_row(NoteRow(name, NoteState.RENEWED, reason=reason))
