"""Opens a call and settles it exactly once; that one record feeds the ledger and every metric.

With a recorder only it is the library's meter; with a store and prices it is the relay's. A settlement that the store
does not take in time goes to `pending`, which keeps it until the store does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Awaitable
from itertools import filterfalse
from operator import methodcaller
from typing import Final, Protocol
from weakref import WeakMethod

import msgspec
from msgspec import structs

from mcpmeter.catalog import service
from mcpmeter.errors import LedgerUnavailable, MeterError, ServiceFault
from mcpmeter.ledger.store import InsufficientBudget, RowRefused, SettlementConflict, Store
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.records import Call, Charge, LedgerRow, LlmTarget, McpTarget, Outcome, Reservation, Settlement, Usage

_RANDOM_BYTES: Final = 10
_IDS_PER_BLOCK: Final = 64

SETTLE_SECONDS: Final = 0.25
"""How long a settlement waits for the ledger before it goes to the file of pending ones."""

_SWEEP_SECONDS: Final = 0.025


class SettledTwice(ServiceFault):
    """A path tried to settle a call again: a fault of ours, found by tests, never hidden."""

    id = "settled_twice"


class Prices(Protocol):
    """What a call costs; `pricing.PriceBook` in the relay."""

    def charge_for(
        self,
        target: LlmTarget,
        response_model: str,
        usage: Usage,
        at_ns: int,
        reported_nanousd: int | None,
        *,
        reported_is_part: bool = False,
    ) -> Charge:
        """The charge of a call at `at_ns` (Unix ns), of which the provider may have reported the cost, or a part."""


class Postings(Protocol):
    """What the budgets of single models get of a charge; `budgets.Limits.postings` in the relay."""

    def __call__(self, call: Call, charge: Charge) -> tuple[Reservation, ...]: ...


class Pending(Protocol):
    """Keeps settlements that the ledger cannot take now; `ledger.pending.PendingSettlements` in the relay."""

    unwritten: set[str]
    """Calls whose settlement is durable nowhere yet."""

    def keep(self, settlement: Settlement, *, is_counted: bool = False) -> asyncio.Future[None]:
        """Take a settlement. Resolves when it is durable."""

    def __contains__(self, call_id: str) -> bool:
        """Whether a call's settlement waits for the ledger."""


def new_call_id() -> str:
    """An id for a call that no meter opens."""
    return f"call_{time.time_ns() // 1_000_000:012x}{os.urandom(_RANDOM_BYTES).hex()}"


class CallIds:
    """Makes call ids of the system's entropy.

    The entropy is read in blocks, as a system call per id would take longer than all else that opens a call. A forked
    child discards its copy of the block: otherwise parent and child would make the same ids.
    """

    __slots__ = ("__weakref__", "_parts")

    def __init__(self) -> None:
        self._parts: list[str] = []
        if sys.platform != "win32":
            discard = WeakMethod(self._discard)
            os.register_at_fork(after_in_child=lambda: (found := discard()) and found())

    def new(self, at_ns: int) -> str:
        """An id that sorts by time, so that the ledger appends: `call_`, milliseconds, 80 random bits, both in hex."""
        try:
            part = self._parts.pop()  # atomic, so that threads never share a part
        except IndexError:
            part = self._refill().pop()
        return f"call_{at_ns // 1_000_000:012x}{part}"

    def _refill(self) -> list[str]:
        block, width = os.urandom(_RANDOM_BYTES * _IDS_PER_BLOCK).hex(), 2 * _RANDOM_BYTES
        parts = self._parts = [block[start : start + width] for start in range(0, len(block), width)]
        return parts

    def _discard(self) -> None:
        self._parts = []


class CallResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a call ended, as far as the path that ended it knows; `Meter` makes the settlement of it."""

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
    reported_is_part: bool = False
    """The reported cost is a fee beside what the list has."""
    upstream_status: int = 0
    upstream_request_id: str = ""
    time_to_first_chunk_ns: int = 0
    chunks: int = 0
    object_id: str = ""
    """The provider's id of the response."""
    is_pending: bool = False
    """The provider has taken the call and has not completed it."""


class Deferral(Protocol):
    """Decides when a call is settled whose provider may work on after its response."""

    def settle(self, opened: OpenCall, result: CallResult) -> Awaitable[Settlement]:
        """Settle the call, or put that off."""


class OpenCall:
    """A call between its opening and its one settlement."""

    __slots__ = ("_meter", "_written", "call", "deferral", "settlement", "started_ns")

    def __init__(self, meter: Meter, call: Call, started_ns: int) -> None:
        self.call = call
        self.started_ns = started_ns
        self.settlement: Settlement | None = None
        self.deferral: Deferral | None = None
        self._meter = meter
        self._written = False

    @property
    def is_settled(self) -> bool:
        """Whether the settlement was made."""
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

        Raises LedgerUnavailable, or InsufficientBudget if a limit has no room. Then the call must not be made.
        """
        self.call = call
        meter = self._meter
        if meter.store is None:
            return
        if meter.pending is not None and meter.pending.unwritten:
            raise LedgerUnavailable(
                "Settled calls wait to be written, so no call is taken.", hint="See /-/ready and the service's log."
            )
        self._written = True  # before the await: its cancellation does not take the row out of the writer's queue
        try:
            await meter.store.open(call)
        except (MeterError, InsufficientBudget):
            self._written = False
            raise

    def goes_to(self, target: LlmTarget) -> None:
        """Note where the call is sent now. Its settlement, and so every view, names the latest target."""
        self.call = structs.replace(self.call, llm=target)

    async def settle(self, result: CallResult) -> Settlement:
        """Settle: durable first, in the ledger or among the pending ones, then counted. Awaited before the last byte.

        Raises LedgerUnavailable if neither took it, and the call is counted as our failure, without tokens or cost.
        These are counted if it becomes durable later. A row that the ledger refuses stays open to be recovered.
        """
        if self.deferral is not None:
            return await self.deferral.settle(self, result)
        settlement = self._settlement(result)
        meter = self._meter
        if meter.store is not None and self._written:
            try:
                await meter.send(settlement)
            except asyncio.CancelledError:
                self._count_cancelled(settlement)
                raise
            except Exception as fault:
                await self._settle_elsewhere(settlement, fault)
        meter.recorder.settle(settlement)
        return settlement

    def defer(self, result: CallResult) -> Settlement:
        """Count the request and leave the row open: `Meter.settle_late` settles it."""
        if self.settlement is not None:
            raise SettledTwice(f"Call {self.call.id} was settled before.")
        counted = structs.replace(result, usage=None, reported_nanousd=None, missing_reason="")
        settlement = self._meter.make_settlement(self.call, counted, self.elapsed_ns())
        self.settlement = structs.replace(settlement, is_pending=True)
        # Without the model call, which is counted with its tokens once they are known.
        self._meter.recorder.settle(structs.replace(settlement, call=structs.replace(self.call, llm=None)))
        return self.settlement

    async def _settle_elsewhere(self, settlement: Settlement, fault: Exception) -> None:
        """Keep a settlement that the ledger did not take, unless it refuses the row. Raises LedgerUnavailable."""
        meter = self._meter
        try:
            if meter.pending is None or isinstance(fault, (RowRefused, SettlementConflict)):
                raise fault
            await meter.pending.keep(settlement)
        except asyncio.CancelledError:
            self._count_cancelled(settlement)
            raise
        except Exception as last:
            error = _ledger_fault(last)
            self.settlement = _unsettled(settlement, error)
            meter.recorder.settle(self.settlement)
            meter.requests_counted.add(self.call.id)
            raise error from last

    def _count_cancelled(self, settlement: Settlement) -> None:
        """Only the wait was cancelled. The ledger may take the row; if it does not, nothing else would see that."""
        meter = self._meter
        if meter.pending is not None:
            with contextlib.suppress(RowRefused):
                meter.pending.keep(settlement, is_counted=True)
        meter.recorder.settle(settlement)

    async def end(self, result: CallResult) -> Settlement:
        """Settle the row if there is one, else count: for paths on which either may be the case."""
        return await self.settle(result) if self._written else self.count(result)

    def count(self, result: CallResult) -> Settlement:
        """Settle a call that reaches no model and so has no row in the ledger."""
        if self._written:
            raise ServiceFault("A call with a row in the ledger has to be settled, not only counted.")
        settlement = self._settlement(result)
        self._meter.recorder.settle(settlement)
        return settlement

    def _settlement(self, result: CallResult) -> Settlement:
        if self.settlement is not None:
            raise SettledTwice(f"Call {self.call.id} was settled before.")
        duration_ns = time.monotonic_ns() - self.started_ns
        self.settlement = settlement = self._meter.make_settlement(self.call, result, duration_ns)
        return settlement


_is_answered: Final = methodcaller("done")


class SettleDeadlines:
    """Ends the wait for settlements that the ledger does not answer in time.

    One timer for all: it runs while any are waited for. Each time it drops those that have their answer, most after a
    few milliseconds, and the rest waits on together. A timer or an instant per call would cost more than all of this.
    """

    def __init__(self, seconds: float) -> None:
        self._limit_ns = int(seconds * 1e9)
        self._sweep_seconds = min(_SWEEP_SECONDS, seconds)
        self._new: list[asyncio.Future[None]] = []
        """Those of this sweep."""
        self._old: deque[tuple[int, list[asyncio.Future[None]]]] = deque()
        """Those of earlier sweeps, with the instant of the sweep that saw them first."""
        self._is_sweeping = False

    def add(self, answer: asyncio.Future[None]) -> None:
        """Wait for an answer from now on."""
        self._new.append(answer)
        if not self._is_sweeping:
            self._is_sweeping = True
            answer.get_loop().call_later(self._sweep_seconds, self._sweep)

    def _sweep(self) -> None:
        now_ns, old = time.monotonic_ns(), self._old
        if unanswered := list(filterfalse(_is_answered, self._new)):
            old.append((now_ns, unanswered))
        self._new = []
        while old and old[0][0] <= now_ns - self._limit_ns:
            for answer in filterfalse(_is_answered, old.popleft()[1]):
                answer.set_exception(LedgerUnavailable("The ledger does not answer."))
        self._is_sweeping = bool(old)
        if old:
            asyncio.get_running_loop().call_later(self._sweep_seconds, self._sweep)


class Meter:
    """Opens calls and settles them. `store` and `prices` are the relay's; the library needs neither.

    `prices` may be replaced at any time: a call is charged by those at its settlement.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        store: Store | None = None,
        prices: Prices | None = None,
        pending: Pending | None = None,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self.recorder = recorder
        self.store = store
        self.prices = prices
        self.pending = pending
        self.postings: Postings | None = None
        """Splits the charge of a call that several models are billed for; budgets of single models need it."""
        self._deadlines = SettleDeadlines(settle_seconds)
        self.requests_counted: set[str] = set()
        """Calls that are counted as requests while their rows, which could not be settled, wait for recovery."""
        self._ids = CallIds()

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
            id=self._ids.new(now_ns),
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

    def send(self, settlement: Settlement) -> asyncio.Future[None]:
        """Give a settlement to the ledger, which has to answer in time, or to the pending ones while it is not healthy.

        Resolves when the settlement is durable.
        """
        store, pending = self.store, self.pending
        if store is None:
            raise ServiceFault("A meter without a ledger settles nothing.")
        if pending is None:
            return store.settle(settlement)
        if not store.healthy:
            return pending.keep(settlement)
        answer = store.settle(settlement)
        self._deadlines.add(answer)
        return answer

    def make_settlement(self, call: Call, result: CallResult, duration_ns: int) -> Settlement:
        """The one record of how a call ended, with its charge."""
        error, usage, charge = result.error, result.usage, None
        if call.llm is not None and usage is not None:
            if self.prices is None:
                charge = Charge(reported_nanousd=result.reported_nanousd)
            else:
                charge = self.prices.charge_for(
                    call.llm,
                    result.response_model,
                    usage,
                    call.started_at_ns,
                    result.reported_nanousd,
                    reported_is_part=result.reported_is_part,
                )
        postings = self.postings(call, charge) if self.postings is not None and charge and charge.lines else ()
        error_type = result.error_type or (error.error_type if error else "")
        return Settlement(
            call=call,
            ended_at_ns=call.started_at_ns + duration_ns,
            duration_ns=duration_ns,
            status=result.status,
            outcome=result.outcome,
            error_type=error_type,
            error_side=result.error_side or (error.side if error else ""),
            error_id=error.id if error else "",
            otel_error_type=result.otel_error_type or error_type,
            usage=usage,
            charge=charge,
            response_model=result.response_model,
            finish_reason=result.finish_reason,
            is_refusal=result.is_refusal,
            is_empty=result.is_empty,
            upstream_status=result.upstream_status,
            upstream_request_id=result.upstream_request_id,
            time_to_first_chunk_ns=result.time_to_first_chunk_ns,
            chunks=result.chunks,
            missing_reason=result.missing_reason,
            postings=postings,
        )

    async def settle_late(self, call: Call, result: CallResult, *, reserved_nanousd: int = 0) -> Settlement | None:
        """Settle a deferred call, whose request is counted. None if it was settled by another way.

        `reserved_nanousd` is what budgets get of it at least. Raises LedgerUnavailable; then it can be tried again.
        """
        if self.store is None:
            return None
        settlement = self.make_settlement(call, result, max(0, time.time_ns() - call.started_at_ns))
        if reserved_nanousd and settlement.charge is not None:
            settlement = structs.replace(settlement, charge=_kept_reserved(settlement.charge, reserved_nanousd))
        try:
            await self.store.settle(settlement)
        except SettlementConflict:
            return None
        self.recorder.settle(settlement, request_counted=True)
        return settlement

    async def recover(self) -> int:
        """Settle the rows that an earlier process left open. Returns how many.

        The provider's response is unknown, so the prompt is charged as estimated, and the row says so.
        """
        if self.store is None:
            return 0
        rows, recovered = await self.store.left_open(), 0
        for row in rows:
            if self.pending is not None and row.id in self.pending:
                continue  # its true figures are known
            settlement = self.make_settlement(call_of(row), _recovered(row), 0)
            request_counted = row.id in self.requests_counted
            try:
                await self.store.settle(settlement)
            except SettlementConflict:
                self.requests_counted.discard(row.id)
                continue  # a replica that was believed dead has settled it after all, with the true figures
            self.requests_counted.discard(row.id)
            self.recorder.settle(settlement, request_counted=request_counted)
            self.recorder.add(service.LEDGER_RECOVERED)
            recovered += 1
        return recovered

    def count_late(self, settlement: Settlement) -> None:
        """Count tokens and cost of a call that was counted as failed, as its settlement is durable after all."""
        self.requests_counted.discard(settlement.call.id)
        self.recorder.settle(settlement, request_counted=True)


def _kept_reserved(charge: Charge, reserved_nanousd: int) -> Charge:
    """The charge with what budgets keep of a reservation beside it: it bounds the true cost, and no list has that."""
    beside = reserved_nanousd - charge.nanousd
    return structs.replace(charge, fallback_nanousd=max(beside, charge.fallback_nanousd))


def _recovered(row: LedgerRow) -> CallResult:
    return CallResult(
        status="500",
        outcome="recovered",
        error=ServiceFault("The service stopped before this call ended."),
        usage=Usage(prompt_tokens=row.prompt_tokens_estimate, source="estimated"),
        missing_reason="crash",
    )


def call_of(row: LedgerRow) -> Call:
    """The call of a row, as far as its settlement needs it."""
    return Call(
        id=row.id,
        started_at_ns=row.started_at_ns,
        endpoint=row.endpoint,
        method=row.method,
        team=row.team,
        project=row.project,
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
    # The fault's text may hold anything, even a row's values.
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
