"""Anthropic's costs: dollars by day, model and kind of token, without tokens.

JSON is the response of `GET /v1/organizations/cost_report`, described at
https://platform.claude.com/docs/en/api/admin/cost_report/retrieve: `amount` is a text in cents, and the model is
named only with `group_by[]=description`. CSV is the export of the Console's Cost page (https://platform.claude.com/cost):
`cost_usd` is in dollars, rounded to cents, and models have their printed names (`Claude Haiku 4.5`). Days are UTC.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

import msgspec

from mcpmeter.reconcile.bills.base import (
    BillFormat,
    Cells,
    Columns,
    IsoBucket,
    Page,
    ReadPeriod,
    ReadRow,
    Unreadable,
    bucket_lines,
    instant,
    joined,
    model,
    nanousd,
    shown,
    to_nanousd,
)
from mcpmeter.reconcile.lines import BillLine, Period

CENT: Final = Decimal("0.01")
_DIMENSIONS = (
    "description", "cost_type", "token_type", "service_tier", "context_window", "workspace_id", "inference_geo",
    "speed",
)  # fmt: skip
_CSV_DIMENSIONS = (
    "workspace", "api_key", "api_key_id", "usage_type", "context_window", "token_type", "cost_type", "inference_geo",
    "speed",
)  # fmt: skip
_PRINTED: Final = re.compile(r"claude (?P<family>[a-z]+) (?P<version>[0-9]+(?:\.[0-9]+)?)", re.IGNORECASE)
_PRINTED_OLD: Final = re.compile(r"claude (?P<version>[0-9]+(?:\.[0-9]+)?) (?P<family>[a-z]+)", re.IGNORECASE)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One group of a day."""

    amount: Decimal
    currency: str
    model: str | None = None
    description: str | None = None
    cost_type: str | None = None
    token_type: str | None = None
    service_tier: str | None = None
    context_window: str | None = None
    workspace_id: str | None = None
    inference_geo: str | None = None
    speed: str | None = None


def _line(number: int, since_ns: int, result: Result) -> BillLine | None:
    if not result.amount:
        return None
    if result.currency != "USD":
        raise Unreadable(f"the amount is in {shown(result.currency)}, and only US dollars can be compared")
    return BillLine(
        number,
        since_ns,
        model=model(result.model or result.description or ""),
        part="|".join(["costs", *(str(getattr(result, name)) for name in _DIMENSIONS)]),
        nanousd=to_nanousd(result.amount, CENT),
    )


def _row_reader(columns: Columns) -> ReadRow:
    day, name, cost = (columns.index(column) for column in ("usage_date_utc", "model", "cost_usd"))
    kind = columns.index("token_type")
    dimensions = columns.indexes(*_CSV_DIMENSIONS)

    def read_row(number: int, cells: Cells) -> BillLine | None:
        amount = nanousd(cells[cost])
        if not amount:
            return None
        return BillLine(
            number,
            instant(cells[day]),
            model=id_of(cells[name]) or model(cells[kind]),
            part="costs|" + joined(cells, dimensions),
            nanousd=amount,
        )

    return read_row


def _period_reader(columns: Columns) -> ReadPeriod:
    day = columns.index("usage_date_utc")
    return lambda cells: Period(instant(cells[day]))


def id_of(printed: str) -> str:
    """`claude-haiku-4-5` of `Claude Haiku 4.5`, `claude-3-5-haiku` of `Claude 3.5 Haiku`; else the name as it is."""
    name = model(printed)
    if found := _PRINTED.fullmatch(name):
        return f"claude-{found['family']}-{found['version']}".replace(".", "-").lower()
    if found := _PRINTED_OLD.fullmatch(name):
        return f"claude-{found['version']}-{found['family']}".replace(".", "-").lower()
    return name


FORMAT = BillFormat(
    name="anthropic-costs",
    provider="anthropic",
    columns=("usage_date_utc", "model", "token_type", "cost_usd"),
    row_reader=_row_reader,
    period_reader=_period_reader,
    document=Page[IsoBucket[Result]],
    lines_of=bucket_lines(_line),
    marks=(b'"amount"', b'"currency"', b'"starting_at"'),
    empty_marks=(b'"starting_at"', b'"results"'),
)
