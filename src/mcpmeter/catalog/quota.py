"""What providers' rate-limit headers say is left. Gauges of what was last reported, never zeros made at start."""

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
"""`retry_after` is no quota: it has a reset only, the instant before which the provider wants no call."""

RESOURCE: Final = Label("resource", RESOURCES)
CREDENTIAL: Final = Label("credential", allowlist="credential")
_QUOTA: Final = (labels.PROVIDER, CREDENTIAL, RESOURCE)

LIMIT: Final = Metric(
    "mcp_upstream_quota_limit",
    "gauge",
    "What the provider allows a credential in one window, from its rate-limit headers; of several models the tightest.",
    _QUOTA,
)
REMAINING: Final = Metric(
    "mcp_upstream_quota_remaining",
    "gauge",
    "What the provider said is left; once the announced reset has passed, the whole limit again.",
    _QUOTA,
)
RESET: Final = Metric(
    "mcp_upstream_quota_reset_timestamp_seconds",
    "gauge",
    "When the provider said the quota is whole again, Unix time.",
    _QUOTA,
    unit="seconds",
)
EXHAUSTION: Final = Metric(
    "mcp_upstream_quota_exhaustion_seconds",
    "gauge",
    "Time until nothing is left at the rate of the last minutes; absent while the quota resets first or nothing burns.",
    _QUOTA,
    unit="seconds",
)

ROWS: Final = (LIMIT, REMAINING, RESET, EXHAUSTION)
