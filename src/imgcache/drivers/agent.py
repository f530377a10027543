"""Drivers whose hosts run the helper: what they have in common is here, what differs is ``Backend``.

One session per call lists, removes, cleans, verifies, pins or renews entries. The requests have the same
names and fields for all back ends; ``open`` names the back end.
"""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from imgcache import __version__
from imgcache.drivers.base import (
    Driver,
    HashProgress,
    NoteRow,
    NoteState,
    UnsupportedError,
    Verdict,
    VerdictState,
)
from imgcache.drivers.entry_rows import (
    LIBVIRT_SHAPES,
    EntryRows,
    Shapes,
    cache_from,
    removal_rows,
    verdict_from,
)
from imgcache.drivers.order_fields import image_fields
from imgcache.errors import ErrorCode
from imgcache.model import PIN_FOREVER
from imgcache.plan import CheckState
from imgcache.transport.conversation import OrderError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from imgcache.drivers.base import HostContext, RemovalItem, RemovalRow
    from imgcache.model import HostCache, HostSettings, Image, ServiceAccess
    from imgcache.transport.conversation import Conversation, Message, Order
    from imgcache.transport.wire import Fields

MAX_CLOCK_OFFSET_S = 30.0
_PIN_STATES = frozenset({"pinned", "unpinned", "unmanaged", "absent"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What differs between the back ends that the helper serves."""

    name: str | None
    """What ``open`` calls it; None: libvirt, which the helper assumes."""
    modules: Mapping[str, tuple[str, ...]]
    """Request -> the helper's modules for it, in the order in which they import each other."""
    shapes: Shapes = LIBVIRT_SHAPES
    items_per_request: int = 100
    """Entries that one ``remove`` may name."""
    answer_s: float = 120.0
    """Longer than any single look at the host."""
    hash_silence_s: float = 60.0
    """The longest silence while the host hashes."""
    unproven: str = "other bytes, or converted to another format"
    """What an entry is whose digest is not the image's."""


class AgentDriver(Driver):
    """A driver whose hosts run the helper. Subclasses add ``precache``."""

    backend: ClassVar[Backend]

    def settings(self, settings: HostSettings) -> dict[str, object]:
        """Return the part of the settings that overrides the host's nova.conf, as ``open`` takes it."""
        raise NotImplementedError

    def start(
        self, context: HostContext, modules: Sequence[str]
    ) -> AbstractAsyncContextManager[Conversation]:
        """Start the helper."""
        return context.converse(modules)

    @asynccontextmanager
    async def opened(
        self, context: HostContext, modules: Sequence[str]
    ) -> AsyncIterator[tuple[Conversation, Fields]]:
        """Start the helper and open the cache; give the session and what ``open`` answered.

        Raises:
            UnsupportedError: the host's back end has no cache that imgcache may fill.
            HostError: see ``HostContext.converse``.
        """
        async with self.start(context, modules) as talk, talk.keep_alive():
            order = self.order_open(context, talk)
            yield talk, (await self.open_answer(talk, order)).fields

    def order_open(self, context: HostContext, talk: Conversation) -> Order:
        """Queue ``open``."""
        named = {"backend": self.backend.name} if self.backend.name else {}
        return talk.order("open", settings=self.settings(context.host.settings), **named)

    async def open_answer(self, talk: Conversation, order: Order) -> Message:
        """Return the answer to ``open``.

        Raises:
            UnsupportedError: the host's back end has no cache that imgcache may fill.
        """
        try:
            return await talk.result(order, timeout_s=self.backend.answer_s)
        except OrderError as error:
            if error.code is ErrorCode.BACKEND:
                raise UnsupportedError(error.code, error.message) from error
            raise

    async def check(
        self, context: HostContext, service: ServiceAccess | None
    ) -> Sequence[tuple[str, CheckState, str]]:
        """Ask the host; the clock is compared here."""
        async with self.start(context, self.backend.modules["probe"]) as talk, talk.keep_alive():
            named = {"backend": self.backend.name} if self.backend.name else {}
            order = talk.order(
                "probe",
                settings=self.settings(context.host.settings),
                url=service.url if service else None,
                ca_pem=service.ca_pem if service else None,
                insecure=service.insecure if service else False,
                reserve=context.host.settings.reserve_bytes,
                **named,
            )
            answer = await talk.result(order, timeout_s=self.backend.answer_s)
            rows = [
                (
                    item.get_str("name", limit=40),
                    item.get_enum("state", CheckState),
                    item.get_text("detail", limit=1000),
                )
                for item in answer.fields.get_objects("checks")
                if service or item.get_str("name", limit=40) != "glance"
            ]
            return [clock_check(talk.hello.clock_offset_s), *rows]

    async def inspect(self, context: HostContext, *, formats: bool, use: bool) -> HostCache:
        """List what is in the cache; a dry run writes nothing, not even on storage that hosts share."""
        async with self.opened(context, self.backend.modules["list"]) as (talk, opened):
            rows = EntryRows(self.backend.shapes)
            order = talk.order("list", formats=formats, use=use, mark=not context.dry_run)
            async with aclosing(talk.events(order, timeout_s=self.backend.answer_s)) as events:
                async for message in events:
                    if message.event == "rows":
                        rows.take(message.fields)
            return cache_from(opened, message.fields, rows.entries)

    async def remove(
        self, context: HostContext, items: Sequence[RemovalItem]
    ) -> AsyncGenerator[RemovalRow, None]:
        """Remove entries, ``items_per_request`` at a time."""
        size = self.backend.items_per_request
        async with self.opened(context, self.backend.modules["remove"]) as (talk, _):
            for start in range(0, len(items), size):
                part = items[start : start + size]
                missing = {item.name for item in part}
                order = talk.order("remove", items=[_item_fields(item) for item in part])
                async with aclosing(self._rows(talk, order, missing)) as rows:
                    async for row in rows:
                        missing.discard(row.name)
                        yield row

    async def clean(
        self, context: HostContext, stall_age_s: float
    ) -> AsyncGenerator[RemovalRow, None]:
        """Remove dead transfers."""
        async with self.opened(context, self.backend.modules["clean"]) as (talk, _):
            order = talk.order("clean", stall_age_s=stall_age_s, dry=context.dry_run)
            async with aclosing(self._rows(talk, order, None)) as rows:
                async for row in rows:
                    yield row

    async def _rows(
        self, talk: Conversation, order: Order, expected: set[str] | None
    ) -> AsyncGenerator[RemovalRow, None]:
        async with aclosing(talk.events(order, timeout_s=self.backend.answer_s)) as events:
            async for message in events:
                if message.event == "rows":
                    for row in removal_rows(message.fields, expected):
                        yield row

    async def verify(
        self,
        context: HostContext,
        base_names: Sequence[str],
        *,
        adopt: Mapping[str, Image],
        bytes_per_s: int | None,
    ) -> AsyncGenerator[Verdict | HashProgress, None]:
        """Hash one entry after the other."""
        async with self.opened(context, self.backend.modules["verify"]) as (talk, _):
            for name in base_names:
                image = adopt.get(name)
                order = talk.order(
                    "verify",
                    base=name,
                    rate=bytes_per_s,
                    dry=context.dry_run,
                    **self.adopt_fields(context, image),
                )
                try:
                    silence_s = self.backend.hash_silence_s
                    async with aclosing(talk.events(order, timeout_s=silence_s)) as events:
                        async for message in events:
                            if message.event == "progress":
                                done = message.fields.get_int("done")
                                yield HashProgress(name, done, message.fields.get_int("total"))
                    verdict = await self.verdict(context, talk, name, image, message.fields)
                except OrderError as error:
                    verdict = Verdict(name, VerdictState.FAILED, error.code, error.message)
                yield verdict

    def adopt_fields(self, context: HostContext, image: Image | None) -> dict[str, object]:
        """Return what ``verify`` takes for an entry that may be adopted as ``image``."""
        del context
        return {"algo": image.digest.algo if image else None}

    async def verdict(
        self,
        context: HostContext,
        talk: Conversation,
        name: str,
        image: Image | None,
        answer: Fields,
    ) -> Verdict:
        """Return what was found; adopt the entry when its bytes are the image's own."""
        verdict = verdict_from(name, answer)
        if image is None or verdict.state is not VerdictState.UNMANAGED:
            return verdict
        if verdict.digest != image.digest:
            return self.unproven(verdict, image)
        return await self.adopt(context, talk, image, verdict)

    def unproven(self, verdict: Verdict, image: Image) -> Verdict:
        """Return the verdict about an entry whose digest is not the image's."""
        reason = f"its {image.digest.algo} is not the image's: {self.backend.unproven}"
        return replace(verdict, code=ErrorCode.UNPROVEN, reason=reason)

    async def adopt(
        self, context: HostContext, talk: Conversation, image: Image, verdict: Verdict
    ) -> Verdict:
        """Note an entry as the image's; the helper found its digest just before, and checks its name."""
        digest = verdict.digest
        if digest is None:
            message = "adopted without a digest"
            raise AssertionError(message)
        order = talk.order(
            "adopt",
            base=verdict.base_name,
            image=image_fields(image),
            stored={"algo": digest.algo, "value": digest.value, "size": verdict.size_bytes},
            tool=f"imgcache {__version__}",
            run=context.run_id,
        )
        answer = await talk.result(order, timeout_s=self.backend.answer_s)
        state = answer.fields.get_choice("state", {"adopted", "absent", "changed"})
        if state == "changed":
            reason = "it changed after it was hashed"
            return replace(
                verdict, state=VerdictState.FAILED, code=ErrorCode.CHANGED, reason=reason
            )
        return replace(verdict, state=VerdictState(state), reason=None)

    async def pin(
        self,
        context: HostContext,
        base_names: Sequence[str],
        until: datetime | None,
        *,
        extend: bool = False,
    ) -> AsyncGenerator[NoteRow, None]:
        """Pin or unpin. The end of a pin is a moment of the host's own clock."""
        async with self.opened(context, self.backend.modules["pin"]) as (talk, _):
            when: object = None
            if until is not None:
                end = until.timestamp() + talk.hello.clock_offset_s
                when = "forever" if until == PIN_FOREVER else end
            orders = [
                (name, talk.order("pin", base=name, until=when, extend=extend))
                for name in base_names
            ]
            for name, order in orders:
                try:
                    answer = await talk.result(order, timeout_s=self.backend.answer_s)
                except OrderError as error:
                    yield NoteRow(name, NoteState.FAILED, error.code, error.message)
                else:
                    state = answer.fields.get_choice("state", _PIN_STATES)
                    yield NoteRow(name, NoteState(state))

    async def renew(
        self, context: HostContext, sizes: Sequence[tuple[str, int]]
    ) -> AsyncGenerator[NoteRow, None]:
        """Touch entries."""
        async with self.opened(context, self.backend.modules["renew"]) as (talk, _):
            orders = [(name, self.order_renew(context, talk, name, size)) for name, size in sizes]
            for name, order in orders:
                try:
                    answer = await talk.result(order, timeout_s=self.backend.answer_s)
                except OrderError as error:
                    yield NoteRow(name, NoteState.FAILED, error.code, error.message)
                else:
                    yield _renewed(name, answer.fields, dry=context.dry_run)

    def order_renew(self, context: HostContext, talk: Conversation, name: str, size: int) -> Order:
        """Queue what renews one entry."""
        return talk.order("touch", base=name, sizes=[size], dry=context.dry_run)


def clock_check(offset_s: float) -> tuple[str, CheckState, str]:
    """Judge a host's clock: a wrong one ages entries wrongly, and breaks TLS."""
    state = CheckState.OK if abs(offset_s) <= MAX_CLOCK_OFFSET_S else CheckState.WARN
    return "clock", state, f"{offset_s:+.1f} s against this machine"


def _renewed(name: str, fields: Fields, *, dry: bool) -> NoteRow:
    if fields.get_choice("state", {"existing", "absent"}) == "absent":
        return NoteRow(name, NoteState.ABSENT)
    reason = fields.opt_text("reason", limit=1000)
    if fields.get_bool("touched") or dry:
        return NoteRow(name, NoteState.RENEWED, reason=reason)
    return NoteRow(name, NoteState.FAILED, ErrorCode.NOT_TOUCHED, reason)


def _item_fields(item: RemovalItem) -> dict[str, object]:
    return {
        "name": item.name,
        "inode": item.inode,
        "mtime_ns": item.mtime_ns,
        "min_age_s": item.min_age_s,
        "ours_ok": item.ours_ok,
        "pinned_ok": item.pinned_ok,
    }
