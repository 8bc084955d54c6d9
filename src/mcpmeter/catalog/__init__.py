"""Every metric as one data row: name, type, help, labels with their closed sets, unit, buckets.

Owns the names that scrapes, rules, dashboards and docs share; owns no value and no rendering.

- No metric is defined anywhere else, and every row is fed by some code (tests hold both).
- Names and label values are public: they are never renamed or dropped.
"""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import budget, llm, mcp, money, quality, quota, service, upstream
from mcpmeter.catalog.spec import OTHER, Label, Metric

ALL: Final[tuple[Metric, ...]] = (
    *mcp.ROWS,
    *llm.ROWS,
    *quality.ROWS,
    *money.ROWS,
    *budget.ROWS,
    *upstream.ROWS,
    *quota.ROWS,
    *service.ROWS,
)

__all__ = ["ALL", "OTHER", "Label", "Metric"]
