"""One conversation with the helper on one host: orders out, events back.

    async with start_conversation(transport, host, ("cache",)) as conversation:
        order = conversation.order("touch", base=…, sizes=[…], dry=False)
        message = await conversation.result(order, timeout_s=60)

The helper's code, the start frame and all orders given before the first wait leave in one write, so a
host with everything in place costs one round trip after login. The helper works orders off in the order
given; its events are handed to the order that they belong to, and an event out of turn, for another
order, or with progress that runs backwards ends the conversation (code ``protocol``).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from imgcache.errors import ContactLostError, ErrorCode, HostError
from imgcache.transport import launch
from imgcache.transport.diagnosis import crash_error, explain_end
from imgcache.transport.orders import ROWS, Hello, Message, Order, OrderError, read_hello
from imgcache.transport.wire import FrameReader, protocol_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from imgcache.model import Host, Secret
    from imgcache.transport.base import Session, Transport
    from imgcache.transport.wire import Fields

__all__ = ["Conversation", "Hello", "Message", "Order", "OrderError", "start_conversation"]

#: From the moment the code is on its way to the helper's first word.
HELLO_TIMEOUT_S = 15.0
#: From ``bye`` to the helper's end.
GOODBYE_TIMEOUT_S = 5.0
PING_INTERVAL_S = 3.0
#: After the hello: how long a host, or the way to it, may take nothing of what is sent.
WRITE_STALL_S = 60.0
#: How often it is looked whether a write that waits has moved.
WRITE_LOOK_S = 1.0
#: The most bytes one ``data`` frame may carry.
MAX_DATA_BYTES = 256 * 1024


class Patience(Protocol):
    """What is to happen while a host keeps the controller waiting."""

    async def answered(self) -> None:
        """Note the helper's hello; nothing else is done, or counts as time, before it returns."""

    def stands_still(self) -> None:
        """Note that the host takes nothing of what is sent."""

    async def moves_again(self) -> None:
        """Note that it does again, or has all; nothing else is sent before it returns."""


@asynccontextmanager
async def start_conversation(
    transport: Transport,
    host: Host,
    modules: Sequence[str],
    patience: Patience | None = None,
) -> AsyncIterator[Conversation]:
    """Connect to ``host`` and start the helper with these of its modules.

    Nothing is written, and the helper not waited for, before the first ``flush``, ``ready`` or
    ``receive``. Leaving says good-bye, waits a few seconds at most, and closes everything.

    Raises:
        HostError: see ``Transport.open``; when the helper does not start, the first wait raises a code
            of ``python``, ``sudo``, ``shell``, ``hang``, ``protocol``, ``crash``, ``lost``.
    """
    command = launch.command_for(host)
    async with transport.open(host, command) as session:
        conversation = Conversation(session, host, modules, patience)
        try:
            yield conversation
        finally:
            await conversation.end()


class Conversation:
    """See the module. Used by one task; pings, ``switch`` and ``limit_rate`` may write beside it."""

    def __init__(
        self,
        session: Session,
        host: Host,
        modules: Sequence[str],
        patience: Patience | None = None,
    ) -> None:
        self._session = session
        self._patience = patience
        self._host = host
        self._marker = secrets.token_hex(16)
        self._reader = FrameReader(session, self._marker)
        self._orders: deque[Order] = deque()
        self._last_id = 0
        self._write_lock = asyncio.Lock()
        self._outgoing = bytearray(launch.core_bytes())
        self._hello: Hello | None = None
        self._hello_deadline: float | None = None
        self._failure: HostError | None = None
        self._ended = False
        self._written_at = 0.0
        self._loaded: set[str] = set()
        self._pinging: asyncio.Task[None] | None = None
        self.order("start", protocol=launch.PROTOCOL, marker=self._marker)
        self.load(modules)

    @property
    def hello(self) -> Hello:
        """What the helper said about itself; there once ``ready`` or a first ``receive`` returned."""
        if self._hello is None:
            message = "hello is asked for before the helper has answered"
            raise AssertionError(message)
        return self._hello

    def order(self, op: str, **fields: object) -> Order:
        """Queue an order; it leaves with the next ``flush`` or wait. Fields must be JSON values."""
        order = Order(self._next_id(), op)
        self._queue(launch.encode_frame({"op": op, "id": order.id, **fields}))
        self._expect(order)
        return order

    def load(self, modules: Sequence[str]) -> None:
        """Queue helper modules that the next orders need; those loaded already are left out."""
        wanted = tuple(name for name in dict.fromkeys(modules) if name not in self._loaded)
        self._loaded.update(wanted)
        if wanted:
            self._queue(launch.load_frames(wanted, self._last_id + 1))
        for _ in wanted:
            self._expect(Order(self._next_id(), "load"))

    async def flush(self) -> None:
        """Send everything that is queued, in one write.

        Raises:
            HostError: the helper has ended, the connection is gone, or the host takes no more; before the
                helper's hello its deadline holds.
        """
        if not self._outgoing:
            return
        async with self._write_lock:
            data = bytes(self._outgoing)
            self._outgoing.clear()
            if data:
                await self._write(data)

    async def ready(self) -> Hello:
        """Send what is queued and wait for the helper's hello.

        Raises:
            HostError: see ``start_conversation``.
        """
        await self.flush()
        is_first = self._hello is None
        while self._hello is None:
            await self._take_frame(self._hello_timeout())
        if is_first and self._patience:
            await self._patience.answered()
        return self._hello

    async def receive(self, order: Order, timeout_s: float) -> Message:
        """Return the next event of ``order``; wait at most ``timeout_s`` for it.

        Of several ``progress`` events that wait to be received only the latest is given.

        Raises:
            OrderError: the order ended with an error; the conversation goes on.
            ContactLostError: the host fell silent, or its connection or helper ended.
            HostError: the helper did not start, broke the protocol, or crashed.
        """
        if (message := order.take()) is not None:
            return message
        if order.done:
            text = f"{order!r} has ended, nothing more will come"
            raise AssertionError(text)
        await self.ready()
        deadline = time.monotonic() + timeout_s
        while (message := order.take()) is None:
            await self._take_frame(deadline - time.monotonic())
        return message

    async def events(self, order: Order, *, timeout_s: float) -> AsyncGenerator[Message, None]:
        """Yield the order's events as they come; the last is its ``result``, ``ready`` or ``retry``.

        Args:
            order: what was ordered.
            timeout_s: the longest wait for an event, and for progress that is more than the last.

        Raises:
            HostError: see ``receive``; code ``stall``: progress did not grow for ``timeout_s``.
        """
        last: tuple[str, int] | None = None
        grown_at = time.monotonic()
        while True:
            message = await self.receive(order, timeout_s)
            yield message
            if message.event == "progress":
                mark = message.fields.get_str("phase"), message.fields.get_int("done")
                now = time.monotonic()
                if mark != last:
                    last, grown_at = mark, now
                elif now - grown_at > timeout_s:
                    text = f"no progress for {timeout_s:.0f} s while in phase {mark[0]}"
                    raise HostError(ErrorCode.STALL, text)
            elif message.event != "rows":
                return

    async def result(self, order: Order, *, timeout_s: float) -> Message:
        """Return the last of an order's ``events``."""
        async with aclosing(self.events(order, timeout_s=timeout_s)) as events:
            return [message async for message in events][-1]

    async def send_data(self, order: Order, block: bytes) -> None:
        """Send a block of a pushed image, at most 256 KiB; an empty one says that it was the last.

        Waits while the host takes no more.
        """
        if len(block) > MAX_DATA_BYTES:
            text = f"a block of {len(block)} bytes is too long"
            raise AssertionError(text)
        self._queue(launch.encode_frame({"op": "data", "id": order.id, "size": len(block)}) + block)
        await self.flush()

    async def again(self, order: Order, token: Secret | None, **fields: object) -> None:
        """Let a fetch that said ``retry`` go on, with a new token or (None) the one it has.

        ``fields``: ``source``, a whole new one; ``rate``, the most it may take from now on.
        """
        revealed = token.reveal() if token else None
        frame = {"op": "again", "id": order.id, "token": revealed, **fields}
        self._queue(launch.encode_frame(frame))
        order.restart()
        self._reader.order_sent()
        await self.flush()

    async def switch(self, order: Order) -> None:
        """Make a fetch leave its source: it says ``retry`` with code ``switched``, if it still reads."""
        self._queue(launch.encode_frame({"op": "switch", "id": order.id}))
        self._reader.order_sent()
        await self.flush()

    async def limit_rate(self, order: Order, bytes_per_s: int | None) -> None:
        """Let a fetch take at most so much from its source from now on; None: whatever comes."""
        self._queue(launch.encode_frame({"op": "rate", "id": order.id, "rate": bytes_per_s}))
        await self.flush()

    async def stop(self, order: Order) -> None:
        """Make a fetch clean up and end; its error ``interrupted`` still has to be received."""
        self._queue(launch.encode_frame({"op": "stop", "id": order.id}))
        order.restart()
        await self.flush()

    @asynccontextmanager
    async def keep_alive(self) -> AsyncIterator[None]:
        """Tell the helper every 3 s that the controller lives, unless other bytes do."""
        pinger = asyncio.create_task(self._ping())
        try:
            yield
        finally:
            pinger.cancel()
            with suppress(asyncio.CancelledError):
                await pinger

    def stay_alive(self) -> None:
        """As ``keep_alive``, from now on until the conversation ends."""
        if self._pinging is None:
            self._pinging = asyncio.create_task(self._ping())

    async def end(self) -> None:
        """Say good-bye and wait for the helper's end, a few seconds at most; never raises."""
        if self._ended:
            return
        self._ended = True
        if self._pinging is not None:
            self._pinging.cancel()
            await asyncio.wait((self._pinging,))
        if self._failure or self._hello is None:
            return
        with suppress(HostError, TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                self._queue(launch.encode_frame({"op": "bye", "id": self._next_id()}))
                await self.flush()
                await self._session.close_stdin()
                while await self._session.read(65536):
                    pass
                await self._session.exit_status()

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _queue(self, data: bytes) -> None:
        self._outgoing += data

    def _expect(self, order: Order) -> None:
        self._orders.append(order)
        more_bytes, more_frames = ROWS.get(order.op, (0, 0))
        self._reader.order_sent(more_bytes=more_bytes, more_frames=more_frames)

    async def _write(self, data: bytes) -> None:
        if self._failure:
            raise self._failure
        if self._hello_deadline is None:
            self._hello_deadline = time.monotonic() + HELLO_TIMEOUT_S
        self._written_at = time.monotonic()
        writing = asyncio.ensure_future(self._session.write(data))
        try:
            if self._hello is None:
                await asyncio.wait((writing,), timeout=max(self._hello_timeout(), 0))
            else:
                await self._while_it_moves(writing)
            if not writing.done():
                if self._hello is None:
                    await self._take_frame(0)  # what it has said tells more
                self._failure = self._deaf()
                raise self._failure
            writing.result()
        except ContactLostError as error:
            # What the helper said last tells more than the broken pipe.
            if self._hello is None:
                await self._fail_at_end()
            raise error
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _while_it_moves(self, writing: asyncio.Future[None]) -> None:
        """Wait for a write until it is done, or nothing of it has been taken for ``WRITE_STALL_S``."""
        lowest, moved_at, stood_still = self._session.unsent(), time.monotonic(), False
        while not (await asyncio.wait((writing,), timeout=WRITE_LOOK_S))[0]:
            unsent, now = self._session.unsent(), time.monotonic()
            if unsent < lowest:
                lowest, moved_at = unsent, now
            elif now - moved_at > WRITE_STALL_S:
                return
            elif self._patience and now - moved_at > WRITE_LOOK_S:
                stood_still = True
                self._patience.stands_still()
        if self._patience and stood_still:
            await self._patience.moves_again()

    def _hello_timeout(self) -> float:
        deadline = self._hello_deadline or time.monotonic() + HELLO_TIMEOUT_S
        return deadline - time.monotonic()

    async def _ping(self) -> None:
        frame = launch.encode_frame({"op": "ping"})
        with suppress(HostError):
            while True:
                due = self._written_at + PING_INTERVAL_S - time.monotonic()
                if due > 0:
                    await asyncio.sleep(due)
                elif self._write_lock.locked():
                    await asyncio.sleep(PING_INTERVAL_S)
                else:
                    self._queue(frame)
                    await self.flush()

    async def _take_frame(self, timeout_s: float) -> None:
        """Read one frame and hand it to the order whose turn it is."""
        if self._failure:
            raise self._failure
        try:
            async with asyncio.timeout(max(timeout_s, 0)):
                fields = await self._reader.read_frame()
                if fields is None:
                    await self._fail_at_end()
                else:
                    self._dispatch(fields)
        except TimeoutError:
            self._failure = self._silence(timeout_s)
            raise self._failure from None
        except HostError as error:
            self._failure = error
            raise

    def _dispatch(self, fields: Fields) -> None:
        if fields.opt_str("event") == "crash":
            raise crash_error(fields)
        order_id = fields.get_int("id")
        if not self._orders or order_id != self._orders[0].id:
            message = f"the host answers order {order_id}, which is not its turn"
            raise protocol_error(message)
        order = self._orders[0]
        order.accept(fields)
        if order.op == "start":
            self._hello = read_hello(order)
        elif order.op == "load" and order.done:
            order.take()
        if order.done:
            self._orders.popleft()

    async def _fail_at_end(self) -> None:
        status: int | None = None
        with suppress(TimeoutError):
            # Its streams have ended, but whether the process itself ever does is the host's affair.
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                status = await self._session.exit_status()
        stderr = self._session.stderr_tail()
        raise explain_end(
            self._host, status, stderr, self._reader.noise(), started=self._hello is not None
        )

    def _deaf(self) -> HostError:
        """Return the error for a host that has taken nothing of what was sent for too long."""
        message = f"the host takes no more of what it is sent: nothing for {WRITE_STALL_S:.0f} s"
        hint = "look for a stopped helper or a stuck disk there; then run again"
        return ContactLostError(ErrorCode.HANG, message, hint=hint)

    def _silence(self, timeout_s: float) -> HostError:
        if self._hello is None:
            noise = self._reader.noise() or self._session.stderr_tail()
            seen = f"; it said: {noise}" if noise else ""
            message = (
                f"logged in, but the helper did not answer within {HELLO_TIMEOUT_S:.0f} s{seen}"
            )
            hint = (
                "log in by hand and see what hangs: an rc file, a full process table, a stuck disk"
            )
            return HostError(ErrorCode.HANG, message, hint=hint)
        message = f"the host fell silent: no answer for {timeout_s:.0f} s"
        return ContactLostError(
            ErrorCode.HANG, message, hint="run again: what is done is found as existing"
        )
