"""OpenAI's usage, from the API and from the dashboard."""

from __future__ import annotations

import pytest
from openai.types.admin.organization import UsageCompletionsResponse
from tests.reconcile.conftest import GOLDEN, at, figures

from mcpmeter.reconcile.bills.base import BillInvalid

SEARCH = {
    "at_ns": at("2025-11-01"), "request_id": "", "model": "gpt-4.1-2025-04-14", "requests": 10,
    "prompt_tokens": 59_200, "completion_tokens": 10_646, "nanousd": None,
}  # fmt: skip
MINI = {
    **SEARCH,
    "model": "gpt-5-mini-2025-08-07",
    "requests": 21,
    "prompt_tokens": 80_992,
    "completion_tokens": 27_477,
}
EMBEDDED = {
    **SEARCH, "at_ns": at("2025-11-03"), "model": "text-embedding-3-small", "requests": 3, "prompt_tokens": 1200,
    "completion_tokens": 0,
}  # fmt: skip


def test_the_golden_page_is_one_by_the_official_sdk() -> None:
    page = UsageCompletionsResponse.model_validate_json((GOLDEN / "openai_usage.json").read_bytes(), strict=True)
    assert page.data[0].results[0].object == "organization.usage.completions.result"


def test_a_page_gives_one_line_per_result(golden) -> None:
    bill, lines = golden("openai_usage.json")
    assert (bill.format.name, bill.format.provider) == ("openai-usage", "openai")
    assert [figures(line) for line in lines] == [SEARCH, MINI, EMBEDDED]
    assert bill.location(lines[2].line).endswith("openai_usage.json, result 3")


def test_the_export_has_the_same_lines_and_skips_empty_days(golden) -> None:
    bill, lines = golden("openai_usage.csv")
    assert bill.format.name == "openai-usage"
    assert [figures(line) for line in lines] == [SEARCH, MINI]
    assert bill.location(lines[1].line).endswith("openai_usage.csv, line 3")


def test_lines_of_one_model_and_day_differ_by_project_and_tier(golden) -> None:
    _, lines = golden("openai_usage.csv")
    assert "proj_4BhNtYH0z7dWbBtzhibxa65W" in lines[0].part
    assert "default" in lines[0].part


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"input_tokens": 59200', b'"input_tokens": -1', "input_tokens"),
        (b'"input_tokens": 59200', b'"input_tokens": 1.5', "input_tokens"),
        (b'"start_time": 1761955200', b'"start_time": "yesterday"', "start_time"),
        (b'"start_time": 1761955200', b'"start_time": 99999999999', "start_time"),
        (b'"gpt-4.1-2025-04-14"', rb'"gpt\u001b[2J"', "no model name"),
        (b'"has_more": true', b'"has_more": tru', "JSON is malformed"),
    ],
)
def test_a_malformed_page_is_refused_with_file_and_line(read_text, old: bytes, new: bytes, message: str) -> None:
    page = (GOLDEN / "openai_usage.json").read_bytes()
    with pytest.raises(BillInvalid, match=message):
        read_text(page.replace(old, new, 1))
