r"""The hyperv driver: ``<instances_path>\_base`` on Windows hosts, as Nova's Hyper-V drivers keep it."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar

from imgcache.drivers import hyperv_start
from imgcache.drivers.agent import AgentDriver, Backend
from imgcache.drivers.entry_rows import Shapes
from imgcache.drivers.transfer import transfer
from imgcache.drivers.transfer_report import report_end
from imgcache.errors import ErrorCode
from imgcache.model import EntryKind
from imgcache.plan import CheckState, OutcomeWord
from imgcache.transport.conversation import OrderError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from imgcache.drivers.base import HostContext
    from imgcache.model import HostSettings, Image, ServiceAccess
    from imgcache.plan import SourceKind
    from imgcache.transport.conversation import Conversation, Order
    from imgcache.transport.wire import Fields

BASE_MODULES = ("conf", "vhd", "winstore", "hyperv")
LIST_MODULES = (*BASE_MODULES, "watch", "hyperv_use", "hyperv_life")
REMOVE_MODULES = (*LIST_MODULES, "hyperv_remove")
FETCH_MODULES = ("watch", "download", "body", "hyperv_fetch")
VERIFY_MODULES = (*LIST_MODULES, *FETCH_MODULES, "hyperv_keep")
PROBE_MODULES = (*BASE_MODULES, "watch", "download", "hyperv_probe")
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_SHAPES = Shapes(
    {
        EntryKind.ORIGINAL: re.compile(_UUID, re.ASCII),
        EntryKind.RESIZED: re.compile(_UUID + r"_[0-9]{1,9}", re.ASCII),
    },
    36,
)
#: What Glance calls images that Nova can use here. Nova goes by the bytes, and converts nothing.
USABLE_FORMATS = frozenset({"vhd", "vhdx", "iso"})
ANSWER_S = 60.0
_RESERVE_BYTES = 10 << 30


class HypervDriver(AgentDriver):
    """See ``Driver``. All images go through one connection, or two where no ``python`` is configured."""

    name = "hyperv"
    backend = Backend(
        name="hyperv",
        modules={
            "renew": BASE_MODULES,
            "probe": PROBE_MODULES,
            "list": LIST_MODULES,
            "remove": REMOVE_MODULES,
            "clean": REMOVE_MODULES,
            "verify": VERIFY_MODULES,
            "pin": VERIFY_MODULES,
        },
        shapes=_SHAPES,
        unproven="it has other bytes",
    )
    unsupported: ClassVar[Mapping[str, str]] = {
        "prove": "Hyper-V hosts convert nothing: verify --adopt proves entries by their bytes",
    }

    def settings(self, settings: HostSettings) -> dict[str, object]:
        """See ``AgentDriver.settings``."""
        return {
            "instances_path": settings.instances_path,
            "nova_conf": list(settings.nova_conf) if settings.nova_conf else None,
        }

    def start(
        self, context: HostContext, modules: Sequence[str]
    ) -> AbstractAsyncContextManager[Conversation]:
        """See ``hyperv_start.converse``."""
        return hyperv_start.converse(context, modules)

    async def precache(self, context: HostContext, images: Sequence[Image]) -> None:
        """See ``Driver.precache``."""
        usable = self.usable(context, images)
        if not usable:
            return
        async with self.opened(context, BASE_MODULES) as (talk, opened):
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
        return [("shell", CheckState.OK, "cmd.exe"), *await super().check(context, service)]

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
        sizes = [image.size_bytes]
        return talk.order("touch", base=image.id, sizes=sizes, dry=context.dry_run)

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
        reason = answer.fields.opt_text("reason", limit=1000)
        context.report(image, OutcomeWord.EXISTING, reason=reason)
        return True

    @staticmethod
    async def _fetch(context: HostContext, talk: Conversation, images: Sequence[Image]) -> None:
        talk.load(FETCH_MODULES)
        given_up: set[SourceKind] = set()
        for image in images:
            end = await transfer(context, talk, image, given_up, "fetch")
            report_end(context, image, end)


def _alone(context: HostContext, opened: Fields) -> AbstractAsyncContextManager[None]:
    """Wait for other hosts that keep their instances at the same share or cluster volume."""
    path = opened.get_str("cache_path", limit=1000).lower()
    shared = path.startswith("\\\\") or path[1:].startswith(":\\clusterstorage\\")
    return context.alone_on(f"hyperv:{path}") if shared else nullcontext()


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
