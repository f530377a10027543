"""A driver in one file: a back end whose cache is a folder of files called by image ids.

The example of ``docs/drivers.md``. Its helper part is ``helper/toy.py``; who installs it registers it by an
entry point of the group ``imgcache.drivers``: ``toy = toy_driver:ToyDriver``.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, ClassVar

from imgcache.drivers.base import Driver, RemovalRow, RemovalState
from imgcache.drivers.transfer import transfer
from imgcache.errors import ErrorCode, HostError
from imgcache.model import CacheEntry, CachePolicy, EntryKind, HostCache, ImageId
from imgcache.plan import CheckState, OutcomeWord
from imgcache.transport.conversation import OrderError
from imgcache.transport.orders import register_rows

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from imgcache.drivers.base import HostContext, RemovalItem
    from imgcache.model import Image, ServiceAccess
    from imgcache.plan import SourceKind
    from imgcache.transport.conversation import Conversation
    from imgcache.transport.wire import Fields

_ANSWER_S = 60.0
_POLICY = CachePolicy(
    remove_unused=True,
    original_min_age_s=86400.0,
    resized_min_age_s=86400.0,
    reserved_host_disk_mb=0,
    reserves_cache=True,
    manager_interval_s=-1,
)
# The answers to these come as rows: so many bytes and frames at most.
register_rows("toy_list", 1 << 20, 64)
register_rows("toy_remove", 1 << 20, 64)


class ToyDriver(Driver):
    """See ``Driver``."""

    name = "toy"
    helper_package = "toy_driver.helper"
    unsupported: ClassVar[Mapping[str, str]] = {
        "clean": "a toy's transfers leave nothing behind",
        "verify": "a toy notes nothing to compare with",
        "prove": "a toy converts nothing",
        "pin": "a toy notes nothing, so it knows no pins",
        "renew": "a toy knows no pins to renew",
    }

    async def precache(self, context: HostContext, images: Sequence[Image]) -> None:
        """See ``Driver.precache``."""
        given_up: set[SourceKind] = set()
        async with context.converse(self.helper_modules("toy")) as talk:
            for image in images:
                context.begin(image)
                order = talk.order(
                    "toy_touch", folder=_folder(context), name=image.id, dry=context.dry_run
                )
                answer = await talk.result(order, timeout_s=_ANSWER_S)
                if answer.fields.get_bool("there"):
                    context.report(image, OutcomeWord.EXISTING)
                elif context.dry_run:
                    code = ErrorCode.DRY_RUN
                    context.report(image, OutcomeWord.SKIPPED, code=code, reason="would be fetched")
                else:
                    await _fetch(context, talk, image, given_up)

    async def check(
        self, context: HostContext, service: ServiceAccess | None
    ) -> Sequence[tuple[str, CheckState, str]]:
        """See ``Driver.check``."""
        async with context.converse(self.helper_modules("toy")) as talk:
            order = talk.order("toy_list", folder=_folder(context))
            await talk.result(order, timeout_s=_ANSWER_S)
            return [("cache", CheckState.OK, f"{_folder(context)} can be read")]

    async def inspect(self, context: HostContext, *, formats: bool, use: bool) -> HostCache:
        """See ``Driver.inspect``; nothing can use what a toy has."""
        entries: list[CacheEntry] = []
        async with context.converse(self.helper_modules("toy")) as talk:
            order = talk.order("toy_list", folder=_folder(context))
            async with aclosing(talk.events(order, timeout_s=_ANSWER_S)) as events:
                async for message in events:
                    if message.event == "rows":
                        entries.extend(map(_entry, message.fields.get_objects("rows")))
            answer = message.fields
        return HostCache(
            cache_path=_folder(context),
            instances_path=_folder(context),
            entries=tuple(entries),
            policy=_POLICY,
            filesystem="toyfs",
            filesystem_size_bytes=answer.get_int("size"),
            filesystem_free_bytes=answer.get_int("free"),
            own_filesystem=False,
            nova_usage_bytes=0,
            evidence_problems=(),
            storage_id=None,
            shares_with=(),
            nodename=context.host.name,
        )

    async def remove(
        self, context: HostContext, items: Sequence[RemovalItem]
    ) -> AsyncGenerator[RemovalRow, None]:
        """See ``Driver.remove``; the helper looks at each file's age again."""
        wanted = [{"name": one.name, "min_age_s": one.min_age_s} for one in items]
        async with context.converse(self.helper_modules("toy")) as talk:
            order = talk.order("toy_remove", folder=_folder(context), items=wanted)
            async with aclosing(talk.events(order, timeout_s=_ANSWER_S)) as events:
                async for message in events:
                    if message.event == "rows":
                        for row in message.fields.get_objects("rows"):
                            yield _removed(row)


def _removed(row: Fields) -> RemovalRow:
    state = row.get_enum("state", RemovalState)
    code = ErrorCode.YOUNG if state is RemovalState.KEPT else None
    reason = row.opt_str("reason", limit=200)
    return RemovalRow(row.get_str("name", limit=255), state, code, reason, row.get_int("size"))


def _folder(context: HostContext) -> str:
    folder = context.host.settings.instances_path
    if folder is None:
        message = "a toy needs a folder"
        raise HostError(ErrorCode.CONFIG, message, hint="instances_path: /srv/toys")
    return folder


async def _fetch(
    context: HostContext, talk: Conversation, image: Image, given_up: set[SourceKind]
) -> None:
    end = await transfer(context, talk, image, given_up, "toy_fetch", folder=_folder(context))
    if isinstance(end.ending, OrderError | HostError):
        word, code, reason = OutcomeWord.ERROR, end.ending.code, end.ending.message
    else:
        word, code, reason = OutcomeWord.CACHED, None, None
    fetched = end.bytes_fetched
    context.report(image, word, code=code, reason=reason, source=end.kind, bytes_fetched=fetched)


def _entry(row: Fields) -> CacheEntry:
    name = row.get_str("name", limit=255)
    return CacheEntry(
        name=name,
        kind=EntryKind.ORIGINAL,
        size_bytes=row.get_int("size"),
        allocated_bytes=row.get_int("size"),
        format=None,
        age_s=row.get_float("age"),
        inode=row.get_int("inode"),
        mtime_ns=row.get_int("mtime_ns"),
        links=1,
        users=0,
        used_by=(),
        live=False,
        manifest=None,
        image_id=ImageId(name),
    )
