"""A relayed call, top to bottom: authenticate, validate, write down; then `call.RelayedCall` sends and settles it."""

from __future__ import annotations

import asyncio
import time

import msgspec

from mcpmeter.access.callers import Attribution, Caller
from mcpmeter.budgets.reservations import Limits
from mcpmeter.dialects.base import Dialect, RequestInfo
from mcpmeter.dialects.json_body import max_prompt_tokens
from mcpmeter.errors import ClientDisconnected, Draining, InvalidRequest, MeterError
from mcpmeter.http.client.interface import UpstreamClient
from mcpmeter.http.exchange import Exchange
from mcpmeter.ledger.store import InsufficientBudget
from mcpmeter.meter import CallResult, Meter, OpenCall
from mcpmeter.quota.tracker import QuotaTracker
from mcpmeter.records import Outcome, Reservation, Settlement
from mcpmeter.relay.call import IN_A_THREAD_BYTES, RelayedCall, off_loop_if_large, target_of
from mcpmeter.relay.headers import answer_error
from mcpmeter.relay.runtime import EndpointConfig, RelayOptions, Runtime
from mcpmeter.routing.failover import Failover
from mcpmeter.routing.routes import Plan

__all__ = ["EndpointConfig", "Pipeline", "RelayOptions", "Runtime", "answer_error"]


class Pipeline:
    """Runs calls. `wiring` may be replaced at any time."""

    def __init__(self, meter: Meter, runtime: Runtime, failover: Failover, quota: QuotaTracker) -> None:
        self.meter = meter
        self.runtime = runtime
        self._failover = failover
        self._quota = quota
        self.draining = False
        self.active_calls: set[RelayedCall] = set()
        self._users: dict[UpstreamClient, int] = {}
        """How many calls use each client to providers: the present one, and those that reloads have replaced."""
        self._waiting_for_an_end: list[asyncio.Future[None]] = []

    async def run(self, exchange: Exchange, service: EndpointConfig) -> Settlement:
        """One call, to its last byte. Whatever happens, it is settled once and the caller is told."""
        # Taken with the client, so that a reload cannot close it between here and the sending.
        runtime = self.runtime
        client = runtime.client
        self._users[client] = self._users.get(client, 0) + 1
        try:
            opened = self.meter.open(
                exchange.endpoint, exchange.method, trace_id=exchange.trace_id, parent_id=exchange.parent_id
            )
            try:
                flight = await self._admit(opened, exchange, service, runtime)
            except MeterError as error:
                return await refuse(exchange, opened, error, service.dialect)
            except asyncio.CancelledError:
                gone = ClientDisconnected("The call was cancelled before it was sent.")
                await asyncio.shield(opened.end(CallResult(status="499", outcome="partial", error=gone)))
                raise
            self.active_calls.add(flight)
            try:
                return await flight.run()
            finally:
                self.active_calls.discard(flight)
        finally:
            self._leave(client)

    def _leave(self, client: UpstreamClient) -> None:
        self._users[client] -= 1
        if self._users[client]:
            return
        del self._users[client]
        while self._waiting_for_an_end:
            waiting = self._waiting_for_an_end.pop()
            if not waiting.done():
                waiting.set_result(None)

    async def until_idle(self) -> None:
        """Wait until no call runs."""
        while self._users:
            await self._an_end()

    async def until_unused(self, client: UpstreamClient) -> None:
        """Wait until no call uses a client to providers that a reload has replaced."""
        while client in self._users:
            await self._an_end()

    async def _an_end(self) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting_for_an_end.append(waiting)
        await waiting

    async def _admit(
        self, opened: OpenCall, exchange: Exchange, service: EndpointConfig, runtime: Runtime
    ) -> RelayedCall:
        if self.draining:
            raise _draining()
        caller, dialect = runtime.identify(exchange.secret), service.dialect
        body = await exchange.read_body(runtime.options.max_body_bytes)
        if len(body) <= IN_A_THREAD_BYTES:
            asked = dialect.read_request(body, exchange.named)
        else:
            asked = await asyncio.to_thread(dialect.read_request, body, exchange.named)
        if self.draining:  # it may have begun during a slow upload
            raise _draining()
        model = asked.model or service.default_model
        if not model:
            raise InvalidRequest("'model' is missing.", hint="Name a model of GET /v1/models.")
        plan = runtime.plan(model, dialect.path_name(asked))
        first = plan.first
        if caller.models:
            caller.require_model(model, first.model)
        if runtime.attribution is not None:
            caller = caller.refined(runtime.attribution, _told(exchange, runtime.attribution))
        claims: tuple[Reservation, ...] = ()
        max_cost_nanousd = 0
        if runtime.limits.concern(caller):
            at_ns = opened.call.started_at_ns
            claims, max_cost_nanousd = await _claims(runtime.limits, caller, plan, asked=asked, body=body, at_ns=at_ns)
        call = msgspec.structs.replace(
            opened.call,
            team=caller.team,
            project=caller.project,
            key_id=caller.key_id,
            llm=target_of(first.upstream.provider, first.model, dialect, asked),
            reservations=claims,
            reserved_nanousd=max_cost_nanousd,
        )
        try:
            await opened.write_down(call)
        except InsufficientBudget as refused:
            raise runtime.limits.refusal(refused, time.time_ns()) from None
        return RelayedCall(
            opened=opened,
            exchange=exchange,
            service=service,
            runtime=runtime,
            attempts=self._failover.begin(plan, plan.total_seconds),
            quota=self._quota,
            asked=asked,
            body=body,
        )


def _draining() -> Draining:
    return Draining("The service is stopping and takes no new calls.", hint="Retry; another replica may answer.")


async def _claims(
    limits: Limits, caller: Caller, plan: Plan, *, asked: RequestInfo, body: bytes, at_ns: int
) -> tuple[tuple[Reservation, ...], int]:
    """What a call claims, and the most that it can cost, for a caller that limits concern."""
    most_prompt = asked.max_prompt_tokens
    if most_prompt is None:
        most_prompt = await off_loop_if_large(max_prompt_tokens, body)
    return limits.claims(
        caller,
        [(route.upstream.name, route.model) for route in plan.routes],
        max_prompt_tokens=most_prompt,
        max_completion_tokens=asked.max_completion_tokens,
        at_ns=at_ns,
    )


def _told(exchange: Exchange, attribution: Attribution) -> str | None:
    told = exchange.headers.get(attribution.header.encode())
    return None if told is None else told.decode("latin-1").strip()


async def refuse(exchange: Exchange, opened: OpenCall, error: MeterError, dialect: Dialect) -> Settlement:
    """Settle and answer a request that reaches no model."""
    outcome: Outcome = "partial" if isinstance(error, ClientDisconnected) else "error"
    settlement = opened.count(CallResult(status=str(error.http_status), outcome=outcome, error=error))
    await answer_error(exchange, error, dialect.error_body(error, opened.call.id), opened.call.id)
    return settlement
