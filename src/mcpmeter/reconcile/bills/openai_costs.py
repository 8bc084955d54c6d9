"""OpenAI's costs: dollars by day and line item, without tokens; the basis of the invoice.

JSON is the response of `GET /v1/organization/costs`, described in the official SDK, openai-python
`types/admin/organization/usage_costs_response.py`, and at https://platform.openai.com/docs/api-reference/usage/costs.
CSV is the export of the Cost tab of https://platform.openai.com/usage. A line item of tokens is the model and the kind
of token, `gpt-4o-mini-2024-07-18, cached input`; with another grouping, a line names no model.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from mcpmeter.reconcile.bills.base import (
    BillFormat,
    Cells,
    Columns,
    Page,
    ReadRow,
    UnixBucket,
    Unreadable,
    bucket_lines,
    joined,
    model,
    nanousd,
    shown,
    to_nanousd,
    unix_periods,
    unix_seconds,
)
from mcpmeter.reconcile.lines import BillLine

_DIMENSIONS = ("line_item", "project_id", "user_id", "api_key_id", "api_source")


class Money(msgspec.Struct, frozen=True):
    """An amount; in the API a number or a text."""

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


def _line(number: int, since_ns: int, result: Result) -> BillLine | None:
    if result.amount is None or not result.amount.value:
        return None
    _require_dollars(result.amount.currency or "")
    return BillLine(
        number,
        since_ns,
        model=_model_of(result.line_item or ""),
        part="|".join(["costs", *(str(getattr(result, name)) for name in _DIMENSIONS)]),
        nanousd=to_nanousd(result.amount.value),
    )


def _row_reader(columns: Columns) -> ReadRow:
    start, value, currency = (columns.index(name) for name in ("start_time", "amount_value", "amount_currency"))
    item = columns.index("line_item")
    dimensions = columns.indexes(*_DIMENSIONS)

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
    document=Page[UnixBucket[Result]],
    lines_of=bucket_lines(_line),
    marks=(b"organization.costs.result",),
    empty_marks=(b'"bucket"', b'"start_time"', b'"results"'),
)
