"""Every metric as one data row. No metric lives outside these files."""

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
