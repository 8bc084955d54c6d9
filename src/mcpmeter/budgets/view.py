"""A budget's status for API and command line: dollars as text, instants with the offset of its zone."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from mcpmeter.budgets.forecast import BudgetStatus
from mcpmeter.budgets.period import Period, PeriodKind
from mcpmeter.money import nanousd_to_usd, plain_usd

Instant = Annotated[datetime, msgspec.Meta(tz=True)]
Dollars = Annotated[str, msgspec.Meta(pattern=r"^-?[0-9]+\.[0-9]{2,9}$")]


class ShownBudget(msgspec.Struct, frozen=True, kw_only=True):
    """A budget's status in its present period. An empty team, project, key or model means all of them."""

    name: str
    team: str
    project: str
    key_id: str
    model: str
    hard: bool
    """Whether calls beyond the limit are refused."""
    period: PeriodKind
    time_zone: str
    period_start: Instant
    resets_at: Instant | None
    """None: prepaid, does not reset."""
    limit_usd: Dollars
    credit_usd: Dollars
    """Sum of top-ups, added to the limit."""
    soft_limit_usd: Dollars
    spent_usd: Dollars
    reserved_usd: Dollars
    left_usd: Dollars
    """Negative if overspent."""
    burn_usd_per_hour: Dollars
    exhausted_at: Instant | None
    """When it is exhausted at the burn rate of the last six hours; None if nothing burns."""


class BudgetReport(msgspec.Struct, frozen=True, kw_only=True):
    """Response of `/api/budgets` and output of `mcpmeter budgets list --json`."""

    at: Instant
    budgets: list[ShownBudget]


def shown_budget(status: BudgetStatus) -> ShownBudget:
    """A status in its public form."""
    zone = Period("day", status.time_zone)
    ends_at_ns, exhausted_at_ns = status.period_end_ns, status.exhausted_at_ns
    return ShownBudget(
        name=status.name,
        team=status.scope.team,
        project=status.scope.project,
        key_id=status.scope.key_id,
        model=status.scope.model,
        hard=status.refuses,
        period=status.period,
        time_zone=status.time_zone,
        period_start=zone.local_time(status.period_start_ns),
        resets_at=zone.local_time(ends_at_ns) if ends_at_ns else None,
        limit_usd=_usd(status.limit_nanousd),
        credit_usd=_usd(status.credit_nanousd),
        soft_limit_usd=_usd(status.soft_limit_nanousd),
        spent_usd=_usd(status.spent_nanousd),
        reserved_usd=_usd(status.reserved_nanousd),
        left_usd=_usd(status.left_nanousd),
        burn_usd_per_hour=_usd(status.burn_nanousd_per_hour),
        exhausted_at=None if exhausted_at_ns is None else zone.local_time(exhausted_at_ns),
    )


def _usd(nanousd: int) -> str:
    return plain_usd(nanousd_to_usd(nanousd))
