"""One thread for the blocking reads of one push; nobody waits for it when a read hangs."""

from __future__ import annotations

import asyncio
import queue
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


class ReaderThread:
    """Runs blocking calls one after the other in a daemon thread.

    Unlike the event loop's own executor, whose threads are joined at the program's end: a read from a
    service that fell silent lasts until its timeout, and would hold up an interrupted run for so long.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None]
        self._jobs = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="imgcache-reader", daemon=True)
        self._thread.start()

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what ``function`` returns; when cancelled, it runs to its end all the same."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((future, lambda: function(*args, **kwargs)))
        return await future

    def end(self) -> None:
        """Let the thread end after the calls that it was given."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, call = job
            try:
                result, error = call(), None
            except BaseException as caught:  # noqa: BLE001 - raised where the call was made
                result, error = None, caught
            # The loop may be closed by now; then nobody wants to know.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_settle, future, result, error)


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
