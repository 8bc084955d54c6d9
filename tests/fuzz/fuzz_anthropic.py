"""Any bytes as a request, response or stream of Anthropic's dialects."""

from __future__ import annotations

from tests.fuzz.dialect_checks import JSON_WORDS, checks_of
from tests.fuzz.harness import Target

from mcpmeter.dialects.anthropic_count_tokens import AnthropicCountTokens
from mcpmeter.dialects.anthropic_messages import AnthropicMessages

WORDS = tuple(
    word.encode()
    for word in (
        '"messages":[{"role":"user","content":"Hi"}],', '"max_tokens":9,', '"system":"a",', '"tools":[{}],',
        '"content":[{"type":"text","text":"a"}],', '"stop_reason":"end_turn",', '"stop_reason":"refusal",',
        '"usage":{"input_tokens":3,"output_tokens":2},', '"input_tokens":', '"output_tokens":',
        '"cache_read_input_tokens":', '"cache_creation_input_tokens":',
        '"output_tokens_details":{"thinking_tokens":', '"type":"message_start",', '"type":"message_delta",',
        '"type":"message_stop"', '"type":"content_block_delta",', '"delta":{"text":"a"},', '"message":{"usage":',
        '"source":{"type":"base64","data":"', '"thinking":"a",', '"content_block":{"type":"tool_use"},',
        "event: message_stop\n", '"input":{"a":1}', '"partial_json":"{"',
    )
)  # fmt: skip
_check = checks_of((AnthropicMessages(), AnthropicCountTokens()))

TARGET = Target("anthropic", _check, _check, JSON_WORDS + WORDS, ("golden/anthropic_*/*.*",))
