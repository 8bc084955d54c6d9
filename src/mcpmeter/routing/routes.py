"""Which upstreams serve a model: pure decisions on the configured upstreams, routes and aliases, in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final, Literal

from mcpmeter.http.client.interface import Timeouts
from mcpmeter.providers import Provider

Mode = Literal["ordered", "weighted"]
"""How a route's upstreams take turns: the first that can be called, or one drawn by weight."""

MAX_PLANS: Final = 1024
"""Kept of what is worked out once a model: callers name the models, so there is no end of names."""

NO_ALIASES: Final[Mapping[str, str]] = MappingProxyType({})


def is_glob(name: str) -> bool:
    """Whether a listed model stands for many names."""
    return any(char in name for char in "*?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """One of an upstream's keys. `id` (`openai-1`: the provider and its place in configuration) may be shown."""

    id: str
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A provider as it is configured: its own name and address, its keys, and the models listed for it."""

    provider: Provider
    api_key: str = field(default="", repr=False)
    """The first key."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """All keys, where there are several; calls take turns on them."""
    models: tuple[str, ...] = ()
    """Models listed in configuration: exact names, or globs (`local-*`)."""
    weight: int = 1
    """Its share of the calls in a weighted route, where the route itself gives none."""
    timeouts: Timeouts = field(default_factory=Timeouts)

    exact_names: frozenset[str] = field(init=False, repr=False)
    """The listed models that are no globs."""
    patterns: tuple[str, ...] = field(init=False, repr=False)
    """The listed globs, then what the provider's own file says it serves."""
    credentials: tuple[Credential, ...] = field(init=False, repr=False)
    """Every key once, in order; one with an empty secret where there is no key."""
    secrets: tuple[str, ...] = field(init=False, repr=False)
    """The same, without their ids."""

    def __post_init__(self) -> None:
        globs = tuple(name for name in self.models if is_glob(name))
        object.__setattr__(self, "exact_names", frozenset(self.models).difference(globs))
        object.__setattr__(self, "patterns", (*globs, *self.provider.models))
        secrets = list(dict.fromkeys(key for key in (self.api_key, *self.api_keys) if key)) or [""]
        object.__setattr__(self, "api_key", secrets[0])
        numbered = (Credential(id=f"{self.name}-{n}", secret=secret) for n, secret in enumerate(secrets, 1))
        object.__setattr__(self, "credentials", tuple(numbered))
        object.__setattr__(self, "secrets", tuple(secrets))

    @property
    def name(self) -> str:
        """The provider's configured name."""
        return self.provider.name

    def serves(self, model: str) -> bool:
        """Whether this upstream names the model, exactly or by a pattern."""
        return model in self.exact_names or any(fnmatchcase(model, glob) for glob in self.patterns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a call goes, and the model's name as that upstream knows it."""

    upstream: Upstream
    model: str
    weight: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where a call may go: at least one route, in their order."""

    routes: tuple[Route, ...]
    mode: Mode = "ordered"

    first: Route = field(init=False, repr=False, compare=False)
    """The route of the first choice, if nothing speaks against it and no weights are drawn."""
    total_seconds: float = field(init=False, repr=False, compare=False)
    """How long a call may take in all: as long as the most patient of its upstreams."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", self.routes[0])
        object.__setattr__(self, "total_seconds", max(r.upstream.timeouts.total_seconds for r in self.routes))

    def where(self, fits: Callable[[Upstream], bool]) -> Plan | None:
        """The plan without upstreams that do not fit (that do not speak a dialect); None where none is left."""
        routes = tuple(route for route in self.routes if fits(route.upstream))
        return Plan(routes=routes, mode=self.mode) if routes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleUpstream:
    """An upstream of a rule. Without a weight its own counts, without a model the name that was asked for."""

    name: str
    weight: int | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRule:
    """Models, exact or as globs, and the upstreams that serve them in each other's place."""

    models: tuple[str, ...]
    upstreams: tuple[RuleUpstream, ...]
    mode: Mode = "ordered"

    def covers(self, model: str) -> bool:
        """Whether the rule is about this model."""
        return any(fnmatchcase(model, glob) for glob in self.models)


class Routing:
    """From a model's name to a plan. Only a rule gives a call more than one upstream: another provider has other
    prices and sees the prompt, so that must be somebody's decision."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        *,
        rules: Sequence[RouteRule] = (),
        aliases: Mapping[str, str] = NO_ALIASES,
        default: str | None = None,
    ) -> None:
        """ValueError: a rule names no known upstream; configuration has refused such rules before."""
        self.upstreams = tuple(upstreams)
        self._by_name = {upstream.name: upstream for upstream in upstreams}
        self._aliases = dict(aliases)
        self._default = default
        self._rules = [(rule, self._routes_of(rule)) for rule in rules]
        self.known_plans: dict[tuple[str, str], Plan] = {}
        """(model, dialect's path name) -> what `Runtime.plan` made of it; bounded, for callers name the models."""

    def plan(self, model: str) -> Plan:
        """An alias stands for its target; then `provider/model`, then the first rule that covers it, then `route`.

        ValueError: there are no upstreams.
        """
        model = self._aliases.get(model, model)
        if (forced := _forced(model, self.upstreams)) is not None:
            return Plan(routes=(Route(upstream=forced[0], model=forced[1]),))
        for rule, routes in self._rules:
            if rule.covers(model):
                return Plan(routes=tuple(_named(entry, model) for entry in routes), mode=rule.mode)
        return Plan(routes=(route(model, self.upstreams, self._default),))

    def _routes_of(self, rule: RouteRule) -> list[tuple[Upstream, int, str | None]]:
        known = [self._by_name.get(entry.name) for entry in rule.upstreams]
        pairs = [(entry, upstream) for entry, upstream in zip(rule.upstreams, known, strict=True) if upstream]
        if len(pairs) != len(rule.upstreams) or not pairs:
            raise ValueError("a rule names an upstream that is not configured, or none")
        return [(upstream, entry.weight or upstream.weight, entry.model) for entry, upstream in pairs]


def route(model: str, upstreams: Sequence[Upstream], default: str | None = None) -> Route:
    """The first that serves `model`: `provider/model` by name, then exact names, then patterns, then the default.

    `default` names an upstream; without it the first is the default. ValueError: there are no upstreams.
    """
    if not upstreams:
        raise ValueError("no upstreams to choose from")
    chosen = _forced(model, upstreams) or _by_exact_name(model, upstreams) or _by_pattern(model, upstreams)
    upstream, name = chosen or (_default(upstreams, default), model)
    return Route(upstream=upstream, model=name)


def _named(entry: tuple[Upstream, int, str | None], model: str) -> Route:
    upstream, weight, own_name = entry
    return Route(upstream=upstream, model=own_name or model, weight=weight)


def _forced(model: str, upstreams: Sequence[Upstream]) -> tuple[Upstream, str] | None:
    prefix, _slash, rest = model.partition("/")
    return next(((upstream, rest) for upstream in upstreams if rest and upstream.name == prefix), None)


def _by_exact_name(model: str, upstreams: Sequence[Upstream]) -> tuple[Upstream, str] | None:
    return next(((upstream, model) for upstream in upstreams if model in upstream.exact_names), None)


def _by_pattern(model: str, upstreams: Sequence[Upstream]) -> tuple[Upstream, str] | None:
    return next(((upstream, model) for upstream in upstreams if upstream.serves(model)), None)


def _default(upstreams: Sequence[Upstream], name: str | None) -> Upstream:
    return next((upstream for upstream in upstreams if upstream.name == name), upstreams[0])
