"""The upstreams' health: whether they answer, how often they were tried, and why again."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import labels
from mcpmeter.catalog.spec import Label, Metric

OUTCOMES: Final = (
    "ok",
    "caller_error",
    "rate_limited",
    "refused",
    "forbidden",
    "server_error",
    "unreachable",
    "timeout",
    "broken",
    "garbage",
    "abandoned",
)
RETRY_REASONS: Final = ("rate_limited", "refused", "server_error", "unreachable", "timeout", "broken")

UP: Final = Metric(
    "mcp_upstream_up",
    "gauge",
    "1 while the provider's circuit is closed and it has not refused (401, 402) all of its keys, else 0.",
    (labels.PROVIDER,),
)
CIRCUIT_OPEN: Final = Metric(
    "mcp_upstream_circuit_open",
    "gauge",
    "1 from the failure that opened the provider's circuit until a call to it succeeds, else 0.",
    (labels.PROVIDER,),
)
RETRIES: Final = Metric(
    "mcp_upstream_retries_total",
    "counter",
    "Further attempts that were sent, by the provider whose failure caused them and what that failure was.",
    (labels.PROVIDER, Label("reason", RETRY_REASONS)),
)
ATTEMPTS: Final = Metric(
    "mcp_upstream_attempts_total",
    "counter",
    "Requests sent to the provider, first attempts and further ones, by what came of them up to the answer's head.",
    (labels.PROVIDER, Label("outcome", OUTCOMES)),
)

ROWS: Final = (UP, CIRCUIT_OPEN, RETRIES, ATTEMPTS)
