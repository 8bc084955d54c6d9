"""Gemini's routes: the path names the model, the query may hold the key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from urllib.parse import parse_qs

from mcpmeter.dialects.base import Dialect
from mcpmeter.dialects.gemini_count_tokens import GeminiCountTokens
from mcpmeter.dialects.gemini_embeddings import GeminiBatchEmbed, GeminiEmbed
from mcpmeter.dialects.gemini_generate import GeminiGenerate, GeminiGenerateArray
from mcpmeter.http.asgi import Scope
from mcpmeter.records import PathParams
from mcpmeter.relay.pipeline import EndpointConfig, Pipeline
from mcpmeter.service.app import PathTemplate, RelayEndpoint

MAX_QUERY_BYTES: Final = 4096
STREAM: Final = "streamGenerateContent"
UNARY_DIALECTS: Final[Mapping[str, Dialect]] = {
    "generateContent": GeminiGenerate(),
    "countTokens": GeminiCountTokens(),
    "embedContent": GeminiEmbed(),
    "batchEmbedContents": GeminiBatchEmbed(),
}
"""Dialects of the actions that never stream."""
VERSIONS: Final = ("v1beta", "v1")
"""Google's newer SDKs call v1. Upstream, the provider file's path is v1beta, which serves every action."""

Endpoint = Callable[[re.Match[str], Scope], RelayEndpoint]


def gemini_templates(pipeline: Pipeline) -> Sequence[PathTemplate]:
    """`POST /v1beta/models/{model}:generateContent` and the other actions; v1 too."""
    found = []
    for version in VERSIONS:
        for action, dialect in UNARY_DIALECTS.items():
            found.append(_template(version, action, _whole(pipeline, _label(version, action), dialect)))
        found.append(_template(version, STREAM, _stream(pipeline, _label(version, STREAM))))
    return found


def _label(version: str, action: str) -> str:
    return f"/{version}/models/{{model}}:{action}"


def _template(version: str, action: str, endpoint: Endpoint) -> PathTemplate:
    return PathTemplate(re.compile(rf"/{version}/models/(?P<model>.+):{action}"), _label(version, action), endpoint)


def _whole(pipeline: Pipeline, label: str, dialect: Dialect) -> Endpoint:
    service = EndpointConfig(dialect=dialect)

    def endpoint(match: re.Match[str], scope: Scope) -> RelayEndpoint:
        return RelayEndpoint(
            pipeline, label, service, path_params=PathParams(model=match["model"]), secret=_key(_query(scope))
        )

    return endpoint


def _stream(pipeline: Pipeline, label: str) -> Endpoint:
    """Stream as events with `alt=sse`, else as one JSON array."""
    events, array = EndpointConfig(dialect=GeminiGenerate()), EndpointConfig(dialect=GeminiGenerateArray())

    def endpoint(match: re.Match[str], scope: Scope) -> RelayEndpoint:
        query = _query(scope)
        as_events = query.get("alt") == ["sse"]
        path_params = PathParams(model=match["model"], stream=as_events)
        return RelayEndpoint(
            pipeline, label, events if as_events else array, path_params=path_params, secret=_key(query)
        )

    return endpoint


def _key(query: Mapping[str, list[str]]) -> str:
    return query.get("key", [""])[0]


def _query(scope: Scope) -> dict[str, list[str]]:
    raw: bytes = scope.get("query_string", b"")
    return parse_qs(raw[:MAX_QUERY_BYTES].decode("latin-1"), max_num_fields=64) if raw.count(b"&") < 64 else {}
