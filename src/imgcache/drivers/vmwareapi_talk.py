"""How the vmwareapi driver begins and ends a conversation, and what its orders about images need."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from imgcache.drivers.base import UnsupportedError
from imgcache.drivers.entry_rows import Shapes
from imgcache.drivers.order_fields import image_fields
from imgcache.errors import ErrorCode, HostError
from imgcache.model import EntryKind
from imgcache.transport.conversation import OrderError
from imgcache.transport.orders import register_rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from imgcache.drivers.base import HostContext
    from imgcache.model import HostSettings, Image
    from imgcache.transport.conversation import Conversation
    from imgcache.transport.wire import Fields

#: What every conversation of this driver needs, in the order in which they import each other.
BASE_MODULES = (
    *("conf", "watch", "staging", "formats", "soap", "vim"),
    *("vmware_conf", "vmware_stores", "vmware", "vmware_names"),
    *("vmware_files", "vmware_notes", "vmware_image", "vmware_entry"),
)
LIFE_MODULES = ("vmware_use", "vmware_life")
VERIFY_MODULES = (*LIFE_MODULES, "vmware_verify")
PROBE_MODULES = (
    *("conf", "cache", "watch", "staging", "formats", "qemu", "download", "body", "probe"),
    *BASE_MODULES[4:],
    "vmware_probe",
)

#: Longer than vCenter takes for anything that is no task.
ANSWER_S = 180.0

#: Nova's folders are called as the images' ids.
SHAPES = Shapes({EntryKind.ORIGINAL: re.compile(r"[0-9a-fA-F-]{36}", re.ASCII)}, 36)

register_rows("vmware_list", 32 * 1024 * 1024, 8192)
register_rows("vmware_remove", 256 * 1024, 128)
register_rows("vmware_clean", 4 * 1024 * 1024, 4096)


@asynccontextmanager
async def opened(
    context: HostContext, modules: Sequence[str] = ()
) -> AsyncIterator[tuple[Conversation, Fields]]:
    """Start the helper and log in to vCenter; gives the conversation, and what ``vmware_open`` answered.

    Raises:
        UnsupportedError: the cluster has no datastore that could hold a cache.
        HostError: see ``HostContext.converse``; besides ``config``, ``auth``, ``tls``, ``unreachable``.
    """
    async with context.converse((*BASE_MODULES, *modules)) as talk:
        host = context.host.settings
        order = talk.order("vmware_open", settings=settings(host))
        async with talk.keep_alive():
            try:
                answer = await talk.result(order, timeout_s=ANSWER_S)
            except OrderError as error:
                if error.code is ErrorCode.BACKEND:
                    raise UnsupportedError(error.code, error.message) from error
                raise
            if notice := answer.fields.opt_str("notice", limit=1000):
                context.notice(notice)
            yield talk, answer.fields
            with suppress(HostError):
                await talk.result(talk.order("vmware_close"), timeout_s=ANSWER_S)


def settings(host: HostSettings) -> dict[str, object]:
    """Return the part of the settings that overrides the host's nova.conf."""
    return {
        "cache_subdirectory": host.cache_subdirectory,
        "datastores": list(host.datastores) if host.datastores else None,
        "nova_conf": list(host.nova_conf) if host.nova_conf else None,
    }


def image_order(image: Image) -> dict[str, object]:
    """Return what orders about an image need besides the protocol's ``image``."""
    return {
        "image": image_fields(image),
        "properties": dict(image.properties),
        "container": image.container_format,
    }
