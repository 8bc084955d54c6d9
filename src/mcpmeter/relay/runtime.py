"""What a reload replaces (limits, routes, client, keys, budgets), and how an endpoint uses the pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, ParamSpec, TypeVar

from mcpmeter.access.callers import Attribution, Caller
from mcpmeter.access.keys import KeyRing
from mcpmeter.budgets.reservations import Limits
from mcpmeter.dialects.base import Dialect, EventReader, PricedByBody, RequestInfo, event_reader, with_aliases
from mcpmeter.errors import InvalidRequest, NotAuthenticated
from mcpmeter.http.client.interface import UpstreamClient
from mcpmeter.providers import Provider
from mcpmeter.relay.drains import DrainOptions
from mcpmeter.relay.headers import RequestHeaders
from mcpmeter.relay.result import HeaderReader
from mcpmeter.routing.routes import MAX_PLANS, Plan, Routing, route

_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")

MAX_ON_LOOP_BYTES: Final = 256 * 1024
"""Larger bodies are read in a thread, so that one of them does not hold up every stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOptions:
    """The relay's limits."""

    max_body_bytes: int = 10 * 1024 * 1024
    max_answer_bytes: int = 64 * 1024 * 1024
    max_calls: int = 65_536
    max_calls_per_key: int | None = None
    drains: DrainOptions = field(default_factory=DrainOptions)
    default_team: str = "default"
    keys_optional: bool = False
    """Calls without a known key belong to the default team although keys exist: for the demo, on loopback only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Everything of the relay that a reload replaces. A call keeps the runtime it began with."""

    options: RelayOptions
    routing: Routing
    client: UpstreamClient
    keys: KeyRing
    attribution: Attribution | None = None
    limits: Limits = field(default_factory=Limits)
    request_headers: RequestHeaders = field(default_factory=RequestHeaders)
    usage_refusers: set[str] = field(default_factory=set)
    """Providers that refuse the field by which a stream's usage is requested."""
    default_caller: Caller = field(init=False, repr=False, compare=False)
    """The caller while no key is needed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "default_caller", Caller(team=self.options.default_team, role="admin"))

    def asks_usage(self, provider: Provider) -> bool:
        """Whether the relay requests the usage of a provider's streams if the client does not."""
        return provider.asks_stream_usage and provider.name not in self.usage_refusers

    def only_relay_asks_usage(self, provider: Provider, request: RequestInfo) -> bool:
        """Whether the client has not requested the usage of its stream, but the relay has."""
        return request.stream and not request.usage_requested and self.asks_usage(provider)

    def identify(self, secret: str | None) -> Caller:
        """The caller a key belongs to; until a key exists, the default team as admin. Raises NotAuthenticated."""
        if self.keys.empty:
            return self.default_caller
        try:
            return self.keys.caller(secret)
        except NotAuthenticated:
            if self.options.keys_optional:
                return self.default_caller
            raise

    def plan(self, model: str, path_name: str) -> Plan:
        """Where a call may go: upstreams that speak its dialect. Raises InvalidRequest if there is none.

        A model may be listed only for a provider that speaks another dialect. It then goes to the first provider that
        speaks this one, unless the model's name begins with the provider's.
        """
        known = self.routing.known_plans
        plan = known.get((model, path_name))
        if plan is None:
            if len(known) >= MAX_PLANS:
                known.clear()
            plan = known[model, path_name] = self._new_plan(model, path_name)
        return plan

    def _new_plan(self, model: str, path_name: str) -> Plan:
        plan = self.routing.plan(model)
        same_dialect = plan.where(lambda upstream: path_name in upstream.provider.paths)
        if same_dialect is not None:
            return same_dialect
        others = [upstream for upstream in self.routing.upstreams if path_name in upstream.provider.paths]
        is_provider_named = model.startswith(f"{plan.first.upstream.name}/")
        if is_provider_named or not others:
            subject = plan.first.upstream.name if is_provider_named else "None of the configured providers"
            verb = "does not speak" if is_provider_named else "speaks"
            raise InvalidRequest(f"{subject} {verb} this dialect.", hint="Use another endpoint of the relay.")
        return Plan(routes=(route(model, others),))


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """How an endpoint uses the pipeline."""

    dialect: Dialect
    default_model: str = ""
    """For requests that name no model; empty: they are refused."""
    maps_upstream_faults: bool = False
    """Whether a provider's 5xx becomes a 502 of ours (the guide's endpoint) or passes unchanged (the dialects' own)."""
    events: EventReader = field(init=False, repr=False, compare=False)
    """Reads the dialect's streams."""
    read_headers: HeaderReader | None = field(init=False, repr=False, compare=False)
    """Reads the conditions of the price from headers; None if they report none."""

    _variants: dict[tuple[tuple[str, str], ...], EndpointConfig] = field(init=False, repr=False, compare=False)
    """By the names that a provider's usage has: as many as there are such providers."""

    def of(self, provider: Provider) -> EndpointConfig:
        """This endpoint for a provider whose usage has names of its own."""
        if not provider.usage_aliases:
            return self
        key = tuple(sorted(provider.usage_aliases.items()))
        if key not in self._variants:
            self._variants[key] = replace(self, dialect=with_aliases(self.dialect, provider.usage_aliases))
        return self._variants[key]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_variants", {})
        object.__setattr__(self, "events", event_reader(self.dialect))
        read = self.dialect.response_conditions
        is_silent = getattr(read, "__func__", None) is PricedByBody.response_conditions
        object.__setattr__(self, "read_headers", None if is_silent else read)


async def off_loop_if_large(
    size: int, read: Callable[_Params, _Result], *args: _Params.args, **kwargs: _Params.kwargs
) -> _Result:
    """Call `read` here if the bytes it reads are few, else in a thread."""
    if size > MAX_ON_LOOP_BYTES:
        return await asyncio.to_thread(read, *args, **kwargs)
    return read(*args, **kwargs)
