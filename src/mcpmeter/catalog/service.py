"""The meter's own health."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog.spec import NANO, Label, Metric

LEDGER_COMMIT: Final = Metric(
    "mcp_ledger_commit_seconds",
    "histogram",
    "Duration of the ledger's durable commits. One commit writes all rows queued since the last one.",
    unit="seconds",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
    scale=NANO,
)
LEDGER_OPEN_ROWS: Final = Metric("mcp_ledger_open_rows", "gauge", "Calls recorded in the ledger and not settled yet.")
BACKGROUND_CALLS: Final = Metric(
    "mcp_background_calls",
    "gauge",
    "Background responses that are followed at their providers. Their calls are settled once their usage is known.",
)
LEDGER_HEALTHY: Final = Metric(
    "mcp_ledger_healthy", "gauge", "1 while the ledger is writable. While it is 0, calls are refused."
)
LEDGER_RECOVERED: Final = Metric(
    "mcp_ledger_recovered_total",
    "counter",
    "Calls left open by a previous process and recovered at startup.",
)
SETTLEMENTS_PENDING: Final = Metric(
    "mcp_settlements_pending", "gauge", "Settled calls that wait for the ledger, in memory and in the pending file."
)
SETTLEMENTS_UNWRITTEN: Final = Metric(
    "mcp_settlements_unwritten_total",
    "counter",
    "Settled calls that neither the ledger nor the pending file had taken when the process ended. The log names them.",
)
SETTLEMENTS_REJECTED: Final = Metric(
    "mcp_settlements_rejected_total",
    "counter",
    "Pending settlements that the ledger refused for good. They are kept in the file '.rejected'.",
)
LABEL_OVERFLOW: Final = Metric(
    "mcp_label_overflow_total",
    "counter",
    "Label values outside their closed set, shown as 'other'.",
    (Label("label", allowlist="label"),),
)
INTERNAL_FAULTS: Final = Metric(
    "mcp_meter_faults_total",
    "counter",
    "Internal failures of the meter to record something. The metered call continued.",
)
LIMITS: Final = (
    "connections",
    "connections_per_address",
    "concurrent_calls",
    "concurrent_calls_per_key",
    "background_calls",
    "memory",
    "headers",
    "mcp_sessions",
    "upstream_connections",
)
LIMIT_REACHED: Final = Metric(
    "mcp_limit_reached_total",
    "counter",
    "Requests refused, and connections closed or refused, because a limit of the service was reached.",
    (Label("limit", LIMITS),),
)
BUILD_INFO: Final = Metric(
    "mcpmeter_build_info",
    "gauge",
    "Always 1; the labels hold the versions of mcpmeter and Python.",
    (Label("version", allowlist="build"), Label("python_version", allowlist="build")),
)
CONFIG_RELOAD_SUCCESSFUL: Final = Metric(
    "mcpmeter_config_last_reload_successful", "gauge", "1 if the last reload of the configuration succeeded, else 0."
)
CONFIG_RELOAD_TIMESTAMP: Final = Metric(
    "mcpmeter_config_last_reload_success_timestamp_seconds",
    "gauge",
    "Unix time of the last successful load of the configuration.",
    unit="seconds",
)

ROWS: Final = (
    LEDGER_COMMIT,
    LEDGER_OPEN_ROWS,
    BACKGROUND_CALLS,
    LEDGER_HEALTHY,
    LEDGER_RECOVERED,
    SETTLEMENTS_PENDING,
    SETTLEMENTS_UNWRITTEN,
    SETTLEMENTS_REJECTED,
    LABEL_OVERFLOW,
    INTERNAL_FAULTS,
    LIMIT_REACHED,
    BUILD_INFO,
    CONFIG_RELOAD_SUCCESSFUL,
    CONFIG_RELOAD_TIMESTAMP,
)
