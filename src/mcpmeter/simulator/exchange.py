"""One call, from its first-byte latency to its entry in the billing log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mcpmeter.simulator.answers import Tally
from mcpmeter.simulator.billing_log import CallOutcome, OpenCall
from mcpmeter.simulator.dialects.base import Event, Framing, Reply
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.request import SimulatorRequest
from mcpmeter.simulator.server import until_cancelled
from mcpmeter.simulator.vendors.base import HTML, PlainResponse, Vendor, page
from mcpmeter.simulator.wire import Wire, respond

EVENTS_PER_TURN = 64
NS_PER_S = 1_000_000_000
NOTHING_BILLED = Tally(0, 0)
BROKEN_SSE = b'\xff\xfe no field at all\r\rdata {"no":"colon"}\n\n\n\nevent\n: a comment\ndata\n\n'


class Pace(NamedTuple):
    """When bytes may go out."""

    first_byte_ns: int
    gap_ns: Callable[[], int] | None
    """Draws the delay before the next chunk of a stream; None means no delay."""


@dataclass(slots=True)
class Exchange:
    """Sends one response, intact or with its fault, and bills it exactly once."""

    request: SimulatorRequest
    call: OpenCall
    fault: Fault
    pace: Pace
    reply: Reply
    vendor: Vendor
    headers: Mapping[str, str]
    cost: str | None = None
    """Exact USD, reported inside a stream."""
    is_closing: Callable[[], bool] = lambda: False
    started: bool = False
    delivered: int = 0
    delivered_thoughts: int = 0
    """The part of `delivered` that is visible reasoning."""

    async def run(self) -> None:
        """Respond. A lost connection cancels this, and the call is billed as cancelled."""
        try:
            await self._respond()
        except asyncio.CancelledError:
            self._bill_interrupted()
            raise

    def _bill_interrupted(self) -> None:
        if self.is_closing():
            self._bill("fault", self._billed_so_far())
        else:
            seen_at_ns = time.monotonic_ns()
            self.call.book("cancelled", self._billed_so_far(), delivered=self.delivered, cancelled_at_ns=seen_at_ns)

    async def _respond(self) -> None:
        fault = self.fault
        if self.pace.first_byte_ns:
            await asyncio.sleep(self.pace.first_byte_ns / NS_PER_S)
        if fault.stall == "headers":
            await self._stall()
        if fault.reset == "headers":
            self._bill("fault", NOTHING_BILLED)
            await self.request.connection.reset()
        if fault.status is not None:
            await self._refuse(fault.status)
        elif fault.body in ("empty", "html") or (fault.body == "error" and self.reply.framing is None):
            await self._send_substitute()
        elif self.reply.framing is not None and fault.content_length is None:
            await self._send_stream(self.reply.events(self.cost), self.reply.framing)
        else:
            await self._send_whole()

    async def _refuse(self, status: int) -> None:
        self._bill("fault", NOTHING_BILLED)
        wait = self.fault.retry_after
        headers = dict(self.headers)
        if wait is not None:
            headers["Retry-After"] = f"{wait:g}"
        if 300 <= status < 400 and status != 304:
            headers["Location"] = "/v1/moved"
        response = self.vendor.typical(status, retry_after_seconds=wait, request_id=self.call.request_id)
        await respond(self.request, response, headers)

    async def _send_substitute(self) -> None:
        self._bill("fault", NOTHING_BILLED)
        match self.fault.body:
            case "html":
                response = PlainResponse(200, HTML, page("Down for maintenance"))
            case "error":
                response = self.vendor.typical(500, request_id=self.call.request_id)._replace(status=200)
            case _:
                framing = self.reply.framing
                response = PlainResponse(200, self.reply.content_type if framing is None else framing.content_type, b"")
        await respond(self.request, response, self.headers)

    async def _send_whole(self) -> None:
        body, content_type = self._whole_body()
        outcome: CallOutcome = "fault" if self.fault.body is not None else "complete"
        if self.fault.spoils_transfer:
            await self._send_spoiled(body, content_type, outcome)
            return
        self.delivered = self._visible
        self._bill(outcome, self.reply.tally)
        await respond(self.request, PlainResponse(200, content_type, body), self.headers)

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

    async def _send_spoiled(self, body: bytes, content_type: str, outcome: CallOutcome) -> None:
        fault, half = self.fault, len(body) // 2
        announced = {"short": half, "long": len(body) + 64}.get(fault.content_length or "", len(body))
        wire = Wire(self.request, fault)
        await wire.start(content_type, self.headers, content_length=None if fault.reset == "chunk" else announced)
        self.started = True
        await wire.send(body[:half])
        await self._interrupt(wire)
        if fault.content_length == "short":
            self._bill("fault", self.reply.tally)
            wire.send_unframed(body[half:])
            await wire.close()
        await wire.send(body[half:-1])
        self.delivered = self._visible
        self._bill("fault" if fault.content_length else outcome, self.reply.tally)
        await wire.send(body[-1:])
        if fault.content_length == "long":
            await wire.close()
        await wire.end()

    async def _send_stream(self, events: Iterator[Event], framing: Framing) -> None:
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
                self._bill(outcome, self._billed_so_far())
            await wire.send(event.data)
        self._bill(outcome, self._billed_so_far())
        await wire.end()

    async def _keep_pace(self, due_ns: int, event: Event, sent: int) -> int:
        """Wait until the event is due. Adds up deadlines instead of delays, so that the rate holds."""
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
            self._bill("fault", self._billed_so_far())
            await wire.reset(inside_chunk=self.fault.reset == "chunk")

    async def _garble(self, wire: Wire, framing: Framing, sent: int) -> None:
        match self.fault.body:
            case "malformed_json":
                await wire.send(framing.broken_json)
            case "malformed_sse":
                await wire.send(BROKEN_SSE)
            case "error":
                self._bill("fault", self._billed_so_far())
                await wire.send(framing.error(sent))

    async def _stall(self) -> None:
        if self.fault.stall_seconds is None:
            await until_cancelled()
        else:
            await asyncio.sleep(self.fault.stall_seconds)

    @property
    def _visible(self) -> int:
        """Tokens of a whole response that the client sees."""
        return self.reply.tally.completion - self.reply.hidden_tokens

    def _billed_so_far(self) -> Tally:
        """The full tally of a whole response, which exists before it is sent; of a stream only the delivered part."""
        if not self.started:
            return NOTHING_BILLED
        reply = self.reply
        if reply.framing is None or self.fault.content_length is not None:
            return reply.tally
        hidden = reply.hidden_tokens
        return reply.tally._replace(completion=hidden + self.delivered, reasoning=hidden + self.delivered_thoughts)

    def _bill(self, outcome: CallOutcome, billed: Tally) -> None:
        self.call.book(outcome, billed, delivered=self.delivered)
