"""The running service: builds the parts, starts and drains them, and rebuilds what a reload changes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version as installed_version
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector

from mcpmeter.access.keys import KeyRing, key_from_config
from mcpmeter.budgets.reservations import Limits
from mcpmeter.budgets.status_board import BudgetStatusBoard
from mcpmeter.catalog import service as service_rows
from mcpmeter.config import (
    Listener,
    ServerLimitSettings,
    Settings,
    attribution_of,
    budgets_of,
    changes_between,
    listeners,
    price_book,
    refuse_open_bind,
)
from mcpmeter.errors import Draining, MeterError
from mcpmeter.http.client import Http1Client
from mcpmeter.http.client.interface import Timeouts
from mcpmeter.http.memory import MemoryBudget
from mcpmeter.http.server.connections import Connections, ServerBounds, ServerTimeouts
from mcpmeter.ledger.audit import audit_entry
from mcpmeter.ledger.location import PostgresUrl
from mcpmeter.ledger.opening import open_store
from mcpmeter.ledger.pending import Callbacks, PendingSettlements, pending_place
from mcpmeter.mcp_server import ModelInfo
from mcpmeter.meter import Meter
from mcpmeter.metrics.collector import Exposition
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.pricing import ModelPrice
from mcpmeter.quota.tracker import QuotaTracker
from mcpmeter.records import Actor, Settlement
from mcpmeter.relay.background import BackgroundCalls
from mcpmeter.relay.background_options import BackgroundOptions
from mcpmeter.relay.object_requests import ObjectRequests
from mcpmeter.relay.pipeline import Pipeline, RelayOptions, Runtime
from mcpmeter.routing.failover import Failover, FailoverMetrics
from mcpmeter.service import pages
from mcpmeter.service.app import HEALTH_PATHS, App, Endpoint, PageEndpoint
from mcpmeter.service.audit_trail import AuditTrail, this_process
from mcpmeter.service.capacity import Capacity, descriptor_limit, memory_limit
from mcpmeter.service.gemini_routes import gemini_templates
from mcpmeter.service.label_sets import DEFAULT_TEAM, LabelSets
from mcpmeter.service.mcp import McpEndpoint
from mcpmeter.service.response_routes import response_templates
from mcpmeter.service.routes import (
    ADMIN_PREFIXES,
    SHAPES,
    RouteTable,
    add_index,
    guide_endpoint,
    host_guard,
    route_table,
)
from mcpmeter.usage import Currency, UsageQuery, UsageReport, usage_report
from mcpmeter.usage.call_view import ShownCall, call_view

log = logging.getLogger("mcpmeter")

KEY_POLL_SECONDS: Final = 0.5
"""A stream of a key that another process revokes ends within a second, the reading of the keys included."""

BUDGET_POLL_SECONDS: Final = 1.0
CUT_SETTLE_SECONDS: Final = 5.0


class Service:
    """The service without its listeners. Enter `running()`; `app` is the application that a listener serves."""

    app: App
    other_apps: Mapping[Listener, App]
    """The applications of the further listeners, for metrics and for administration."""
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
            self.ledger_path,
            self.recorder.families[service_rows.LEDGER_COMMIT.name].histogram().observe,
            lease_s=ledger.lease_seconds,
            connect_s=ledger.connect_seconds,
            synchronous=ledger.synchronous,
        )
        self.pending = PendingSettlements(
            self._store,
            pending_place(self.ledger_path, ledger.pending_path),
            Callbacks(
                on_late=self._count_late,
                on_rejected=lambda: self.recorder.add(service_rows.SETTLEMENTS_REJECTED),
                on_unwritten=lambda: self.recorder.add(service_rows.SETTLEMENTS_UNWRITTEN),
            ),
        )
        self._book = price_book(self.settings)
        self._upstreams = self.settings.upstreams()
        self.bounds = self._new_bounds()
        self._sessions = AsyncExitStack()
        self._failover_metrics = FailoverMetrics(self.recorder)
        self._failover = Failover(self._failover_metrics)
        self._quota = QuotaTracker(self.recorder)
        self._label_sets = LabelSets(self.recorder, self.version)
        self.budgets = BudgetStatusBoard(self._store, self.recorder)
        self.addresses: dict[str, str] = {}
        """The URL of each further listener by its section, once it is bound."""
        self.recovered = 0
        self._audit = AuditTrail(self._store, lambda: self.pipeline.runtime.keys)
        self._recovers_next = 0.0
        self._keys_are_old = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Service]:
        """Start everything but the listeners. On exit, cut running calls, settle them and close the ledger.

        Raises SetupError with one line that says what to do.
        """
        async with AsyncExitStack() as stack:
            await self._store.start()
            stack.push_async_callback(self._store.close)
            stack.push_async_callback(self.pending.close, CUT_SETTLE_SECONDS)
            await self.pending.start()
            keys = await self._keys()
            refuse_open_bind(self.settings, not keys.empty)
            client = self._client(self.settings)
            self.meter = Meter(
                self.recorder,
                store=self._store,
                prices=self._book,
                pending=self.pending,
                settle_seconds=self.settings.ledger.settle_seconds,
            )
            self.pipeline = Pipeline(
                self.meter,
                self._runtime(self.settings, keys, client),
                self._failover,
                self._quota,
                self.bounds.memory,
            )
            stack.push_async_callback(self._close_client)
            self._background = self.pipeline.background = BackgroundCalls(
                self.meter,
                self._store,
                lambda: self.pipeline.runtime,
                self._background_options,
            )
            stack.push_async_callback(self._background.close)
            self._object_requests = ObjectRequests(self.pipeline, self._background, self._store)
            self._configure(self.settings, keys)
            self._build_apps()
            # Before recovery: what these calls really cost is known.
            if left := await self.pending.settle_left():
                log.warning("%d settlements that a previous process kept in its pending file are in the ledger", left)
            # After the routes are registered: recovered calls are counted by their endpoint.
            self.recovered = await self.meter.recover()
            if self.recovered:
                log.warning("%d calls that a previous process left open were settled as recovered", self.recovered)
            if resumed := await self._background.resume():
                log.info("%d background responses are followed on", resumed)
            await self._sessions.enter_async_context(self._mcp.running())
            await self.budgets.refresh()
            self._set_config_loaded(successful=True)
            for watch in (self._watch_keys_and_ledger(), self._watch_budgets()):
                stack.push_async_callback(_cancelled, asyncio.get_running_loop().create_task(watch))
            try:
                yield self
            finally:
                await self.stop()

    async def drain(self) -> None:
        """Refuse new calls and wait for running ones, up to `server.drain_seconds`."""
        self.pipeline.draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self.pipeline.until_idle(), self.settings.server.drain_seconds)

    async def stop(self) -> None:
        """Cut running calls and wait until they are settled. Called while clients are still connected."""
        self.pipeline.draining = True
        error = Draining("The service is stopping; this response was cut off.", hint="Retry.")
        for call in list(self.pipeline.active_calls):
            call.cut(error)
        self._object_requests.cut()
        await self._sessions.aclose()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.pipeline.until_idle(), CUT_SETTLE_SECONDS)

    async def reload(self, by: Actor | None = None) -> None:
        """Read the configuration again and apply it. Running calls keep the runtime they began with.

        Raises ConfigInvalid; then the old configuration stays. Both ends leave an audit row.
        """
        by = by or this_process("this process")
        try:
            settings = self._load()
            book, upstreams = price_book(settings), settings.upstreams()
            keys = await self._keys(settings)
            refuse_open_bind(settings, not keys.empty)
        except MeterError as fault:
            self._set_config_loaded(successful=False)
            log.error("not reloaded, the old configuration stays: %s", fault)
            error = {"error": fault.message}
            await self._audit.note(audit_entry("config.reload", by, self.settings.source, error, outcome="refused"))
            raise
        for name in _needs_restart(self.settings, settings):
            log.warning("%s has changed; that takes effect at the next start", name)
        changed = changes_between(self.settings, settings)
        self.settings, self._book, self._upstreams = settings, book, upstreams
        self.meter.prices = book
        old = self.pipeline.runtime
        self.pipeline.runtime = self._runtime(settings, keys, self._client(settings))
        self._configure(settings, keys)
        await self._end_streams_of_ended_keys()
        await self._refresh_budgets()
        self._set_config_loaded(successful=True)
        self._closing = asyncio.get_running_loop().create_task(self._close_when_unused(old))
        log.info("configuration reloaded from %s", settings.source)
        await self._audit.note(audit_entry("config.reload", by, settings.source, changed))

    async def _close_when_unused(self, runtime: Runtime) -> None:
        await self.pipeline.until_unused(runtime.client)
        await runtime.client.close()

    async def _close_client(self) -> None:
        await self.pipeline.runtime.client.close()

    # Bounds ----------------------------------------------------------------------------------------------------------

    def _new_bounds(self) -> ServerBounds:
        server, capacity = self.settings.server, _capacity(self.settings)
        return ServerBounds(
            timeouts=ServerTimeouts(**server.timeouts.model_dump()),
            connections=Connections(
                capacity.connections, capacity.connections_per_address, capacity.reserve, self._note_limit
            ),
            memory=MemoryBudget(server.limits.memory_bytes, partial(self._note_limit, "memory")),
        )

    def _note_limit(self, limit: str) -> None:
        self.recorder.add(service_rows.LIMIT_REACHED, limit=limit)

    def _client(self, settings: Settings) -> Http1Client:
        times = settings.relay.timeouts
        return Http1Client(
            Timeouts(
                connect_seconds=times.connect_seconds,
                first_byte_seconds=times.first_byte_seconds,
                idle_seconds=times.idle_seconds,
                total_seconds=times.total_seconds,
            ),
            max_connections=_capacity(settings).upstream_connections,
            memory=self.bounds.memory,
            on_limit=partial(self._note_limit, "upstream_connections"),
        )

    def _runtime(self, settings: Settings, keys: KeyRing, client: Http1Client) -> Runtime:
        return Runtime(
            options=RelayOptions(
                max_body_bytes=settings.server.max_body_bytes,
                max_answer_bytes=settings.relay.max_answer_bytes,
                max_calls=_capacity(settings).concurrent_calls,
                max_calls_per_key=settings.server.limits.concurrent_calls_per_key,
                drains=settings.relay.disconnects.options(),
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
                assumed_prompt_tokens=settings.relay.assumed_prompt_tokens,
                assumed_tool_uses=settings.relay.assumed_tool_uses,
                context_window=self._book.context_window,
                on_refusal=self.budgets.note_refusal,
            ),
        )

    def _background_options(self) -> BackgroundOptions:
        return self.settings.relay.background.options()

    def _count_late(self, settlement: Settlement) -> None:
        self.meter.count_late(settlement)

    # Keys ------------------------------------------------------------------------------------------------------------

    async def _keys(self, settings: Settings | None = None) -> KeyRing:
        configured = [
            key_from_config(name=key.name, team=key.team, sha256=key.digest, limits=key.limits())
            for key in (settings or self.settings).keys
        ]
        return KeyRing([*configured, *await self._store.keys()])

    async def _watch_keys_and_ledger(self) -> None:
        """Poll the ledger: a key that another process creates or revokes counts within a second."""
        while True:
            await asyncio.sleep(KEY_POLL_SECONDS)
            try:
                if not self._store.healthy:
                    await self._store.probe()
                    await self._background.resume()  # what could not be read or written meanwhile
                await self._recover_for_others()
                if self._keys_are_old or await self._store.keys_changed():
                    await self._reload_keys()
                await self._audit.flush()
            except MeterError as fault:
                log.debug("cannot read the ledger: %s", fault.message)
            await self._end_streams_of_ended_keys()

    async def _watch_budgets(self) -> None:
        """Apart from the keys, which must not wait while a budget's calls are summed up."""
        while True:
            await asyncio.sleep(BUDGET_POLL_SECONDS)
            await self._refresh_budgets()

    async def _reload_keys(self) -> None:
        """Read all keys. A failure is retried at the next poll: `keys_changed` does not report our own change again."""
        self._keys_are_old = True
        settings = None
        while settings is not self.settings:  # a reload during the wait has read the file's keys again
            settings = self.settings
            keys = await self._keys(settings)
        self._label_sets.register_teams(self._upstreams, self.models(), keys.teams)
        self.pipeline.runtime = replace(self.pipeline.runtime, keys=keys)
        self._keys_are_old = False
        await self._end_streams_of_ended_keys()

    async def _end_streams_of_ended_keys(self) -> None:
        """End streams and MCP sessions of keys that were revoked, removed or have expired."""
        if not self.settings.server.end_revoked_streams:
            return
        keys, now_ns = self.pipeline.runtime.keys, time.time_ns()
        if count := self.pipeline.end_streams(lambda key_id: keys.is_valid(key_id, now_ns)):
            log.info("%d streams were ended: their keys were revoked or have expired", count)
        await self._mcp.end_sessions(lambda key_id: keys.is_valid(key_id, now_ns))

    async def _recover_for_others(self) -> None:
        """Settle the open rows of a dead replica, if replicas share the ledger."""
        if not isinstance(self.ledger_path, PostgresUrl) or time.monotonic() < self._recovers_next:
            return
        recovered = await self.meter.recover()
        await self._background.resume()
        self._recovers_next = time.monotonic() + self.settings.ledger.lease_seconds / 2
        if recovered:
            self.recovered += recovered
            log.warning("%d calls that a replica left open were settled as recovered", recovered)

    async def _refresh_budgets(self) -> None:
        try:
            await self.budgets.refresh()
        except MeterError as fault:
            log.debug("cannot read the budgets: %s", fault.message)

    # Prices and models -----------------------------------------------------------------------------------------------

    def models(self) -> list[tuple[str, ModelPrice]]:
        """(provider, model) of everything on offer: the models that the configuration lists, else all priced ones."""
        offered: dict[str, tuple[str, ModelPrice]] = {}
        for upstream in self._upstreams:
            priced = {price.id: price for price in self._book.models(upstream.name)}
            names = sorted(upstream.exact_names) or list(priced)
            for name in names:
                offered.setdefault(name, (upstream.name, priced.get(name) or _unpriced(name)))
        return list(offered.values())

    def _configure(self, settings: Settings, keys: KeyRing) -> None:
        """Hand a configuration to the parts that outlive a reload."""
        teams = keys.teams | {team.name for team in settings.teams}
        self._label_sets.register_configuration(self._upstreams, self.models(), teams)
        self.recorder.known_as = self._known_as
        self._quota.register([credential.id for upstream in self._upstreams for credential in upstream.credentials])
        self._failover_metrics.register([upstream.name for upstream in self._upstreams])
        self._failover.configure(settings.relay.retries.options(), settings.relay.circuit.options(), self._upstreams)
        self.budgets.configure(self.pipeline.runtime.limits.budgets)
        self.meter.postings = self.pipeline.runtime.limits.postings

    def _known_as(self, provider: str, model: str) -> str | None:
        return self._book.canonical(provider, model)

    # Apps ------------------------------------------------------------------------------------------------------------

    def _build_apps(self) -> None:
        guide = guide_endpoint(self.settings.relay.default_model)
        self._mcp = McpEndpoint(
            meter=self.meter,
            pipeline=self.pipeline,
            service=guide,
            list_models=lambda: [ModelInfo.of(provider, price) for provider, price in self.models()],
            price_book=lambda: self._book,
            ledger_path=self.ledger_path,
            version=self.version,
            max_sessions_per_key=self.settings.server.limits.mcp_sessions_per_key,
        )
        routes = route_table(
            meter=self.meter,
            pipeline=self.pipeline,
            mcp=self._mcp,
            guide=guide,
            store=self._store,
            pending=self.pending,
            quota=self._quota,
            budgets=self.budgets,
            version=self.version,
            models=self.models,
            usage=self._usage,
            find_call=self._find_call,
            audit=self._audit,
            reload_keys=self._reload_keys,
            reload=self.reload,
        )
        metrics: dict[str, Endpoint] = {"GET": PageEndpoint(self.meter, "/metrics", self._metrics_page())}
        own, *others = listeners(self.settings)
        tables = self._split_routes(routes, metrics)
        add_index(self.meter, routes, self.version)
        templates = [*gemini_templates(self.pipeline), *response_templates(self._object_requests)]
        paths = {path: verbs for table in tables.values() for path, verbs in table.items()}
        self._label_sets.register_routes(paths, [template.label for template in templates])
        self.app = App(self.meter, routes, host_guard(self.settings, own.host), templates, SHAPES)
        self.other_apps = {
            listener: App(self.meter, tables[listener.section], host_guard(self.settings, listener.host))
            for listener in others
        }

    def _split_routes(self, routes: RouteTable, metrics: dict[str, Endpoint]) -> Mapping[str, RouteTable]:
        """Move the routes of the further listeners to tables of their own, by the listener's section."""
        tables: dict[str, RouteTable] = {"server": routes, "server.admin": {}, "metrics": {}}
        if self.settings.server.admin is not None:
            moved = [path for path in routes if path.startswith(ADMIN_PREFIXES)]
            tables["server.admin"] = {path: routes[path] for path in (*moved, *HEALTH_PATHS)}
            for path in moved:
                del routes[path]
        for listener in listeners(self.settings):
            if listener.has_metrics:
                tables[listener.section]["/metrics"] = metrics
        return tables

    def _metrics_page(self) -> pages.MetricsPage:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        token = self.settings.metrics.bearer_token
        return pages.MetricsPage(
            self.recorder,
            Exposition(self.recorder, registry),
            store=self._store,
            pending=self.pending,
            quota=self._quota,
            token=token.get_secret_value() if token else None,
        )

    async def _usage(self, query: UsageQuery) -> UsageReport:
        shown = self.settings.pricing.currency
        currency = Currency(shown.code, shown.rate) if shown else None
        return await asyncio.to_thread(
            usage_report, self.ledger_path, msgspec.structs.replace(query, currency=currency)
        )

    async def _find_call(self, call_id: str) -> ShownCall | None:
        return await asyncio.to_thread(call_view, self.ledger_path, call_id)

    # Own numbers -----------------------------------------------------------------------------------------------------

    def _set_config_loaded(self, *, successful: bool) -> None:
        self.recorder.set(service_rows.CONFIG_RELOAD_SUCCESSFUL, int(successful))
        if successful:
            self.recorder.set(service_rows.CONFIG_RELOAD_TIMESTAMP, int(time.time()))


def _capacity(settings: Settings) -> Capacity:
    return Capacity.of(settings, descriptor_limit(), memory_limit())


def _unpriced(name: str) -> ModelPrice:
    return ModelPrice(id=name, prompt_usd_per_mtok=None, completion_usd_per_mtok=None)


def _needs_restart(old: Settings, new: Settings) -> list[str]:
    pairs = {
        "server.host": (old.server.host, new.server.host),
        "server.port": (old.server.port, new.server.port),
        "server.allowed_hosts": (old.server.allowed_hosts, new.server.allowed_hosts),
        "server.allowed_origins": (old.server.allowed_origins, new.server.allowed_origins),
        "server.admin": (old.server.admin, new.server.admin),
        "server.timeouts": (old.server.timeouts, new.server.timeouts),
        "server.limits": (_fixed_limits(old), _fixed_limits(new)),
        "metrics": (old.metrics, new.metrics),
        "ledger": (old.ledger, new.ledger),
    }
    return [name for name, (before, after) in pairs.items() if before != after]


def _fixed_limits(settings: Settings) -> ServerLimitSettings:
    """The limits that a reload does not change."""
    return settings.server.limits.model_copy(update={"concurrent_calls": None, "concurrent_calls_per_key": None})


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
