"""Gemini's routes: the model stands in the path, the key may stand in the query."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qs

from mcpmeter.relay.dialects.base import Named
from mcpmeter.relay.dialects.gemini_generate import GeminiGenerate, GeminiGenerateArray
from mcpmeter.relay.exchange import Scope
from mcpmeter.relay.pipeline import Pipeline
from mcpmeter.relay.pipeline import Service as RelayedService
from mcpmeter.service.app import PathTemplate, RelayEndpoint

MOST_QUERY_BYTES: Final = 4096
ACTIONS: Final = ("generateContent", "streamGenerateContent")
VERSIONS: Final = ("v1beta", "v1")
"""Google's newer SDKs ask for v1; upstream goes the path of the provider's file, v1beta, which has all of it."""


def gemini_templates(pipeline: Pipeline) -> Sequence[PathTemplate]:
    """`POST /v1beta/models/{model}:generateContent` and `:streamGenerateContent`, as events or as an array; v1 too."""
    events, array = RelayedService(dialect=GeminiGenerate()), RelayedService(dialect=GeminiGenerateArray())

    def template(version: str, action: str) -> PathTemplate:
        label = f"/{version}/models/{{model}}:{action}"
        is_stream = action == "streamGenerateContent"

        def endpoint(match: re.Match[str], scope: Scope) -> RelayEndpoint:
            query = _query(scope)
            as_events = not is_stream or query.get("alt") == ["sse"]
            named = Named(match["model"], stream=is_stream and as_events)
            secret = query.get("key", [""])[0]
            return RelayEndpoint(pipeline, label, events if as_events else array, named=named, secret=secret)

        return PathTemplate(re.compile(rf"/{version}/models/(?P<model>.+):{action}"), label, endpoint)

    return [template(version, action) for version in VERSIONS for action in ACTIONS]


def _query(scope: Scope) -> dict[str, list[str]]:
    raw: bytes = scope.get("query_string", b"")
    return parse_qs(raw[:MOST_QUERY_BYTES].decode("latin-1"), max_num_fields=64) if raw.count(b"&") < 64 else {}
