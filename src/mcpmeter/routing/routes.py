"""Which upstreams serve a model, decided from the configured upstreams, routes and aliases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final, Literal

from mcpmeter.http.client.interface import Timeouts
from mcpmeter.providers import Provider

Mode = Literal["ordered", "weighted"]
"""How a route selects among its upstreams: the first that can be called, or one drawn by weight."""

MAX_PLANS: Final = 1024
"""Plans cached per model: callers name the models, so the number of names is unbounded."""

NO_ALIASES: Final[Mapping[str, str]] = MappingProxyType({})


def is_glob(name: str) -> bool:
    """Whether a listed model is a pattern."""
    return any(char in name for char in "*?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """One of an upstream's keys. `id` is public: the provider and its position in configuration, as in `openai-1`."""

    id: str
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A configured provider: its name and address, its keys, and the models listed for it."""

    provider: Provider
    api_key: str = field(default="", repr=False)
    """The first key."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """All keys if there are several; calls rotate over them."""
    models: tuple[str, ...] = ()
    """Models listed in configuration: exact names, or globs (`local-*`)."""
    weight: int = 1
    """Its share of the calls in a weighted route that gives none itself."""
    timeouts: Timeouts = field(default_factory=Timeouts)

    name: str = field(init=False, repr=False)
    """The provider's configured name. A field, as every call reads it."""
    exact_names: frozenset[str] = field(init=False, repr=False)
    """The listed models that are not globs."""
    patterns: tuple[str, ...] = field(init=False, repr=False)
    """The listed globs, then those of the provider's own file."""
    credentials: tuple[Credential, ...] = field(init=False, repr=False)
    """Every key once, in order; one with an empty secret if there is no key."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.provider.name)
        globs = tuple(name for name in self.models if is_glob(name))
        object.__setattr__(self, "exact_names", frozenset(self.models).difference(globs))
        object.__setattr__(self, "patterns", (*globs, *self.provider.models))
        secrets = list(dict.fromkeys(key for key in (self.api_key, *self.api_keys) if key)) or [""]
        object.__setattr__(self, "api_key", secrets[0])
        numbered = (Credential(id=f"{self.name}-{n}", secret=secret) for n, secret in enumerate(secrets, 1))
        object.__setattr__(self, "credentials", tuple(numbered))

    def serves(self, model: str) -> bool:
        """Whether this upstream names the model, exactly or by a pattern."""
        return model in self.exact_names or any(fnmatchcase(model, glob) for glob in self.patterns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """An upstream of a plan, and the model's name there."""

    upstream: Upstream
    model: str
    weight: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where a call may go: one or more routes, in order."""

    routes: tuple[Route, ...]
    mode: Mode = "ordered"

    first: Route = field(init=False, repr=False, compare=False)
    """The first choice, unless weights are drawn or its upstream is avoided."""
    total_seconds: float = field(init=False, repr=False, compare=False)
    """Time limit of a whole call: the largest of its upstreams' limits."""
    _narrower: dict[str, Plan | None] = field(init=False, repr=False, compare=False)
    """What `without` made, by model: `Failover` keeps what it derives of a plan by the plan's identity."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", self.routes[0])
        object.__setattr__(self, "_narrower", {})
        object.__setattr__(self, "total_seconds", max(r.upstream.timeouts.total_seconds for r in self.routes))

    def where(self, fits: Callable[[Upstream], bool]) -> Plan | None:
        """The plan with only the upstreams that fit (that speak a dialect); None if there are none."""
        routes = tuple(route for route in self.routes if fits(route.upstream))
        return Plan(routes=routes, mode=self.mode) if routes else None

    def without(self, model: str) -> Plan | None:
        """The plan without the routes to a model; None if no other is left."""
        if model not in self._narrower:
            routes = tuple(route for route in self.routes if route.model != model)
            self._narrower[model] = Plan(routes=routes, mode=self.mode) if routes else None
        return self._narrower[model]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleUpstream:
    """An upstream of a rule. Defaults: the upstream's own weight, and the requested model's name."""

    name: str
    weight: int | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRule:
    """Models, exact or as globs, and the upstreams that can serve each of them."""

    models: tuple[str, ...]
    upstreams: tuple[RuleUpstream, ...]
    mode: Mode = "ordered"

    def covers(self, model: str) -> bool:
        """Whether the rule applies to this model."""
        return any(fnmatchcase(model, glob) for glob in self.models)


class Routing:
    """Maps a model's name to a plan.

    Only a rule gives a call more than one upstream: another provider has other prices and sees the prompt, so failover
    to it must be configured.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        *,
        rules: Sequence[RouteRule] = (),
        aliases: Mapping[str, str] = NO_ALIASES,
        default: str | None = None,
    ) -> None:
        """ValueError: a rule names no upstream, or an unknown one; configuration refuses such rules earlier."""
        self.upstreams = tuple(upstreams)
        self._by_name = {upstream.name: upstream for upstream in upstreams}
        self._aliases = dict(aliases)
        self._default = default
        self._rules = [(rule, self._routes_of(rule)) for rule in rules]
        self.known_plans: dict[tuple[str, str], Plan] = {}
        """(model, dialect's path name) -> the plan that `Runtime.plan` made; bounded, since callers name the models."""

    def plan(self, model: str) -> Plan:
        """Resolves an alias, then tries `provider/model`, the first rule that covers the model, and `route`.

        ValueError: there are no upstreams.
        """
        model = self._aliases.get(model, model)
        if (found := _by_prefix(model, self.upstreams)) is not None:
            return Plan(routes=(Route(upstream=found[0], model=found[1]),))
        for rule, routes in self._rules:
            if rule.covers(model):
                return Plan(routes=tuple(_route_for(entry, model) for entry in routes), mode=rule.mode)
        return Plan(routes=(route(model, self.upstreams, self._default),))

    def _routes_of(self, rule: RouteRule) -> list[tuple[Upstream, int, str | None]]:
        known = [self._by_name.get(entry.name) for entry in rule.upstreams]
        pairs = [(entry, upstream) for entry, upstream in zip(rule.upstreams, known, strict=True) if upstream]
        if len(pairs) != len(rule.upstreams) or not pairs:
            raise ValueError("a rule names an upstream that is not configured, or none")
        return [(upstream, entry.weight or upstream.weight, entry.model) for entry, upstream in pairs]


def route(model: str, upstreams: Sequence[Upstream], default: str | None = None) -> Route:
    """The first match for `model`: `provider/model`, then exact names, then patterns, then the default.

    `default` names an upstream; without it the first is the default. ValueError: there are no upstreams.
    """
    if not upstreams:
        raise ValueError("no upstreams to choose from")
    if (found := _by_prefix(model, upstreams)) is not None:
        return Route(upstream=found[0], model=found[1])
    chosen = (
        next((upstream for upstream in upstreams if model in upstream.exact_names), None)
        or next((upstream for upstream in upstreams if upstream.serves(model)), None)
        or next((upstream for upstream in upstreams if upstream.name == default), upstreams[0])
    )
    return Route(upstream=chosen, model=model)


def _route_for(entry: tuple[Upstream, int, str | None], model: str) -> Route:
    upstream, weight, renamed = entry
    return Route(upstream=upstream, model=renamed or model, weight=weight)


def _by_prefix(model: str, upstreams: Sequence[Upstream]) -> tuple[Upstream, str] | None:
    prefix, _slash, rest = model.partition("/")
    return next(((upstream, rest) for upstream in upstreams if rest and upstream.name == prefix), None)
