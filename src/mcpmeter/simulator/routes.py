"""Maps URLs to dialects."""

from __future__ import annotations

from typing import NamedTuple

from mcpmeter.simulator.dialects.anthropic_messages import MessagesRequest
from mcpmeter.simulator.dialects.anthropic_prompt import CountTokensRequest
from mcpmeter.simulator.dialects.base import BodyDialect, SimulatedDialect, UrlParams
from mcpmeter.simulator.dialects.gemini_embeddings import GeminiEmbeddingsDialect
from mcpmeter.simulator.dialects.gemini_generate import ARRAY, SSE, CountTokensDialect, GenerateContentDialect
from mcpmeter.simulator.dialects.openai_chat import ChatRequest
from mcpmeter.simulator.dialects.openai_embeddings import EmbeddingsDialect
from mcpmeter.simulator.dialects.openai_responses import ResponsesRequest
from mcpmeter.simulator.server import SimulatorRequest
from mcpmeter.simulator.vectors import Vectors
from mcpmeter.simulator.vendors.anthropic import ANTHROPIC
from mcpmeter.simulator.vendors.base import Vendor
from mcpmeter.simulator.vendors.google import GOOGLE, GOOGLE_ARRAY
from mcpmeter.simulator.vendors.openai import OPENAI

_GOOGLE_PREFIXES = ("/v1beta/models/", "/v1/models/")  # its SDK uses v1 since version 3, v1beta before
_STREAM = "streamGenerateContent"


class DialectRoute(NamedTuple):
    """The dialect of a URL, and the vendor whose error format it uses."""

    vendor: Vendor
    dialect: SimulatedDialect
    params: UrlParams = UrlParams()


class Routes:
    """All URLs of all dialects."""

    def __init__(self, seed: int) -> None:
        vectors = Vectors(seed)
        chat = DialectRoute(OPENAI, BodyDialect("openai_chat", ChatRequest))
        embeddings = DialectRoute(OPENAI, EmbeddingsDialect(vectors))
        count_tokens = BodyDialect("anthropic_count_tokens", CountTokensRequest)
        self._fixed = {
            "/v1/chat/completions": chat,
            "/v1/embeddings": embeddings,
            "/v1/responses": DialectRoute(OPENAI, BodyDialect("openai_responses", ResponsesRequest)),
            # Google's routes in OpenAI's dialect:
            "/v1beta/openai/chat/completions": chat,
            "/v1beta/openai/embeddings": embeddings,
            "/v1/messages": DialectRoute(ANTHROPIC, BodyDialect("anthropic_messages", MessagesRequest)),
            "/v1/messages/count_tokens": DialectRoute(ANTHROPIC, count_tokens, UrlParams(salt=b"count_tokens")),
        }
        self._verbs = {
            "generateContent": DialectRoute(GOOGLE, GenerateContentDialect()),
            _STREAM: DialectRoute(GOOGLE_ARRAY, GenerateContentDialect(ARRAY)),
            "countTokens": DialectRoute(GOOGLE, CountTokensDialect()),
            "embedContent": DialectRoute(GOOGLE, GeminiEmbeddingsDialect(vectors, is_batch=False)),
            "batchEmbedContents": DialectRoute(GOOGLE, GeminiEmbeddingsDialect(vectors, is_batch=True)),
        }
        self._event_stream = DialectRoute(GOOGLE, GenerateContentDialect(SSE))

    def find(self, request: SimulatorRequest) -> DialectRoute | None:
        """The route of this URL for any HTTP method; None if no dialect has it."""
        path = request.path
        fixed = self._fixed.get(path)
        if fixed is not None or not path.startswith(_GOOGLE_PREFIXES):
            return fixed
        model, _, verb = path.partition("/models/")[2].rpartition(":")
        is_sse = verb == _STREAM and request.query_params.get("alt") == "sse"
        found = self._event_stream if is_sse else self._verbs.get(verb)
        if found is None:
            return None
        # The body does not name the model: the salt separates calls of two models.
        return found._replace(params=UrlParams(model, salt=f"{model}:{verb}".encode("utf-8", "replace")))


def vendor_of(path: str) -> Vendor:
    """The vendor whose error format an unknown URL gets."""
    if path.startswith("/v1/messages"):
        return ANTHROPIC
    return GOOGLE if path.startswith("/v1beta/") else OPENAI
