r"""The hyperv driver: ``<instances_path>\_base`` on Windows hosts, as Nova's Hyper-V drivers keep it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar

from imgcache.drivers import hyperv_life, hyperv_start
from imgcache.drivers.base import Driver
from imgcache.drivers.hyperv_life import (
    BASE_MODULES,
    FETCH_MODULES,
    opened_cache,
    settings_for_helper,
)
from imgcache.drivers.transfer import transfer
from imgcache.drivers.transfer_report import report_end
from imgcache.errors import ErrorCode
from imgcache.plan import CheckState, OutcomeWord
from imgcache.transport.conversation import OrderError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from imgcache.drivers.base import HostContext, NoteRow, RemovalItem, RemovalRow, Verdict
    from imgcache.model import HostCache, Image, ServiceAccess
    from imgcache.plan import SourceKind
    from imgcache.transport.conversation import Conversation, Order
    from imgcache.transport.wire import Fields

PROBE_MODULES = (*BASE_MODULES, "watch", "download", "hyperv_probe")
#: What Glance calls images that Nova can use here. Nova goes by the bytes, and converts nothing.
USABLE_FORMATS = frozenset({"vhd", "vhdx", "iso"})
ANSWER_S = 60.0
_RESERVE_BYTES = 10 << 30
_MAX_CLOCK_OFFSET_S = 30.0


class HypervDriver(Driver):
    """See ``Driver``. All images go through one connection, or two where no ``python`` is configured."""

    name = "hyperv"
    unsupported: ClassVar[Mapping[str, str]] = {
        "prove": "Hyper-V hosts convert nothing: verify --adopt proves entries by their bytes",
    }

    async def precache(self, context: HostContext, images: Sequence[Image]) -> None:
        """See ``Driver.precache``."""
        usable = self.usable(context, images)
        if not usable:
            return
        async with opened_cache(context, BASE_MODULES) as (talk, opened):
            touches = [(image, self._order_touch(context, talk, image)) for image in usable]
            absent = [
                image
                for image, order in touches
                if not await self._touched(context, talk, image, order)
            ]
            if context.dry_run:
                _report_dry_run(context, absent, opened)
            elif absent:
                async with context.sources.member(context), _alone(context, opened):
                    await self._fetch(context, talk, absent)

    async def check(
        self, context: HostContext, service: ServiceAccess | None
    ) -> Sequence[tuple[str, CheckState, str]]:
        """See ``Driver.check``."""
        async with hyperv_start.converse(context, PROBE_MODULES) as talk:
            order = talk.order(
                "hyperv_probe",
                settings=settings_for_helper(context.host.settings),
                url=service.url if service else None,
                ca_pem=service.ca_pem if service else None,
                insecure=service.insecure if service else False,
                reserve=context.host.settings.reserve_bytes,
            )
            answer = await talk.result(order, timeout_s=ANSWER_S)
            rows = [
                (
                    item.get_str("name", limit=40),
                    item.get_enum("state", CheckState),
                    item.get_str("detail", limit=1000),
                )
                for item in answer.fields.get_objects("checks")
                if service or item.get_str("name", limit=40) != "glance"
            ]
            return [
                ("shell", CheckState.OK, "cmd.exe"),
                _clock_check(talk.hello.clock_offset_s),
                *rows,
            ]

    async def inspect(self, context: HostContext, *, formats: bool, use: bool) -> HostCache:
        """See ``Driver.inspect``."""
        return await hyperv_life.inspect(context, formats=formats, use=use)

    async def remove(
        self,
        context: HostContext,
        items: Sequence[RemovalItem],
        on_row: Callable[[RemovalRow], None],
    ) -> None:
        """See ``Driver.remove``."""
        await hyperv_life.remove(context, items, on_row)

    async def clean(
        self, context: HostContext, stall_age_s: float, on_row: Callable[[RemovalRow], None]
    ) -> None:
        """See ``Driver.clean``."""
        await hyperv_life.clean(context, stall_age_s, on_row)

    async def verify(
        self,
        context: HostContext,
        base_names: Sequence[str],
        *,
        adopt: Mapping[str, Image],
        bytes_per_s: int | None,
        on_verdict: Callable[[Verdict], None],
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        """See ``Driver.verify``."""
        await hyperv_life.verify(
            context,
            base_names,
            adopt=adopt,
            bytes_per_s=bytes_per_s,
            on_verdict=on_verdict,
            on_progress=on_progress,
        )

    async def pin(
        self,
        context: HostContext,
        base_names: Sequence[str],
        until: datetime | None,
        on_row: Callable[[NoteRow], None],
        *,
        extend: bool = False,
    ) -> None:
        """See ``Driver.pin``."""
        await hyperv_life.pin(context, base_names, until, on_row, extend=extend)

    async def renew(
        self,
        context: HostContext,
        sizes: Sequence[tuple[str, int]],
        on_row: Callable[[NoteRow], None],
    ) -> None:
        """See ``Driver.renew``."""
        await hyperv_life.renew(context, sizes, on_row)

    def refuses(self, image: Image) -> str | None:
        """See ``Driver.refuses``."""
        if image.disk_format in USABLE_FORMATS:
            return None
        return (
            f"has disk format {image.disk_format}: Hyper-V can use vhd, vhdx and iso images only, and "
            "Nova converts none there"
        )

    @staticmethod
    def _order_touch(context: HostContext, talk: Conversation, image: Image) -> Order:
        context.begin(image)
        size = image.size_bytes
        return talk.order("hyperv_touch", image_id=image.id, size=size, dry=context.dry_run)

    @staticmethod
    async def _touched(
        context: HostContext, talk: Conversation, image: Image, order: Order
    ) -> bool:
        """Report an image that is there, or cannot be; return False when it is to be fetched."""
        try:
            answer = await talk.result(order, timeout_s=ANSWER_S)
        except OrderError as error:
            context.report(image, OutcomeWord.ERROR, code=error.code, reason=error.message)
            return True
        if answer.fields.get_choice("state", {"existing", "absent"}) == "absent":
            return False
        reason = answer.fields.opt_str("reason", limit=1000)
        context.report(image, OutcomeWord.EXISTING, reason=reason)
        return True

    @staticmethod
    async def _fetch(context: HostContext, talk: Conversation, images: Sequence[Image]) -> None:
        talk.load(FETCH_MODULES)
        given_up: set[SourceKind] = set()
        for image in images:
            end = await transfer(context, talk, image, given_up, "hyperv_fetch")
            report_end(context, image, end)


def _alone(context: HostContext, opened: Fields) -> AbstractAsyncContextManager[None]:
    """Wait for other hosts that keep their instances at the same share or cluster volume."""
    path = opened.get_str("cache_path", limit=1000).lower()
    shared = path.startswith("\\\\") or path[1:].startswith(":\\clusterstorage\\")
    return context.alone_on(f"hyperv:{path}") if shared else nullcontext()


def _clock_check(offset_s: float) -> tuple[str, CheckState, str]:
    """Ages are decided by the host's own clock; a wrong one ages entries wrongly, and breaks TLS."""
    state = CheckState.OK if abs(offset_s) <= _MAX_CLOCK_OFFSET_S else CheckState.WARN
    return ("clock", state, f"{offset_s:+.1f} s against this machine")


def _report_dry_run(context: HostContext, absent: Sequence[Image], opened: Fields) -> None:
    """Report what a run would do for images that are not there, one after the other in the room there is."""
    reserve = context.host.settings.reserve_bytes
    if reserve is None:
        reserve = max(opened.get_int("capacity") // 20, _RESERVE_BYTES)
    left = opened.get_int("free") - reserve
    for image in absent:
        need = image.size_bytes
        if need > left:
            reason = (
                f"dry run: {need} bytes would be needed, {max(left, 0)} are free beside the reserve"
            )
            context.report(image, OutcomeWord.ERROR, code=ErrorCode.SPACE, reason=reason)
            continue
        left -= need
        kind = context.sources.kinds(image)[0]
        reason = f"dry run: would be fetched, {need} bytes by {kind}"
        context.report(image, OutcomeWord.SKIPPED, code=ErrorCode.DRY_RUN, reason=reason)
