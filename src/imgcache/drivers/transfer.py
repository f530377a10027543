"""One fetch on one host: which source, how often again, and what the helper answers."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcache import __version__
from imgcache.drivers.feed import ItemError
from imgcache.drivers.order_fields import (
    DEFAULT_LIMITS,
    image_fields,
    listener_fields,
    source_fields,
)
from imgcache.drivers.push import Pushing, SourceBrokeError
from imgcache.errors import ErrorCode, HostError
from imgcache.plan import SourceKind
from imgcache.transport.conversation import OrderError
from imgcache.transport.wire import protocol_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imgcache.drivers.base import HostContext
    from imgcache.drivers.feed import Feed, Ticket
    from imgcache.model import Image, Secret
    from imgcache.transport.conversation import Conversation, Message, Order

#: The helper says something at least every 2 s during a fetch; silence this long means it hangs.
SILENCE_S = 30.0
#: A phase whose byte count does not grow for so long hangs, however talkative the helper is. Longer
#: than the helper's own stall limit, and than the flush of a big file to a slow disk.
STANDSTILL_S = 600.0
#: Wrong bytes from the image service do not get better.
_MAX_DIGEST_REPETITIONS = 1
#: A fresh token is no repetition, but a host must not ask for one again and again.
TOKEN_INTERVAL_S = 3600.0
#: What lets others read, besides what a fetch needs.
RELAY_MODULES = ("offers", "relay")
#: How long a helper may take to listen for others of its site.
_LISTEN_S = 60.0
#: Phases in which bytes come; later ones are not worth stopping.
_MOVING = frozenset({"download", "hash"})
#: What a host may say during a push: wrong bytes, when others had sent a part of them.
_AFTER_PUSH = frozenset({ErrorCode.SWITCHED, ErrorCode.DIGEST})
#: Not the image's fault, nor the host's: time was up.
STOP_CODES = frozenset({ErrorCode.WINDOW, ErrorCode.DEADLINE, ErrorCode.HALTED})


class _StoppedError(ItemError):
    """No more bytes may be moved now; the helper still has to be told."""


@dataclass(frozen=True, slots=True)
class TransferEnd:
    """How the attempts at one image ended, from whichever source."""

    kind: SourceKind
    """The last one tried."""
    ending: Message | HostError
    """The helper's result, or why there is none."""
    bytes_fetched: int
    """From all sources."""
    remark: str | None = None
    """What the operator should know about it besides."""


async def transfer(
    context: HostContext,
    talk: Conversation,
    image: Image,
    given_up: set[SourceKind],
    op: str,
    *,
    relays: bool = False,
    **more: object,
) -> TransferEnd:
    """Have the helper work off ``fetch``, or another order that brings bytes as that does.

    ``given_up``: sources that this host cannot reach are added to it, and not tried for its next image.
    ``relays``: the host may read from others, and they from it. ``more``: fields of the order that not every
    such order has.
    """
    feed = context.sources.feed(context, image, given_up, relays=relays)
    run = Transfer(context, talk, image, feed, op=op, more=more)
    failure: HostError | None = None
    whole = False
    ending: Message | HostError
    try:
        try:
            ending = await run.run()
            whole = ending.fields.opt_str("state", limit=40) == "cached"
        except (OrderError, ItemError) as error:
            ending = failure = error
    except HostError as error:
        failure = error
        raise
    finally:
        remark = feed.ended(failure, whole=whole)
    return TransferEnd(run.kind, ending, run.bytes_fetched, remark)


class Transfer:
    """One order that brings bytes, from one source after the other."""

    def __init__(
        self,
        context: HostContext,
        talk: Conversation,
        image: Image,
        feed: Feed,
        *,
        op: str,
        more: dict[str, object],
    ) -> None:
        self.context = context
        self.talk = talk
        self.image = image
        self.feed = feed
        self.bytes_fetched = 0
        self.kind = SourceKind.SERVICE
        self._op = op
        self._more = more
        self._attempts = 1
        self._repetitions = 0
        self._digest_repetitions = 0
        self._switches = 0
        self._spoilt = False
        self._token_at: float | None = None
        self._ticket: Ticket
        self._mark: tuple[str, int] = ("", -1)
        self._mark_at = 0.0

    async def run(self) -> Message:
        """Send the order, answer what the helper asks, return the result.

        Raises:
            OrderError, ItemError: this image failed; the conversation can go on.
            HostError: the conversation is over.
        """
        await self._listen()
        try:
            self._take(await self.feed.first())
        except HostError as error:
            raise ItemError(error.code, error.message, hint=error.hint) from error
        self._check_time(0)
        self._mark_at = time.monotonic()
        order = self.talk.order(self._op, **self._fields())
        async with self.talk.keep_alive():
            await self.talk.flush()
            try:
                async with self._steered(order):
                    answer = await self._until_result(order)
            except (_StoppedError, SourceBrokeError):
                finished = await self._stop(order)
                if finished is None:
                    raise
                answer = finished
        self._note_bytes(answer)
        return answer

    def _note_bytes(self, message: Message) -> None:
        """Take how many bytes the host says have come: no attempt brings more than the image has."""
        most = self._attempts * self.image.size_bytes
        said = message.fields.get_int("bytes_fetched", high=most)
        # What the controller pushed is counted here; of the rest the host knows best.
        self.bytes_fetched = max(self.bytes_fetched, said)

    def _fields(self) -> dict[str, object]:
        limits = {
            **DEFAULT_LIMITS,
            "min_rate": self.feed.min_rate,
            "rate": self._ticket.rate,
            "reserve": self.context.host.settings.reserve_bytes,
        }
        offer = self.feed.offer
        return {
            "base": self.image.base_name,
            "image": image_fields(self.image),
            "source": source_fields(self._ticket),
            "limits": limits,
            "serve": {"name": offer.name, "key": offer.key.reveal()} if offer else None,
            "tool": f"imgcache {__version__}",
            "run": self.context.run_id,
            **self._more,
        }

    async def _listen(self) -> None:
        """Have the host listen for others of its site, when it shall; it may be unable to."""
        listener = self.feed.listener
        if listener is None:
            return
        self.talk.load(RELAY_MODULES)
        order = self.talk.order("relay", **listener_fields(listener))
        try:
            answer = await self.talk.result(order, timeout_s=_LISTEN_S)
        except OrderError as error:
            self.feed.cannot_listen(error)
        else:
            self.talk.stay_alive()
            self.feed.listening(answer.fields.get_int("port", low=1, high=65535))

    def _take(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self.kind = ticket.kind

    # ---- while it runs

    @asynccontextmanager
    async def _steered(self, order: Order) -> AsyncIterator[None]:
        """Pass on what the feed wishes meanwhile."""
        steering = asyncio.create_task(self._steer(order))
        try:
            yield
        finally:
            steering.cancel()
            await asyncio.wait((steering,))  # awaiting it would take an interrupt for its own end

    async def _steer(self, order: Order) -> None:
        with suppress(HostError):  # whoever receives learns of it too
            while True:
                wish = await self.feed.wish()
                if wish.switch and self.kind is SourceKind.RELAY:
                    self._switches += 1
                    await self.talk.switch(order)
                elif not wish.switch and self.kind is not SourceKind.PUSH:
                    await self.talk.limit_rate(order, wish.rate)

    async def _until_result(self, order: Order) -> Message:
        while True:
            message = await self.talk.receive(order, SILENCE_S)
            if message.event == "ready" and self.kind is SourceKind.PUSH:
                offset = message.fields.get_int("offset", high=self.image.size_bytes)
                message = await Pushing(self, order, offset, SILENCE_S).run()
            if message.event == "progress":
                self.note_progress(message)
            elif message.event == "retry":
                await self._again(order, message)
            elif message.event == "result":
                return message
            else:
                text = f"the host answers a fetch by {self.kind} with {message.event}"
                raise protocol_error(text)

    def note_progress(self, message: Message) -> None:
        """Take a ``progress``.

        Raises:
            HostError: it cannot be true, or stands still for too long, or time is up.
        """
        phase = message.fields.get_str("phase")
        done, total = message.fields.get_int("done"), message.fields.get_int("total")
        if phase == "download" and total != self.image.size_bytes:
            # It would spoil the sums and estimates of the whole run.
            text = f"the host reports a download of {total} bytes, the image has {self.image.size_bytes}"
            raise protocol_error(text)
        now = time.monotonic()
        if (phase, done) != self._mark:
            self._mark, self._mark_at = (phase, done), now
        elif now - self._mark_at > STANDSTILL_S:
            reason = f"{self.image.name}: no progress in {phase} for {STANDSTILL_S:.0f} s"
            raise HostError(ErrorCode.HANG, reason)
        self.feed.progress(phase, done)
        self.context.progress(self.image, phase, done, total)
        if phase in _MOVING:
            self._check_time(done)

    def _check_time(self, done: int) -> None:
        """Raise when no more bytes may be moved now."""
        error = self.context.must_stop()
        if error is not None:
            size = self.image.size_bytes
            then = "goes on there" if self._more.get("keep_partial") else "begins it anew"
            text = f"{error.message}: stopped at {done} of {size} bytes, the next run {then}"
            raise _StoppedError(error.code, text)

    # ---- after a failure

    async def _again(self, order: Order, message: Message) -> None:
        """Answer a ``retry``: ``again``, after a pause or from elsewhere; or ``stop`` and the error."""
        code = message.fields.get_enum("code", ErrorCode)
        failure = ItemError(code, message.fields.get_text("message", limit=1000))
        self._note_bytes(message)
        self._attempts += 1
        offset = message.fields.get_int("offset", high=self.image.size_bytes)
        if self.kind is SourceKind.PUSH and code not in _AFTER_PUSH:
            # Above all: a host that is pushed to does not get a token by asking for one.
            text = f"the host answers a fetch by push with retry ({code})"
            raise protocol_error(text)
        if code is ErrorCode.SWITCHED:
            self._check_switched()
        token, new = None, None
        if code is ErrorCode.DIGEST and not self._spoilt and message.fields.opt_int("resumed"):
            self._spoilt = True  # what an earlier run has left may be what is wrong
            self.feed.anew()
        elif code is ErrorCode.AUTH and self.kind is SourceKind.SERVICE:
            token = await self._fresh_token(order, failure)
        elif self.kind is SourceKind.SERVICE and self.may_repeat(code):
            await self.back_off(failure.message, message.fields.opt_float("after_s"))
        else:
            new = await self._elsewhere(order, failure, offset)
        self._check_time(offset)
        if new is None:
            await self.talk.again(order, token)
        else:
            self._take(new)
            await self.talk.again(order, None, source=source_fields(new), rate=new.rate)
        self._mark_at = time.monotonic()

    def _check_switched(self) -> None:
        """Refuse more changes of the source than were wished: each would be for nothing, and none counted."""
        self._switches -= 1
        if self._switches < 0:
            text = "the host left a source that it was not told to leave"
            raise protocol_error(text)

    async def _elsewhere(self, order: Order, failure: ItemError, offset: int) -> Ticket:
        try:
            new = await self.feed.instead(failure, offset)
        except HostError as error:
            failure = ItemError(error.code, error.message, hint=error.hint)
            new = None
        if new is None:
            await self._stop(order)
            raise failure
        return new

    def may_repeat(self, code: ErrorCode) -> bool:
        """Count one more repetition; False when it would be one too many."""
        if code is ErrorCode.DIGEST:
            self._digest_repetitions += 1
        self._repetitions += 1
        return (
            self._repetitions <= self.context.retries
            and self._digest_repetitions <= _MAX_DIGEST_REPETITIONS
        )

    async def back_off(self, reason: str, after_s: float | None = None) -> None:
        """Wait before the repetition that ``may_repeat`` has counted last."""
        self.feed.paused()
        await self.context.back_off(self.image, self._repetitions, reason, after_s)

    async def _fresh_token(self, order: Order, failure: ItemError) -> Secret | None:
        now = time.monotonic()
        if self._token_at is not None and now - self._token_at < TOKEN_INTERVAL_S:
            await self._stop(order)
            raise failure
        self._token_at = now
        try:
            access = await self.context.sources.access(self.image, self._ticket.access)
        except HostError as error:
            await self._stop(order)
            raise ItemError(error.code, error.message, hint=error.hint) from error
        self._ticket = type(self._ticket)(self.kind, access, self._ticket.rate)
        return access.token

    async def _stop(self, order: Order) -> Message | None:
        """Tell the helper to give the fetch up, and wait until it has; return the result if it came first."""
        await self.talk.stop(order)
        try:
            while (message := await self.talk.receive(order, SILENCE_S)).event != "result":
                pass
        except OrderError:
            return None
        return message


def check_all_came(image: Image, answer: Message) -> None:
    """Refuse a success that is told with fewer bytes than the image has.

    Raises:
        HostError: code ``protocol``.
    """
    came = answer.fields.get_int("bytes_fetched") + (answer.fields.opt_int("resumed") or 0)
    if came < image.size_bytes:
        state = answer.fields.get_str("state")
        text = f"the host says {state}, after {came} of {image.size_bytes} bytes"
        raise protocol_error(text)
