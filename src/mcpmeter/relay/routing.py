"""Which upstream serves a model: a pure decision on the configured upstreams, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from mcpmeter.relay.providers import Provider


def is_glob(name: str) -> bool:
    """Whether a listed model stands for many names."""
    return any(char in name for char in "*?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A provider as it is configured: its own name and address, its key, and the models listed for it."""

    provider: Provider
    api_key: str = field(default="", repr=False)
    models: tuple[str, ...] = ()
    """Models listed in configuration: exact names, or globs (`local-*`)."""

    exact_names: frozenset[str] = field(init=False, repr=False)
    """The listed models that are no globs."""
    patterns: tuple[str, ...] = field(init=False, repr=False)
    """The listed globs, then what the provider's own file says it serves."""

    def __post_init__(self) -> None:
        globs = tuple(name for name in self.models if is_glob(name))
        object.__setattr__(self, "exact_names", frozenset(self.models).difference(globs))
        object.__setattr__(self, "patterns", (*globs, *self.provider.models))

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


def route(model: str, upstreams: Sequence[Upstream], default: str | None = None) -> Route:
    """The first that serves `model`: `provider/model` by name, then exact names, then patterns, then the default.

    `default` names an upstream; without it the first is the default. ValueError: there are no upstreams.
    """
    if not upstreams:
        raise ValueError("no upstreams to choose from")
    chosen = _forced(model, upstreams) or _by_exact_name(model, upstreams) or _by_pattern(model, upstreams)
    upstream, name = chosen or (_default(upstreams, default), model)
    return Route(upstream=upstream, model=name)


def announced_models(upstreams: Sequence[Upstream]) -> tuple[str, ...]:
    """Every model that configuration or a provider's file names exactly, in order, each once: what may be listed."""
    named = ((*upstream.models, *upstream.provider.models) for upstream in upstreams)
    return tuple(dict.fromkeys(name for names in named for name in names if not is_glob(name)))


def _forced(model: str, upstreams: Sequence[Upstream]) -> tuple[Upstream, str] | None:
    prefix, _slash, rest = model.partition("/")
    return next(((upstream, rest) for upstream in upstreams if rest and upstream.name == prefix), None)


def _by_exact_name(model: str, upstreams: Sequence[Upstream]) -> tuple[Upstream, str] | None:
    return next(((upstream, model) for upstream in upstreams if model in upstream.exact_names), None)


def _by_pattern(model: str, upstreams: Sequence[Upstream]) -> tuple[Upstream, str] | None:
    return next(((upstream, model) for upstream in upstreams if upstream.serves(model)), None)


def _default(upstreams: Sequence[Upstream], name: str | None) -> Upstream:
    return next((upstream for upstream in upstreams if upstream.name == name), upstreams[0])
