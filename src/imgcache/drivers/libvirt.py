"""The libvirt driver: base files below ``instances_path``, as nova-compute itself would have made them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcache.drivers.agent import AgentDriver, Backend
from imgcache.drivers.base import UnsupportedError, Verdict, VerdictState
from imgcache.drivers.entry_rows import proof_from
from imgcache.drivers.order_fields import image_fields, listener_fields
from imgcache.drivers.transfer import check_all_came, transfer
from imgcache.drivers.transfer_report import report_end, report_failure
from imgcache.errors import ErrorCode, HostError
from imgcache.model import RAW_DISK_FORMATS, base_file_name
from imgcache.plan import OutcomeWord
from imgcache.transport.conversation import OrderError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from imgcache.drivers.base import HostContext
    from imgcache.drivers.feed import Listener, Offer
    from imgcache.model import HostSettings, Image, ImageId
    from imgcache.plan import SourceKind
    from imgcache.transport.conversation import Conversation, Message, Order

#: What a host that has everything needs; a host that lacks something gets the others as well.
WARM_MODULES = ("conf", "cache")
PROBE_MODULES = ("conf", "cache", "watch", "qemu", "download", "probe")
LIST_MODULES = (
    *WARM_MODULES,
    *("watch", "staging", "formats"),
    *("vhd", "headers", "mounts", "sharing", "owners"),
    *("ways", "domains", "processes", "usage", "removable", "facts", "entries"),
)
VERIFY_MODULES = (*LIST_MODULES, "verify")
REMOVE_MODULES = (*LIST_MODULES, "leases", "removal")
CLEAN_MODULES = (*REMOVE_MODULES, "clean")
PROVE_MODULES = (
    *VERIFY_MODULES,
    *("journal", "qemu", "download", "body", "sources", "fetch", "prove"),
)
STORAGE_MODULES = ("mounts", "sharing")
SERVE_MODULES = ("conf", "cache", "watch", "staging", "offers", "relay")
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
#: Longer than the helper waits for Nova's lock on one base file.
ANSWER_S = 60.0
_SERVE_S = 30.0


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


class LibvirtDriver(AgentDriver):
    """See ``Driver``. All images go through one connection and one helper."""

    name = "libvirt"
    kept_as_is = RAW_DISK_FORMATS
    backend = Backend(
        name=None,
        modules={
            "renew": WARM_MODULES,
            "probe": PROBE_MODULES,
            "list": LIST_MODULES,
            "remove": REMOVE_MODULES,
            "clean": CLEAN_MODULES,
            "verify": VERIFY_MODULES,
            "pin": VERIFY_MODULES,
        },
    )

    def settings(self, settings: HostSettings) -> dict[str, object]:
        """See ``AgentDriver.settings``."""
        return {
            "instances_path": settings.instances_path,
            "cache_subdirectory": settings.cache_subdirectory,
            "force_raw_images": settings.force_raw_images,
            "images_type": settings.images_type,
            "nova_conf": list(settings.nova_conf) if settings.nova_conf else None,
        }

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
            opened = self.order_open(context, talk)
            touches = [(image, self._order_touch(context, talk, image)) for image in usable]
            await talk.flush()
            facts = _facts(await self.open_answer(talk, opened))
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

    @asynccontextmanager
    async def serving(
        self, context: HostContext, image: Image, listener: Listener, offer: Offer
    ) -> AsyncIterator[int | None]:
        """See ``Driver.serving``."""
        async with self.start(context, SERVE_MODULES) as talk:
            orders = (
                self.order_open(context, talk),
                talk.order("relay", **listener_fields(listener)),
                talk.order(
                    "serve",
                    base=image.base_name,
                    image=image_fields(image),
                    name=offer.name,
                    key=offer.key.reveal(),
                ),
            )
            await talk.flush()
            try:
                _, relay, serve = [await talk.result(one, timeout_s=_SERVE_S) for one in orders]
            except OrderError:
                port = None
            else:
                port = relay.fields.get_int("port", low=1, high=65535)
                if serve.fields.get_choice("state", {"serving", "absent", "other"}) != "serving":
                    port = None
            talk.stay_alive()
            yield port

    async def prove(
        self, context: HostContext, images: Sequence[Image], *, bytes_per_s: int | None
    ) -> AsyncGenerator[Verdict, None]:
        """See ``Driver.prove``."""
        given_up: set[SourceKind] = set()
        async with self.opened(context, PROVE_MODULES) as (talk, _):
            for image in images:
                yield await self._prove(context, talk, image, given_up, bytes_per_s)

    async def _prove(
        self,
        context: HostContext,
        talk: Conversation,
        image: Image,
        given_up: set[SourceKind],
        bytes_per_s: int | None,
    ) -> Verdict:
        end = await transfer(context, talk, image, given_up, "prove", rate=bytes_per_s)
        if isinstance(end.ending, HostError):
            return _unproven(image, end.ending)
        verdict = proof_from(image.base_name, end.ending.fields)
        if verdict.digest is None:
            return verdict
        check_all_came(image, end.ending)
        try:
            return await self.adopt(context, talk, image, verdict)
        except OrderError as error:
            return _unproven(image, error)

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
        reason = answer.fields.opt_text("reason", limit=1000)
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


def _unproven(image: Image, error: HostError) -> Verdict:
    text = f"{error.message}: {error.hint}" if error.hint else error.message
    if error.code is ErrorCode.CHANGED:
        return Verdict(image.base_name, VerdictState.FAILED, error.code, text)
    reason = f"its content could not be proven: {text}"
    return Verdict(image.base_name, VerdictState.FAILED, error.code, reason)


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
    """Return the bytes that the final takes at least, and those of original and final together.

    How much data a converted image has shows when it is there; most of a virtual size may be holes.
    """
    if not force_raw_images or image.disk_format in RAW_DISK_FORMATS:
        return image.size_bytes, image.size_bytes
    final = min(image.virtual_size_bytes or image.size_bytes, image.size_bytes)
    return final, image.size_bytes + final
