"""Maps URLs to dialects."""

from __future__ import annotations

from typing import NamedTuple

from mcpmeter.simulator.dialects.anthropic_messages import AnthropicMessages
from mcpmeter.simulator.dialects.anthropic_prompt import AnthropicCountTokens
from mcpmeter.simulator.dialects.base import Dialect, Target
from mcpmeter.simulator.dialects.gemini_embeddings import GeminiBatchEmbed, GeminiEmbed
from mcpmeter.simulator.dialects.gemini_generate import ARRAY, SSE, GeminiCountTokens, GeminiGenerate
from mcpmeter.simulator.dialects.openai_chat import OpenAiChat
from mcpmeter.simulator.dialects.openai_embeddings import OpenAiEmbeddings
from mcpmeter.simulator.dialects.openai_responses import OpenAiResponses
from mcpmeter.simulator.request import SimulatorRequest
from mcpmeter.simulator.vectors import Vectors
from mcpmeter.simulator.vendors.anthropic import ANTHROPIC
from mcpmeter.simulator.vendors.base import Vendor
from mcpmeter.simulator.vendors.google import GOOGLE, GOOGLE_ARRAY
from mcpmeter.simulator.vendors.openai import OPENAI

_GOOGLE_PREFIXES = ("/v1beta/models/", "/v1/models/")  # its SDK uses v1 since version 3, v1beta before
_STREAM = "streamGenerateContent"


class Endpoint(NamedTuple):
    """The dialect of a URL, and the vendor that words its errors."""

    vendor: Vendor
    dialect: Dialect
    target: Target = Target()


class Routes:
    """All URLs of all dialects."""

    def __init__(self, seed: int) -> None:
        vectors = Vectors(seed)
        self._fixed = {
            "/v1/chat/completions": Endpoint(OPENAI, OpenAiChat()),
            "/v1/embeddings": Endpoint(OPENAI, OpenAiEmbeddings(vectors)),
            "/v1/responses": Endpoint(OPENAI, OpenAiResponses()),
            # Google's endpoints in OpenAI's dialect:
            "/v1beta/openai/chat/completions": Endpoint(OPENAI, OpenAiChat()),
            "/v1beta/openai/embeddings": Endpoint(OPENAI, OpenAiEmbeddings(vectors)),
            "/v1/messages": Endpoint(ANTHROPIC, AnthropicMessages()),
            "/v1/messages/count_tokens": Endpoint(ANTHROPIC, AnthropicCountTokens(), Target(salt=b"count_tokens")),
        }
        self._verbs = {
            "generateContent": Endpoint(GOOGLE, GeminiGenerate()),
            _STREAM: Endpoint(GOOGLE_ARRAY, GeminiGenerate(ARRAY)),
            "countTokens": Endpoint(GOOGLE, GeminiCountTokens()),
            "embedContent": Endpoint(GOOGLE, GeminiEmbed(vectors)),
            "batchEmbedContents": Endpoint(GOOGLE, GeminiBatchEmbed(vectors)),
        }
        self._event_stream = Endpoint(GOOGLE, GeminiGenerate(SSE))

    def find(self, request: SimulatorRequest) -> Endpoint | None:
        """The endpoint of this URL for any HTTP method; None if no dialect has it."""
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
        return found._replace(target=Target(model, salt=f"{model}:{verb}".encode("utf-8", "replace")))


def vendor_of(path: str) -> Vendor:
    """The vendor that words the error for an unknown URL."""
    if path.startswith("/v1/messages"):
        return ANTHROPIC
    return GOOGLE if path.startswith("/v1beta/") else OPENAI
