"""Background responses of OpenAI: created at once, completed after a while, kept for some minutes.

https://platform.openai.com/docs/guides/background. A stream can be resumed by the number of its last event, a client
that disconnects stops nothing, and a response that was cancelled reports no usage.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from mcpmeter.errors import InvalidRequest, RouteNotFound
from mcpmeter.simulator.billing_log import OpenRecord
from mcpmeter.simulator.call import NOTHING_BILLED
from mcpmeter.simulator.dialects.base import EVENT_STREAM, DialectResponse
from mcpmeter.simulator.faults import NO_FAULT
from mcpmeter.simulator.response_writer import ResponseWriter, respond
from mcpmeter.simulator.server import SimulatorRequest
from mcpmeter.simulator.vendors.base import JSON, PlainResponse

PREFIX: Final = "/v1/responses/"
MAX_KEPT: Final = 100_000
QUEUED_SHARE: Final = 0.25
"""Of a response's time, before the work on it begins."""


class _Kept:
    """One response and when it is complete."""

    def __init__(self, response: DialectResponse, record: OpenRecord, seconds: float) -> None:
        self.body: dict[str, Any] = msgspec.json.decode(response.body())
        self.response = response
        self.record = record
        self.seconds = seconds
        self.created = time.monotonic()
        self.ended = asyncio.Event()
        self.is_cancelled = False
        self.timer = asyncio.get_running_loop().call_later(seconds, self.complete)

    @property
    def id(self) -> str:
        return str(self.body["id"])

    def complete(self) -> None:
        """End the work, unless it was cancelled."""
        if self.ended.is_set():
            return
        self.timer.cancel()
        self.record.bill("complete", self.response.billed, delivered=self.response.billed.completion)
        self.ended.set()

    def cancel(self) -> None:
        """Stop the work, unless it is complete."""
        if not self.ended.is_set():
            self.timer.cancel()
            self.is_cancelled = True
            self.record.bill("cancelled", NOTHING_BILLED, delivered=0, cancelled_at_ns=time.monotonic_ns())
            self.ended.set()

    def shown(self) -> dict[str, Any]:
        """The response object of now."""
        if self.ended.is_set() and not self.is_cancelled:
            return self.body
        is_queued = time.monotonic() - self.created < self.seconds * QUEUED_SHARE
        status = "cancelled" if self.is_cancelled else "queued" if is_queued else "in_progress"
        return self.body | {"status": status, "output": [], "usage": None}


class BackgroundResponses:
    """All background responses of a simulator. `keep_seconds` after its end a response is forgotten."""

    def __init__(self, keep_seconds: float) -> None:
        self._keep_seconds = keep_seconds
        self._kept: dict[str, _Kept] = {}
        self.requests = 0
        """For responses that were created earlier."""

    async def create(
        self,
        request: SimulatorRequest,
        response: DialectResponse,
        record: OpenRecord,
        seconds: float,
        headers: Mapping[str, str],
    ) -> None:
        """Begin a response and answer, by a stream if the request wants one."""
        if len(self._kept) >= MAX_KEPT:
            self.forget_all()
        kept = _Kept(response, record, seconds)
        self._kept[kept.id] = kept
        if response.framing is not None:
            await self._stream(request, kept, -1, headers)
        else:
            await respond(request, _json(kept.shown()), headers)

    async def serve(self, request: SimulatorRequest, headers: Mapping[str, str]) -> None:
        """Answer a request for a response. Raises RouteNotFound, InvalidRequest."""
        self.requests += 1
        object_id, _, action = request.path.removeprefix(PREFIX).partition("/")
        kept = self._kept.get(object_id)
        if kept is not None and kept.ended.is_set() and time.monotonic() - kept.created > self._keep_until(kept):
            del self._kept[object_id]
            kept = None
        if kept is None:
            raise RouteNotFound(f"Response with id '{object_id[:80]}' not found.")
        match request.method, action:
            case "GET", "" if request.query_params.get("stream") == "true":
                await self._stream(request, kept, _number(request.query_params.get("starting_after", "-1")), headers)
            case "GET", "":
                await respond(request, _json(kept.shown()), headers)
            case "POST", "cancel":
                kept.cancel()
                await respond(request, _json(kept.shown()), headers)
            case "DELETE", "":
                kept.cancel()
                del self._kept[object_id]
                answer = {"id": object_id, "object": "response.deleted", "deleted": True}
                await respond(request, _json(answer), headers)
            case _:
                raise InvalidRequest("Not allowed on a response.")

    def complete_all(self) -> None:
        """End the work on all responses now."""
        for kept in self._kept.values():
            kept.complete()

    def forget_all(self) -> None:
        """Forget every response; those in progress are still completed, and billed."""
        self._kept.clear()

    def _keep_until(self, kept: _Kept) -> float:
        return kept.seconds + self._keep_seconds

    async def _stream(self, request: SimulatorRequest, kept: _Kept, after: int, headers: Mapping[str, str]) -> None:
        writer = ResponseWriter(request, NO_FAULT)
        await writer.start(EVENT_STREAM, headers)
        for number, event in enumerate(kept.response.events(None)):
            if event.is_last:
                await kept.ended.wait()
            if kept.is_cancelled:
                break
            if number > after:
                await writer.send(event.data)
        await writer.end()


def _number(text: str) -> int:
    """Raises InvalidRequest."""
    if not text.removeprefix("-").isdigit() or len(text) > 9:
        raise InvalidRequest("'starting_after' is the number of an event.")
    return int(text)


def _json(value: Mapping[str, Any]) -> PlainResponse:
    return PlainResponse(200, JSON, msgspec.json.encode(value))
