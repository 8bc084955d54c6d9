"""Health of the upstreams: up or down, attempts by outcome, retries by reason."""

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
    "1 while the provider's circuit is closed and not all of its keys are refused (401, 402), else 0.",
    (labels.PROVIDER,),
)
CIRCUIT_OPEN: Final = Metric(
    "mcp_upstream_circuit_open",
    "gauge",
    "1 from the failure that opens the provider's circuit until a call to it succeeds, else 0.",
    (labels.PROVIDER,),
)
RETRIES: Final = Metric(
    "mcp_upstream_retries_total",
    "counter",
    "Retries, by the provider whose failure caused them and by the kind of failure.",
    (labels.PROVIDER, Label("reason", RETRY_REASONS)),
)
ATTEMPTS: Final = Metric(
    "mcp_upstream_attempts_total",
    "counter",
    "Requests sent to the provider, first attempts and retries, by their outcome up to the response headers.",
    (labels.PROVIDER, Label("outcome", OUTCOMES)),
)

DISCONNECTS: Final = Metric(
    "mcp_client_disconnects_total",
    "counter",
    "Clients that disconnected before the provider's response was complete. `cancel`: the request was cancelled. "
    "`drain`: the response is read on for the provider's own count.",
    (labels.PROVIDER, Label("policy", ("cancel", "drain"))),
)

ROWS: Final = (UP, CIRCUIT_OPEN, RETRIES, ATTEMPTS, DISCONNECTS)
