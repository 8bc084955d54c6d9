"""Tokens and model calls. `gen_ai_*` follows OpenTelemetry's GenAI conventions, names and buckets."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import labels
from mcpmeter.catalog.spec import NANO, Label, Metric

OTEL_LLM_SECONDS: Final = (
    0.01,
    0.02,
    0.04,
    0.08,
    0.16,
    0.32,
    0.64,
    1.28,
    2.56,
    5.12,
    10.24,
    20.48,
    40.96,
    81.92,
    163.84,
    327.68,
    655.36,
)
"""gen_ai.client.operation.duration's advisory buckets (to 81.92) and three more for responses that take minutes."""

OTEL_CHUNK_SECONDS: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
OTEL_TOKENS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)

MISSING_REASON: Final = Label(
    "reason",
    (
        "no_usage",
        "bad_usage",
        "client_gone",
        "upstream_broke",
        "service_stopped",
        "key_ended",
        "crash",
        "background_lost",
    ),
)

TOKENS: Final = Metric(
    "mcp_tokens_total",
    "counter",
    "Tokens of model calls. The label source says whether the provider reported them or the meter estimated them.",
    (labels.MODEL, labels.TOKEN_TYPE, labels.TEAM, labels.PROVIDER, labels.TOKEN_SOURCE),
)
TOKEN_DETAILS: Final = Metric(
    "mcp_token_details_total",
    "counter",
    "Parts of mcp_tokens_total (cached, reasoning, audio). Do not add them to it.",
    (labels.MODEL, labels.TOKEN_DETAIL, labels.TEAM, labels.PROVIDER, labels.TOKEN_SOURCE),
)
USAGE_MISSING: Final = Metric(
    "mcp_usage_missing_total",
    "counter",
    "Model calls without reported usage. Their tokens are estimated or unknown.",
    (labels.PROVIDER, MISSING_REASON),
)

_CALL = (
    labels.OPERATION_NAME,
    labels.PROVIDER_NAME,
    labels.REQUEST_MODEL,
    labels.RESPONSE_MODEL,
)
OPERATION_DURATION: Final = Metric(
    "gen_ai_client_operation_duration_seconds",
    "histogram",
    "Duration of model calls, from sending the request to the last byte of the response "
    "(gen_ai.client.operation.duration).",
    (*_CALL, labels.OTEL_ERROR_TYPE),
    unit="seconds",
    buckets=OTEL_LLM_SECONDS,
    scale=NANO,
)
TIME_TO_FIRST_CHUNK: Final = Metric(
    "gen_ai_client_time_to_first_chunk_seconds",
    "histogram",
    "Time from sending a streamed model call to its first chunk (gen_ai.client.operation.time_to_first_chunk).",
    _CALL,
    unit="seconds",
    buckets=OTEL_CHUNK_SECONDS,
    scale=NANO,
)
TIME_PER_OUTPUT_CHUNK: Final = Metric(
    "gen_ai_client_time_per_output_chunk_seconds",
    "histogram",
    "Mean time between the chunks of a stream, one observation per stream "
    "(gen_ai.client.operation.time_per_output_chunk).",
    _CALL,
    unit="seconds",
    buckets=OTEL_CHUNK_SECONDS,
    scale=NANO,
)
TOKEN_USAGE: Final = Metric(
    "gen_ai_client_token_usage",
    "histogram",
    "Tokens used per model call (gen_ai.client.token.usage).",
    (*_CALL, labels.GEN_AI_TOKEN_TYPE),
    buckets=tuple(float(n) for n in OTEL_TOKENS),
)

ROWS: Final = (
    TOKENS,
    TOKEN_DETAILS,
    USAGE_MISSING,
    OPERATION_DURATION,
    TIME_TO_FIRST_CHUNK,
    TIME_PER_OUTPUT_CHUNK,
    TOKEN_USAGE,
)
