"""The heart: a call is opened once and settled exactly once, and that one record feeds every view.

With a recorder only it is the library's meter; with a store and prices it is the relay's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from random import Random
from typing import Final

import msgspec
from msgspec import structs

from mcpmeter.catalog import service
from mcpmeter.errors import LedgerUnavailable, MeterError, ServiceFault
from mcpmeter.ledger.store import InsufficientBudget, SettlementConflict, Store
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.records import Call, Charge, LedgerRow, LlmTarget, McpTarget, Outcome, Settlement, Usage

# Seeded by the system once; asking it for each call would take longer than all the rest of opening one.
_IDS: Final = Random()  # noqa: S311 (an id, no secret)

PriceCall = Callable[[LlmTarget, str, Usage, int, int | None], Charge]
"""(target, response model, usage, Unix ns, nano-dollars the provider reported) -> what the call costs."""


class SettledTwice(ServiceFault):
    """A path tried to settle a call again: a fault of ours, found by tests, never hidden."""

    id = "settled_twice"


def new_call_id(at_ns: int | None = None) -> str:
    """An id that sorts by time, so that the ledger appends: `call_`, the milliseconds, and 80 random bits in hex."""
    return f"call_{(time.time_ns() if at_ns is None else at_ns) // 1_000_000:012x}{_IDS.getrandbits(80):020x}"


class CallResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a call ended, as the path that ended it knows it; `Meter` makes the settlement of it."""

    status: str
    outcome: Outcome = "ok"
    error: MeterError | None = None
    error_type: str = ""
    error_side: str = ""
    otel_error_type: str = ""
    usage: Usage | None = None
    missing_reason: str = ""
    response_model: str = ""
    finish_reason: str = ""
    is_refusal: bool = False
    is_empty: bool = False
    reported_nanousd: int | None = None
    upstream_status: int = 0
    upstream_request_id: str = ""
    time_to_first_chunk_ns: int = 0
    chunks: int = 0


class OpenCall:
    """A call between its opening and its one settlement."""

    __slots__ = ("_meter", "_written", "call", "settlement", "started_ns")

    def __init__(self, meter: Meter, call: Call, started_ns: int) -> None:
        self.call = call
        self.started_ns = started_ns
        self.settlement: Settlement | None = None
        self._meter = meter
        self._written = False

    @property
    def is_settled(self) -> bool:
        """Whether the one settlement was made."""
        return self.settlement is not None

    @property
    def settled(self) -> Settlement:
        """The settlement. Raises ServiceFault before there is one."""
        if self.settlement is None:
            raise ServiceFault(f"Call {self.call.id} is not settled yet.")
        return self.settlement

    def elapsed_ns(self) -> int:
        """Monotonic nanoseconds since the call was opened."""
        return time.monotonic_ns() - self.started_ns

    async def write_down(self, call: Call) -> None:
        """Make the open row durable, with what is now known of the call. Awaited before anything goes upstream.

        Raises LedgerUnavailable, or InsufficientBudget where a limit has no room: then the call must not be made.
        """
        self.call = call
        if self._meter.store is None:
            return
        self._written = True  # before the wait: cancelling it does not take the row out of the writer's queue
        try:
            await self._meter.store.open(call)
        except (MeterError, InsufficientBudget):
            self._written = False
            raise

    def goes_to(self, target: LlmTarget) -> None:
        """Where the call is sent now. The settlement, and so every view, says where it went last."""
        self.call = structs.replace(self.call, llm=target)

    async def settle(self, ending: CallResult) -> Settlement:
        """Settle: durable first, then counted. Awaited before the last byte goes out.

        Raises LedgerUnavailable when the row could not be settled; the row stays open and is recovered at the next
        start, and the call is counted as our failure, without tokens or cost.
        """
        settlement = self._settlement(ending)
        store = self._meter.store
        if store is not None and self._written:
            try:
                await store.settle(settlement)
            except asyncio.CancelledError:
                # Our waiting was cancelled, not the write: the row is in the writer's queue and will be settled.
                self._meter.recorder.settle(settlement)
                raise
            except Exception as fault:
                error = _ledger_fault(fault)
                self.settlement = _unsettled(settlement, error)
                self._meter.recorder.settle(self.settlement)
                self._meter.requests_counted.add(self.call.id)
                raise error from fault
        self._meter.recorder.settle(settlement)
        return settlement

    async def end(self, ending: CallResult) -> Settlement:
        """Settle, or count where there is no row: for paths that end before it is clear which."""
        return await self.settle(ending) if self._written else self.count(ending)

    def count(self, ending: CallResult) -> Settlement:
        """Settle a call that reaches no model, and so has no row in the ledger."""
        if self._written:
            raise ServiceFault("A call with a row in the ledger has to be settled, not only counted.")
        settlement = self._settlement(ending)
        self._meter.recorder.settle(settlement)
        return settlement

    def _settlement(self, ending: CallResult) -> Settlement:
        if self.settlement is not None:
            raise SettledTwice(f"Call {self.call.id} was settled before.")
        duration_ns = time.monotonic_ns() - self.started_ns
        self.settlement = settlement = self._meter.make_settlement(self.call, ending, duration_ns)
        return settlement


class Meter:
    """Opens calls and settles them. `store` and `price` are the relay's; the library needs neither."""

    def __init__(self, recorder: Recorder, *, store: Store | None = None, price: PriceCall | None = None) -> None:
        self.recorder = recorder
        self.store = store
        self.price = price
        self.requests_counted: set[str] = set()
        """Calls whose row could not be settled: they are counted, and their rows are still to be recovered."""

    def open(
        self,
        endpoint: str,
        method: str,
        *,
        trace_id: str = "",
        parent_id: str = "",
        team: str = "",
        key_id: str = "",
        mcp: McpTarget | None = None,
    ) -> OpenCall:
        """Open a call. Nothing is durable until `OpenCall.write_down`."""
        now_ns = time.time_ns()
        call = Call(
            id=new_call_id(now_ns),
            started_at_ns=now_ns,
            endpoint=endpoint,
            method=method,
            trace_id=trace_id,
            parent_id=parent_id,
            team=team,
            key_id=key_id,
            mcp=mcp,
        )
        return OpenCall(self, call, time.monotonic_ns())

    def make_settlement(self, call: Call, ending: CallResult, duration_ns: int) -> Settlement:
        """The one record of how a call ended, priced."""
        error, charge = ending.error, None
        usage, reported_nanousd = ending.usage, ending.reported_nanousd
        if call.llm is not None and usage is not None:
            if self.price is None:
                charge = Charge(reported_nanousd=reported_nanousd)
            else:
                charge = self.price(call.llm, ending.response_model, usage, call.started_at_ns, reported_nanousd)
        error_type = ending.error_type or (error.error_type if error else "")
        return Settlement(
            call=call,
            ended_at_ns=call.started_at_ns + duration_ns,
            duration_ns=duration_ns,
            status=ending.status,
            outcome=ending.outcome,
            error_type=error_type,
            error_side=ending.error_side or (error.side if error else ""),
            error_id=error.id if error else "",
            otel_error_type=ending.otel_error_type or error_type,
            usage=usage,
            charge=charge,
            response_model=ending.response_model,
            finish_reason=ending.finish_reason,
            is_refusal=ending.is_refusal,
            is_empty=ending.is_empty,
            upstream_status=ending.upstream_status,
            upstream_request_id=ending.upstream_request_id,
            time_to_first_chunk_ns=ending.time_to_first_chunk_ns,
            chunks=ending.chunks,
            missing_reason=ending.missing_reason,
        )

    async def recover(self) -> int:
        """Settle what an earlier life left open; returns how many.

        Nobody knows what the provider answered, so the prompt is charged as estimated, and the row says so.
        """
        if self.store is None:
            return 0
        rows, recovered = await self.store.left_open(), 0
        for row in rows:
            settlement = self.make_settlement(_call_of(row), _recovered(row), 0)
            request_counted = row.id in self.requests_counted
            try:
                await self.store.settle(settlement)
            except SettlementConflict:
                self.requests_counted.discard(row.id)
                continue  # a replica that was taken for dead has settled it after all, and knows better
            self.requests_counted.discard(row.id)
            self.recorder.settle(settlement, request_counted=request_counted)
            self.recorder.add(service.LEDGER_RECOVERED)
            recovered += 1
        return recovered


def _recovered(row: LedgerRow) -> CallResult:
    return CallResult(
        status="500",
        outcome="recovered",
        error=ServiceFault("The service stopped before this call ended."),
        usage=Usage(prompt_tokens=row.prompt_tokens_estimate, source="estimated"),
        missing_reason="crash",
    )


def _call_of(row: LedgerRow) -> Call:
    return Call(
        id=row.id,
        started_at_ns=row.started_at_ns,
        endpoint=row.endpoint,
        method=row.method,
        team=row.team,
        key_id=row.key_id,
        parent_id=row.parent_id,
        trace_id=row.trace_id,
        llm=LlmTarget(
            provider=row.provider,
            model=row.model,
            operation=row.operation,
            stream=row.stream,
            prompt_tokens_estimate=row.prompt_tokens_estimate,
        ),
    )


def _ledger_fault(fault: Exception) -> LedgerUnavailable:
    if isinstance(fault, MeterError):
        return LedgerUnavailable(fault.message, hint=fault.hint)
    # Its text may hold anything, a row's values too.
    return LedgerUnavailable(f"The ledger failed ({type(fault).__name__}).", hint="Look at the service's log.")


def _unsettled(settlement: Settlement, error: MeterError) -> Settlement:
    return Settlement(
        call=settlement.call,
        ended_at_ns=settlement.ended_at_ns,
        duration_ns=settlement.duration_ns,
        status=str(error.http_status),
        outcome="error",
        error_type=error.error_type,
        error_side=error.side,
        error_id=error.id,
        otel_error_type=error.error_type,
    )
