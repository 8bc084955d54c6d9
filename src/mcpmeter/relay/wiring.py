"""What a call is wired with: everything of the relay that a reload replaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcpmeter.access.keys import KeyRing
from mcpmeter.errors import InvalidRequest, NotAuthenticated
from mcpmeter.relay.dialects.base import Dialect
from mcpmeter.relay.routing import Route, Upstream, route
from mcpmeter.relay.upstream import UpstreamClient


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOptions:
    """The relay's limits."""

    max_body_bytes: int = 10 * 1024 * 1024
    max_answer_bytes: int = 64 * 1024 * 1024
    default_team: str = "default"
    keys_optional: bool = False
    """Calls without a known key are the default team's although keys exist: the demo's, on loopback only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """Everything of the relay that a reload replaces. A call keeps the wiring it began with."""

    options: RelayOptions
    upstreams: Sequence[Upstream]
    default_provider: str | None
    client: UpstreamClient
    keys: KeyRing

    def identify(self, secret: str | None) -> tuple[str, str]:
        """(team, key id) of a caller. Until a key exists everybody is the default team. Raises NotAuthenticated."""
        if self.keys.empty:
            return self.options.default_team, ""
        try:
            key = self.keys.identify(secret)
        except NotAuthenticated:
            if self.options.keys_optional:
                return self.options.default_team, ""
            raise
        return key.team, key.id

    def route(self, model: str, path_name: str) -> Route:
        """Where a model is served in a dialect. Raises InvalidRequest: nowhere."""
        speaking = [upstream for upstream in self.upstreams if path_name in upstream.provider.paths]
        if not speaking:
            raise InvalidRequest(
                "None of the configured providers speaks this dialect.", hint="Use another endpoint of the relay."
            )
        return route(model, speaking, self.default_provider)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """How an endpoint uses the pipeline."""

    dialect: Dialect
    default_model: str = ""
    """For requests that name none; empty: they are refused."""
    maps_upstream_faults: bool = False
    """The guide's endpoint answers 502 to any fault of a provider; the dialects' own endpoints hand on what it said."""
