"""Usage and cost reports: one query for the command line, the API and the MCP tool; the charge-back statement.

Owns periods, groupings, pages of a report and the statement's rounding. Reads the ledger through
`ledger.queries.totals` and writes nothing.

Invariants: US dollars are exact; the rows of a report and the lines of a statement add up to its total.
"""

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
