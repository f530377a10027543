"""The vmwareapi driver: the image cache that nova-compute keeps on a vSphere cluster's datastores.

The helper runs on the host of nova-compute, reads vCenter's address and credentials from nova.conf there, and
speaks the vSphere API. An image is cached when every datastore that Nova may choose has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from imgcache.drivers import vmwareapi_life as life
from imgcache.drivers.base import Driver
from imgcache.drivers.transfer import transfer
from imgcache.drivers.transfer_report import report_end, report_failure
from imgcache.drivers.vmwareapi_talk import ANSWER_S, PROBE_MODULES, image_order, opened, settings
from imgcache.errors import ErrorCode
from imgcache.plan import CheckState, OutcomeWord
from imgcache.transport.conversation import OrderError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from imgcache.drivers.base import HostContext, NoteRow, RemovalItem, RemovalRow, Verdict
    from imgcache.model import HostCache, Image, ServiceAccess
    from imgcache.plan import SourceKind
    from imgcache.transport.conversation import Conversation, Message

FETCH_MODULES = (
    *("download", "body"),
    *("vmware_bring", "vmware_import", "vmware_make", "vmware_fetch"),
)
_MAX_CLOCK_OFFSET_S = 30.0


class VmwareDriver(Driver):
    """See ``Driver``. All images go through one connection, one helper and one session with vCenter."""

    name = "vmwareapi"
    unsupported: ClassVar[Mapping[str, str]] = {
        "prove": "vSphere makes the disks of such images, and nothing can be told from comparing them"
    }

    def refuses(self, image: Image) -> str | None:
        """See ``Driver.refuses``. Source: nova ``virt/vmwareapi/constants.py``, ``ALLOWED_DISK_TYPES``."""
        if image.disk_format in {"vmdk", "iso"}:
            return None
        return (
            f"has disk format {image.disk_format}: Nova's vmwareapi driver takes vmdk and iso only"
        )

    async def precache(self, context: HostContext, images: Sequence[Image]) -> None:
        """See ``Driver.precache``."""
        usable = self.usable(context, images)
        if not usable:
            return
        async with opened(context) as (talk, answer):
            absent = await self._touch_all(context, talk, usable)
            if context.dry_run or not absent:
                return
            talk.load(FETCH_MODULES)
            storage = answer.opt_str("storage_id", limit=200)
            if storage is None:
                await _fetch_all(context, talk, absent)
                return
            async with context.alone_on(storage):
                await _fetch_all(context, talk, await self._touch_all(context, talk, absent))

    async def _touch_all(
        self, context: HostContext, talk: Conversation, images: Sequence[Image]
    ) -> list[Image]:
        """Renew and report what is there, and what cannot be; return the rest."""
        orders = []
        for image in images:
            context.begin(image)
            reserve = context.host.settings.reserve_bytes
            fields = image_order(image)
            order = talk.order("vmware_touch", dry=context.dry_run, reserve=reserve, **fields)
            orders.append((image, order))
        absent = []
        for image, order in orders:
            try:
                answer = await talk.result(order, timeout_s=ANSWER_S)
            except OrderError as error:
                report_failure(context, image, error)
                continue
            if answer.fields.get_choice("state", {"existing", "absent"}) == "existing":
                _report_existing(context, image, answer)
            elif context.dry_run:
                _report_dry_run(context, image, answer)
            else:
                absent.append(image)
        return absent

    async def check(
        self, context: HostContext, service: ServiceAccess | None
    ) -> Sequence[tuple[str, CheckState, str]]:
        """See ``Driver.check``."""
        async with context.converse(PROBE_MODULES) as talk:
            order = talk.order(
                "vmware_probe",
                settings=settings(context.host.settings),
                url=service.url if service else None,
                ca_pem=service.ca_pem if service else None,
                insecure=service.insecure if service else False,
                reserve=context.host.settings.reserve_bytes,
            )
            async with talk.keep_alive():
                answer = await talk.result(order, timeout_s=ANSWER_S)
            offset_s = talk.hello.clock_offset_s
            right = abs(offset_s) <= _MAX_CLOCK_OFFSET_S
            state = CheckState.OK if right else CheckState.WARN
            rows = [
                (
                    item.get_str("name", limit=40),
                    item.get_enum("state", CheckState),
                    item.get_str("detail", limit=1000),
                )
                for item in answer.fields.get_objects("checks")
                if service or item.get_str("name", limit=40) != "glance"
            ]
            return [("clock", state, f"{offset_s:+.1f} s against this machine"), *rows]

    async def inspect(self, context: HostContext, *, formats: bool, use: bool) -> HostCache:
        """See ``Driver.inspect``."""
        return await life.inspect(context, formats=formats, use=use)

    async def remove(
        self,
        context: HostContext,
        items: Sequence[RemovalItem],
        on_row: Callable[[RemovalRow], None],
    ) -> None:
        """See ``Driver.remove``."""
        await life.remove(context, items, on_row)

    async def clean(
        self, context: HostContext, stall_age_s: float, on_row: Callable[[RemovalRow], None]
    ) -> None:
        """See ``Driver.clean``."""
        await life.clean(context, stall_age_s, on_row)

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
        await life.verify(
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
        await life.pin(context, base_names, until, on_row, extend=extend)

    async def renew(
        self,
        context: HostContext,
        sizes: Sequence[tuple[str, int]],
        on_row: Callable[[NoteRow], None],
    ) -> None:
        """See ``Driver.renew``."""
        await life.renew(context, [name for name, _ in sizes], on_row)


async def _fetch_all(context: HostContext, talk: Conversation, images: Sequence[Image]) -> None:
    given_up: set[SourceKind] = set()
    for image in images:
        end = await transfer(
            context,
            talk,
            image,
            given_up,
            "vmware_fetch",
            properties=dict(image.properties),
            container=image.container_format,
        )
        report_end(context, image, end, copies=True)


def _report_existing(context: HostContext, image: Image, answer: Message) -> None:
    reason = answer.fields.opt_str("reason", limit=1000)
    touched = context.dry_run or answer.fields.get_bool("touched")
    code = None if touched else ErrorCode.NOT_TOUCHED
    context.report(image, OutcomeWord.EXISTING, code=code, reason=reason)
    if not touched:
        context.notice(f"{image.name}: {reason}")


def _report_dry_run(context: HostContext, image: Image, answer: Message) -> None:
    short = answer.fields.opt_str("short", limit=1000)
    if short:
        reason = f"dry run: {short}"
        context.report(image, OutcomeWord.ERROR, code=ErrorCode.SPACE, reason=reason)
        return
    kind = context.sources.kinds(image)[0]
    stores = ", ".join(answer.fields.get_strings("missing", limit=100))
    reason = f"dry run: would be fetched, {image.size_bytes} bytes by {kind}, to {stores}"
    context.report(image, OutcomeWord.SKIPPED, code=ErrorCode.DRY_RUN, reason=reason)
