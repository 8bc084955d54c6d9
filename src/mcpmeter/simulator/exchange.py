"""One call, from the wait for its first byte to its entry in the books."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from aiohttp import web

from mcpmeter.simulator.answers import Tally
from mcpmeter.simulator.billing_log import CallOutcome, OpenCall
from mcpmeter.simulator.dialects.base import Event, Framing, Reply
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.vendors.base import HTML, Refusal, Vendor, page
from mcpmeter.simulator.wire import Wire, reset_connection, until_client_leaves

EVENTS_PER_TURN = 64
NS_PER_S = 1_000_000_000
NOTHING_BILLED = Tally(0, 0)
BROKEN_SSE = b'\xff\xfe no field at all\r\rdata {"no":"colon"}\n\n\n\nevent\n: a comment\ndata\n\n'


class Pace(NamedTuple):
    """When bytes may go out."""

    first_byte_ns: int
    gap_ns: Callable[[], int] | None
    """Draws the wait before the next chunk of a stream; None waits for nothing."""


@dataclass(slots=True)
class Exchange:
    """Sends one answer, well or as badly as asked, and books it exactly once."""

    request: web.BaseRequest
    call: OpenCall
    fault: Fault
    pace: Pace
    reply: Reply
    vendor: Vendor
    headers: Mapping[str, str]
    cost: str | None = None
    """Exact USD, told by a stream."""
    is_closing: Callable[[], bool] = lambda: False
    started: bool = False
    delivered: int = 0
    delivered_thoughts: int = 0
    """Of those delivered, reasoning that is shown."""

    async def run(self) -> web.StreamResponse:
        """Answer. Cancelled by the closing of the connection, which is then booked as such."""
        try:
            return await self._answer()
        except asyncio.CancelledError:
            self._book_broken_off()
            raise
        except ConnectionResetError:
            self._book_broken_off()
            return web.Response()  # nobody will get it; a raise would be logged as our fault

    def _book_broken_off(self) -> None:
        if self.is_closing():
            self._book("fault", self._billed_so_far())
        else:
            seen_at_ns = time.monotonic_ns()
            self.call.book("cancelled", self._billed_so_far(), delivered=self.delivered, cancelled_at_ns=seen_at_ns)

    async def _answer(self) -> web.StreamResponse:
        fault = self.fault
        if self.pace.first_byte_ns:
            await asyncio.sleep(self.pace.first_byte_ns / NS_PER_S)
        if fault.stall == "headers":
            await self._stall()
        if fault.reset == "headers":
            self._book("fault", NOTHING_BILLED)
            await reset_connection(self.request)
        if fault.status is not None:
            return self._refuse(fault.status)
        if fault.body in ("empty", "html") or (fault.body == "error" and self.reply.framing is None):
            return self._answer_something_else()
        if self.reply.framing is not None and fault.content_length is None:
            return await self._send_stream(self.reply.events(self.cost), self.reply.framing)
        return await self._send_whole()

    def _refuse(self, status: int) -> web.Response:
        self._book("fault", NOTHING_BILLED)
        headers = dict(self.headers)
        if self.fault.retry_after is not None:
            headers["Retry-After"] = f"{self.fault.retry_after:g}"
        if 300 <= status < 400 and status != 304:
            headers["Location"] = "/v1/moved"
        wait = self.fault.retry_after
        return respond(self.vendor.typical(status, retry_after_seconds=wait, request_id=self.call.request_id), headers)

    def _answer_something_else(self) -> web.Response:
        self._book("fault", NOTHING_BILLED)
        match self.fault.body:
            case "html":
                instead = Refusal(200, HTML, page("Down for maintenance"))
            case "error":
                instead = self.vendor.typical(500, request_id=self.call.request_id)._replace(status=200)
            case _:
                framing = self.reply.framing
                instead = Refusal(200, self.reply.content_type if framing is None else framing.content_type, b"")
        return respond(instead, self.headers)

    async def _send_whole(self) -> web.StreamResponse:
        body, content_type = self._whole_body()
        outcome: CallOutcome = "fault" if self.fault.body is not None else "complete"
        if self.fault.spoils_transfer:
            return await self._send_spoiled(body, content_type, outcome)
        self.delivered = self._visible
        self._book(outcome, self.reply.tally)
        return respond(Refusal(200, content_type, body), self.headers)

    def _whole_body(self) -> tuple[bytes, str]:
        framing, content_type = self.reply.framing, self.reply.content_type
        if framing is not None:
            return b"".join(event.data for event in self.reply.events(self.cost)), framing.content_type
        body = self.reply.body()
        match self.fault.body:
            case "malformed_json":
                return body[: len(body) // 2], content_type
            case "malformed_sse":
                return b"data: " + body + b"\n\n", content_type
            case _:
                return body, content_type

    async def _send_spoiled(self, body: bytes, content_type: str, outcome: CallOutcome) -> web.StreamResponse:
        fault, half = self.fault, len(body) // 2
        announced = {"short": half, "long": len(body) + 64}.get(fault.content_length or "", len(body))
        wire = Wire(self.request, fault)
        await wire.start(content_type, self.headers, content_length=None if fault.reset == "chunk" else announced)
        self.started = True
        await wire.send(body[:half])
        await self._interrupt(wire)
        if fault.content_length == "short":
            self._book("fault", self.reply.tally)
            wire.send_unannounced(body[half:])
            return await wire.end(close=True)
        await wire.send(body[half:-1])
        self.delivered = self._visible
        self._book("fault" if fault.content_length else outcome, self.reply.tally)
        await wire.send(body[-1:])
        return await wire.end(close=fault.content_length is not None)

    async def _send_stream(self, events: Iterator[Event], framing: Framing) -> web.StreamResponse:
        wire = Wire(self.request, self.fault)
        await wire.start(framing.content_type, {**self.headers, "Cache-Control": "no-cache"})
        self.started = True
        interrupt_at = min(self.fault.after_tokens, self._visible)
        outcome: CallOutcome = "complete"
        due_ns = time.monotonic_ns()
        interrupted = False
        for sent, event in enumerate(events):
            due_ns = await self._keep_pace(due_ns, event, sent)
            if not interrupted and self.delivered >= interrupt_at:
                interrupted = True
                await self._interrupt(wire)
                if self.fault.body is not None:
                    outcome = "fault"
                    await self._garble(wire, framing, sent)
                if self.fault.body == "error":
                    break
            self.delivered += event.tokens + event.thoughts
            self.delivered_thoughts += event.thoughts
            if event.is_last:
                self._book(outcome, self._billed_so_far())
            await wire.send(event.data)
        self._book(outcome, self._billed_so_far())
        return await wire.end()

    async def _keep_pace(self, due_ns: int, event: Event, sent: int) -> int:
        """Wait until the event is due; deadlines, not waits, are added up, so that the rate holds."""
        if self.pace.gap_ns is None:
            if sent % EVENTS_PER_TURN == EVENTS_PER_TURN - 1:
                await asyncio.sleep(0)
            return due_ns
        if event.tokens or event.thoughts:
            due_ns += self.pace.gap_ns()
            await asyncio.sleep(max(0, due_ns - time.monotonic_ns()) / NS_PER_S)
        return due_ns

    async def _interrupt(self, wire: Wire) -> None:
        if self.fault.stall == "body":
            await self._stall()
        if self.fault.reset in ("body", "chunk"):
            self._book("fault", self._billed_so_far())
            await wire.reset(inside_chunk=self.fault.reset == "chunk")

    async def _garble(self, wire: Wire, framing: Framing, sent: int) -> None:
        match self.fault.body:
            case "malformed_json":
                await wire.send(framing.broken_json)
            case "malformed_sse":
                await wire.send(BROKEN_SSE)
            case "error":
                self._book("fault", self._billed_so_far())
                await wire.send(framing.error(sent))

    async def _stall(self) -> None:
        if self.fault.stall_seconds is None:
            await until_client_leaves()
        else:
            await asyncio.sleep(self.fault.stall_seconds)

    @property
    def _visible(self) -> int:
        """Tokens of a whole answer that the client gets to see."""
        return self.reply.tally.completion - self.reply.hidden_tokens

    def _billed_so_far(self) -> Tally:
        """A whole answer is made before it is sent; a stream only as far as it was delivered."""
        if not self.started:
            return NOTHING_BILLED
        reply = self.reply
        if reply.framing is None or self.fault.content_length is not None:
            return reply.tally
        hidden = reply.hidden_tokens
        return reply.tally._replace(completion=hidden + self.delivered, reasoning=hidden + self.delivered_thoughts)

    def _book(self, outcome: CallOutcome, billed: Tally) -> None:
        self.call.book(outcome, billed, delivered=self.delivered)


def respond(answer: Refusal, headers: Mapping[str, str]) -> web.Response:
    """A plain response."""
    return web.Response(
        status=answer.status, body=answer.body, headers={**headers, "Content-Type": answer.content_type}
    )
