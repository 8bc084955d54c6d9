"""The route table: which path and verb is answered by which endpoint, and which hosts a listener serves."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from mcpmeter.access.callers import Caller
from mcpmeter.budgets.status_board import BudgetStatusBoard
from mcpmeter.config import EVERY_ADDRESS, Settings
from mcpmeter.dialects.anthropic_count_tokens import AnthropicCountTokens
from mcpmeter.dialects.anthropic_messages import AnthropicMessages
from mcpmeter.dialects.base import Dialect
from mcpmeter.dialects.gemini_generate import GeminiGenerate
from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.dialects.openai_embeddings import OpenAiEmbeddings
from mcpmeter.dialects.openai_responses import OpenAiResponses
from mcpmeter.ledger.pending import PendingSettlements
from mcpmeter.ledger.store import Store
from mcpmeter.meter import Meter
from mcpmeter.quota.tracker import QuotaTracker
from mcpmeter.records import Actor
from mcpmeter.relay.pipeline import EndpointConfig, Pipeline
from mcpmeter.service import pages
from mcpmeter.service.admin import require_admin
from mcpmeter.service.api.api import ApiPages, FindCall, QueryUsage
from mcpmeter.service.api.keys import KeyPages
from mcpmeter.service.app import HEALTH_PATHS, Endpoint, HostGuard, PageEndpoint, RelayEndpoint
from mcpmeter.service.audit_trail import AuditTrail
from mcpmeter.service.label_sets import OfferedModels
from mcpmeter.service.mcp import McpEndpoint

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
"""The shape of a 404 by its path: an SDK reads no other dialect's errors."""

LINKS: Final = [
    ("/metrics", "for Prometheus"),
    ("/mcp/models", "models and their prices"),
    ("/v1/models", "the same in OpenAI's shape"),
    ("/api/quota", "what is left of the providers' quotas"),
    ("/api/usage", "this month's usage and its cost"),
    ("/api/budgets", "budgets, what is left of them, and when they will be exhausted"),
    ("/api/keys", "API keys, for admins"),
    ("/health", "liveness"),
    ("/-/ready", "readiness"),
]
LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
ADMIN_PREFIXES: Final = ("/api/keys", "/-/reload")
"""Routes that the admin listener serves instead of the service's own, if there is one."""
RouteTable = dict[str, dict[str, Endpoint]]


def guide_endpoint(default_model: str) -> EndpointConfig:
    """The guide's endpoint, `/mcp/chat`; the MCP tools call models the same way."""
    return EndpointConfig(dialect=OpenAiChat(), default_model=default_model, maps_upstream_faults=True)


def route_table(
    *,
    meter: Meter,
    pipeline: Pipeline,
    mcp: McpEndpoint,
    guide: EndpointConfig,
    store: Store,
    pending: PendingSettlements,
    quota: QuotaTracker,
    budgets: BudgetStatusBoard,
    version: str,
    models: Callable[[], OfferedModels],
    usage: QueryUsage,
    find_call: FindCall,
    audit: AuditTrail,
    reload_keys: Callable[[], Awaitable[None]],
    reload: Callable[[Actor], Awaitable[None]],
) -> RouteTable:
    """All routes but `/metrics`, the first page, which links to what its listener has, and Gemini's templates."""
    routes: RouteTable = {
        "/mcp": {"POST": mcp, "GET": mcp, "DELETE": mcp},
        "/mcp/chat": {"POST": RelayEndpoint(pipeline, "/mcp/chat", guide)},
    }
    for path, dialect in DIALECTS.items():
        routes[path] = {"POST": RelayEndpoint(pipeline, path, EndpointConfig(dialect=dialect))}
    model_pages = pages.ModelPages(pipeline, models)
    for path, make in (
        ("/v1/models", model_pages.openai),
        ("/mcp/models", model_pages.guide),
        ("/health", pages.health),
        ("/-/healthy", pages.healthy),
        ("/-/ready", pages.ReadyPage(store, pending, pipeline)),
    ):
        page = PageEndpoint(meter, path, make)
        routes[path] = {"GET": page, "HEAD": page}

    def identify(secret: str | None) -> Caller:
        return pipeline.runtime.identify(secret)  # the runtime of now: a reload replaces it

    api = ApiPages(quota, budgets, identify, version, query_usage=usage, find_call=find_call)
    for path, handler in api.routes():
        routes[path] = {"GET": PageEndpoint(meter, path, handler)}
    admin = require_admin(lambda: pipeline.runtime.keys)
    key_pages = KeyPages(store, lambda: pipeline.runtime.keys, reload_keys, admin, audit=audit)
    for verb, path, handler in key_pages.routes():
        takes = "application/json" if verb == "POST" else ""
        routes.setdefault(path, {})[verb] = PageEndpoint(meter, path, handler, takes=takes)
    reload_page = audit.noting_refusals("config.reload", pages.ReloadPage(reload, admin))
    routes["/-/reload"] = {"POST": PageEndpoint(meter, "/-/reload", reload_page)}
    return routes


def add_index(meter: Meter, routes: RouteTable, version: str) -> None:
    """Add the first page, with links to those of its pages that the table has."""
    page = PageEndpoint(meter, "/", pages.IndexPage(version, [link for link in LINKS if link[0] in routes]))
    routes["/"] = {"GET": page, "HEAD": page}


def host_guard(settings: Settings, listening_on: str) -> HostGuard:
    """The guard of a listener. `/metrics` is exempt from the Host check if it requires its token."""
    server = settings.server
    own = LOOPBACK_NAMES if listening_on in EVERY_ADDRESS else (*LOOPBACK_NAMES, listening_on)
    exempt = HEALTH_PATHS | {"/metrics"} if settings.metrics.bearer_token else HEALTH_PATHS
    return HostGuard(own, server.allowed_hosts, server.allowed_origins, exempt=exempt)
