"""OpenAI's usage: tokens by day or hour and model, without cost.

JSON is the response of `GET /v1/organization/usage/completions` (and `…/embeddings`): buckets of results, described in
the official SDK, openai-python `types/admin/organization/usage_completions_response.py`, and at
https://platform.openai.com/docs/api-reference/usage. `input_tokens` counts cached and cache-write tokens too.
CSV is the export of https://platform.openai.com/usage: one column per field, one line per result.
"""

from __future__ import annotations

import msgspec

from mcpmeter.reconcile.bills.base import (
    BillFormat,
    Cells,
    Columns,
    Count,
    Page,
    ReadRow,
    UnixBucket,
    bucket_lines,
    count,
    joined,
    model,
    unix_periods,
    unix_seconds,
)
from mcpmeter.reconcile.lines import BillLine

_DIMENSIONS = ("project_id", "user_id", "api_key_id", "batch", "service_tier", "api_source")


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One group of a bucket. Results without tokens (images, seconds) count for their requests."""

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


def _line(number: int, since_ns: int, result: Result) -> BillLine | None:
    if not (result.num_model_requests or result.input_tokens or result.output_tokens):
        return None
    return BillLine(
        number,
        since_ns,
        model=model(result.model or ""),
        part="|".join([result.object, *(str(getattr(result, name)) for name in _DIMENSIONS)]),
        requests=result.num_model_requests,
        prompt_tokens=result.input_tokens,
        completion_tokens=result.output_tokens,
    )


def _row_reader(columns: Columns) -> ReadRow:
    start, name = columns.index("start_time"), columns.index("model")
    requests, read, written = (
        columns.index(column) for column in ("num_model_requests", "input_tokens", "output_tokens")
    )
    dimensions = columns.indexes(*_DIMENSIONS)

    def read_row(number: int, cells: Cells) -> BillLine | None:
        calls, prompt, completion = count(cells[requests]), count(cells[read]), count(cells[written])
        if not (calls or prompt or completion):  # days without use have a line as well
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
    document=Page[UnixBucket[Result]],
    lines_of=bucket_lines(_line),
    marks=(b"organization.usage.",),
    empty_marks=(b'"bucket"', b'"start_time"', b'"results"'),
)
