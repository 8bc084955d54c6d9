"""OpenAI's costs: dollars by day and line item, without tokens; what the invoice is made from.

JSON is what `GET /v1/organization/costs` answers, described in the official SDK, openai-python
`types/admin/organization/usage_costs_response.py`, and at https://platform.openai.com/docs/api-reference/usage/costs.
CSV is the export of the Cost tab of https://platform.openai.com/usage. A line item of tokens is the model and the kind
of token, `gpt-4o-mini-2024-07-18, cached input`; grouped by anything else, a line names no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import msgspec

from mcpmeter.reconcile.bills.base import (
    BillFormat,
    Cells,
    Columns,
    ReadRow,
    Seconds,
    Unreadable,
    joined,
    model,
    nanousd,
    period,
    shown,
    to_nanousd,
    unix_periods,
    unix_seconds,
)
from mcpmeter.reconcile.lines import BillLine, Period

_DIMENSIONS = ("line_item", "project_id", "user_id", "api_key_id", "api_source")


class Money(msgspec.Struct, frozen=True):
    """An amount; the API writes it as a number or as a text."""

    value: Decimal | None = None
    currency: str | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One group of a day."""

    object: str
    amount: Money | None = None
    line_item: str | None = None
    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None
    api_source: str | None = None


class Bucket(msgspec.Struct, frozen=True):
    """A day."""

    start_time: Seconds
    results: list[Result]
    end_time: Seconds | None = None


class Page(msgspec.Struct, frozen=True):
    """What the API answers."""

    data: list[Bucket]
    has_more: bool = False
    next_page: str | None = None


def _lines(page: Page) -> Iterator[BillLine | Period]:
    number = 0
    for bucket in page.data:
        yield period(bucket.start_time * 10**9, (bucket.end_time or 0) * 10**9)
        for result in bucket.results:
            number += 1
            if result.amount is None or not result.amount.value:
                continue
            _require_dollars(result.amount.currency or "")
            yield BillLine(
                number,
                bucket.start_time * 10**9,
                model=_model_of(result.line_item or ""),
                part="|".join(["costs", *(str(getattr(result, name)) for name in _DIMENSIONS)]),
                nanousd=to_nanousd(result.amount.value),
            )


def _row_reader(columns: Columns) -> ReadRow:
    start, value, currency = (columns.place(name) for name in ("start_time", "amount_value", "amount_currency"))
    item = columns.place("line_item")
    dimensions = columns.places(*_DIMENSIONS)

    def read_row(number: int, cells: Cells) -> BillLine | None:
        if not cells[value].strip():  # a day without cost
            return None
        _require_dollars(cells[currency])
        amount = nanousd(cells[value])
        if not amount:
            return None
        return BillLine(
            number,
            unix_seconds(cells[start]),
            model=_model_of(cells[item]),
            part="costs|" + joined(cells, dimensions),
            nanousd=amount,
        )

    return read_row


def _model_of(line_item: str) -> str:
    return model(line_item.partition(", ")[0])


def _require_dollars(currency: str) -> None:
    if currency.strip().lower() != "usd":
        raise Unreadable(f"the amount is in {shown(currency)}, and only US dollars can be compared")


FORMAT = BillFormat(
    name="openai-costs",
    provider="openai",
    columns=("start_time", "amount_value", "amount_currency", "line_item"),
    row_reader=_row_reader,
    period_reader=unix_periods,
    document=Page,
    lines_of=_lines,
    marks=(b"organization.costs.result",),
    empty_marks=(b'"bucket"', b'"start_time"', b'"results"'),
)
