"""The simulator itself: a provider of every dialect on a port of its own."""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from random import Random
from typing import Any, NamedTuple, Self

import msgspec
from aiohttp import web

from mcpmeter.errors import (
    BodyTooLarge,
    ConfigInvalid,
    InvalidRequest,
    MeterError,
    MethodNotAllowed,
    NotAuthenticated,
    PortTaken,
    RouteNotFound,
)
from mcpmeter.simulator.answers import CREATED_UNIX_SECONDS, Tally
from mcpmeter.simulator.billing_log import Books
from mcpmeter.simulator.exchange import Exchange, Pace, respond
from mcpmeter.simulator.faults import NO_FAULT, Fault, applies, choose
from mcpmeter.simulator.latency import Latency, Spread
from mcpmeter.simulator.plan import Plan, PlanText
from mcpmeter.simulator.quota import Quota
from mcpmeter.simulator.rng import Draws
from mcpmeter.simulator.routes import Endpoint, Routes, vendor_of
from mcpmeter.simulator.vendors.base import JSON, Refusal, Vendor

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_LISTED_CALLS = 10_000
SHUTDOWN_SECONDS = 0.1
TOKENS_PER_PRICE = 1_000_000
MODELS = (
    "gpt-4.1",
    "claude-sonnet-4.5",
    "gemini-2.5-flash",
    "deepseek-v3.2",
    "text-embedding-3-small",
    "text-embedding-3-large",
)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Price(NamedTuple):
    """USD per 1 million tokens."""

    prompt: Decimal
    completion: Decimal


class Simulator:
    """An upstream that costs nothing, with exact usage, faults on demand and its own books.

    `async with Simulator(seed=1) as sim:` listens on a free port of the running loop; give `sim.base_url` to an SDK.
    Raises `ConfigInvalid` for options that make no sense and `PortTaken` at start.
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
    ) -> None:
        self.plan = Plan(
            faults=tuple(faults),
            first_byte=first_byte,
            between_chunks=between_chunks,
            completion_tokens=completion_tokens,
            tool_calls=tool_calls,
            dated_models=dated_models,
        )
        self.books = Books(seed=seed, keep_calls=keep_calls)
        self._host = host
        self._port = port
        self._key = None if key is None else key.encode()
        self._prices = dict(prices or {})
        self._quota = quota or Quota()
        self._draws = Draws(seed)
        self._runner: web.ServerRunner | None = None
        self._closing = False
        self._routes = Routes(seed)
        self._pages: dict[str, dict[str, Handler]] = {
            "/v1/models": {"GET": self._list_models},
            "/simulator/books": {"GET": self._show_books, "DELETE": self._clear_books},
            "/simulator/plan": {"GET": self._show_plan, "PUT": self._change_plan},
        }

    @property
    def url(self) -> str:
        """`http://host:port` of the running simulator."""
        if self._runner is None or not self._runner.addresses:
            raise ConfigInvalid(
                "The simulator does not run.", hint="Use it inside 'async with Simulator(...) as sim:'."
            )
        host, port = self._runner.addresses[0][:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def base_url(self) -> str:
        """What OpenAI's SDK takes as its base URL; Anthropic's and Google's take `url`."""
        return f"{self.url}/v1"

    async def start(self) -> None:
        """Listen. Raises `PortTaken`."""
        self._closing = False
        loop = asyncio.get_running_loop()
        server = web.Server(
            self._handle,
            request_factory=partial(_request, loop=loop),
            handler_cancellation=True,
            access_log=None,
        )
        runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, backlog=1024).start()
        except OSError as fault:
            await runner.cleanup()
            reason = os.strerror(fault.errno) if fault.errno and fault.errno > 0 else "the name cannot be resolved"
            raise PortTaken(
                f"Cannot listen on {self._host}:{self._port} ({reason}).",
                hint="Stop what listens there, or choose another port with --port (0 takes any free one).",
            ) from None
        self._runner = runner

    async def close(self) -> None:
        """Stop listening; answers under way are broken off."""
        self._closing = True
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        endpoint = self._routes.find(request)
        vendor = vendor_of(request.path) if endpoint is None else endpoint.vendor
        try:
            if endpoint is not None and request.method == "POST":
                self._authenticate(request, vendor)
                return await self._answer(request, endpoint)
            page = self._page(request, endpoint)
            self._authenticate(request, vendor)
            return await page(request)
        except MeterError as error:
            self.books.refused += 1
            return respond(vendor.from_error(error), vendor.headers(self._quota))

    def _page(self, request: web.BaseRequest, endpoint: Endpoint | None) -> Handler:
        verbs = self._pages.get(request.path)
        if verbs is None and endpoint is None and request.path.startswith("/v1/models/"):
            verbs = {"GET": self._show_model}
        if verbs is None and endpoint is None:
            raise RouteNotFound("Unknown request URL.", hint="The routes are listed in docs/simulator.md.")
        page = (verbs or {}).get(request.method)
        if page is None:
            raise MethodNotAllowed("Not allowed on this URL.", hint=f"Allowed: {', '.join(verbs or ['POST'])}.")
        return page

    def _authenticate(self, request: web.BaseRequest, vendor: Vendor) -> None:
        if self._key is None:
            return
        given = (vendor.given_key(request) or "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._key):
            raise NotAuthenticated("Incorrect API key provided.", hint=vendor.key_hint)

    async def _answer(self, request: web.BaseRequest, endpoint: Endpoint) -> web.StreamResponse:
        body = await _read_body(request)
        ask = endpoint.dialect.read(body, endpoint.target)
        random, nth = self._draws.of(body, endpoint.target.salt)
        fault = self._fault(ask.wished_fault(body), random, nth)
        reply = ask.draw(fault, self.plan, random, nth)
        stream = reply.framing is not None
        call = self.books.open(ask.model_name, stream=stream, fault=fault.name, dialect=endpoint.dialect.name)
        fault = self._enforce_quota(fault)
        self._quota.spend(reply.tally.prompt, reply.tally.completion)
        cost = self._cost(ask.model_name, reply.tally)
        headers = endpoint.vendor.headers(self._quota, call.request_id)
        if cost is not None and not stream:
            headers["X-Cost-USD"] = cost
        exchange = Exchange(
            request=request,
            call=call,
            fault=fault,
            pace=self._pace(fault, random, gaps=stream),
            reply=reply,
            vendor=endpoint.vendor,
            headers=headers,
            cost=cost,
            is_closing=lambda: self._closing,
        )
        return await exchange.run()

    def _fault(self, wished: Fault | None, random: Random, nth: int) -> Fault:
        planned = choose(self.plan.faults, random, nth)
        if wished is None:
            return planned
        if wished.probability < 1 and random.random() >= wished.probability:
            return NO_FAULT
        return wished if applies(wished, nth) else NO_FAULT

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

    def _cost(self, model: str, tally: Tally) -> str | None:
        """Exact USD, in full digits, of the model's price if one was given."""
        price = self._prices.get(model)
        if price is None:
            return None
        usd = (price.prompt * tally.prompt + price.completion * tally.completion) / TOKENS_PER_PRICE
        return f"{usd.normalize():f}"

    async def _list_models(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json({"object": "list", "data": [_model(name) for name in MODELS]})

    async def _show_model(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json(_model(request.path.removeprefix("/v1/models/")))

    async def _show_books(self, request: web.BaseRequest) -> web.StreamResponse:
        wanted = request.query.get("calls", "0")
        if not (wanted.isascii() and wanted.isdigit() and int(wanted[:9]) <= MAX_LISTED_CALLS):
            raise InvalidRequest(f"'calls' is the number of calls to list, up to {MAX_LISTED_CALLS}.")
        books = self.books
        return _json(
            {
                "open_calls": books.open_calls,
                "refused": books.refused,
                "totals": books.totals,
                "by_model": books.totals_by_model,
                "by_dialect": books.totals_by_dialect,
                "calls": books.latest(int(wanted)),
            }
        )

    async def _clear_books(self, request: web.BaseRequest) -> web.StreamResponse:
        self.books.clear()
        return web.Response(status=204)

    async def _show_plan(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json(PlanText.of(self.plan))

    async def _change_plan(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await _read_body(request)
        try:
            self.plan = PlanText.decode(body).plan()
        except ConfigInvalid as wrong:
            raise InvalidRequest(wrong.message, hint=wrong.hint) from None
        return _json(PlanText.of(self.plan))


def _request(
    message: Any, payload: Any, protocol: Any, writer: Any, task: Any, *, loop: asyncio.AbstractEventLoop
) -> web.BaseRequest:
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY_BYTES)


async def _read_body(request: web.BaseRequest) -> bytes:
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise BodyTooLarge("The body is over 64 MiB.", hint="Send less.") from None


def _json(value: Any) -> web.Response:
    return respond(Refusal(200, JSON, msgspec.json.encode(value)), {})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED_UNIX_SECONDS, "owned_by": "simulator"}
