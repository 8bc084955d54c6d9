"""Anthropic's costs: dollars by day, model and kind of token, without tokens.

JSON is what `GET /v1/organizations/cost_report` answers, described at
https://platform.claude.com/docs/en/api/admin/cost_report/retrieve: `amount` is a text in cents, and the model is told
only with `group_by[]=description`. CSV is the export of the Console's Cost page (https://platform.claude.com/cost):
`cost_usd` is in dollars, rounded to cents, and models have their printed names (`Claude Haiku 4.5`). Days are UTC.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Final

import msgspec

from mcpmeter.reconcile.bills.base import (
    BillFormat,
    Cells,
    Columns,
    ReadPeriod,
    ReadRow,
    Unreadable,
    instant,
    joined,
    model,
    nanousd,
    period,
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


class Bucket(msgspec.Struct, frozen=True):
    """A day."""

    starting_at: str
    results: list[Result]
    ending_at: str | None = None


class Page(msgspec.Struct, frozen=True):
    """What the API answers."""

    data: list[Bucket]
    has_more: bool = False
    next_page: str | None = None


def _lines(page: Page) -> Iterator[BillLine | Period]:
    number = 0
    for bucket in page.data:
        yield period(instant(bucket.starting_at), instant(bucket.ending_at) if bucket.ending_at else 0)
        for result in bucket.results:
            number += 1
            if not result.amount:
                continue
            if result.currency != "USD":
                raise Unreadable(f"the amount is in {shown(result.currency)}, and only US dollars can be compared")
            yield BillLine(
                number,
                instant(bucket.starting_at),
                model=model(result.model or result.description or ""),
                part="|".join(["costs", *(str(getattr(result, name)) for name in _DIMENSIONS)]),
                nanousd=to_nanousd(result.amount, CENT),
            )


def _row_reader(columns: Columns) -> ReadRow:
    day, name, cost = (columns.place(column) for column in ("usage_date_utc", "model", "cost_usd"))
    kind = columns.place("token_type")
    dimensions = columns.places(*_CSV_DIMENSIONS)

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
    day = columns.place("usage_date_utc")
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
    document=Page,
    lines_of=_lines,
    marks=(b'"amount"', b'"currency"', b'"starting_at"'),
    empty_marks=(b'"starting_at"', b'"results"'),
)
