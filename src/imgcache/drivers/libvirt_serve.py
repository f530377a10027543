"""Lets other hosts read an image's original bytes from a libvirt host that had it before this run."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from imgcache.drivers.libvirt_life import settings_for_helper
from imgcache.drivers.order_fields import image_fields, listener_fields
from imgcache.transport.conversation import OrderError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgcache.drivers.base import HostContext
    from imgcache.drivers.feed import Listener, Offer
    from imgcache.model import Image
    from imgcache.transport.conversation import Conversation

SERVE_MODULES = ("conf", "cache", "watch", "staging", "offers", "relay")
_ANSWER_S = 30.0


@asynccontextmanager
async def serving(
    context: HostContext, image: Image, listener: Listener, offer: Offer
) -> AsyncIterator[int | None]:
    """See ``Driver.serving``."""
    async with context.converse(SERVE_MODULES) as talk:
        port = await _serve(context, talk, image, listener, offer)
        talk.stay_alive()
        yield port


async def _serve(
    context: HostContext, talk: Conversation, image: Image, listener: Listener, offer: Offer
) -> int | None:
    orders = (
        talk.order("open", settings=settings_for_helper(context.host.settings)),
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
        _, relay, serve = [await talk.result(one, timeout_s=_ANSWER_S) for one in orders]
    except OrderError:
        return None
    port = relay.fields.get_int("port", low=1, high=65535)
    state = serve.fields.get_choice("state", {"serving", "absent", "other"})
    return port if state == "serving" else None
