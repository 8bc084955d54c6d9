"""Any bytes as a request, response or stream of the OpenAI dialects."""

from __future__ import annotations

from tests.fuzz.dialect_checks import JSON_WORDS, checks_of
from tests.fuzz.harness import Target

from mcpmeter.dialects.openai_chat import OpenAiChat, _decoded, _only_message, _read_common
from mcpmeter.dialects.openai_embeddings import OpenAiEmbeddings
from mcpmeter.dialects.openai_responses import OpenAiResponses

WORDS = tuple(
    word.encode()
    for word in (
        '"messages":[{"role":"user","content":"Hi"}],', '"stream_options":{"include_usage":true},',
        '"stream_options":null,', '"max_tokens":9,', '"max_completion_tokens":',
        '"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],', '"choices":[],',
        '"delta":{"content":"a"},', '"finish_reason":null', '"refusal":"no",', '"tool_calls":[{}],',
        '"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":9},', '"prompt_tokens":',
        '"completion_tokens":', '"total_tokens":', '"prompt_tokens_details":{"cached_tokens":9},',
        '"completion_tokens_details":{"reasoning_tokens":', '"cost":0.1,', '"cost":{"total_cost":',
        '"x_groq":{"usage":', '"input":"a",', '"output":[],', '"status":"completed",', '"response":{"usage":',
        '"type":"response.completed",', '"input_tokens":', '"output_tokens":', '"data":[{}],', '"obfuscation":"aB3"',
        '"embedding":[1]', '"input":[1,2],', '"type":"response.output_text.delta","delta":"a"',
    )
)  # fmt: skip
_CHAT = OpenAiChat()
_check = checks_of((_CHAT, OpenAiResponses(), OpenAiEmbeddings()))


def check(data: bytes) -> None:
    """Each dialect by itself; and the quick reading of a chat response says what the thorough one says."""
    _check(data)
    quick = _read_common(data)
    if quick is not None:
        response = _decoded(data)
        assert quick == _CHAT._info(response, [_only_message(choice) for choice in response.choices or ()])


TARGET = Target("openai", check, _check, JSON_WORDS + WORDS, ("golden/openai_*/*.*",))
