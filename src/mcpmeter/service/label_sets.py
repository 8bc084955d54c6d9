"""The label values the service knows in advance, and the series that exist at 0 because of them.

A series that first appears at 12 has no increase, so every series whose labels are known exists from the start.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Final

from mcpmeter.catalog import budget, llm, mcp, money, quality
from mcpmeter.catalog import service as service_rows
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.pricing import ModelPrice
from mcpmeter.routing.routes import Upstream
from mcpmeter.service.app import Endpoint, RelayEndpoint
from mcpmeter.service.mcp import McpEndpoint

DEFAULT_TEAM: Final = "default"
"""The team of callers without a key."""

MAX_MODELS_AT_ZERO: Final = 32
"""A provider with more models than this gets their series as they are used."""

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
"""(error_type, side) of `mcp_errors_total`."""

OfferedModels = Sequence[tuple[str, ModelPrice]]
"""(provider, model) of everything on offer."""


class LabelSets:
    """Registers label values with a recorder: at start, after a reload, and when keys of a new team appear."""

    def __init__(self, recorder: Recorder, version: str) -> None:
        self._recorder = recorder
        self._version = version

    def register_configuration(
        self, upstreams: Sequence[Upstream], models: OfferedModels, teams: frozenset[str]
    ) -> None:
        """Register what the configuration names."""
        allowlist = self._recorder.label_allowlist
        build = {"version": self._version, "python_version": platform.python_version()}
        providers = [upstream.provider for upstream in upstreams]
        allowlist.register("provider", [name for p in providers for name in (p.name, p.otel_name or p.name)])
        allowlist.register("model", [price.id for _, price in models])
        allowlist.register("build", build.values())
        self._recorder.set(service_rows.BUILD_INFO, 1, **build)
        self.register_teams(upstreams, models, teams)

    def register_teams(self, upstreams: Sequence[Upstream], models: OfferedModels, teams: frozenset[str]) -> None:
        """Register teams, and their series for every provider."""
        self._recorder.label_allowlist.register("team", {*teams, DEFAULT_TEAM})
        for upstream in upstreams:
            offered = [price.id for name, price in models if name == upstream.name]
            self._register_provider(upstream.name, offered, sorted(teams) or [DEFAULT_TEAM])

    def _register_provider(self, name: str, models: Sequence[str], teams: Sequence[str]) -> None:
        recorder, provider = self._recorder, [name]
        for row in (llm.USAGE_MISSING, money.UNPRICED):
            recorder.register_children(row, provider=provider)
        recorder.register_children(money.PROVIDER_REPORTED_COST, provider=provider)
        recorder.register_children(budget.FALLBACK_PRICED, provider=provider)
        if len(models) > MAX_MODELS_AT_ZERO:
            return
        recorder.register_children(llm.TOKENS, model=models, team=teams, provider=provider)
        recorder.register_children(quality.EMPTY, model=models)
        for row in (quality.REFUSALS, quality.TRUNCATIONS, quality.OUTPUT_RATE):
            recorder.register_children(row, model=models, provider=provider)
        recorder.register_children(money.COST, model=models, team=teams, provider=provider)
        parts = ["prompt", "completion"]
        recorder.register_children(money.COMPONENT_COST, model=models, provider=provider, component=parts)

    def register_routes(self, routes: Mapping[str, Mapping[str, Endpoint]], templates: Sequence[str]) -> None:
        """Register paths, verbs and statuses. `/mcp` is left out: its operations are MCP methods, not HTTP verbs."""
        recorder = self._recorder
        recorder.label_allowlist.register("endpoint", [*routes, *templates])
        recorder.register_children(mcp.REQUESTS, endpoint=templates, method=["POST"], status=RELAY_STATUSES)
        recorder.register_children(mcp.REQUEST_DURATION, endpoint=templates, method=["POST"])
        for path, verbs in routes.items():
            for verb, endpoint in verbs.items():
                if verb in ("*", "HEAD") or isinstance(endpoint, McpEndpoint):
                    continue
                statuses = RELAY_STATUSES if isinstance(endpoint, RelayEndpoint) else ("200",)
                recorder.register_children(mcp.REQUESTS, endpoint=[path], method=[verb], status=statuses)
                recorder.register_children(mcp.REQUEST_DURATION, endpoint=[path], method=[verb])
        for error_type, side in ERROR_PAIRS:
            recorder.families[mcp.ERRORS.name].ensure(error_type=error_type, side=side)
        recorder.register_children(mcp.TRANSPORT_REJECTIONS)
        recorder.register_children(service_rows.LIMIT_REACHED)
