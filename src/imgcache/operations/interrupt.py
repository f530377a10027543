"""Signals: the first one winds a run up, the second one ends the process at once."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """Whether the operator, or the system, asked the run to end."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self.signal_number: int | None = None

    def is_set(self) -> bool:
        """Return whether the run shall end."""
        return self._asked.is_set()

    async def wait(self) -> None:
        """Wait until the run shall end."""
        await self._asked.wait()

    def ask(self, signal_number: int) -> None:
        """Ask the run to end; asked twice, end the process at once.

        The helpers then notice that the controller is gone and clean up by themselves.
        """
        if self.is_set():
            os._exit(128 + signal_number)
        self.signal_number = signal_number
        self._asked.set()


@contextmanager
def interrupt_on_signals() -> Iterator[Interrupt]:
    """Turn SIGINT, SIGTERM and SIGHUP into an ``Interrupt`` while the context is open.

    Must be entered in the running event loop of the main thread. A signal that was ignored when the
    process started (``nohup``) stays ignored.
    """
    loop = asyncio.get_running_loop()
    interrupt = Interrupt()
    handled = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in handled:
        loop.add_signal_handler(number, interrupt.ask, number)
    try:
        yield interrupt
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
