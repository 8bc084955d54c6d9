"""A relayed call from its first step to its last: authenticate, read the request, price its worst case, reserve, write
down. `call.RelayedCall` then sends it and settles it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from msgspec.structs import replace

from mcpmeter.access.callers import Attribution, Caller
from mcpmeter.catalog.service import LIMIT_REACHED
from mcpmeter.dialects.base import Dialect, RequestInfo
from mcpmeter.errors import (
    ClientDisconnected,
    Draining,
    InvalidRequest,
    MeterError,
    NotAuthenticated,
    Overloaded,
    RateLimited,
)
from mcpmeter.http.client.interface import UpstreamClient
from mcpmeter.http.exchange import Exchange
from mcpmeter.http.memory import MemoryBudget
from mcpmeter.ledger.store import InsufficientBudget
from mcpmeter.meter import CallResult, Meter, OpenCall
from mcpmeter.quota.tracker import QuotaTracker
from mcpmeter.records import Call, Outcome, Reservation, Settlement
from mcpmeter.relay.background import BackgroundCalls
from mcpmeter.relay.call import RelayedCall, target_of
from mcpmeter.relay.drains import Drains
from mcpmeter.relay.headers import send_error
from mcpmeter.relay.runtime import MAX_ON_LOOP_BYTES, EndpointConfig, RelayOptions, Runtime, off_loop_if_large
from mcpmeter.routing.failover import Failover
from mcpmeter.routing.routes import Plan

__all__ = ["EndpointConfig", "Pipeline", "RelayOptions", "Runtime", "send_error"]


class Pipeline:
    """Runs calls. `runtime` may be replaced at any time; a call keeps the one it began with.

    Each call counts as a user of its client to providers until it ends, so that a reload closes a client only after
    the last call that uses it, and a stop waits for all of them.
    """

    def __init__(
        self,
        meter: Meter,
        runtime: Runtime,
        failover: Failover,
        quota: QuotaTracker,
        memory: MemoryBudget | None = None,
    ) -> None:
        self.meter = meter
        self.runtime = runtime
        self.draining = False
        self.background: BackgroundCalls | None = None
        """Follows responses that providers work on after they answered."""
        self.active_calls: set[RelayedCall] = set()
        self._failover = failover
        self._quota = quota
        self._drains = Drains(meter.recorder)
        self._memory = memory or MemoryBudget()
        self._calls_by_key: dict[str, int] = {}
        """Calls in progress by key id, while `max_calls_per_key` is set."""
        self._users: dict[UpstreamClient, int] = {}
        self._waiters: list[asyncio.Future[None]] = []
        """Woken when a client has no users left."""

    async def run(self, exchange: Exchange, endpoint: EndpointConfig) -> Settlement:
        """Run one call to its last byte. On every path it is settled once and the client gets a response."""
        # Counted in the same step as the runtime is read: a reload in between would close the client.
        runtime = self.runtime
        client = runtime.client
        self._users[client] = self._users.get(client, 0) + 1
        limited_key: str | None = None
        try:
            opened = self.meter.open(
                exchange.endpoint, exchange.method, trace_id=exchange.trace_id, parent_id=exchange.parent_id
            )
            try:
                caller = self.identify(exchange, runtime)
                if runtime.options.max_calls_per_key is not None:
                    limited_key = self._enter(caller, runtime.options.max_calls_per_key)
                call = await self._admit(opened, exchange, endpoint, runtime, caller)
            except MeterError as error:
                return await _refuse(exchange, opened, error, endpoint.dialect)
            except asyncio.CancelledError:
                cancelled = ClientDisconnected("The call was cancelled before it was sent.")
                await asyncio.shield(opened.end(CallResult(status="499", outcome="partial", error=cancelled)))
                raise
            if call.request.background and self.background is not None:
                self.background.attach(call)
            self.active_calls.add(call)
            try:
                return await call.run()
            finally:
                self.active_calls.discard(call)
        finally:
            if limited_key is not None:
                self._leave(limited_key)
            self._release(client)

    @contextmanager
    def using_runtime(self) -> Iterator[Runtime]:
        """The runtime of now, whose client stays open meanwhile."""
        runtime = self.runtime
        self._users[runtime.client] = self._users.get(runtime.client, 0) + 1
        try:
            yield runtime
        finally:
            self._release(runtime.client)

    def identify(self, exchange: Exchange, runtime: Runtime) -> Caller:
        """The caller of a call that the service has room for. Raises Draining, NotAuthenticated, Overloaded."""
        if self.draining:
            raise _draining()
        caller = runtime.identify(exchange.secret)
        if sum(self._users.values()) > runtime.options.max_calls:
            self.meter.recorder.add(LIMIT_REACHED, limit="concurrent_calls")
            raise Overloaded(
                f"{runtime.options.max_calls} calls are in progress.",
                hint="Retry; the operator can raise server.limits.concurrent_calls.",
                retry_after="1",
            )
        if self._memory.kept_bytes >= self._memory.max_bytes:
            raise self._memory.refuse()
        return caller

    async def _admit(
        self, opened: OpenCall, exchange: Exchange, endpoint: EndpointConfig, runtime: Runtime, caller: Caller
    ) -> RelayedCall:
        """All steps before the request is sent. Raises the error that refuses the call."""
        dialect = endpoint.dialect
        body = await exchange.read_body(runtime.options.max_body_bytes)
        if len(body) <= MAX_ON_LOOP_BYTES:
            request = dialect.read_request(body, exchange.path_params)
        else:
            request = await asyncio.to_thread(dialect.read_request, body, exchange.path_params)
        if self.draining:  # since a slow upload began
            raise _draining()
        if request.background and self.background is not None:
            self.background.admit()

        model = request.model or endpoint.default_model
        if not model:
            raise InvalidRequest("'model' is missing.", hint="Name a model of GET /v1/models.")
        plan = runtime.plan(model, dialect.path_name(request))
        if caller.models:
            caller.require_model(model, plan.first.model)
        if runtime.attribution is not None:
            caller = caller.refined(runtime.attribution, _attributed_to(exchange, runtime.attribution))

        if runtime.limits.apply_to(caller):
            plan = await self._reserve(opened, runtime, caller, plan, dialect=dialect, request=request, body=body)
        else:
            await opened.write_down(_row(opened.call, caller, plan, dialect, request))
        return RelayedCall(
            opened=opened,
            exchange=exchange,
            endpoint=endpoint,
            runtime=runtime,
            attempts=self._failover.begin(plan, plan.total_seconds),
            quota=self._quota,
            drains=self._drains,
            request=request,
            body=body,
        )

    async def _reserve(
        self,
        opened: OpenCall,
        runtime: Runtime,
        caller: Caller,
        plan: Plan,
        *,
        dialect: Dialect,
        request: RequestInfo,
        body: bytes,
    ) -> Plan:
        """Write the row of a call that limits apply to. Returns the routes whose budgets have room for it.

        A route to a model whose own budget is full is left out. Raises BudgetExhausted, RateLimited, InvalidRequest.
        """
        limits = runtime.limits
        if _needs_bounds(request, plan):
            models = [route.model for route in plan.routes]
            request = await off_loop_if_large(len(body), dialect.bounded, body, request, models)
        while True:
            reservations, max_cost_nanousd = limits.reserve(
                caller,
                [(route.upstream.name, route.model) for route in plan.routes],
                request,
                size=len(body),
                at_ns=opened.call.started_at_ns,
            )
            if request.limit_fault:
                _refuse_boundless(request, reservations)
            row = _row(opened.call, caller, plan, dialect, request)
            try:
                await opened.write_down(replace(row, reservations=reservations, reserved_nanousd=max_cost_nanousd))
            except InsufficientBudget as refused:
                model = refused.reservation.answered_by
                others = plan.without(model) if model else None
                if others is None:
                    raise limits.refusal(refused, time.time_ns(), request) from None
                plan = others
            else:
                return plan

    def end_streams(self, keeps: Callable[[str], bool]) -> int:
        """End the streams of keys that are no longer valid, by `keeps`; returns how many.

        A call without a stream runs on: its answer is not delivered in parts, and only its end says what it costs.
        """
        streams = [call for call in self.active_calls if call.request.stream and call.opened.call.key_id]
        ended = {key_id for key_id in {call.opened.call.key_id for call in streams} if not keeps(key_id)}
        cut = [call for call in streams if call.opened.call.key_id in ended] if ended else []
        for call in cut:
            call.cut(NotAuthenticated("This API key was revoked or has expired.", hint="Ask the operator for another."))
        return len(cut)

    # Calls of one key -------------------------------------------------------------------------------------------------

    def _enter(self, caller: Caller, max_calls: int) -> str:
        """Count a call of a key; returns its id. Raises RateLimited."""
        count = self._calls_by_key.get(caller.key_id, 0)
        if count >= max_calls:
            self.meter.recorder.add(LIMIT_REACHED, limit="concurrent_calls_per_key")
            raise RateLimited(
                f"{max_calls} calls of this key are in progress.",
                hint="Wait for one of them to end; the operator can raise server.limits.concurrent_calls_per_key.",
                retry_after="1",
            )
        self._calls_by_key[caller.key_id] = count + 1
        return caller.key_id

    def _leave(self, key_id: str) -> None:
        self._calls_by_key[key_id] -= 1
        if not self._calls_by_key[key_id]:
            del self._calls_by_key[key_id]

    # Waiting for calls to end -----------------------------------------------------------------------------------------

    def _release(self, client: UpstreamClient) -> None:
        self._users[client] -= 1
        if self._users[client]:
            return
        del self._users[client]
        while self._waiters:
            waiter = self._waiters.pop()
            if not waiter.done():
                waiter.set_result(None)

    async def until_idle(self) -> None:
        """Wait until no call runs."""
        while self._users:
            await self._next_release()

    async def until_unused(self, client: UpstreamClient) -> None:
        """Wait until no call uses a client to providers that a reload has replaced."""
        while client in self._users:
            await self._next_release()

    async def _next_release(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter


def _row(call: Call, caller: Caller, plan: Plan, dialect: Dialect, request: RequestInfo) -> Call:
    """A call as it is written down, without reservations."""
    first = plan.first
    return replace(
        call,
        team=caller.team,
        project=caller.project,
        key_id=caller.key_id,
        llm=target_of(first.upstream.provider, first.model, dialect, request),
    )


def _draining() -> Draining:
    return Draining("The service is stopping and takes no new calls.", hint="Retry; another replica may answer.")


def _needs_bounds(request: RequestInfo, plan: Plan) -> bool:
    """Whether the body has to be read for what bounds its cost: for its fields, or for what an alias stands for."""
    if request.has_bounds:
        return True
    return request.max_completion_tokens != 0 and any(route.model != request.model for route in plan.routes)


def _refuse_boundless(request: RequestInfo, reservations: Sequence[Reservation]) -> None:
    """Raises InvalidRequest if a limit that refuses calls would rest on a request's faulty limits."""
    if any(one.refuses and one.unit != "requests" for one in reservations):
        hint = "Send one whole number for it: a budget holds only if the request bounds its cost."
        raise InvalidRequest(request.limit_fault, hint=hint)


def _attributed_to(exchange: Exchange, attribution: Attribution) -> str | None:
    value = exchange.headers.get(attribution.header.encode())
    return None if value is None else value.decode("latin-1").strip()


async def _refuse(exchange: Exchange, opened: OpenCall, error: MeterError, dialect: Dialect) -> Settlement:
    """Settle and respond to a request that reaches no model."""
    outcome: Outcome = "partial" if isinstance(error, ClientDisconnected) else "error"
    settlement = opened.count(CallResult(status=str(error.http_status), outcome=outcome, error=error))
    await send_error(exchange, error, dialect.error_body(error, opened.call.id), opened.call.id)
    return settlement
