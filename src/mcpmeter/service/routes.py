"""The route table: which path and verb is answered by which endpoint, and which hosts a listener serves."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from mcpmeter.access.callers import Caller
from mcpmeter.budgets.status_board import BudgetStatusBoard
from mcpmeter.config import Settings, is_loopback
from mcpmeter.dialects.anthropic_count_tokens import AnthropicCountTokens
from mcpmeter.dialects.anthropic_messages import AnthropicMessages
from mcpmeter.dialects.base import Dialect
from mcpmeter.dialects.gemini_generate import GeminiGenerate
from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.dialects.openai_embeddings import OpenAiEmbeddings
from mcpmeter.dialects.openai_responses import OpenAiResponses
from mcpmeter.http.exchange import HttpExchange
from mcpmeter.ledger.pending import PendingSettlements
from mcpmeter.ledger.store import Store
from mcpmeter.meter import Meter
from mcpmeter.quota.tracker import QuotaTracker
from mcpmeter.relay.pipeline import EndpointConfig, Pipeline
from mcpmeter.service import pages
from mcpmeter.service.api.api import ApiPages, QueryUsage
from mcpmeter.service.api.keys import KeyPages
from mcpmeter.service.app import Endpoint, PageEndpoint, RelayEndpoint
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
    reload_keys: Callable[[], Awaitable[None]],
    reload: Callable[[], Awaitable[None]],
) -> RouteTable:
    """All routes but `/metrics`, which may have a listener of its own, and Gemini's, which are templates."""
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
        ("/", pages.IndexPage(version, LINKS)),
    ):
        page = PageEndpoint(meter, path, make)
        routes[path] = {"GET": page, "HEAD": page}

    def identify(secret: str | None) -> Caller:
        return pipeline.runtime.identify(secret)  # the runtime of now: a reload replaces it

    api = ApiPages(quota, budgets, identify, version, query_usage=usage)
    for path, handler in api.routes():
        routes[path] = {"GET": PageEndpoint(meter, path, handler)}
    key_pages = KeyPages(store, lambda: pipeline.runtime.keys, reload_keys, is_local)
    for verb, path, handler in key_pages.routes():
        routes.setdefault(path, {})[verb] = PageEndpoint(meter, path, handler)
    routes["/-/reload"] = {"POST": PageEndpoint(meter, "/-/reload", pages.ReloadPage(reload, is_local))}
    return routes


def allowed_hosts(settings: Settings, listening_on: str) -> Sequence[str] | None:
    """Names a listener is called by. None, beyond loopback without a list: every name, since keys are required."""
    named = settings.server.allowed_hosts
    if is_loopback(listening_on):
        return ("localhost", "127.0.0.1", "::1", listening_on, *named)
    return named or None


def is_local(exchange: HttpExchange) -> bool:
    """Whether the request comes from this machine."""
    return is_loopback(exchange.peer) if exchange.peer else False
