"""OpenAI's usage: tokens by day or hour and model, without cost.

JSON is what `GET /v1/organization/usage/completions` (and `…/embeddings`) answers: buckets of results, described in the
official SDK, openai-python `types/admin/organization/usage_completions_response.py`, and at
https://platform.openai.com/docs/api-reference/usage. `input_tokens` counts cached and cache-write tokens too.
CSV is the export of https://platform.openai.com/usage, a column a field, one line a result.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from mcpmeter.reconcile.bills.base import (
    BillFormat,
    Cells,
    Columns,
    Count,
    ReadRow,
    Seconds,
    count,
    joined,
    model,
    period,
    unix_periods,
    unix_seconds,
)
from mcpmeter.reconcile.lines import BillLine, Period

_DIMENSIONS = ("project_id", "user_id", "api_key_id", "batch", "service_tier", "api_source")


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One group of a bucket. Results that count no tokens (images, seconds) are kept for their requests."""

    object: str
    num_model_requests: Count = 0
    input_tokens: Count = 0
    output_tokens: Count = 0
    model: str | None = None
    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None
    batch: bool | None = None
    service_tier: str | None = None
    api_source: str | None = None


class Bucket(msgspec.Struct, frozen=True):
    """A minute, an hour or a day."""

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
            if not (result.num_model_requests or result.input_tokens or result.output_tokens):
                continue
            yield BillLine(
                number,
                bucket.start_time * 10**9,
                model=model(result.model or ""),
                part="|".join([result.object, *(str(getattr(result, name)) for name in _DIMENSIONS)]),
                requests=result.num_model_requests,
                prompt_tokens=result.input_tokens,
                completion_tokens=result.output_tokens,
            )


def _row_reader(columns: Columns) -> ReadRow:
    start, name = columns.place("start_time"), columns.place("model")
    requests, read, written = (
        columns.place(column) for column in ("num_model_requests", "input_tokens", "output_tokens")
    )
    dimensions = columns.places(*_DIMENSIONS)

    def read_row(number: int, cells: Cells) -> BillLine | None:
        calls, prompt, completion = count(cells[requests]), count(cells[read]), count(cells[written])
        if not (calls or prompt or completion):  # a day on which nothing was used has a line all the same
            return None
        return BillLine(
            number,
            unix_seconds(cells[start]),
            model=model(cells[name]),
            part="usage|" + joined(cells, dimensions),
            requests=calls,
            prompt_tokens=prompt,
            completion_tokens=completion,
        )

    return read_row


FORMAT = BillFormat(
    name="openai-usage",
    provider="openai",
    columns=("start_time", "model", "num_model_requests", "input_tokens", "output_tokens"),
    row_reader=_row_reader,
    period_reader=unix_periods,
    document=Page,
    lines_of=_lines,
    marks=(b"organization.usage.",),
    empty_marks=(b'"bucket"', b'"start_time"', b'"results"'),
)
