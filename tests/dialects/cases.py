"""Each dialect with its smallest request and response, for what is the same in all of them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from mcpmeter.dialects.anthropic_count_tokens import AnthropicCountTokens
from mcpmeter.dialects.anthropic_messages import AnthropicMessages
from mcpmeter.dialects.base import Dialect, StreamingDialect
from mcpmeter.dialects.gemini_count_tokens import GeminiCountTokens
from mcpmeter.dialects.gemini_embeddings import GeminiBatchEmbed, GeminiEmbed
from mcpmeter.dialects.gemini_generate import GeminiGenerate
from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.dialects.openai_embeddings import OpenAiEmbeddings
from mcpmeter.dialects.openai_responses import OpenAiResponses
from mcpmeter.dialects.tokens import MAX_TOKENS
from mcpmeter.records import PathParams, Usage

MODEL = PathParams(model="m")
MESSAGES: list[Any] = [{"role": "user", "content": "Hello"}]
CONTENT: dict[str, Any] = {"parts": [{"text": "Hello"}]}


class Case(NamedTuple):
    """`response` has room for a usage, `usage` for a count; both are empty if nothing is billed."""

    dialect: Dialect
    request: dict[str, Any]
    response: str = ""
    usage: str = ""
    usage_fields: tuple[str, ...] = ()

    def body(self, extra: bytes = b'"model":"m"') -> bytes:
        return b"{" + extra + b"," + json.dumps(self.request).encode()[1:]


OPENAI_FIELDS = ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_cache_hit_tokens", "num_cached_tokens")
OPENAI_FIELDS += ("cached_tokens", "prompt_audio_seconds", "prompt_tokens_details", "completion_tokens_details")
RESPONSES_FIELDS = ("input_tokens", "output_tokens", "total_tokens", "input_tokens_details", "output_tokens_details")
ANTHROPIC_FIELDS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
ANTHROPIC_FIELDS += ("output_tokens_details", "cache_creation", "server_tool_use", "iterations", "service_tier", "new")
GEMINI_FIELDS = ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "toolUsePromptTokenCount")
GEMINI_FIELDS += ("totalTokenCount", "cachedContentTokenCount", "promptTokensDetails", "candidatesTokensDetails")
GEMINI_FIELDS += ("cacheTokensDetails", "toolUsePromptTokensDetails", "billedToolCalls", "trafficType", "new")

CASES = {
    "chat": Case(
        OpenAiChat(),
        {"messages": MESSAGES},
        '{"choices":[{"message":{"content":"Hi"}}],"usage":%s}',
        '{"prompt_tokens":%s,"completion_tokens":5}',
        OPENAI_FIELDS,
    ),
    "responses": Case(
        OpenAiResponses(),
        {"input": "Hello"},
        '{"status":"completed","output":[],"usage":%s}',
        '{"input_tokens":%s,"output_tokens":5}',
        RESPONSES_FIELDS,
    ),
    "embeddings": Case(
        OpenAiEmbeddings(),
        {"input": "Hello"},
        '{"data":[{}],"usage":%s}',
        '{"prompt_tokens":%s}',
        OPENAI_FIELDS[:3],
    ),
    "messages": Case(
        AnthropicMessages(),
        {"messages": MESSAGES},
        '{"content":[{"type":"text","text":"a"}],"usage":%s}',
        '{"input_tokens":%s,"output_tokens":5}',
        ANTHROPIC_FIELDS,
    ),
    "count_tokens": Case(AnthropicCountTokens(), {"messages": MESSAGES}),
    "generate": Case(
        GeminiGenerate(),
        {"contents": [CONTENT]},
        '{"candidates":[{"finishReason":"STOP"}],"usageMetadata":%s}',
        '{"promptTokenCount":%s,"candidatesTokenCount":5}',
        GEMINI_FIELDS,
    ),
    "count_contents": Case(GeminiCountTokens(), {"contents": [CONTENT]}),
    "embed_content": Case(
        GeminiEmbed(),
        {"content": CONTENT},
        '{"embedding":{"values":[]},"usageMetadata":%s}',
        '{"promptTokenCount":%s}',
        GEMINI_FIELDS,
    ),
    "batch_embed_contents": Case(GeminiBatchEmbed(), {"requests": [{"content": CONTENT}]}),
}
BILLED = [name for name, case in CASES.items() if case.usage]
STREAMING: dict[str, StreamingDialect] = {
    name: case.dialect for name, case in CASES.items() if isinstance(case.dialect, StreamingDialect)
}


def assert_fits(usage: Usage) -> None:
    """Counts that a row of the ledger can hold, and details within their totals."""
    assert 0 <= usage.prompt_tokens <= 3 * MAX_TOKENS
    assert 0 <= usage.completion_tokens <= 2 * MAX_TOKENS
    assert 0 <= usage.cached_read_tokens + usage.cache_write_tokens <= usage.prompt_tokens
    assert 0 <= usage.reasoning_tokens <= usage.completion_tokens
    assert 0 <= usage.audio_tokens <= usage.prompt_tokens + usage.completion_tokens
    assert all(item.quantity > 0 for item in (*usage.items, *usage.unknown))
