"""A month-end charge-back statement: lines by team, project and model that add up exactly to the ledger's total.

US dollars are exact to the nano-dollar. Amounts in a second currency are rounded to its hundredth by largest remainder:
the total is rounded once, the lines are rounded down, and the difference is added to the lines that lost most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal
from itertools import groupby
from typing import Final

import msgspec

from mcpmeter.ledger.location import Location
from mcpmeter.ledger.queries.reader import open_reader
from mcpmeter.ledger.queries.selection import Selection
from mcpmeter.ledger.queries.totals import Total, select_in
from mcpmeter.money import nanousd_to_usd
from mcpmeter.usage.items import UnpricedItem, unpriced_in
from mcpmeter.usage.periods import Span, time_zone
from mcpmeter.usage.report import Currency, summed

CENT: Final = Decimal("0.01")
_CONTEXT: Final = Context(prec=200, rounding=ROUND_HALF_EVEN)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """The usage of one model by one team's project."""

    team: str
    project: str
    model: str
    figures: Total
    amount: Decimal | None
    """In the second currency; None without one."""


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """The statement of a period."""

    title: str
    span: Span
    zone: str
    team: str | None
    currency: Currency | None
    lines: list[Line]
    total: Total
    total_amount: Decimal | None
    unpriced: list[UnpricedItem]
    """Items without a price; they are in no amount."""

    def by_team(self) -> list[tuple[str, list[Line]]]:
        """The lines of each team, in order."""
        return [(team, list(lines)) for team, lines in groupby(self.lines, key=lambda line: line.team)]


def statement_of(
    ledger: Location, *, title: str, span: Span, zone: str, team: str | None = None, currency: Currency | None = None
) -> Statement:
    """Reads the ledger; blocks. Raises InvalidRequest, `LedgerNotUsable`."""
    time_zone(zone)
    selection = Selection(("team", "project", "model"), span.since_ns or 0, span.until_ns, team)
    with open_reader(ledger) as reader:
        totals = select_in(reader, selection)
        total = summed(totals)
        unpriced = unpriced_in(reader, selection) if total.unpriced_items else []
    amounts: Sequence[Decimal | None] = [None] * len(totals)
    if currency is not None:
        amounts = shares([nanousd_to_usd(line.cost_nanousd) * currency.rate for line in totals])
    return Statement(
        title=title,
        span=span,
        zone=zone,
        team=team,
        currency=currency,
        lines=[_line(figures, amount) for figures, amount in zip(totals, amounts, strict=True)],
        total=total,
        total_amount=sum((amount for amount in amounts if amount is not None), Decimal(0)) if currency else None,
        unpriced=unpriced,
    )


def _line(figures: Total, amount: Decimal | None) -> Line:
    team, project, model = figures.group
    return Line(team=team, project=project, model=model, figures=figures, amount=amount)


def shares(amounts: Sequence[Decimal]) -> list[Decimal]:
    """Amounts rounded to hundredths by largest remainder: they add up to their sum, rounded half to even."""
    total = _CONTEXT.quantize(_sum(amounts), CENT)
    floors = [amount.quantize(CENT, rounding=ROUND_FLOOR, context=_CONTEXT) for amount in amounts]
    missing = int((total - _sum(floors)) / CENT)
    by_remainder = sorted(range(len(amounts)), key=lambda index: (floors[index] - amounts[index], index))
    for index in by_remainder[:missing]:
        floors[index] += CENT
    return floors


def _sum(amounts: Iterable[Decimal]) -> Decimal:
    total = Decimal(0)
    for amount in amounts:
        total = _CONTEXT.add(total, amount)
    return total
