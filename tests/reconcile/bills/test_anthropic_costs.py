"""Anthropic's costs, from the API and from the Console."""

from __future__ import annotations

import pytest
from tests.reconcile.conftest import GOLDEN, at

from mcpmeter.reconcile.bills.anthropic_costs import id_of
from mcpmeter.reconcile.bills.base import BillInvalid


def test_page_amounts_are_cents_and_descriptions_replace_models(golden) -> None:
    bill, lines = golden("anthropic_costs.json")
    assert (bill.format.name, bill.format.provider) == ("anthropic-costs", "anthropic")
    assert [(line.at_ns, line.model, line.nanousd) for line in lines] == [
        (at("2025-11-01"), "claude-sonnet-4-5-20250929", 1_237_891_200),
        (at("2025-11-01"), "Web Search Usage", 100_000_000),
    ]


def test_the_export_is_in_dollars_with_printed_model_names(golden) -> None:
    bill, lines = golden("anthropic_costs.csv")
    assert bill.format.name == "anthropic-costs"
    assert [(line.at_ns, line.model, line.nanousd) for line in lines] == [
        (at("2025-11-01"), "claude-haiku-4-5", 50_000_000),
        (at("2025-11-01"), "claude-haiku-4-5", 20_000_000),
        (at("2025-11-02"), "web_search", 100_000_000),
    ]


@pytest.mark.parametrize(
    ("printed", "model"),
    [
        ("Claude Opus 4.6", "claude-opus-4-6"),
        ("Claude Sonnet 5", "claude-sonnet-5"),
        ("Claude 3.5 Haiku", "claude-3-5-haiku"),
        ("claude-opus-4-6", "claude-opus-4-6"),
        ("Code Execution", "Code Execution"),
    ],
)
def test_a_printed_model_name_becomes_an_id(printed: str, model: str) -> None:
    assert id_of(printed) == model


def test_another_currency_is_refused(read_text) -> None:
    page = (GOLDEN / "anthropic_costs.json").read_bytes()
    with pytest.raises(BillInvalid, match="'EUR'"):
        read_text(page.replace(b'"USD"', b'"EUR"', 1))
