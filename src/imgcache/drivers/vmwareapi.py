"""The vmwareapi driver: the image cache that nova-compute keeps on a vSphere cluster's datastores.

The helper runs on the host of nova-compute, reads vCenter's address and credentials from nova.conf there, and
speaks the vSphere API. An image is cached when every datastore that Nova may choose has it.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, ClassVar

from imgcache import __version__
from imgcache.drivers.agent import AgentDriver, Backend
from imgcache.drivers.base import Verdict, VerdictState
from imgcache.drivers.entry_rows import Shapes, verdict_from
from imgcache.drivers.order_fields import image_fields
from imgcache.drivers.transfer import transfer
from imgcache.drivers.transfer_report import report_end, report_failure
from imgcache.errors import ErrorCode, HostError
from imgcache.model import EntryKind
from imgcache.plan import OutcomeWord
from imgcache.transport.conversation import OrderError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from imgcache.drivers.base import HostContext
    from imgcache.model import HostSettings, Image
    from imgcache.plan import SourceKind
    from imgcache.transport.conversation import Conversation, Message, Order
    from imgcache.transport.wire import Fields

#: What every conversation of this driver needs, in the order in which they import each other.
BASE_MODULES = (
    *("conf", "watch", "staging", "formats", "soap", "vim"),
    *("vmware_conf", "vmware_stores", "vmware", "vmware_names"),
    *("vmware_files", "vmware_notes", "vmware_image", "vmware_entry"),
)
LIFE_MODULES = (*BASE_MODULES, "vmware_use", "vmware_life")
VERIFY_MODULES = (*LIFE_MODULES, "vmware_verify")
PROBE_MODULES = (
    *("conf", "cache", "watch", "staging", "formats", "qemu", "download", "body", "probe"),
    *BASE_MODULES[4:],
    "vmware_probe",
)
FETCH_MODULES = (
    *("download", "body"),
    *("vmware_bring", "vmware_import", "vmware_make", "vmware_fetch"),
)
#: Longer than vCenter takes for anything that is no task.
ANSWER_S = 180.0
#: Nova's folders are called as the images' ids.
SHAPES = Shapes({EntryKind.ORIGINAL: re.compile(r"[0-9a-fA-F-]{36}", re.ASCII)}, 36)


class VmwareDriver(AgentDriver):
    """See ``Driver``. All images go through one connection, one helper and one session with vCenter."""

    name = "vmwareapi"
    backend = Backend(
        name="vmware",
        modules={
            "renew": LIFE_MODULES,
            "probe": PROBE_MODULES,
            "list": LIFE_MODULES,
            "remove": LIFE_MODULES,
            "clean": LIFE_MODULES,
            "verify": VERIFY_MODULES,
            "pin": LIFE_MODULES,
        },
        shapes=SHAPES,
        items_per_request=20,
        answer_s=600.0,
        hash_silence_s=600.0,
        unproven="other bytes, or made of them by vSphere",
    )
    unsupported: ClassVar[Mapping[str, str]] = {
        "prove": "vSphere makes the disks of such images, and nothing can be told from comparing them"
    }

    def settings(self, settings: HostSettings) -> dict[str, object]:
        """See ``AgentDriver.settings``."""
        return {
            "cache_subdirectory": settings.cache_subdirectory,
            "datastores": list(settings.datastores) if settings.datastores else None,
            "nova_conf": list(settings.nova_conf) if settings.nova_conf else None,
        }

    @asynccontextmanager
    async def opened(
        self, context: HostContext, modules: Sequence[str]
    ) -> AsyncIterator[tuple[Conversation, Fields]]:
        """Log in to vCenter as well, and out again.

        Raises:
            UnsupportedError: the cluster has no datastore that could hold a cache.
            HostError: see ``HostContext.converse``; besides ``config``, ``auth``, ``tls``, ``unreachable``.
        """
        async with super().opened(context, modules) as (talk, answer):
            if notice := answer.opt_str("notice", limit=1000):
                context.notice(notice)
            yield talk, answer
            with suppress(HostError):
                await talk.result(talk.order("close"), timeout_s=ANSWER_S)

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
        async with self.opened(context, BASE_MODULES) as (talk, answer):
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
            order = talk.order(
                "touch",
                dry=context.dry_run,
                reserve=reserve,
                image=image_fields(image),
                properties=dict(image.properties),
                container=image.container_format,
            )
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

    def adopt_fields(self, context: HostContext, image: Image | None) -> dict[str, object]:
        """See ``AgentDriver.adopt_fields``: the helper adopts as it hashes, on all datastores."""
        if image is None:
            return {"adopt": None}
        tool = f"imgcache {__version__}"
        return {"adopt": {"image": image_fields(image), "tool": tool, "run": context.run_id}}

    async def verdict(
        self,
        context: HostContext,
        talk: Conversation,
        name: str,
        image: Image | None,
        answer: Fields,
    ) -> Verdict:
        """See ``AgentDriver.verdict``."""
        if answer.opt_str("state", limit=20) == "adopted":
            return Verdict(name, VerdictState.ADOPTED)
        verdict = verdict_from(name, answer)
        if image and verdict.state is VerdictState.UNMANAGED and verdict.digest:
            return self.unproven(verdict, image)
        return verdict

    def order_renew(self, context: HostContext, talk: Conversation, name: str, size: int) -> Order:
        """Queue what takes away the timestamps by which Nova counts an image as unused."""
        return talk.order("renew", base=name, dry=context.dry_run)


async def _fetch_all(context: HostContext, talk: Conversation, images: Sequence[Image]) -> None:
    given_up: set[SourceKind] = set()
    for image in images:
        end = await transfer(
            context,
            talk,
            image,
            given_up,
            "fetch",
            properties=dict(image.properties),
            container=image.container_format,
        )
        report_end(context, image, end, copies=True)


def _report_existing(context: HostContext, image: Image, answer: Message) -> None:
    reason = answer.fields.opt_text("reason", limit=1000)
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
