"""What a call is wired with: everything of the relay that a reload replaces."""

from __future__ import annotations

from dataclasses import dataclass, field

from mcpmeter.access.callers import Attribution, Caller
from mcpmeter.access.keys import KeyRing
from mcpmeter.budgets.reservations import Limits
from mcpmeter.dialects.base import Dialect, EventReader, event_reader
from mcpmeter.errors import InvalidRequest, NotAuthenticated
from mcpmeter.http.client.interface import UpstreamClient
from mcpmeter.relay.request_headers import RequestHeaders
from mcpmeter.routing.routes import MAX_PLANS, Plan, Routing, route


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOptions:
    """The relay's limits."""

    max_body_bytes: int = 10 * 1024 * 1024
    max_answer_bytes: int = 64 * 1024 * 1024
    default_team: str = "default"
    keys_optional: bool = False
    """Calls without a known key are the default team's although keys exist: the demo's, on loopback only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Everything of the relay that a reload replaces. A call keeps the wiring it began with."""

    options: RelayOptions
    routing: Routing
    client: UpstreamClient
    keys: KeyRing
    attribution: Attribution | None = None
    limits: Limits = field(default_factory=Limits)
    heads: RequestHeaders = field(default_factory=RequestHeaders)
    anybody: Caller = field(init=False, repr=False, compare=False)
    """Who calls where no key is needed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "anybody", Caller(team=self.options.default_team, role="admin"))

    def identify(self, secret: str | None) -> Caller:
        """Who calls. Until a key exists everybody is the default team, and an admin. Raises NotAuthenticated."""
        if self.keys.empty:
            return self.anybody
        try:
            return Caller.of(self.keys.identify(secret))
        except NotAuthenticated:
            if self.options.keys_optional:
                return self.anybody
            raise

    def plan(self, model: str, path_name: str) -> Plan:
        """Where a call may go: upstreams that speak its dialect. Raises InvalidRequest: there is none.

        A name such as `claude-*` may be listed for a provider that speaks another dialect only; then it goes to the
        first that speaks this one, unless the caller has named the provider.
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
        speaking = plan.where(lambda upstream: path_name in upstream.provider.paths)
        if speaking is not None:
            return speaking
        others = [upstream for upstream in self.routing.upstreams if path_name in upstream.provider.paths]
        is_forced = model.startswith(f"{plan.first.upstream.name}/")
        if is_forced or not others:
            who = plan.first.upstream.name if is_forced else "None of the configured providers"
            what = "does not speak" if is_forced else "speaks"
            raise InvalidRequest(f"{who} {what} this dialect.", hint="Use another endpoint of the relay.")
        return Plan(routes=(route(model, others),))


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """How an endpoint uses the pipeline."""

    dialect: Dialect
    default_model: str = ""
    """For requests that name none; empty: they are refused."""
    maps_upstream_faults: bool = False
    """The guide's endpoint answers 502 to any fault of a provider; the dialects' own endpoints hand on what it said."""
    events: EventReader = field(init=False, repr=False, compare=False)
    """Reads the dialect's streams."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "events", event_reader(self.dialect))
