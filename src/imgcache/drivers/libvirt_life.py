"""The life of a libvirt host's cache: one conversation each to list, remove, clean, verify, pin, renew."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from imgcache import __version__
from imgcache.drivers.base import NoteRow, NoteState, UnsupportedError, Verdict, VerdictState
from imgcache.drivers.entry_rows import EntryRows, cache_from, removal_rows, verdict_from
from imgcache.errors import ErrorCode
from imgcache.model import PIN_FOREVER
from imgcache.transport.conversation import OrderError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from datetime import datetime

    from imgcache.drivers.base import HostContext, RemovalItem, RemovalRow
    from imgcache.model import HostCache, HostSettings, Image
    from imgcache.transport.conversation import Conversation, Message
    from imgcache.transport.wire import Fields

RENEW_MODULES = ("conf", "cache")
LIST_MODULES = (
    *RENEW_MODULES,
    *("watch", "staging", "formats"),
    *("headers", "mounts", "sharing", "owners"),
    *("domains", "processes", "usage", "facts", "entries"),
)
VERIFY_MODULES = (*LIST_MODULES, "verify")
REMOVE_MODULES = (*LIST_MODULES, "removal")
CLEAN_MODULES = (*REMOVE_MODULES, "clean")

#: Items that one ``remove`` order may have.
ITEMS_PER_ORDER = 100
#: Longer than any single look at a host; looking through thousands of instances takes seconds.
_ANSWER_S = 120.0
#: The helper reports its progress far more often while it hashes.
_SILENCE_S = 60.0


@asynccontextmanager
async def opened_cache(
    context: HostContext, modules: Sequence[str]
) -> AsyncIterator[tuple[Conversation, Fields]]:
    """Start the helper and open the cache; gives the conversation and what ``open`` answered.

    Raises:
        UnsupportedError: the host's back end has no cache of files.
    """
    async with context.converse(modules) as talk:
        order = talk.order("open", settings=settings_for_helper(context.host.settings))
        try:
            answer = await talk.result(order, timeout_s=_ANSWER_S)
        except OrderError as error:
            if error.code is ErrorCode.BACKEND:
                raise UnsupportedError(error.code, error.message) from error
            raise
        async with talk.keep_alive():
            yield talk, answer.fields


def settings_for_helper(settings: HostSettings) -> dict[str, object]:
    """Return the part of the settings that overrides the host's nova.conf; see the protocol's ``open``."""
    return {
        "instances_path": settings.instances_path,
        "cache_subdirectory": settings.cache_subdirectory,
        "force_raw_images": settings.force_raw_images,
        "images_type": settings.images_type,
        "nova_conf": list(settings.nova_conf) if settings.nova_conf else None,
    }


async def inspect(context: HostContext, *, formats: bool, use: bool) -> HostCache:
    """See ``Driver.inspect``."""
    async with opened_cache(context, LIST_MODULES) as (talk, opened):
        rows = EntryRows()
        mark = not context.dry_run
        order = talk.order("list", formats=formats, use=use, mark=mark)
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

            order = talk.order("remove", items=[_item_fields(item) for item in part])
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

    async with opened_cache(context, CLEAN_MODULES) as (talk, _):
        order = talk.order("clean", stall_age_s=stall_age_s, dry=context.dry_run)
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
            order = talk.order("verify", base=name, rate=bytes_per_s, algo=algo, dry=dry)
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
    """Note the entry as the image's when its bytes are the image's own; the helper checks its name."""
    if verdict.digest != image.digest:
        reason = f"its {image.digest.algo} is not the image's: other bytes, or converted to another format"
        return replace(verdict, code=ErrorCode.UNPROVEN, reason=reason)
    return await note_adopted(context, talk, image, verdict)


async def note_adopted(
    context: HostContext, talk: Conversation, image: Image, verdict: Verdict
) -> Verdict:
    """Note the entry as the image's; its digest is what the helper has just found, and proven."""
    digest = verdict.digest
    if digest is None:
        message = "adopted without a digest"
        raise AssertionError(message)
    order = talk.order(
        "adopt",
        base=verdict.base_name,
        image=image_fields(image),
        stored={
            "algo": digest.algo,
            "value": digest.value,
            "size": verdict.size_bytes,
        },
        tool=f"imgcache {__version__}",
        run=context.run_id,
    )
    answer = await talk.result(order, timeout_s=_ANSWER_S)
    state = answer.fields.get_choice("state", {"adopted", "absent", "changed"})
    if state == "changed":
        reason = "it changed after it was hashed"
        return replace(verdict, state=VerdictState.FAILED, code=ErrorCode.CHANGED, reason=reason)
    return replace(verdict, state=VerdictState(state), reason=None)


def image_fields(image: Image) -> dict[str, object]:
    """Return the image as ``fetch`` and ``adopt`` take it; see the protocol."""
    return {
        "id": image.id,
        "name": image.name,
        "size": image.size_bytes,
        "disk_format": image.disk_format,
        "virtual_size": image.virtual_size_bytes,
        "digest": {"algo": image.digest.algo, "value": image.digest.value},
    }


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
        orders = [
            (name, talk.order("pin", base=name, until=when, extend=extend)) for name in base_names
        ]
        for name, order in orders:
            try:
                answer = await talk.result(order, timeout_s=_ANSWER_S)
            except OrderError as error:
                on_row(NoteRow(name, NoteState.FAILED, error.code, error.message))
            else:
                on_row(NoteRow(name, _pin_state(answer)))


_PIN_STATES = frozenset(
    {NoteState.PINNED, NoteState.UNPINNED, NoteState.UNMANAGED, NoteState.ABSENT}
)


def _pin_state(answer: Message) -> NoteState:
    return NoteState(answer.fields.get_choice("state", {state.value for state in _PIN_STATES}))


async def renew(
    context: HostContext,
    sizes: Sequence[tuple[str, int]],
    on_row: Callable[[NoteRow], None],
) -> None:
    """See ``Driver.renew``."""
    async with opened_cache(context, RENEW_MODULES) as (talk, _):
        orders = [
            (name, talk.order("touch", base=name, sizes=[size], dry=context.dry_run))
            for name, size in sizes
        ]
        for name, order in orders:
            try:
                answer = await talk.result(order, timeout_s=_ANSWER_S)
            except OrderError as error:
                on_row(NoteRow(name, NoteState.FAILED, error.code, error.message))
            else:
                on_row(_renewed(name, answer.fields, dry=context.dry_run))


def _renewed(name: str, fields: Fields, *, dry: bool) -> NoteRow:
    if fields.get_choice("state", {"existing", "absent"}) == "absent":
        return NoteRow(name, NoteState.ABSENT)
    reason = fields.opt_str("reason", limit=1000)
    if fields.get_bool("touched") or dry:
        return NoteRow(name, NoteState.RENEWED, reason=reason)
    return NoteRow(name, NoteState.FAILED, ErrorCode.NOT_TOUCHED, reason)
