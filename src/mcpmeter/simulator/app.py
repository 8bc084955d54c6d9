"""The simulator: a provider of every dialect on its own port."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from random import Random
from typing import Any, NamedTuple, Self

import msgspec
from starlette.types import Receive, Scope, Send

from mcpmeter.errors import (
    ConfigInvalid,
    InvalidRequest,
    MeterError,
    MethodNotAllowed,
    NotAuthenticated,
    RouteNotFound,
)
from mcpmeter.simulator.background import PREFIX, BackgroundResponses
from mcpmeter.simulator.billing_log import BillingLog
from mcpmeter.simulator.call import Pace, SimulatedCall
from mcpmeter.simulator.dialects.openai_responses import ResponsesRequest
from mcpmeter.simulator.faults import NO_FAULT, Fault, applies, choose
from mcpmeter.simulator.generation import CREATED_UNIX_SECONDS, BilledTokens
from mcpmeter.simulator.latency import Latency, Spread
from mcpmeter.simulator.plan import Plan, PlanText
from mcpmeter.simulator.quota import Quota
from mcpmeter.simulator.response_writer import respond
from mcpmeter.simulator.rng import RequestRng
from mcpmeter.simulator.routes import DialectRoute, Routes, vendor_of
from mcpmeter.simulator.server import AsgiServer, SimulatorRequest, read_body
from mcpmeter.simulator.vendors.base import JSON, PlainResponse, Vendor

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_LISTED_CALLS = 10_000
TOKENS_PER_PRICE = 1_000_000
NS_PER_S = 1_000_000_000
MODELS = (
    "gpt-4.1",
    "claude-sonnet-4.5",
    "gemini-2.5-flash",
    "deepseek-v3.2",
    "text-embedding-3-small",
    "text-embedding-3-large",
)

Handler = Callable[[SimulatorRequest], Awaitable[PlainResponse]]


class Price(NamedTuple):
    """USD per 1 million tokens."""

    prompt: Decimal
    completion: Decimal


class Simulator:
    """An upstream that costs nothing, with exact usage, faults on demand and a billing log.

    `async with Simulator(seed=1) as sim:` listens on a free port of the running loop; give `sim.base_url` to an SDK.
    Raises `ConfigInvalid` for invalid options, and `PortTaken` at start.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: Sequence[Fault] = (),
        first_byte: Latency = Latency(),  # noqa: B008 (frozen)
        between_chunks: Latency = Latency(),  # noqa: B008 (frozen)
        completion_tokens: Spread = Spread.lognormal(60, 0.6),  # noqa: B008 (frozen)
        tool_calls: bool = False,
        dated_models: bool = False,
        key: str | None = None,
        prices: Mapping[str, Price] | None = None,
        quota: Quota | None = None,
        keep_calls: int = 1_000_000,
        background: Latency = Latency.fixed(500),  # noqa: B008 (frozen)
        background_keep_seconds: float = 600.0,
    ) -> None:
        self.plan = Plan(
            faults=tuple(faults),
            first_byte=first_byte,
            between_chunks=between_chunks,
            completion_tokens=completion_tokens,
            tool_calls=tool_calls,
            dated_models=dated_models,
        )
        self.billing_log = BillingLog(seed=seed, keep_calls=keep_calls)
        self._host = host
        self._port = port
        self._key = None if key is None else key.encode()
        self._prices = dict(prices or {})
        self._quota = quota or Quota()
        self._rng = RequestRng(seed)
        self._background_latency = background
        self.background = BackgroundResponses(background_keep_seconds)
        self._server = AsgiServer(self._handle)
        self._closing = False
        self._routes = Routes(seed)
        self._handlers: dict[str, dict[str, Handler]] = {
            "/v1/models": {"GET": self._list_models},
            "/simulator/books": {"GET": self._show_billing_log, "DELETE": self._clear_billing_log},
            "/simulator/plan": {"GET": self._show_plan, "PUT": self._change_plan},
        }

    @property
    def url(self) -> str:
        """`http://host:port` of the running simulator."""
        url = self._server.url
        if url is None:
            raise ConfigInvalid(
                "The simulator does not run.", hint="Use it inside 'async with Simulator(...) as sim:'."
            )
        return url

    @property
    def base_url(self) -> str:
        """The base URL for OpenAI's SDK; Anthropic's and Google's take `url`."""
        return f"{self.url}/v1"

    async def start(self) -> None:
        """Listen. Raises `PortTaken`."""
        self._closing = False
        await self._server.listen(self._host, self._port)

    async def close(self) -> None:
        """Stop listening and abort the responses in progress."""
        self._closing = True
        await self._server.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = SimulatorRequest(scope, receive, send)
        route = self._routes.find(request)
        vendor = vendor_of(request.path) if route is None else route.vendor
        try:
            if route is not None and request.method == "POST":
                self._authenticate(request, vendor)
                await self._call(request, route)
                return
            if route is None and request.path.startswith(PREFIX):
                self._authenticate(request, vendor)
                await self.background.serve(request, vendor.headers(self._quota))
                return
            handler = self._handler(request, route)
            self._authenticate(request, vendor)
            await respond(request, await handler(request), {})
        except MeterError as error:
            self.billing_log.refused += 1
            await respond(request, vendor.from_error(error), vendor.headers(self._quota))

    def _handler(self, request: SimulatorRequest, route: DialectRoute | None) -> Handler:
        methods = self._handlers.get(request.path)
        if methods is None and route is None and request.path.startswith("/v1/models/"):
            methods = {"GET": self._show_model}
        if methods is None and route is None:
            raise RouteNotFound("Unknown request URL.", hint="The routes are listed in docs/simulator.md.")
        handler = (methods or {}).get(request.method)
        if handler is None:
            raise MethodNotAllowed("Not allowed on this URL.", hint=f"Allowed: {', '.join(methods or ['POST'])}.")
        return handler

    def _authenticate(self, request: SimulatorRequest, vendor: Vendor) -> None:
        if self._key is None:
            return
        given = (vendor.given_key(request) or "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._key):
            raise NotAuthenticated("Incorrect API key provided.", hint=vendor.key_hint)

    async def _call(self, request: SimulatorRequest, route: DialectRoute) -> None:
        body = await read_body(request, MAX_BODY_BYTES)
        parsed = route.dialect.read(body, route.params)
        random, repetition = self._rng.of(body, route.params.salt)
        fault = self._fault(parsed.requested_fault(body), random, repetition)
        response = parsed.respond(fault, self.plan, random, repetition)
        stream = response.framing is not None
        record = self.billing_log.open(parsed.model, stream=stream, fault=fault.name, dialect=route.dialect.name)
        fault = self._enforce_quota(fault)
        self._quota.spend(response.billed.prompt, response.billed.completion)
        cost = self._cost(parsed.model, response.billed)
        headers = route.vendor.headers(self._quota, record.request_id)
        if isinstance(parsed, ResponsesRequest) and parsed.background and fault == NO_FAULT:
            seconds = self._background_latency.sample_ns(random) / NS_PER_S
            await self.background.create(request, response, record, seconds, headers)
            return
        if cost is not None and not stream:
            headers["X-Cost-USD"] = cost
        call = SimulatedCall(
            request=request,
            record=record,
            fault=fault,
            pace=self._pace(fault, random, gaps=stream),
            response=response,
            vendor=route.vendor,
            headers=headers,
            cost=cost,
            is_closing=lambda: self._closing,
        )
        await call.run()

    def _fault(self, requested: Fault | None, random: Random, repetition: int) -> Fault:
        planned = choose(self.plan.faults, random, repetition)
        if requested is None:
            return planned
        if requested.probability < 1 and random.random() >= requested.probability:
            return NO_FAULT
        return requested if applies(requested, repetition) else NO_FAULT

    def _enforce_quota(self, fault: Fault) -> Fault:
        if self._quota.admit():
            return fault
        return Fault(status=429, retry_after=max(1, round(self._quota.reset_seconds)))

    def _pace(self, fault: Fault, random: Random, *, gaps: bool) -> Pace:
        first_byte = self.plan.first_byte if fault.latency_ms is None else Latency.parse(fault.latency_ms)
        first_byte_ns = first_byte.sample_ns(random)
        if not gaps:
            return Pace(first_byte_ns, None)
        between = self.plan.between_chunks
        if fault.chunks_per_second is not None:
            between = Latency.from_rate(fault.chunks_per_second)
        return Pace(first_byte_ns, None if between.is_zero else partial(between.sample_ns, random))

    def _cost(self, model: str, billed: BilledTokens) -> str | None:
        """Exact USD with all digits; None for a model without a price."""
        price = self._prices.get(model)
        if price is None:
            return None
        usd = (price.prompt * billed.prompt + price.completion * billed.completion) / TOKENS_PER_PRICE
        return f"{usd.normalize():f}"

    async def _list_models(self, request: SimulatorRequest) -> PlainResponse:
        return _json({"object": "list", "data": [_model(name) for name in MODELS]})

    async def _show_model(self, request: SimulatorRequest) -> PlainResponse:
        return _json(_model(request.path.removeprefix("/v1/models/")))

    async def _show_billing_log(self, request: SimulatorRequest) -> PlainResponse:
        count = request.query_params.get("calls", "0")
        if not (count.isascii() and count.isdigit() and int(count[:9]) <= MAX_LISTED_CALLS):
            raise InvalidRequest(f"'calls' is the number of calls to list, up to {MAX_LISTED_CALLS}.")
        log = self.billing_log
        return _json(
            {
                "open_calls": log.open_calls,
                "refused": log.refused,
                "totals": log.totals,
                "by_model": log.totals_by_model,
                "by_dialect": log.totals_by_dialect,
                "calls": log.latest(int(count)),
            }
        )

    async def _clear_billing_log(self, request: SimulatorRequest) -> PlainResponse:
        self.billing_log.clear()
        return PlainResponse(204, JSON, b"")

    async def _show_plan(self, request: SimulatorRequest) -> PlainResponse:
        return _json(PlanText.of(self.plan))

    async def _change_plan(self, request: SimulatorRequest) -> PlainResponse:
        body = await read_body(request, MAX_BODY_BYTES)
        try:
            self.plan = PlanText.decode(body).plan()
        except ConfigInvalid as error:
            raise InvalidRequest(error.message, hint=error.hint) from None
        return _json(PlanText.of(self.plan))


def _json(value: Any) -> PlainResponse:
    return PlainResponse(200, JSON, msgspec.json.encode(value))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED_UNIX_SECONDS, "owned_by": "simulator"}
