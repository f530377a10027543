"""One fetch on one host: which source, how often again, and what the helper answers."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcache import __version__
from imgcache.errors import ErrorCode, HostError, ImageServiceUnreachableError
from imgcache.plan import OutcomeWord, SourceKind
from imgcache.transport.conversation import MAX_DATA_BYTES, OrderError
from imgcache.transport.wire import protocol_error

if TYPE_CHECKING:
    from imgcache.drivers.base import HostContext
    from imgcache.model import Image, Secret, ServiceAccess
    from imgcache.transport.conversation import Conversation, Message, Order

#: The helper says something at least every 2 s during a fetch; silence this long means it hangs.
SILENCE_S = 30.0
#: A phase whose byte count does not grow for so long hangs, however talkative the helper is. Longer
#: than the helper's own stall limit, and than the flush of a big file to a slow disk.
STANDSTILL_S = 600.0
#: Another source is tried only when the host cannot reach this one; other failures would repeat.
_NEXT_SOURCE_CODES = frozenset({ErrorCode.UNREACHABLE})
#: Wrong bytes do not get better.
_MAX_DIGEST_REPETITIONS = 1
#: A fresh token is no repetition, but a host must not ask for one again and again.
TOKEN_INTERVAL_S = 3600.0

DEFAULT_LIMITS: dict[str, object] = {
    "stall_s": 30,
    "min_rate": 65536,
    "min_rate_window_s": 60,
    "connect_s": 10,
    "max_virtual_size": 2 << 40,
    "lock_wait_s": 60,
    "alive_s": 15,
}


class ItemError(HostError):
    """This image cannot be had on this host; the conversation can go on with the next one."""


@dataclass(frozen=True, slots=True)
class TransferEnd:
    """How the attempts at one image ended, from whichever source."""

    kind: SourceKind
    """The last one tried."""
    ending: Message | HostError
    """The helper's result, or why there is none."""
    bytes_fetched: int
    """From all sources."""


async def fetch_image(
    context: HostContext, talk: Conversation, image: Image, given_up: set[SourceKind]
) -> None:
    """Fetch one absent image and report its outcome; raises only for trouble with the whole host.

    Sources that this host cannot reach are added to ``given_up``; they are not tried for the next image.
    """
    end = await transfer(context, talk, image, given_up, "fetch")
    if isinstance(end.ending, HostError):
        error = end.ending
        context.report(
            image,
            OutcomeWord.ERROR,
            code=error.code,
            reason=f"{error.message}: {error.hint}" if error.hint else error.message,
            source=end.kind,
            bytes_fetched=end.bytes_fetched,
        )
    else:
        _report(context, image, end, end.ending)


async def transfer(
    context: HostContext,
    talk: Conversation,
    image: Image,
    given_up: set[SourceKind],
    op: str,
    **more: object,
) -> TransferEnd:
    """Have the helper work off ``fetch``, or an order that brings bytes as that does; see ``fetch_image``.

    ``more``: fields of the order that ``fetch`` has not.
    """
    offered = context.sources.kinds(image)
    kinds = [kind for kind in offered if kind not in given_up] or offered
    bytes_before = 0
    for kind in kinds:
        attempt = _Transfer(context, talk, image, kind, op, more)
        try:
            answer = await attempt.run()
        except (OrderError, ItemError) as error:
            bytes_before += attempt.bytes_fetched
            if error.code in _NEXT_SOURCE_CODES and kind is not kinds[-1]:
                given_up.add(kind)
                context.notice(f"{image.name}: {error.message}; pushing it from here instead")
                continue
            return TransferEnd(kind, error, bytes_before)
        return TransferEnd(kind, answer, bytes_before + attempt.bytes_fetched)
    message = "an image without sources"
    raise AssertionError(message)


@dataclass(slots=True)
class _Transfer:
    """One order that brings bytes, from one kind of source."""

    context: HostContext
    talk: Conversation
    image: Image
    kind: SourceKind
    op: str
    more: dict[str, object]
    bytes_fetched: int = 0
    _repetitions: int = 0
    _digest_repetitions: int = 0
    _token_at: float | None = None
    _access: ServiceAccess | None = None
    _mark: tuple[str, int] = ("", -1)
    _mark_at: float = 0.0

    async def run(self) -> Message:
        """Send the order, answer what the helper asks, return the result.

        Raises:
            OrderError, ItemError: this image failed; the conversation can go on.
            HostError: the conversation is over.
        """
        source = await self._source()
        self._mark_at = time.monotonic()
        order = self.talk.order(
            self.op,
            base=self.image.base_name,
            image=_image_fields(self.image),
            source=source,
            limits={**DEFAULT_LIMITS, "reserve": self.context.host.settings.reserve_bytes},
            tool=f"imgcache {__version__}",
            run=self.context.run_id,
            **self.more,
        )
        async with self.talk.keep_alive():
            await self.talk.flush()
            answer = await self._until_result(order)
        self.bytes_fetched = answer.fields.get_int("bytes_fetched")
        return answer

    async def _source(self) -> dict[str, object]:
        if self.kind is SourceKind.PUSH:
            return {"kind": "push"}
        try:
            self._access = await self.context.sources.access(self.image, None)
        except HostError as error:
            raise ItemError(error.code, error.message, hint=error.hint) from error
        access = self._access
        return {
            "kind": "service",
            "url": access.url,
            "token": access.token.reveal() if access.token else None,
            "ca_pem": access.ca_pem,
            "insecure": access.insecure,
        }

    async def _until_result(self, order: Order) -> Message:
        while True:
            message = await self.talk.receive(order, SILENCE_S)
            match message.event, self.kind:
                case "progress", _:
                    self._progress(message)
                case "retry", SourceKind.SERVICE:
                    await self._again(order, message)
                case "ready", SourceKind.PUSH:
                    return await self._push(
                        order, message.fields.get_int("offset", high=self.image.size_bytes)
                    )
                case "result", _:
                    return message
                case _:
                    # Above all: a host that is pushed to does not get a token by asking for one.
                    text = f"the host answers a fetch by {self.kind} with {message.event}"
                    raise protocol_error(text)

    def _progress(self, message: Message) -> None:
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
        self.context.progress(self.image, phase, done, total)

    async def _again(self, order: Order, message: Message) -> None:
        """Answer a ``retry``: a pause and ``again``, or ``stop`` and the error it was about."""
        code = message.fields.get_enum("code", ErrorCode)
        text = message.fields.get_str("message", limit=1000)
        self.bytes_fetched = message.fields.get_int("bytes_fetched")
        if not self._may_repeat(code):
            await self._stop(order)
            raise ItemError(code, text)
        token = None
        if code is ErrorCode.AUTH:
            token = await self._fresh_token(order)
        else:
            after_s = message.fields.opt_float("after_s")
            await self.context.back_off(self.image, self._repetitions, text, after_s)
        await self.talk.again(order, token)
        self._mark_at = time.monotonic()

    def _may_repeat(self, code: ErrorCode) -> bool:
        """Count one more repetition; False when it would be one too many."""
        now = time.monotonic()
        if code is ErrorCode.AUTH:
            if self._token_at is not None and now - self._token_at < TOKEN_INTERVAL_S:
                return False
            self._token_at = now
            return True
        if code is ErrorCode.DIGEST:
            self._digest_repetitions += 1
        self._repetitions += 1
        return (
            self._repetitions <= self.context.retries
            and self._digest_repetitions <= _MAX_DIGEST_REPETITIONS
        )

    async def _fresh_token(self, order: Order) -> Secret | None:
        try:
            self._access = await self.context.sources.access(self.image, self._access)
        except HostError as error:
            await self._stop(order)
            raise ItemError(error.code, error.message, hint=error.hint) from error
        return self._access.token

    async def _push(self, order: Order, offset: int) -> Message:
        """Send the bytes, while listening: the helper may refuse them at any time."""
        sending = asyncio.create_task(self._send_blocks(order, offset))
        try:
            while True:
                message = await self._receive_beside(order, sending)
                if message.event == "result":
                    await self._check_all_sent(sending)
                    return message
                self._progress(message)
        finally:
            sending.cancel()
            await asyncio.wait((sending,))

    async def _check_all_sent(self, sending: asyncio.Task[None]) -> None:
        # The helper answers the last frame; that it was sent may be known to it before it is to us.
        await asyncio.wait((sending,), timeout=SILENCE_S)
        if not sending.done() or sending.exception() is not None:
            text = "the host says that it has the image, whose bytes were not all sent"
            raise protocol_error(text)

    async def _receive_beside(self, order: Order, sending: asyncio.Task[None]) -> Message:
        """Return the next message; raises what broke the sending, when that came first."""
        receiving = asyncio.ensure_future(self.talk.receive(order, SILENCE_S))
        try:
            await asyncio.wait((receiving, sending), return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done() and sending.done() and sending.exception() is not None:
                receiving.cancel()
                await asyncio.wait((receiving,))
                await self._stop(order)
                error = sending.exception()
                if isinstance(error, HostError) and error.code is ErrorCode.SOURCE:
                    raise ItemError(error.code, error.message, hint=error.hint) from error
                raise error if error else AssertionError
            return await receiving
        finally:
            receiving.cancel()

    async def _send_blocks(self, order: Order, offset: int) -> None:
        """Send everything from ``offset`` on; a source that broke off is resumed where it did."""
        sent = offset
        while True:
            before = sent
            try:
                async with self.context.sources.blocks(self.image, sent) as blocks:
                    async for block in blocks:
                        for start in range(0, len(block), MAX_DATA_BYTES):
                            part = block[start : start + MAX_DATA_BYTES]
                            await self.talk.send_data(order, part)
                            sent += len(part)
                            self.bytes_fetched += len(part)
                break
            except HostError as error:
                # Without a byte of progress, only what was not reached at all may be there later.
                passing = sent > before or isinstance(error.__cause__, ImageServiceUnreachableError)
                if (
                    error.code is not ErrorCode.SOURCE
                    or not passing
                    or not self._may_repeat(error.code)
                ):
                    raise
                await self.context.back_off(self.image, self._repetitions, error.message, None)
        await self.talk.send_data(order, b"")

    async def _stop(self, order: Order) -> None:
        """Tell the helper to give the fetch up, and wait until it has cleaned up."""
        await self.talk.stop(order)
        try:
            while (await self.talk.receive(order, SILENCE_S)).event != "result":
                pass
        except OrderError:
            return


def _report(context: HostContext, image: Image, end: TransferEnd, answer: Message) -> None:
    state = answer.fields.get_choice("state", {"cached", "existing"})
    reason = answer.fields.opt_str("reason", limit=1000)
    if state == "cached":
        check_all_came(image, answer)
    if state == "cached" and image.digest.weak:
        weak = f"verified with {image.digest.algo} only, the image service has no better digest"
        reason = f"{reason}; {weak}" if reason else weak
    context.report(
        image, OutcomeWord(state), reason=reason, source=end.kind, bytes_fetched=end.bytes_fetched
    )


def check_all_came(image: Image, answer: Message) -> None:
    """Refuse a success that is told with fewer bytes than the image has.

    Raises:
        HostError: code ``protocol``.
    """
    came = answer.fields.get_int("bytes_fetched")
    if came < image.size_bytes:
        state = answer.fields.get_str("state")
        text = f"the host says {state}, after {came} of {image.size_bytes} bytes"
        raise protocol_error(text)


def _image_fields(image: Image) -> dict[str, object]:
    return {
        "id": image.id,
        "name": image.name,
        "size": image.size_bytes,
        "disk_format": image.disk_format,
        "virtual_size": image.virtual_size_bytes,
        "digest": {"algo": image.digest.algo, "value": image.digest.value},
    }
