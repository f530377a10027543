"""The controller sends an image's bytes itself, while it listens to what the host says about them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from imgcache.drivers.feed import ItemError
from imgcache.errors import ErrorCode, HostError, ImageServiceUnreachableError
from imgcache.transport.conversation import MAX_DATA_BYTES
from imgcache.transport.wire import protocol_error

if TYPE_CHECKING:
    from imgcache.drivers.transfer import Transfer
    from imgcache.transport.conversation import Message, Order


class Pushing:
    """One push, from the host's ``ready`` to its answer."""

    def __init__(self, transfer: Transfer, order: Order, offset: int, silence_s: float) -> None:
        self._transfer = transfer
        self._order = order
        self._offset = offset
        self._silence_s = silence_s

    async def run(self) -> Message:
        """Send the bytes, while listening: the helper may refuse them at any time.

        Returns the first message that is no progress.

        Raises:
            ItemError: the source broke; the helper has still to be told.
            HostError: see ``Conversation.receive``.
        """
        sending = asyncio.create_task(self._send())
        try:
            while True:
                message = await self._receive_beside(sending)
                if message.event == "result":
                    await self._check_all_sent(sending)
                if message.event != "progress":
                    return message
                self._transfer.note_progress(message)
        finally:
            sending.cancel()
            await asyncio.wait((sending,))

    async def _check_all_sent(self, sending: asyncio.Task[None]) -> None:
        # The helper answers the last frame; that it was sent may be known to it before it is to us.
        await asyncio.wait((sending,), timeout=self._silence_s)
        if not sending.done() or sending.exception() is not None:
            text = "the host says that it has the image, whose bytes were not all sent"
            raise protocol_error(text)

    async def _receive_beside(self, sending: asyncio.Task[None]) -> Message:
        """Return the next message; raises what broke the sending, when that came first."""
        talk = self._transfer.talk
        receiving = asyncio.ensure_future(talk.receive(self._order, self._silence_s))
        try:
            await asyncio.wait((receiving, sending), return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done() and sending.done() and sending.exception() is not None:
                receiving.cancel()
                await asyncio.wait((receiving,))
                error = sending.exception()
                if isinstance(error, HostError) and error.code is ErrorCode.SOURCE:
                    raise SourceBrokeError(error.code, error.message, hint=error.hint) from error
                raise error if error else AssertionError
            return await receiving
        finally:
            receiving.cancel()

    async def _send(self) -> None:
        """Send everything from the offset on; a source that broke off is resumed where it did."""
        transfer = self._transfer
        sent = self._offset
        while True:
            before = sent
            try:
                async with transfer.context.sources.blocks(transfer.image, sent) as blocks:
                    async for block in blocks:
                        await self._send_block(block)
                        sent += len(block)
                break
            except HostError as error:
                # Without a byte of progress, only one that did not answer, or broke off, is asked again.
                passing = sent > before or isinstance(error.__cause__, ImageServiceUnreachableError)
                if (
                    error.code is not ErrorCode.SOURCE
                    or not passing
                    or not transfer.may_repeat(error.code)
                ):
                    raise
                await transfer.back_off(error.message)
        await transfer.talk.send_data(self._order, b"")

    async def _send_block(self, block: bytes) -> None:
        transfer, sent = self._transfer, 0
        while sent < len(block):
            part = block[sent : sent + (transfer.feed.piece or MAX_DATA_BYTES)]
            await transfer.feed.pace(len(part))
            await transfer.talk.send_data(self._order, part)
            sent += len(part)
            transfer.bytes_fetched += len(part)


class SourceBrokeError(ItemError):
    """The controller itself cannot read the image any more; the helper still has to be told."""
