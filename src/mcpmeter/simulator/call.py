"""One call, from its first-byte latency to its record in the billing log.

After the latency a call takes one of four ways: a refusal with an error status, a substitute body with status 200, a
whole body, or a stream. A fault may interrupt the last two once: a stall continues afterwards or waits for the client's
disconnect, a reset ends the call, a broken event is followed by the rest. Whichever way ends first bills the call;
`OpenRecord` ignores a second bill, so that a disconnect during the last write changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mcpmeter.simulator.billing_log import CallOutcome, OpenRecord
from mcpmeter.simulator.dialects.base import DialectResponse, Event, Framing
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.generation import BilledTokens
from mcpmeter.simulator.response_writer import ResponseWriter, respond
from mcpmeter.simulator.server import SimulatorRequest, until_cancelled
from mcpmeter.simulator.vendors.base import HTML, PlainResponse, Vendor, page

EVENTS_PER_TURN = 64
NS_PER_S = 1_000_000_000
NOTHING_BILLED = BilledTokens(0, 0)
BROKEN_SSE = b'\xff\xfe no field at all\r\rdata {"no":"colon"}\n\n\n\nevent\n: a comment\ndata\n\n'


class Pace(NamedTuple):
    """When bytes may go out."""

    first_byte_ns: int
    gap_ns: Callable[[], int] | None
    """Draws the delay before the next chunk of a stream; None means no delay."""


@dataclass(slots=True)
class SimulatedCall:
    """Sends one response, intact or with its fault, and bills it exactly once."""

    request: SimulatorRequest
    record: OpenRecord
    fault: Fault
    pace: Pace
    response: DialectResponse
    vendor: Vendor
    headers: Mapping[str, str]
    cost: str | None = None
    """Exact USD, reported inside a stream."""
    is_closing: Callable[[], bool] = lambda: False
    started: bool = False
    delivered: int = 0
    delivered_reasoning: int = 0
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
            self.record.bill("cancelled", self._billed_so_far(), delivered=self.delivered, cancelled_at_ns=seen_at_ns)

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
        elif fault.body in ("empty", "html") or (fault.body == "error" and self.response.framing is None):
            await self._send_substitute()
        elif self.response.framing is not None and fault.content_length is None:
            await self._send_stream(self.response.events(self.cost), self.response.framing)
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
        response = self.vendor.typical(status, retry_after_seconds=wait, request_id=self.record.request_id)
        await respond(self.request, response, headers)

    async def _send_substitute(self) -> None:
        self._bill("fault", NOTHING_BILLED)
        match self.fault.body:
            case "html":
                response = PlainResponse(200, HTML, page("Down for maintenance"))
            case "error":
                response = self.vendor.typical(500, request_id=self.record.request_id)._replace(status=200)
            case _:
                framing = self.response.framing
                response = PlainResponse(
                    200, self.response.content_type if framing is None else framing.content_type, b""
                )
        await respond(self.request, response, self.headers)

    async def _send_whole(self) -> None:
        body, content_type = self._whole_body()
        outcome: CallOutcome = "fault" if self.fault.body is not None else "complete"
        if self.fault.spoils_transfer:
            await self._send_spoiled(body, content_type, outcome)
            return
        self.delivered = self._visible
        self._bill(outcome, self.response.billed)
        await respond(self.request, PlainResponse(200, content_type, body), self.headers)

    def _whole_body(self) -> tuple[bytes, str]:
        framing, content_type = self.response.framing, self.response.content_type
        if framing is not None:
            return b"".join(event.data for event in self.response.events(self.cost)), framing.content_type
        body = self.response.body()
        match self.fault.body:
            case "malformed_json":
                return body[: len(body) // 2], content_type
            case "malformed_sse":
                return b"data: " + body + b"\n\n", content_type
            case _:
                return body, content_type

    async def _send_spoiled(self, body: bytes, content_type: str, outcome: CallOutcome) -> None:
        fault, half = self.fault, len(body) // 2
        content_length = {"short": half, "long": len(body) + 64}.get(fault.content_length or "", len(body))
        writer = ResponseWriter(self.request, fault)
        await writer.start(
            content_type, self.headers, content_length=None if fault.reset == "chunk" else content_length
        )
        self.started = True
        await writer.send(body[:half])
        await self._interrupt(writer)
        if fault.content_length == "short":
            self._bill("fault", self.response.billed)
            writer.send_unframed(body[half:])
            await writer.close()
        await writer.send(body[half:-1])
        self.delivered = self._visible
        self._bill("fault" if fault.content_length else outcome, self.response.billed)
        await writer.send(body[-1:])
        if fault.content_length == "long":
            await writer.close()
        await writer.end()

    async def _send_stream(self, events: Iterator[Event], framing: Framing) -> None:
        writer = ResponseWriter(self.request, self.fault)
        await writer.start(framing.content_type, {**self.headers, "Cache-Control": "no-cache"})
        self.started = True
        interrupt_at = min(self.fault.after_tokens, self._visible)
        outcome: CallOutcome = "complete"
        due_ns = time.monotonic_ns()
        interrupted = False
        for sent, event in enumerate(events):
            due_ns = await self._keep_pace(due_ns, event, sent)
            if not interrupted and self.delivered >= interrupt_at:
                interrupted = True
                await self._interrupt(writer)
                if self.fault.body is not None:
                    outcome = "fault"
                    await self._garble(writer, framing, sent)
                if self.fault.body == "error":
                    break
            self.delivered += event.tokens + event.reasoning_tokens
            self.delivered_reasoning += event.reasoning_tokens
            if event.is_last:
                self._bill(outcome, self._billed_so_far())
            await writer.send(event.data)
        self._bill(outcome, self._billed_so_far())
        await writer.end()

    async def _keep_pace(self, due_ns: int, event: Event, sent: int) -> int:
        """Wait until the event is due. Adds up deadlines instead of delays, so that the rate holds."""
        if self.pace.gap_ns is None:
            if sent % EVENTS_PER_TURN == EVENTS_PER_TURN - 1:
                await asyncio.sleep(0)
            return due_ns
        if event.tokens or event.reasoning_tokens:
            due_ns += self.pace.gap_ns()
            await asyncio.sleep(max(0, due_ns - time.monotonic_ns()) / NS_PER_S)
        return due_ns

    async def _interrupt(self, writer: ResponseWriter) -> None:
        if self.fault.stall == "body":
            await self._stall()
        if self.fault.reset in ("body", "chunk"):
            self._bill("fault", self._billed_so_far())
            await writer.reset(inside_chunk=self.fault.reset == "chunk")

    async def _garble(self, writer: ResponseWriter, framing: Framing, sent: int) -> None:
        match self.fault.body:
            case "malformed_json":
                await writer.send(framing.broken_json)
            case "malformed_sse":
                await writer.send(BROKEN_SSE)
            case "error":
                self._bill("fault", self._billed_so_far())
                await writer.send(framing.error(sent))

    async def _stall(self) -> None:
        if self.fault.stall_seconds is None:
            await until_cancelled()
        else:
            await asyncio.sleep(self.fault.stall_seconds)

    @property
    def _visible(self) -> int:
        """Tokens of a whole response that the client sees."""
        return self.response.billed.completion - self.response.hidden_tokens

    def _billed_so_far(self) -> BilledTokens:
        """All tokens of a whole response, which is generated before it is sent; of a stream only the delivered ones."""
        if not self.started:
            return NOTHING_BILLED
        response = self.response
        if response.framing is None or self.fault.content_length is not None:
            return response.billed
        hidden = response.hidden_tokens
        return response.billed._replace(completion=hidden + self.delivered, reasoning=hidden + self.delivered_reasoning)

    def _bill(self, outcome: CallOutcome, billed: BilledTokens) -> None:
        self.record.bill(outcome, billed, delivered=self.delivered)
