"""What was used and what it cost, asked once: the command line, the API and the MCP tool answer from here."""

from __future__ import annotations

from mcpmeter.usage.periods import Span, span_of, time_zone
from mcpmeter.usage.report import Currency, UsageQuery, UsageReport, UsageRow, grouping, usage_report

__all__ = [
    "Currency",
    "Span",
    "UsageQuery",
    "UsageReport",
    "UsageRow",
    "grouping",
    "span_of",
    "time_zone",
    "usage_report",
]
