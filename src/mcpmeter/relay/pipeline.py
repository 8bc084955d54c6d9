"""A relayed call, top to bottom: authenticate, validate, write down; then `flight.Flight` sends and settles it."""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec

from mcpmeter.access.callers import Attribution
from mcpmeter.errors import CallerGone, Draining, InvalidRequest, MeterError
from mcpmeter.meter import Ending, Meter, OpenCall
from mcpmeter.records import Outcome, Settlement
from mcpmeter.relay.answering import answer_error
from mcpmeter.relay.dialects.base import Dialect
from mcpmeter.relay.exchange import Exchange
from mcpmeter.relay.failover import Failover
from mcpmeter.relay.flight import Flight, off_loop_if_large, target_of
from mcpmeter.relay.quota_board import QuotaBoard
from mcpmeter.relay.upstream import UpstreamClient
from mcpmeter.relay.wiring import RelayOptions, Service, Wiring

__all__ = ["Pipeline", "RelayOptions", "Service", "Wiring", "answer_error"]


class Pipeline:
    """Runs calls. `wiring` may be replaced at any time."""

    def __init__(self, meter: Meter, wiring: Wiring, failover: Failover, quota: QuotaBoard) -> None:
        self.meter = meter
        self.wiring = wiring
        self._failover = failover
        self._quota = quota
        self.draining = False
        self.in_flight: set[Flight] = set()
        self._users: dict[UpstreamClient, int] = {}
        """How many calls use each client to providers: the present one, and those that reloads have replaced."""
        self._waiting_for_an_end: list[asyncio.Future[None]] = []

    async def run(self, exchange: Exchange, service: Service) -> Settlement:
        """One call, to its last byte. Whatever happens, it is settled once and the caller is told."""
        # Taken with the client, so that a reload cannot close it between here and the sending.
        wiring = self.wiring
        self._users[wiring.client] = self._users.get(wiring.client, 0) + 1
        try:
            return await self._run(exchange, service, wiring)
        finally:
            self._leave(wiring.client)

    async def _run(self, exchange: Exchange, service: Service, wiring: Wiring) -> Settlement:
        opened = self.meter.open(
            exchange.endpoint, exchange.method, trace_id=exchange.trace_id, parent_id=exchange.parent_id
        )
        try:
            flight = await self._admit(opened, exchange, service, wiring)
        except MeterError as error:
            return await refuse(exchange, opened, error, service.dialect)
        except asyncio.CancelledError:
            gone = CallerGone("The call was cancelled before it was sent.")
            await asyncio.shield(opened.end(Ending(status="499", outcome="partial", error=gone)))
            raise
        self.in_flight.add(flight)
        try:
            return await flight.run()
        finally:
            self.in_flight.discard(flight)

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

    async def _admit(self, opened: OpenCall, exchange: Exchange, service: Service, wiring: Wiring) -> Flight:
        self._refuse_while_draining()
        caller = wiring.identify(exchange.secret)
        body = await exchange.read_body(wiring.options.max_body_bytes)
        asked = await off_loop_if_large(partial(service.dialect.read_request, named=exchange.named), body)
        self._refuse_while_draining()  # it may have begun during a slow upload
        model = asked.model or service.default_model
        if not model:
            raise InvalidRequest("'model' is missing.", hint="Name a model of GET /v1/models.")
        plan = wiring.plan(model, service.dialect.path_name(asked))
        if caller.models:
            caller.require_model(model, *(route.model for route in plan.routes[:1]))
        if wiring.attribution is not None:
            caller = caller.refined(wiring.attribution, _told(exchange, wiring.attribution))
        target = target_of(plan.first.upstream.provider, plan.first.model, service.dialect, asked)
        call = msgspec.structs.replace(
            opened.call, team=caller.team, project=caller.project, key_id=caller.key_id, llm=target
        )
        await opened.write_down(call)
        return Flight(
            opened=opened,
            exchange=exchange,
            service=service,
            wiring=wiring,
            attempts=self._failover.begin(plan, max(r.upstream.timeouts.total_seconds for r in plan.routes)),
            quota=self._quota,
            asked=asked,
            body=body,
        )

    def _refuse_while_draining(self) -> None:
        if self.draining:
            raise Draining("The service is stopping and takes no new calls.", hint="Retry; another replica may answer.")


def _told(exchange: Exchange, attribution: Attribution) -> str | None:
    told = exchange.headers.get(attribution.header.encode())
    return None if told is None else told.decode("latin-1").strip()


async def refuse(exchange: Exchange, opened: OpenCall, error: MeterError, dialect: Dialect) -> Settlement:
    """Settle and answer a request that reaches no model."""
    outcome: Outcome = "partial" if isinstance(error, CallerGone) else "error"
    settlement = opened.count(Ending(status=str(error.http_status), outcome=outcome, error=error))
    await answer_error(exchange, error, dialect.error_body(error, opened.call.id), opened.call.id)
    return settlement
