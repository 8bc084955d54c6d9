"""OpenAI's costs, from the API and from the dashboard."""

from __future__ import annotations

import pytest
from openai.types.admin.organization import UsageCostsResponse
from tests.reconcile.conftest import GOLDEN, at

from mcpmeter.reconcile.bills.base import BillInvalid

GPT = "gpt-4.1-2025-04-14"
FIRST, SECOND = at("2025-11-01"), at("2025-11-02")


def test_the_golden_page_is_one_by_the_official_sdk() -> None:
    page = UsageCostsResponse.model_validate_json((GOLDEN / "openai_costs.json").read_bytes(), strict=True)
    assert page.data[0].results[0].object == "organization.costs.result"


def test_a_page_is_exact_and_zero_amounts_are_no_lines(golden) -> None:
    bill, lines = golden("openai_costs.json")
    assert (bill.format.name, bill.format.provider) == ("openai-costs", "openai")
    assert [(line.at_ns, line.model, line.nanousd) for line in lines] == [
        (FIRST, GPT, 106_880_000),
        (FIRST, GPT, 2_880_000),
        (FIRST, GPT, 85_168_000),
        (SECOND, "web search tool calls", 30_000_000),
    ]
    assert {line.prompt_tokens for line in lines} == {None}
    assert len({line.part for line in lines}) == 4


def test_the_export_has_the_same_lines_and_credits(golden) -> None:
    bill, lines = golden("openai_costs.csv")
    assert bill.format.name == "openai-costs"
    assert [(line.at_ns, line.model, line.nanousd) for line in lines] == [
        (FIRST, GPT, 106_880_000),
        (FIRST, GPT, 2_880_000),
        (FIRST, GPT, 85_168_000),
        (SECOND, "credit", -500_000_000),
    ]


def test_an_export_without_grouping_names_no_model(golden) -> None:
    _, lines = golden("openai_costs_by_day.csv")
    assert [(line.at_ns, line.model, line.nanousd) for line in lines] == [(FIRST, "", 895_874_000)]


@pytest.mark.parametrize("number", [b"0.10688000000000000000001", b'"0.10688"', b"1.0688e-1", b"0.106880000499999999"])
def test_a_number_is_never_a_binary_fraction(read_text, number: bytes) -> None:
    page = (GOLDEN / "openai_costs.json").read_bytes().replace(b"0.10688", number, 1)
    assert read_text(page)[0].nanousd == 106_880_000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"usd"', b'"eur"', "'eur'"),
        (b'"currency": "usd"', b'"currency": null', "only US dollars"),
        (b"0.10688", b'"NaN"', "NaN is no amount"),
        (b"0.10688", b"1e30", "too large"),
    ],
)
def test_an_invalid_amount_is_refused(read_text, old: bytes, new: bytes, message: str) -> None:
    page = (GOLDEN / "openai_costs.json").read_bytes()
    with pytest.raises(BillInvalid, match=message):
        read_text(page.replace(old, new, 1))


def test_another_currency_in_the_export_is_refused_with_its_line(read_text) -> None:
    export = (GOLDEN / "openai_costs.csv").read_bytes()
    with pytest.raises(BillInvalid, match="line 3: the amount is in 'eur'"):
        read_text(export.replace(b",usd,", b",eur,", 1))
