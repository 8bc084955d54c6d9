"""OpenRouter's activity, by day from the API and by request from the page."""

from __future__ import annotations

import pytest
from tests.reconcile.conftest import GOLDEN, at, figures

from mcpmeter.reconcile.bills.base import BillInvalid


def test_the_api_has_tokens_and_dollars_by_day(golden) -> None:
    bill, lines = golden("openrouter.json")
    assert (bill.format.name, bill.format.provider) == ("openrouter", "openrouter")
    assert [figures(line) for line in lines] == [
        {
            "at_ns": at("2025-11-01"), "request_id": "", "model": "openai/gpt-4.1-2025-04-14", "requests": 5,
            "prompt_tokens": 50, "completion_tokens": 125, "nanousd": 15_000_000,
        },
        {
            "at_ns": at("2025-11-02"), "request_id": "", "model": "deepseek/deepseek-v3.2-20251201", "requests": 1,
            "prompt_tokens": 12, "completion_tokens": 9, "nanousd": 14_000,
        },
    ]  # fmt: skip


def test_the_export_has_one_line_per_request(golden) -> None:
    bill, lines = golden("openrouter.csv")
    assert bill.format.name == "openrouter"
    assert [(line.request_id, line.prompt_tokens, line.completion_tokens, line.nanousd) for line in lines] == [
        ("gen-1762000417-NEpXKqXYIDjS7TmNrT9j", 10_389, 137, 12_300_000),
        ("gen-1762000420-bQ2vU0m3cWvRk9yFh1Ls", 0, 0, 0),
    ]
    assert lines[0].at_ns == at("2025-11-01T12:33:37") + 40 * 10**6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"0.0123", b"$0.0123", r"line 2: '\$0.0123' is no amount"),
        (b"0.0123", b"0,0123", "line 2: 25 cells under 24 columns"),
        (b"10389", b"10.5", "line 2: '10.5' is no whole number"),
        (b"10389", b"-1", "line 2: '-1' is no whole number"),
        (b"2025-11-01 12:33:37.040", b"01/11/2025", "line 2: '01/11/2025' is no date"),
        (b"gen-1762000417-NEpXKqXYIDjS7TmNrT9j", b"gen\x00", "line 2: .* is no request id"),
        (b"openai/gpt-4.1-2025-04-14", b"\xff", "line 2: not UTF-8"),
        (b"gen-1762000420", b'"gen-1762000420', "line 3: unexpected end of data"),
    ],
)
def test_a_malformed_line_is_refused(read_text, old: bytes, new: bytes, message: str) -> None:
    export = (GOLDEN / "openrouter.csv").read_bytes()
    with pytest.raises(BillInvalid, match=message):
        read_text(export.replace(old, new, 1))
