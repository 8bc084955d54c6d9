"""Quotas from the providers' rate-limit headers: gauges of the last reported values, absent until one is reported."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import labels
from mcpmeter.catalog.spec import Label, Metric

RESOURCES: Final = (
    "requests",
    "requests_per_second",
    "requests_per_minute",
    "requests_per_hour",
    "requests_per_day",
    "requests_per_month",
    "tokens",
    "tokens_per_second",
    "tokens_per_minute",
    "tokens_per_hour",
    "tokens_per_day",
    "tokens_per_month",
    "input_tokens",
    "output_tokens",
    "priority_input_tokens",
    "priority_output_tokens",
    "project_requests",
    "project_tokens",
    "retry_after",
)
"""`retry_after` is not a quota: it has only a reset, the time before which the provider wants no call."""

RESOURCE: Final = Label("resource", RESOURCES)
CREDENTIAL: Final = Label("credential", allowlist="credential")
_QUOTA: Final = (labels.PROVIDER, CREDENTIAL, RESOURCE)

LIMIT: Final = Metric(
    "mcp_upstream_quota_limit",
    "gauge",
    "Limit of a credential in one window, from the provider's rate-limit headers. With several models, the tightest.",
    _QUOTA,
)
REMAINING: Final = Metric(
    "mcp_upstream_quota_remaining",
    "gauge",
    "Remaining quota as last reported by the provider. After the announced reset, the whole limit again.",
    _QUOTA,
)
RESET: Final = Metric(
    "mcp_upstream_quota_reset_timestamp_seconds",
    "gauge",
    "Unix time at which the quota is full again, as reported by the provider.",
    _QUOTA,
    unit="seconds",
)
EXHAUSTION: Final = Metric(
    "mcp_upstream_quota_exhaustion_seconds",
    "gauge",
    "Time until the quota is exhausted at the rate of the last minutes. Absent if it resets first or nothing is used.",
    _QUOTA,
    unit="seconds",
)

ROWS: Final = (LIMIT, REMAINING, RESET, EXHAUSTION)
