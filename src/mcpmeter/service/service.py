"""Builds the service from settings and rebuilds what a reload changes."""

from __future__ import annotations

import asyncio
import logging
import platform
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from importlib.metadata import version as installed_version
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector

from mcpmeter.access.callers import Caller
from mcpmeter.access.keys import KeyRing, key_from_config
from mcpmeter.budgets.reservations import Limits
from mcpmeter.budgets.status_board import BudgetStatusBoard
from mcpmeter.catalog import budget, llm, mcp, money, quality
from mcpmeter.catalog import service as service_rows
from mcpmeter.catalog.spec import NANO
from mcpmeter.config import Settings, attribution_of, budgets_of, is_loopback, price_book, refuse_open_bind
from mcpmeter.dialects.anthropic_messages import AnthropicCountTokens, AnthropicMessages
from mcpmeter.dialects.base import Dialect
from mcpmeter.dialects.gemini_generate import GeminiGenerate
from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.dialects.openai_embeddings import OpenAiEmbeddings
from mcpmeter.dialects.openai_responses import OpenAiResponses
from mcpmeter.errors import Draining, MeterError
from mcpmeter.http.client import Http1Client
from mcpmeter.http.client.interface import Timeouts
from mcpmeter.http.exchange import HttpExchange
from mcpmeter.ledger.location import PostgresUrl
from mcpmeter.ledger.opening import open_store
from mcpmeter.mcp_server import ModelInfo
from mcpmeter.meter import Meter
from mcpmeter.metrics.collector import Exposition
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.pricing import ModelPrice
from mcpmeter.quota.tracker import QuotaTracker
from mcpmeter.records import Charge, LlmTarget, Usage
from mcpmeter.relay.pipeline import EndpointConfig, Pipeline, RelayOptions, Runtime
from mcpmeter.routing.failover import Failover, FailoverMetrics
from mcpmeter.routing.routes import Upstream
from mcpmeter.service import pages
from mcpmeter.service.api.api import ApiPages
from mcpmeter.service.api.keys import KeyPages
from mcpmeter.service.app import App, Endpoint, HostGuard, PageEndpoint, RelayEndpoint
from mcpmeter.service.gemini_routes import gemini_templates
from mcpmeter.service.mcp import McpEndpoint
from mcpmeter.usage import Currency, UsageQuery, UsageReport, usage_report

log = logging.getLogger("mcpmeter")

DEFAULT_TEAM: Final = "default"
SECONDS_BETWEEN_KEY_LOOKS: Final = 1.0
SECONDS_TO_SETTLE_WHAT_WAS_CUT: Final = 5.0
MODELS_AT_ZERO: Final = 32
"""A provider with more models than this gets their series as they are used; the others have them at 0 at once."""

RELAY_STATUSES: Final = ("200", "400", "401", "413", "429", "499", "502", "503", "504")
ERROR_PAIRS: Final = (
    ("validation_error", "client"),
    ("auth_error", "client"),
    ("rate_limited", "client"),
    ("budget_exceeded", "client"),
    ("client_disconnected", "client"),
    ("protocol_error", "client"),
    ("tool_error", "server"),
    ("internal_error", "server"),
    ("upstream_error", "upstream"),
    ("upstream_timeout", "upstream"),
    ("upstream_rate_limited", "upstream"),
    ("upstream_unreachable", "upstream"),
)
DIALECTS: Final[Mapping[str, Dialect]] = {
    "/v1/chat/completions": OpenAiChat(),
    "/v1/responses": OpenAiResponses(),
    "/v1/embeddings": OpenAiEmbeddings(),
    "/v1/messages": AnthropicMessages(),
    "/v1/messages/count_tokens": AnthropicCountTokens(),
}
SHAPES: Final = (
    (re.compile(r"/v1/messages/.*", re.DOTALL), AnthropicMessages().error_body),
    (re.compile(r"/v1beta/.*|/v1/models/[^/]*:.*", re.DOTALL), GeminiGenerate().error_body),
)
LINKS: Final = [
    ("/metrics", "for Prometheus"),
    ("/mcp/models", "models and their prices"),
    ("/v1/models", "the same in OpenAI's shape"),
    ("/api/quota", "what providers say is left of their quotas"),
    ("/api/usage", "what was used this month and what it cost"),
    ("/api/budgets", "how budgets stand, and when they will be exhausted"),
    ("/api/keys", "who may call, for admins"),
    ("/health", "liveness"),
    ("/-/ready", "readiness"),
]


class Service:
    """The running whole. `async with service.running()`; `app` is the ASGI application inside."""

    app: App
    metrics_app: App | None
    pipeline: Pipeline
    meter: Meter

    def __init__(self, load: Callable[[], Settings], *, keys_optional: bool = False) -> None:
        self._load = load
        self._keys_optional = keys_optional
        self.settings = load()
        self.ledger_path = self.settings.ledger.location
        self.version = installed_version("mcpmeter")
        self.recorder = Recorder()
        ledger = self.settings.ledger
        self._store = open_store(
            self.ledger_path, self._on_commit, lease_s=ledger.lease_seconds, synchronous=ledger.synchronous
        )
        self._book = price_book(self.settings)
        self._upstreams = self.settings.upstreams()
        self._sessions = AsyncExitStack()
        self._tally = FailoverMetrics(self.recorder)
        self._failover = Failover(self._tally)
        self._quota = QuotaTracker(self.recorder)
        self.budgets = BudgetStatusBoard(self._store, self.recorder)
        self.recovered = 0
        self._recovers_next = 0.0
        self._keys_are_old = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Service]:
        """Start everything but the listeners; on the way out cut what still runs, settle it and close the ledger.

        Raises SetupError with one line that says what to do.
        """
        async with AsyncExitStack() as stack:
            await self._store.start()
            stack.push_async_callback(self._store.close)
            keys = await self._keys()
            refuse_open_bind(self.settings, not keys.empty)
            client = self._client(self.settings)
            self.meter = Meter(self.recorder, store=self._store, price=self._price)
            self.pipeline = Pipeline(
                self.meter, self._runtime(self.settings, keys, client), self._failover, self._quota
            )
            stack.push_async_callback(self._close_client)
            self._register_labels(self.settings, keys)
            self._build_apps()
            # After the routes are announced, or the recovered calls would belong to no endpoint.
            self.recovered = await self.meter.recover()
            if self.recovered:
                log.warning("%d calls that an earlier run left open were settled as recovered", self.recovered)
            await self._sessions.enter_async_context(self._mcp.running())
            await self.budgets.refresh()
            self._set_config_loaded(successful=True)
            watcher = asyncio.get_running_loop().create_task(self._watch_keys_and_ledger())
            stack.push_async_callback(_cancelled, watcher)
            try:
                yield self
            finally:
                await self.stop()

    async def drain(self) -> None:
        """Take no new calls; let running ones end, up to `server.drain_seconds`."""
        self.pipeline.draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self.pipeline.until_idle(), self.settings.server.drain_seconds)

    async def stop(self) -> None:
        """Cut what still runs and wait until it is settled. Called while clients can still be told."""
        self.pipeline.draining = True
        error = Draining("The service is stopping; this answer was cut off.", hint="Retry.")
        for flight in list(self.pipeline.active_calls):
            flight.cut(error)
        await self._sessions.aclose()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.pipeline.until_idle(), SECONDS_TO_SETTLE_WHAT_WAS_CUT)

    async def reload(self) -> None:
        """Read the configuration again and swap what it says; streams go on with what they began with.

        Raises ConfigInvalid; then everything stays as it was.
        """
        try:
            settings = self._load()
            book, upstreams = price_book(settings), settings.upstreams()
            keys = await self._keys(settings)
            refuse_open_bind(settings, not keys.empty)
        except MeterError as fault:
            self._set_config_loaded(successful=False)
            log.error("not reloaded, the old configuration stays: %s", fault)
            raise
        for name in _needs_restart(self.settings, settings):
            log.warning("%s has changed; that takes effect at the next start", name)
        self.settings, self._book, self._upstreams = settings, book, upstreams
        old = self.pipeline.runtime
        self.pipeline.runtime = self._runtime(settings, keys, self._client(settings))
        self._register_labels(settings, keys)
        await self._refresh_budgets()
        self._set_config_loaded(successful=True)
        self._closing = asyncio.get_running_loop().create_task(self._close_when_unused(old))
        log.info("configuration reloaded from %s", settings.source)

    async def _close_when_unused(self, runtime: Runtime) -> None:
        await self.pipeline.until_unused(runtime.client)
        await runtime.client.close()

    async def _close_client(self) -> None:
        await self.pipeline.runtime.client.close()

    @staticmethod
    def _client(settings: Settings) -> Http1Client:
        times = settings.relay.timeouts
        return Http1Client(
            Timeouts(
                connect_seconds=times.connect_seconds,
                first_byte_seconds=times.first_byte_seconds,
                idle_seconds=times.idle_seconds,
                total_seconds=times.total_seconds,
            ),
            max_connections=times.max_connections,
        )

    def _runtime(self, settings: Settings, keys: KeyRing, client: Http1Client) -> Runtime:
        return Runtime(
            options=RelayOptions(
                max_body_bytes=settings.server.max_body_bytes,
                max_answer_bytes=settings.relay.max_answer_bytes,
                default_team=DEFAULT_TEAM,
                keys_optional=self._keys_optional,
            ),
            routing=settings.routing(self._upstreams),
            client=client,
            keys=keys,
            attribution=attribution_of(settings),
            limits=Limits(
                budgets=budgets_of(settings),
                max_cost_nanousd=self._book.max_cost_nanousd,
                assumed_completion_tokens=settings.relay.assumed_completion_tokens,
                on_refusal=self.budgets.note_refusal,
            ),
        )

    # Keys ------------------------------------------------------------------------------------------------------------

    async def _keys(self, settings: Settings | None = None) -> KeyRing:
        configured = [
            key_from_config(name=key.name, team=key.team, sha256=key.digest, limits=key.limits())
            for key in (settings or self.settings).keys
        ]
        return KeyRing([*configured, *await self._store.keys()])

    async def _watch_keys_and_ledger(self) -> None:
        """A key that another process creates or revokes counts within a second; a mended ledger is noticed as soon."""
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_KEY_LOOKS)
            try:
                if not self._store.healthy:
                    await self._store.probe()
                await self._recover_for_others()
                if self._keys_are_old or await self._store.keys_changed():
                    await self._take_up_keys()
            except MeterError as fault:
                log.debug("the ledger cannot be looked at: %s", fault.message)
            await self._refresh_budgets()

    async def _take_up_keys(self) -> None:
        """What fails here is done at the watch's next look: a ledger does not tell us of a change of our own."""
        self._keys_are_old = True
        settings = None
        while settings is not self.settings:  # a reload in between has read the file's keys anew
            settings = self.settings
            keys = await self._keys(settings)
        self._register_teams(keys.teams)
        self.pipeline.runtime = replace(self.pipeline.runtime, keys=keys)
        self._keys_are_old = False

    async def _recover_for_others(self) -> None:
        """Where replicas share a ledger, whoever lives settles what a dead one left open."""
        if not isinstance(self.ledger_path, PostgresUrl) or time.monotonic() < self._recovers_next:
            return
        recovered = await self.meter.recover()
        self._recovers_next = time.monotonic() + self.settings.ledger.lease_seconds / 2
        if recovered:
            self.recovered += recovered
            log.warning("%d calls that a replica left open were settled as recovered", recovered)

    async def _refresh_budgets(self) -> None:
        try:
            await self.budgets.refresh()
        except MeterError as fault:
            log.debug("the budgets cannot be looked at: %s", fault.message)

    # Prices and models -----------------------------------------------------------------------------------------------

    def _price(
        self, target: LlmTarget, response_model: str, usage: Usage, at_ns: int, reported_nanousd: int | None
    ) -> Charge:
        """By the model that was asked for; where that has no price (a router's name), by the one that answered."""
        charge = self._book.charge(target.provider, target.model, usage, at_ns, reported_nanousd)
        if charge.source == "unpriced" and response_model and response_model != target.model:
            return self._book.charge(target.provider, response_model, usage, at_ns, reported_nanousd)
        return charge

    def models(self) -> list[tuple[str, ModelPrice]]:
        """(provider, model) of everything on offer: what configuration lists, else what the provider's prices name."""
        offered: dict[str, tuple[str, ModelPrice]] = {}
        for upstream in self._upstreams:
            priced = {price.id: price for price in self._book.models(upstream.name)}
            names = sorted(upstream.exact_names) or list(priced)
            for name in names:
                offered.setdefault(name, (upstream.name, priced.get(name) or _unpriced(name)))
        return list(offered.values())

    # Labels ----------------------------------------------------------------------------------------------------------

    def _register_labels(self, settings: Settings, keys: KeyRing) -> None:
        vocabulary = self.recorder.label_allowlist
        providers = [upstream.provider for upstream in self._upstreams]
        vocabulary.register("provider", [name for p in providers for name in (p.name, p.otel_name or p.name)])
        vocabulary.register("model", [price.id for _, price in self.models()])
        vocabulary.register("build", (self.version, platform.python_version()))
        self.recorder.known_as = self._known_as
        self.recorder.set(service_rows.BUILD_INFO, 1, version=self.version, python_version=platform.python_version())
        self._quota.register([credential.id for upstream in self._upstreams for credential in upstream.credentials])
        self._tally.register([upstream.name for upstream in self._upstreams])
        self._failover.configure(settings.relay.retries.options(), settings.relay.circuit.options(), self._upstreams)
        self.budgets.configure(self.pipeline.runtime.limits.budgets)
        self._register_teams(keys.teams | {team.name for team in settings.teams})

    def _known_as(self, provider: str, model: str) -> str | None:
        return self._book.canonical(provider, model)

    def _register_teams(self, teams: frozenset[str]) -> None:
        self.recorder.label_allowlist.register("team", {*teams, DEFAULT_TEAM})
        for upstream in self._upstreams:
            self._announce_children(upstream, sorted(teams) or [DEFAULT_TEAM])

    def _announce_children(self, upstream: Upstream, teams: Sequence[str]) -> None:
        """Series whose labels are known exist at 0 from the start: one that first appears at 12 has no increase."""
        recorder, provider = self.recorder, [upstream.name]
        for row in (llm.USAGE_MISSING, money.UNPRICED):
            recorder.register_children(row, provider=provider)
        recorder.register_children(money.PROVIDER_REPORTED_COST, provider=provider)
        recorder.register_children(budget.FALLBACK_PRICED, provider=provider)
        models = [price.id for name, price in self.models() if name == upstream.name]
        if len(models) <= MODELS_AT_ZERO:
            recorder.register_children(llm.TOKENS, model=models, team=teams, provider=provider)
            recorder.register_children(quality.EMPTY, model=models)
            for row in (quality.REFUSALS, quality.TRUNCATIONS, quality.OUTPUT_RATE):
                recorder.register_children(row, model=models, provider=provider)
            recorder.register_children(money.COST, model=models, team=teams, provider=provider)

    def _announce_routes(self, routes: dict[str, dict[str, Endpoint]], templates: Sequence[str]) -> None:
        recorder = self.recorder
        recorder.label_allowlist.register("endpoint", [*routes, *templates])
        recorder.register_children(mcp.REQUESTS, endpoint=templates, method=["POST"], status=RELAY_STATUSES)
        recorder.register_children(mcp.REQUEST_DURATION, endpoint=templates, method=["POST"])
        for path, verbs in routes.items():
            for verb, endpoint in verbs.items():
                if verb in ("*", "HEAD"):
                    continue
                if isinstance(endpoint, McpEndpoint):
                    continue
                statuses = RELAY_STATUSES if isinstance(endpoint, RelayEndpoint) else ("200",)
                recorder.register_children(mcp.REQUESTS, endpoint=[path], method=[verb], status=statuses)
                recorder.register_children(mcp.REQUEST_DURATION, endpoint=[path], method=[verb])
        for error_type, side in ERROR_PAIRS:
            recorder.families[mcp.ERRORS.name].ensure(error_type=error_type, side=side)
        recorder.register_children(mcp.TRANSPORT_REJECTIONS)

    # Apps ------------------------------------------------------------------------------------------------------------

    def _build_apps(self) -> None:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        token = self.settings.metrics.bearer_token
        metrics = pages.MetricsPage(
            self.recorder,
            Exposition(self.recorder, registry),
            self._store,
            self._quota,
            token.get_secret_value() if token else None,
        )
        routes = self._routes()
        metrics_route = {"GET": PageEndpoint(self.meter, "/metrics", metrics)}
        own_listener = self.settings.metrics.port is not None
        if not own_listener:
            routes["/metrics"] = dict(metrics_route)
        templates = gemini_templates(self.pipeline)
        self._announce_routes({**routes, "/metrics": dict(metrics_route)}, [template.label for template in templates])
        self.app = App(self.meter, routes, HostGuard(self._allowed_hosts(self.settings.server.host)), templates, SHAPES)
        self.metrics_app = None
        if own_listener:
            guard = HostGuard(self._allowed_hosts(self.settings.metrics.host or "127.0.0.1"))
            self.metrics_app = App(self.meter, {"/metrics": metrics_route}, guard)

    def _allowed_hosts(self, listening_on: str) -> Sequence[str] | None:
        named = self.settings.server.allowed_hosts
        if is_loopback(listening_on):
            return ("localhost", "127.0.0.1", "::1", listening_on, *named)
        return named or None

    def _routes(self) -> dict[str, dict[str, Endpoint]]:
        chat = OpenAiChat()
        model_pages = pages.ModelPages(self.pipeline, self.models)
        guide = EndpointConfig(dialect=chat, default_model=self.settings.relay.default_model, maps_upstream_faults=True)
        self._mcp = McpEndpoint(
            meter=self.meter,
            pipeline=self.pipeline,
            service=guide,
            list_models=lambda: [ModelInfo.of(provider, price) for provider, price in self.models()],
            price_book=lambda: self._book,
            ledger_path=self.ledger_path,
            version=self.version,
        )
        routes: dict[str, dict[str, Endpoint]] = {
            "/mcp": {"POST": self._mcp, "GET": self._mcp, "DELETE": self._mcp},
            "/mcp/chat": {"POST": RelayEndpoint(self.pipeline, "/mcp/chat", guide)},
        }
        for path, dialect in DIALECTS.items():
            routes[path] = {"POST": RelayEndpoint(self.pipeline, path, EndpointConfig(dialect=dialect))}
        for path, make in (
            ("/v1/models", model_pages.openai),
            ("/mcp/models", model_pages.guide),
            ("/health", pages.health),
            ("/-/healthy", pages.healthy),
            ("/-/ready", pages.ReadyPage(self._store, self.pipeline)),
            ("/", pages.IndexPage(self.version, LINKS)),
        ):
            page = PageEndpoint(self.meter, path, make)
            routes[path] = {"GET": page, "HEAD": page}
        api = ApiPages(self._quota, self.budgets, self._identify, self.version, ask_usage=self._ask_usage)
        for path, answer in api.routes():
            routes[path] = {"GET": PageEndpoint(self.meter, path, answer)}
        key_pages = KeyPages(self._store, lambda: self.pipeline.runtime.keys, self._take_up_keys, _is_local)
        for verb, path, answer in key_pages.routes():
            routes.setdefault(path, {})[verb] = PageEndpoint(self.meter, path, answer)
        reload = pages.ReloadPage(self.reload, _is_local)
        routes["/-/reload"] = {"POST": PageEndpoint(self.meter, "/-/reload", reload)}
        return routes

    async def _ask_usage(self, query: UsageQuery) -> UsageReport:
        shown = self.settings.pricing.currency
        currency = Currency(shown.code, shown.rate) if shown else None
        return await asyncio.to_thread(
            usage_report, self.ledger_path, msgspec.structs.replace(query, currency=currency)
        )

    def _identify(self, secret: str | None) -> Caller:
        return self.pipeline.runtime.identify(secret)

    # Own numbers -----------------------------------------------------------------------------------------------------

    def _on_commit(self, rows: int, seconds: float) -> None:
        self.recorder.observe(service_rows.LEDGER_COMMIT, round(seconds * NANO))

    def _set_config_loaded(self, *, successful: bool) -> None:
        self.recorder.set(service_rows.CONFIG_RELOAD_SUCCESSFUL, int(successful))
        if successful:
            self.recorder.set(service_rows.CONFIG_RELOAD_TIMESTAMP, int(time.time()))


def _unpriced(name: str) -> ModelPrice:
    return ModelPrice(id=name, prompt_usd_per_mtok=None, completion_usd_per_mtok=None)


def _is_local(exchange: HttpExchange) -> bool:
    return is_loopback(exchange.peer) if exchange.peer else False


def _needs_restart(old: Settings, new: Settings) -> list[str]:
    pairs = {
        "server.host": (old.server.host, new.server.host),
        "server.port": (old.server.port, new.server.port),
        "server.allowed_hosts": (old.server.allowed_hosts, new.server.allowed_hosts),
        "metrics": (old.metrics, new.metrics),
        "ledger": (old.ledger, new.ledger),
    }
    return [name for name, (before, after) in pairs.items() if before != after]


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
