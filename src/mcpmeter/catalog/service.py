"""The meter's own health."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog.spec import NANO, Label, Metric

LEDGER_COMMIT: Final = Metric(
    "mcp_ledger_commit_seconds",
    "histogram",
    "Time that a durable commit of the ledger took; one commit carries the rows that queued meanwhile.",
    unit="seconds",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
    scale=NANO,
)
LEDGER_OPEN_ROWS: Final = Metric("mcp_ledger_open_rows", "gauge", "Calls written down as open and not settled yet.")
LEDGER_HEALTHY: Final = Metric(
    "mcp_ledger_healthy", "gauge", "1 while calls can be written down, else 0 and every call is refused."
)
LEDGER_RECOVERED: Final = Metric(
    "mcp_ledger_recovered_total",
    "counter",
    "Calls that an earlier life of the service left open and that were settled at start.",
)
LABEL_OVERFLOW: Final = Metric(
    "mcp_label_overflow_total",
    "counter",
    "Values outside a label's closed set, shown as 'other'.",
    (Label("label", allowlist="label"),),
)
INTERNAL_FAULTS: Final = Metric(
    "mcp_meter_faults_total",
    "counter",
    "Times the meter itself failed to record something; what it meters went on.",
)
BUILD_INFO: Final = Metric(
    "mcpmeter_build_info",
    "gauge",
    "1, with the versions of mcpmeter and Python as labels.",
    (Label("version", allowlist="build"), Label("python_version", allowlist="build")),
)
CONFIG_RELOAD_SUCCESSFUL: Final = Metric(
    "mcpmeter_config_last_reload_successful", "gauge", "Whether the last reload of the configuration succeeded."
)
CONFIG_RELOAD_TIMESTAMP: Final = Metric(
    "mcpmeter_config_last_reload_success_timestamp_seconds",
    "gauge",
    "When the configuration was last loaded successfully, Unix time.",
    unit="seconds",
)

ROWS: Final = (
    LEDGER_COMMIT,
    LEDGER_OPEN_ROWS,
    LEDGER_HEALTHY,
    LEDGER_RECOVERED,
    LABEL_OVERFLOW,
    INTERNAL_FAULTS,
    BUILD_INFO,
    CONFIG_RELOAD_SUCCESSFUL,
    CONFIG_RELOAD_TIMESTAMP,
)
