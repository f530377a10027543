"""All transports of one run behind one door: each host is reached by the one its settings name."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from imgcache.model import Host
    from imgcache.transport.base import Session, Transport


class _DispatchingTransport:
    """See ``Transport``."""

    def __init__(self, by_name: dict[str, Transport]) -> None:
        self._by_name = by_name

    def open(self, host: Host, command: str) -> AbstractAsyncContextManager[Session]:
        """See ``Transport``."""
        return self._by_name[host.settings.transport].open(host, command)


@asynccontextmanager
async def open_transport() -> AsyncIterator[Transport]:
    """Open what all hosts of a run share; leaving closes it."""
    from imgcache.transport.local import LocalTransport  # noqa: PLC0415 - loads asyncssh only for a run
    from imgcache.transport.ssh import SshTransport  # noqa: PLC0415

    async with SshTransport() as ssh:
        yield _DispatchingTransport({"ssh": ssh, "local": LocalTransport()})
