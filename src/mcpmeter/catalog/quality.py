"""Signals that responses degrade while every call still succeeds."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import labels
from mcpmeter.catalog.spec import NANO, Label, Metric

# fmt: off
OPENAI_CHAT: Final = ("stop", "length", "tool_calls", "content_filter", "function_call")
OPENAI_COMPATIBLE: Final = (
    "insufficient_system_resource",  # DeepSeek
    "model_length", "error",  # Mistral; OpenRouter for an error in a stream
    "eos", "abort", "repetition",  # Together; vLLM
)
OPENAI_RESPONSES: Final = (
    "completed", "incomplete", "failed", "cancelled", "max_output_tokens", "max_messages", "steered",
)
ANTHROPIC: Final = (
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal", "compaction",
    "model_context_window_exceeded",
)
GEMINI: Final = (
    "STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "LANGUAGE", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII",
    "JAILBREAK", "MODEL_ARMOR", "MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL",
    "TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION",
    "IMAGE_OTHER", "NO_IMAGE",
)
REASONS: Final = (*OPENAI_CHAT, *OPENAI_COMPATIBLE, *OPENAI_RESPONSES, *ANTHROPIC, *GEMINI)
"""The providers' own values, so that each can be looked up in its provider's documentation."""

TRUNCATED: Final = frozenset((
    "length", "model_length", "max_output_tokens", "max_tokens", "model_context_window_exceeded", "MAX_TOKENS",
))
"""The values for a response that reached a length limit."""
# fmt: on

TOKENS_PER_SECOND: Final = (1, 2.5, 5, 10, 20, 30, 40, 50, 60, 80, 100, 150, 200, 300, 500, 1000, 2500)

FINISH_REASON: Final = Label("reason", REASONS)

FINISH_REASONS: Final = Metric(
    "mcp_finish_reasons_total",
    "counter",
    "Responses by finish reason, with the value of the provider's API.",
    (labels.MODEL, FINISH_REASON),
)
EMPTY: Final = Metric(
    "mcp_empty_completions_total",
    "counter",
    "Responses without text and without a tool call, or embeddings without a vector.",
    (labels.MODEL,),
)
REFUSALS: Final = Metric(
    "mcp_refusals_total",
    "counter",
    "Responses that the provider's API marks as a refusal.",
    (labels.MODEL, labels.PROVIDER),
)
TRUNCATIONS: Final = Metric(
    "mcp_truncated_completions_total",
    "counter",
    "Responses cut off at a token limit.",
    (labels.MODEL, labels.PROVIDER),
)
OUTPUT_RATE: Final = Metric(
    "mcp_output_tokens_per_second",
    "histogram",
    "Reported completion tokens of a complete response divided by the duration of its call, one observation per call.",
    (labels.MODEL, labels.PROVIDER),
    buckets=TOKENS_PER_SECOND,
    scale=NANO,
)

ROWS: Final = (FINISH_REASONS, EMPTY, REFUSALS, TRUNCATIONS, OUTPUT_RATE)
