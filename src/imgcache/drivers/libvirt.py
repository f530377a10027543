"""The libvirt driver: base files below ``instances_path``, as nova-compute itself would have made them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcache.drivers import libvirt_life, libvirt_prove, libvirt_serve
from imgcache.drivers.base import Driver, UnsupportedError
from imgcache.drivers.libvirt_life import settings_for_helper
from imgcache.drivers.transfer import transfer
from imgcache.drivers.transfer_report import report_end, report_failure
from imgcache.errors import ErrorCode
from imgcache.model import RAW_DISK_FORMATS, base_file_name
from imgcache.plan import CheckState, OutcomeWord, SourceKind
from imgcache.transport.conversation import OrderError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from imgcache.drivers.base import HostContext, NoteRow, RemovalItem, RemovalRow, Verdict
    from imgcache.drivers.feed import Listener, Offer
    from imgcache.model import HostCache, Image, ImageId, ServiceAccess
    from imgcache.transport.conversation import Conversation, Message, Order

#: What a host that has everything needs; a host that lacks something gets the others as well.
WARM_MODULES = ("conf", "cache")
PROBE_MODULES = ("conf", "cache", "watch", "qemu", "download", "probe")
STORAGE_MODULES = ("mounts", "sharing")
FETCH_MODULES = (
    *("watch", "staging", *STORAGE_MODULES, "owners", "journal"),
    *("formats", "qemu"),
    *("download", "body", "sources", "fetch"),
)

#: Nova's images types whose hosts must not get base files.
#: Source: nova ``virt/libvirt/imagebackend.py``: Rbd imports a cached base file into Ceph, a full copy,
#: instead of cloning; Ploop keeps another layout.
_EXCLUDED_TYPES = {
    "rbd": "images_type is rbd: a cached file would make Nova import a full copy into Ceph at each boot, "
    "instead of a clone",
    "ploop": "images_type is ploop, which keeps its own layout",
}
_SECTOR_BYTES = 512
#: What a host keeps free when neither the inventory nor 5 % of its file system say more; as the helper.
_RESERVE_BYTES = 10 << 30
_MAX_CLOCK_OFFSET_S = 30.0
#: Longer than the helper waits for Nova's lock on one base file.
ANSWER_S = 60.0


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """What a host said about its cache."""

    cache_path: str
    images_type: str
    force_raw_images: bool
    free_bytes: int
    capacity_bytes: int


def whole_sizes(image: Image) -> list[int]:
    """Return the sizes in bytes that a whole base file of this image may have; 0: also others.

    A host keeps what it converted, or not, when its ``force_raw_images`` changes later, so both sizes
    are good. Source: nova ``virt/images.py``, ``fetch_to_raw``.
    """
    if image.disk_format in RAW_DISK_FORMATS:
        return [image.size_bytes]
    if image.virtual_size_bytes is None:
        return [image.size_bytes, 0]
    sectors = -(-image.virtual_size_bytes // _SECTOR_BYTES)
    return sorted({image.size_bytes, image.virtual_size_bytes, sectors * _SECTOR_BYTES})


class LibvirtDriver(Driver):
    """See ``Driver``. All images go through one connection and one helper."""

    name = "libvirt"
    kept_as_is = RAW_DISK_FORMATS

    def entry_name(self, image_id: ImageId) -> str:
        """See ``Driver.entry_name``."""
        return base_file_name(image_id)

    def refuses(self, image: Image) -> str | None:
        """See ``Driver.refuses``.

        Source: nova ``virt/images.py``: its inspector says ``vhd`` where qemu-img says ``vpc``.
        """
        if image.disk_format == "vhd":
            return "has disk format vhd, which Nova refuses to boot on libvirt"
        if image.container_format == "ova":
            return "is a package (container format ova), which Nova boots on vSphere only"
        return None

    async def precache(self, context: HostContext, images: Sequence[Image]) -> None:
        """See ``Driver.precache``.

        The orders that look and touch leave together with the helper's code, before the host has said
        a word: a host that has everything costs one exchange.
        """
        usable = self.usable(context, images)
        if not usable:
            return
        async with context.converse(WARM_MODULES) as talk:
            opened = talk.order("open", settings=settings_for_helper(context.host.settings))
            touches = [(image, self._order_touch(context, talk, image)) for image in usable]
            await talk.flush()
            try:
                facts = _facts(await talk.result(opened, timeout_s=ANSWER_S))
            except OrderError as error:
                if error.code is ErrorCode.BACKEND:
                    raise UnsupportedError(error.code, error.message) from error
                raise
            _refuse_excluded(facts)
            absent = [
                image
                for image, order in touches
                if not await self._touched(context, talk, image, order)
            ]
            if context.dry_run:
                _report_dry_run(context, absent, facts)
            elif absent:
                async with context.sources.member(context):
                    await self._fetch_once(context, talk, absent)

    def serving(
        self, context: HostContext, image: Image, listener: Listener, offer: Offer
    ) -> AbstractAsyncContextManager[int | None]:
        """See ``Driver.serving``."""
        return libvirt_serve.serving(context, image, listener, offer)

    async def check(
        self, context: HostContext, service: ServiceAccess | None
    ) -> Sequence[tuple[str, CheckState, str]]:
        """See ``Driver.check``."""
        async with context.converse(PROBE_MODULES) as talk:
            order = talk.order(
                "probe",
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
            return [_clock_check(talk.hello.clock_offset_s), *rows]

    async def inspect(self, context: HostContext, *, formats: bool, use: bool) -> HostCache:
        """See ``Driver.inspect``."""
        return await libvirt_life.inspect(context, formats=formats, use=use)

    async def remove(
        self,
        context: HostContext,
        items: Sequence[RemovalItem],
        on_row: Callable[[RemovalRow], None],
    ) -> None:
        """See ``Driver.remove``."""
        await libvirt_life.remove(context, items, on_row)

    async def clean(
        self, context: HostContext, stall_age_s: float, on_row: Callable[[RemovalRow], None]
    ) -> None:
        """See ``Driver.clean``."""
        await libvirt_life.clean(context, stall_age_s, on_row)

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
        await libvirt_life.verify(
            context,
            base_names,
            adopt=adopt,
            bytes_per_s=bytes_per_s,
            on_verdict=on_verdict,
            on_progress=on_progress,
        )

    async def prove(
        self,
        context: HostContext,
        images: Sequence[Image],
        *,
        bytes_per_s: int | None,
        on_verdict: Callable[[Verdict], None],
    ) -> None:
        """See ``Driver.prove``."""
        await libvirt_prove.prove(context, images, bytes_per_s=bytes_per_s, on_verdict=on_verdict)

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
        await libvirt_life.pin(context, base_names, until, on_row, extend=extend)

    async def renew(
        self,
        context: HostContext,
        sizes: Sequence[tuple[str, int]],
        on_row: Callable[[NoteRow], None],
    ) -> None:
        """See ``Driver.renew``."""
        await libvirt_life.renew(context, sizes, on_row)

    async def _fetch_once(
        self, context: HostContext, talk: Conversation, absent: Sequence[Image]
    ) -> None:
        """Fetch what is absent; hosts that share a storage one after the other, the first for all."""
        talk.load(FETCH_MODULES)
        storage = await _storage_id(talk)
        if storage is None:
            await _fetch_all(context, talk, absent)
            return
        async with context.alone_on(storage):
            touches = [(image, self._order_touch(context, talk, image)) for image in absent]
            still_absent = [
                image
                for image, order in touches
                if not await self._touched(context, talk, image, order)
            ]
            await _fetch_all(context, talk, still_absent)

    @staticmethod
    def _order_touch(context: HostContext, talk: Conversation, image: Image) -> Order:
        context.begin(image)
        return talk.order(
            "touch", base=image.base_name, sizes=whole_sizes(image), dry=context.dry_run
        )

    @staticmethod
    async def _touched(
        context: HostContext, talk: Conversation, image: Image, order: Order
    ) -> bool:
        """Report an image that is there, or cannot be; return False when it is to be fetched."""
        try:
            answer = await talk.result(order, timeout_s=ANSWER_S)
        except OrderError as error:
            report_failure(context, image, error)
            return True
        if answer.fields.get_choice("state", {"existing", "absent"}) == "absent":
            return False
        reason = answer.fields.opt_str("reason", limit=1000)
        touched = context.dry_run or answer.fields.get_bool("touched")
        code = None if touched else ErrorCode.NOT_TOUCHED
        context.report(image, OutcomeWord.EXISTING, code=code, reason=reason)
        context.sources.present(context, image)
        if not touched:
            context.notice(f"{image.name}: {reason}")
        return True


async def _fetch_all(context: HostContext, talk: Conversation, images: Sequence[Image]) -> None:
    given_up: set[SourceKind] = set()
    more = {"keep_original": context.host.settings.keep_original, "keep_partial": True}
    for image in images:
        end = await transfer(context, talk, image, given_up, "fetch", relays=True, **more)
        report_end(context, image, end)


async def _storage_id(talk: Conversation) -> str | None:
    """Return which storage the cache shares with other hosts; None: none, or that cannot be told.

    Not knowing costs a second download at most: whoever publishes last finds the file there.
    """
    try:
        answer = await talk.result(talk.order("storage"), timeout_s=ANSWER_S)
    except OrderError:
        return None
    return answer.fields.opt_str("storage_id", limit=200)


def _clock_check(offset_s: float) -> tuple[str, CheckState, str]:
    """Ages are decided by the host's own clock; a wrong one ages entries wrongly, and breaks TLS."""
    detail = f"{offset_s:+.1f} s against this machine"
    return (
        "clock",
        CheckState.OK if abs(offset_s) <= _MAX_CLOCK_OFFSET_S else CheckState.WARN,
        detail,
    )


def _facts(answer: Message) -> CacheFacts:
    return CacheFacts(
        cache_path=answer.fields.get_str("cache_path"),
        images_type=answer.fields.get_str("images_type"),
        force_raw_images=answer.fields.get_bool("force_raw_images"),
        free_bytes=answer.fields.get_int("free"),
        capacity_bytes=answer.fields.get_int("capacity"),
    )


def _refuse_excluded(facts: CacheFacts) -> None:
    reason = _EXCLUDED_TYPES.get(facts.images_type)
    if reason:
        raise UnsupportedError(ErrorCode.BACKEND, reason)


def _report_dry_run(context: HostContext, absent: Sequence[Image], facts: CacheFacts) -> None:
    """Report what a run would do for images that are not there, one after the other in the room there is."""
    reserve = context.host.settings.reserve_bytes
    if reserve is None:
        reserve = max(facts.capacity_bytes // 20, _RESERVE_BYTES)
    left = facts.free_bytes - reserve
    for image in absent:
        final, most = room_needed(image, force_raw_images=facts.force_raw_images)
        if most > left:
            reason = (
                f"dry run: {most} bytes would be needed, {max(left, 0)} are free beside the reserve"
            )
            context.report(image, OutcomeWord.ERROR, code=ErrorCode.SPACE, reason=reason)
            continue
        left -= final
        by: str = context.sources.kinds(image)[0]
        if context.sources.relays(context):
            by = f"relay from a host of its site, or {by}"
        reason = f"dry run: would be fetched, {image.size_bytes} bytes by {by}"
        context.report(image, OutcomeWord.SKIPPED, code=ErrorCode.DRY_RUN, reason=reason)


def room_needed(image: Image, *, force_raw_images: bool) -> tuple[int, int]:
    """Return the bytes that the final may take, and those that original and final may take together."""
    if not force_raw_images or image.disk_format in RAW_DISK_FORMATS:
        return image.size_bytes, image.size_bytes
    final = image.virtual_size_bytes or image.size_bytes
    return final, image.size_bytes + final
