"""Anthropic's usage: tokens by day or hour and model, without cost and without a count of requests.

JSON is the response of `GET /v1/organizations/usage_report/messages`, described at
https://platform.claude.com/docs/en/api/admin/usage_report/retrieve_messages. CSV is the export of the Console's Usage
page (https://platform.claude.com/usage), whose columns are `usage_date_utc`, `model_version`, `usage_…`. Days are UTC.
Uncached, cache-read and cache-write tokens are separate; their sum is the ledger's prompt tokens.
"""

from __future__ import annotations

import msgspec

from mcpmeter.reconcile.bills.base import (
    BillFormat,
    Cells,
    Columns,
    Count,
    IsoBucket,
    Page,
    ReadPeriod,
    ReadRow,
    bucket_lines,
    count,
    instant,
    joined,
    model,
)
from mcpmeter.reconcile.lines import BillLine, Period

_DIMENSIONS = ("api_key_id", "workspace_id", "service_tier", "context_window", "inference_geo", "speed")
_CSV_DIMENSIONS = ("api_key", "workspace", "usage_type", "context_window", "inference_geo", "speed")
_PROMPT_COLUMNS = (
    "usage_input_tokens_no_cache",
    "usage_input_tokens_cache_write_5m",
    "usage_input_tokens_cache_write_1h",
    "usage_input_tokens_cache_read",
)


class CacheCreation(msgspec.Struct, frozen=True):
    """Tokens written to the cache, by lifetime."""

    ephemeral_1h_input_tokens: Count = 0
    ephemeral_5m_input_tokens: Count = 0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One group of a bucket."""

    uncached_input_tokens: Count
    output_tokens: Count
    cache_read_input_tokens: Count = 0
    cache_creation: CacheCreation = CacheCreation()
    model: str | None = None
    api_key_id: str | None = None
    workspace_id: str | None = None
    service_tier: str | None = None
    context_window: str | None = None
    inference_geo: str | None = None
    speed: str | None = None


def _line(number: int, since_ns: int, result: Result) -> BillLine | None:
    written = result.cache_creation.ephemeral_1h_input_tokens + result.cache_creation.ephemeral_5m_input_tokens
    prompt = result.uncached_input_tokens + result.cache_read_input_tokens + written
    if not (prompt or result.output_tokens):
        return None
    return BillLine(
        number,
        since_ns,
        model=model(result.model or ""),
        part="|".join(["usage", *(str(getattr(result, name)) for name in _DIMENSIONS)]),
        prompt_tokens=prompt,
        completion_tokens=result.output_tokens,
    )


def _row_reader(columns: Columns) -> ReadRow:
    day, name, written = (columns.index(c) for c in ("usage_date_utc", "model_version", "usage_output_tokens"))
    prompts = [columns.index(column) for column in _PROMPT_COLUMNS]
    dimensions = columns.indexes(*_CSV_DIMENSIONS)

    def read_row(number: int, cells: Cells) -> BillLine | None:
        prompt, completion = sum(count(cells[index]) for index in prompts), count(cells[written])
        if not (prompt or completion):
            return None
        return BillLine(
            number,
            instant(cells[day]),
            model=model(cells[name]),
            part="usage|" + joined(cells, dimensions),
            prompt_tokens=prompt,
            completion_tokens=completion,
        )

    return read_row


def _period_reader(columns: Columns) -> ReadPeriod:
    day = columns.index("usage_date_utc")
    return lambda cells: Period(instant(cells[day]))


FORMAT = BillFormat(
    name="anthropic-usage",
    provider="anthropic",
    columns=("usage_date_utc", "model_version", *_PROMPT_COLUMNS, "usage_output_tokens"),
    row_reader=_row_reader,
    period_reader=_period_reader,
    document=Page[IsoBucket[Result]],
    lines_of=bucket_lines(_line),
    marks=(b'"uncached_input_tokens"', b'"starting_at"'),
    empty_marks=(b'"starting_at"', b'"results"'),
)
