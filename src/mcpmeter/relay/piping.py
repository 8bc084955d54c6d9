"""A stream from the provider's connection to the client's, within the event loop's own callbacks.

Waking a task for each chunk costs more than all that is done with it: see docs/decisions/015-a-wire-under-asgi.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mcpmeter.http import exchange
from mcpmeter.http.client.interface import Answer
from mcpmeter.http.exchange import CancelOnDisconnect, DirectResponse
from mcpmeter.relay.stream import StreamTee


class Pipe:
    """Feeds the tee what comes, and the client what the tee lets pass. Who does not read holds the provider."""

    def __init__(self, wire: DirectResponse, answer: Answer, tee: StreamTee, listening: CancelOnDisconnect) -> None:
        self._wire = wire
        self._answer = answer
        self._tee = tee
        self._listening = listening
        self._begin: Callable[[], None] | None = None
        self._patience: asyncio.TimerHandle | None = None

    async def run(self, limit_bytes: int, begin: Callable[[], None]) -> None:
        """Until the stream's own last event is held back, or the provider has ended.

        `begin` is called at the first byte. Raises as `Answer.pipe`.
        """
        self._begin = begin
        self._wire.on_drain = self._go_on
        try:
            await self._answer.pipe(self._take, limit_bytes)
        finally:
            self._wire.on_drain = None
            self._be_patient_no_more()

    def _take(self, data: bytes) -> bool:
        wire, tee = self._wire, self._tee
        if wire.disconnected:
            return True  # the task hears of it next; what comes until then was not delivered
        if self._begin is not None:
            # Not before: a stream that breaks before its first byte can still be answered with a status.
            self._begin()
            self._begin = None
            wire.write(tee.feed(data))
        elif part := tee.feed(data):
            wire.write(part)
        if tee.end:
            wire.watch(None)  # all has come: who leaves now leaves a whole answer
            return False
        if wire.is_backpressured and self._patience is None:
            self._answer.hold()
            stuck = exchange.reader_stuck()
            loop = asyncio.get_running_loop()
            self._patience = loop.call_later(exchange.SECONDS_FOR_THE_READER, self._listening.cut, stuck)
        return True

    def _go_on(self) -> None:
        self._be_patient_no_more()
        self._answer.go_on()

    def _be_patient_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
