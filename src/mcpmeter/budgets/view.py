"""A budget's status as people and programs may read it: dollars as text, instants with the offset of its zone."""

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
    """How a budget stands in its present period. An empty team, project, key or model stands for all of them."""

    name: str
    team: str
    project: str
    key_id: str
    model: str
    hard: bool
    """Whether calls beyond it are refused."""
    period: PeriodKind
    time_zone: str
    period_start: Instant
    resets_at: Instant | None
    """None: it is prepaid and does not reset."""
    limit_usd: Dollars
    credit_usd: Dollars
    """Topped up; it goes on top of the limit."""
    soft_limit_usd: Dollars
    spent_usd: Dollars
    reserved_usd: Dollars
    left_usd: Dollars
    """Negative where it is overspent."""
    burn_usd_per_hour: Dollars
    exhausted_at: Instant | None
    """When nothing will be left if it burns on as in the last six hours; None while nothing burns."""


class BudgetReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `/api/budgets` and `mcpmeter budgets list --json` say."""

    at: Instant
    budgets: list[ShownBudget]


def shown_budget(status: BudgetStatus) -> ShownBudget:
    """A status as it may be read."""
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
