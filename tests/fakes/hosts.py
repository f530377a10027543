"""Hosts for these tests, and what is asked of them."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcache.model import Host, HostSettings
from imgcache.transport.conversation import start_conversation

if TYPE_CHECKING:
    from imgcache.transport.base import Transport
    from imgcache.transport.conversation import Hello

MISBEHAVING = Path(__file__).with_name("misbehaving_helper.py")


def make_host(name: str = "edge1-01", **settings: Any) -> Host:
    """A host with these settings."""
    settings.setdefault("python", (sys.executable,))
    return Host(name, "edge-1", None, None, HostSettings(**settings))


def misbehaving(mode: str, *, name: str = "edge1-01", **settings: Any) -> Host:
    """A host whose Python is ``fakes/misbehaving_helper.py``."""
    return make_host(name, python=(sys.executable, str(MISBEHAVING), mode), **settings)


async def greet(transport: Transport, host: Host) -> Hello:
    """Start the helper, get its hello, say good-bye."""
    async with start_conversation(transport, host, ()) as conversation:
        return await conversation.ready()


def is_safe(text: str) -> bool:
    """Whether a text can be shown on any terminal: no control, bidi or separator characters."""
    categories = {unicodedata.category(char) for char in text}
    return categories.isdisjoint({"Cc", "Cs", "Zl", "Zp"}) and not any(
        "\u202a" <= char <= "\u202e" for char in text
    )
