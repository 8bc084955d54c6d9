"""Anthropic's usage, from the API and from the Console."""

from __future__ import annotations

import pytest
from tests.reconcile.conftest import GOLDEN, at, figures

from mcpmeter.reconcile.bills.base import BillInvalid

SONNET = {
    "at_ns": at("2025-11-01"), "request_id": "", "model": "claude-sonnet-4-5-20250929", "requests": None,
    "prompt_tokens": 1500 + 200 + 1000 + 500, "completion_tokens": 500, "nanousd": None,
}  # fmt: skip


def test_cached_and_uncached_tokens_of_a_page_are_the_prompt(golden) -> None:
    bill, lines = golden("anthropic_usage.json")
    assert (bill.format.name, bill.format.provider) == ("anthropic-usage", "anthropic")
    assert [figures(line) for line in lines] == [SONNET]


def test_the_export_is_summed_like_the_page(golden) -> None:
    bill, lines = golden("anthropic_usage.csv")
    assert bill.format.name == "anthropic-usage"
    totals = {"prompt_tokens": 46_981 + 15_969 + 100 + 7, "completion_tokens": 16_932}
    assert [figures(line) for line in lines] == [{**SONNET, **totals}]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"2025-11-01T00:00:00Z"', b'"soon"', "'soon' is no date"),
        (b'"uncached_input_tokens": 1500', b'"uncached_input_tokens": "1500"', "uncached_input_tokens"),
        (b'"output_tokens": 500,', b"", "output_tokens"),
    ],
)
def test_a_broken_page_is_refused(read_text, old: bytes, new: bytes, message: str) -> None:
    page = (GOLDEN / "anthropic_usage.json").read_bytes()
    with pytest.raises(BillInvalid, match=message):
        read_text(page.replace(old, new, 1))


def test_a_missing_column_is_named(read_text) -> None:
    export = (GOLDEN / "anthropic_usage.csv").read_bytes()
    with pytest.raises(BillInvalid, match="lacks columns of anthropic-usage: 'usage_output_tokens'"):
        read_text(export.replace(b"usage_output_tokens", b"tokens_out", 1))
