"""OpenRouter's activity: tokens and dollars, by request in the CSV file and by day and model in the API.

JSON is the response of `GET /api/v1/activity` (completed UTC days), described at
https://openrouter.ai/docs/api/api-reference/analytics/get-user-activity; `usage` is the
price paid in dollars. CSV is the export of https://openrouter.ai/activity, one line per request; `generation_id` is the
response's `X-Generation-Id`. Calls with the user's own provider key ("BYOK") are billed by the provider; `usage` has
only the fee.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import msgspec

from mcpmeter.reconcile.bills.base import (
    BillFormat,
    Cells,
    Columns,
    Count,
    ReadRow,
    count,
    instant,
    model,
    nanousd,
    request_id,
    to_nanousd,
)
from mcpmeter.reconcile.lines import BillLine


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """A model's usage at one endpoint on one day."""

    date: str
    model: str
    usage: Decimal
    requests: Count
    prompt_tokens: Count
    completion_tokens: Count
    model_permaslug: str = ""
    endpoint_id: str = ""
    provider_name: str = ""


class Page(msgspec.Struct, frozen=True):
    """A page of the API."""

    data: list[Item]


def _lines(page: Page) -> Iterator[BillLine]:
    for number, item in enumerate(page.data, start=1):
        yield BillLine(
            number,
            instant(item.date),
            model=model(item.model_permaslug or item.model),
            part=f"activity|{item.endpoint_id}|{item.provider_name}|{item.model}",
            requests=item.requests,
            prompt_tokens=item.prompt_tokens,
            completion_tokens=item.completion_tokens,
            nanousd=to_nanousd(item.usage),
        )


def _row_reader(columns: Columns) -> ReadRow:
    generation, created, cost = (columns.index(name) for name in ("generation_id", "created_at", "cost_total"))
    read, written = columns.index("tokens_prompt"), columns.index("tokens_completion")
    name = columns.index("model_permaslug")

    def read_row(number: int, cells: Cells) -> BillLine | None:
        return BillLine(
            number,
            instant(cells[created]),
            request_id(cells[generation]),
            model(cells[name]),
            requests=1,
            prompt_tokens=count(cells[read]),
            completion_tokens=count(cells[written]),
            nanousd=nanousd(cells[cost] or "0"),
        )

    return read_row


FORMAT = BillFormat(
    name="openrouter",
    provider="openrouter",
    columns=("generation_id", "created_at", "cost_total", "tokens_prompt", "tokens_completion", "model_permaslug"),
    row_reader=_row_reader,
    document=Page,
    lines_of=_lines,
    marks=(b'"model_permaslug"', b'"completion_tokens"'),
)
