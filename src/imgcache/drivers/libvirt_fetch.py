"""One fetch on one host: which source, how often again, and what the helper answers."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from imgcache import __version__
from imgcache.errors import ErrorCode, HostError
from imgcache.plan import OutcomeWord, SourceKind
from imgcache.transport.conversation import MAX_DATA_BYTES, OrderError

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
#: Repetitions that a code allows, when fewer than ``--retries``: wrong bytes do not get better.
_FEWER_REPETITIONS = {ErrorCode.DIGEST: 1, ErrorCode.AUTH: 1}

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


async def fetch_image(context: HostContext, talk: Conversation, image: Image) -> None:
    """Fetch one absent image and report its outcome; raises only for trouble with the whole host."""
    kinds = context.sources.kinds(image)
    bytes_fetched = 0
    for kind in kinds:
        fetch = _Fetch(context, talk, image, kind)
        try:
            await fetch.run()
        except (OrderError, ItemError) as error:
            bytes_fetched += fetch.bytes_fetched
            if error.code in _NEXT_SOURCE_CODES and kind is not kinds[-1]:
                context.notice(f"{image.name}: {error.message}; pushing it from here instead")
                continue
            reason = f"{error.message}: {error.hint}" if error.hint else error.message
            context.report(
                image,
                OutcomeWord.ERROR,
                code=error.code,
                reason=reason,
                source=kind,
                bytes_fetched=bytes_fetched,
            )
        return


@dataclass(slots=True)
class _Fetch:
    """One fetch order from one kind of source."""

    context: HostContext
    talk: Conversation
    image: Image
    kind: SourceKind
    bytes_fetched: int = 0
    _repetitions: dict[ErrorCode, int] = field(default_factory=dict)
    _access: ServiceAccess | None = None
    _mark: tuple[str, int] = ("", -1)
    _mark_at: float = 0.0

    async def run(self) -> None:
        """Send the order, answer what the helper asks, report the result.

        Raises:
            OrderError, ItemError: this image failed; the conversation can go on.
            HostError: the conversation is over.
        """
        source = await self._source()
        self._mark_at = time.monotonic()
        order = self.talk.order(
            "fetch",
            base=self.image.base_name,
            image=_image_fields(self.image),
            source=source,
            limits={**DEFAULT_LIMITS, "reserve": self.context.host.settings.reserve_bytes},
            tool=f"imgcache {__version__}",
            run=self.context.run_id,
        )
        async with self.talk.keep_alive():
            await self.talk.flush()
            answer = await self._until_result(order)
        self._report(answer)

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
            match message.event:
                case "progress":
                    self._progress(message)
                case "retry":
                    await self._again(order, message)
                case "ready":
                    return await self._push(
                        order, message.fields.get_int("offset", high=self.image.size_bytes)
                    )
                case _:
                    return message

    def _progress(self, message: Message) -> None:
        phase = message.fields.get_str("phase")
        done, total = message.fields.get_int("done"), message.fields.get_int("total")
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
        attempt = self._repetitions[code] = self._repetitions.get(code, 0) + 1
        total = sum(self._repetitions.values())
        allowed = min(self.context.retries, _FEWER_REPETITIONS.get(code, self.context.retries))
        if attempt > allowed or total > self.context.retries + 1:
            await self._stop(order)
            raise ItemError(code, text)
        token = None
        if code is ErrorCode.AUTH:
            token = await self._fresh_token(order)
        else:
            after_s = parse_retry_after(message.fields.opt_str("after_s", limit=100))
            await self.context.back_off(self.image, attempt, text, after_s)
        await self.talk.again(order, token)
        self._mark_at = time.monotonic()

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
                    await sending
                    return message
                self._progress(message)
        finally:
            sending.cancel()
            await asyncio.wait((sending,))

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
        async with self.context.sources.blocks(self.image, offset) as blocks:
            async for block in blocks:
                for start in range(0, len(block), MAX_DATA_BYTES):
                    await self.talk.send_data(order, block[start : start + MAX_DATA_BYTES])
        await self.talk.send_data(order, b"")

    async def _stop(self, order: Order) -> None:
        """Tell the helper to give the fetch up, and wait until it has cleaned up."""
        await self.talk.stop(order)
        try:
            while (await self.talk.receive(order, SILENCE_S)).event != "result":
                pass
        except OrderError:
            return

    def _report(self, answer: Message) -> None:
        self.bytes_fetched = answer.fields.get_int("bytes_fetched")
        state = answer.fields.get_choice("state", {"cached", "existing"})
        reason = answer.fields.opt_str("reason", limit=1000)
        if state == "cached" and self.image.digest.weak:
            weak = f"verified with {self.image.digest.algo} only, the image service has no better digest"
            reason = f"{reason}; {weak}" if reason else weak
        self.context.report(
            self.image,
            OutcomeWord(state),
            reason=reason,
            source=self.kind,
            bytes_fetched=self.bytes_fetched,
        )


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, None when it makes no sense.

    Source: RFC 9110, 10.2.3: seconds, or a date. Dates are read by the controller's clock.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _image_fields(image: Image) -> dict[str, object]:
    return {
        "id": image.id,
        "name": image.name,
        "size": image.size_bytes,
        "disk_format": image.disk_format,
        "virtual_size": image.virtual_size_bytes,
        "digest": {"algo": image.digest.algo, "value": image.digest.value},
    }
