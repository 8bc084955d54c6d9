"""`mcpmeter cost`."""

import json

import pytest

from mcpmeter.cli._group import run


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def rows(out: str) -> list[list[str]]:
    return [
        cells for line in out.splitlines() if (cells := [cell.strip() for cell in line.split("  ") if cell.strip()])
    ]


def test_compare_reproduces_the_guides_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cost", "compare", "--tokens", "10M"]) == 0
    table = [row[:3] for row in rows(capsys.readouterr().out) if row[-1][0].isupper()]
    assert table == [
        ["deepseek-v3.2", "4.20", "97 %"],
        ["gemini-2.5-flash", "25.00", "83 %"],
        ["gpt-4.1", "80.00", "47 %"],
        ["claude-sonnet-4.5", "150.00", "0 %"],
    ]


def test_compare_shows_a_second_currency(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cost", "compare", "--tokens", "10M", "--currency", "CNY", "--rate", "7.1"]) == 0
    out = capsys.readouterr().out
    assert "cost (CNY)" in out
    assert ["claude-sonnet-4.5", "150.00", "1,065.00", "0 %"] in [row[:4] for row in rows(out)]


def test_compare_in_json_has_amounts_as_strings(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cost", "compare", "--tokens", "10M", "--currency", "CNY", "--rate", "7.1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == 10_000_000
    assert [(m["id"], m["cost_usd"], m["cost_in_currency"], m["saving_percent"]) for m in found["models"]] == [
        ("deepseek-v3.2", "4.20", "29.82", "97"),
        ("gemini-2.5-flash", "25.00", "177.50", "83"),
        ("gpt-4.1", "80.00", "568.00", "47"),
        ("claude-sonnet-4.5", "150.00", "1065.00", "0"),
    ]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("10M", 10**7),
        ("250k", 250_000),
        ("1_000_000", 10**6),
        ("1.5M", 1_500_000),
        ("2b", 2 * 10**9),
        ("7", 7),
        ("0", 0),
    ],
)
def test_token_counts_may_have_units(text: str, tokens: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cost", "compare", "--tokens", text, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == tokens


@pytest.mark.parametrize(
    "text", ["ten", "", "1.5", "0.0001k", "-5", "+5", "1e6", "1__0", "10MM", "10 M", "٣", "9" * 100, "2000000B", "NaN"]
)
def test_a_bad_token_count_is_wrong_usage_with_an_example(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cost", "compare", f"--tokens={text}"]) == 2
    assert "1_000_000, 250k or 1.5M" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "options",
    [
        ["--currency", "CNY"],
        ["--rate", "7.1"],
        ["--currency", "yuan", "--rate", "7.1"],
        ["--currency", "CNY", "--rate", "0"],
        ["--currency", "CNY", "--rate", "-7"],
        ["--currency", "CNY", "--rate", "inf"],
    ],
)
def test_a_currency_needs_a_code_and_a_rate(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cost", "compare", "--tokens", "1M", *options]) == 2
    assert "for example" in " ".join(capsys.readouterr().err.split())


def test_a_small_amount_is_not_rounded_to_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cost", "compare", "--tokens", "1k"]) == 0
    assert ["deepseek-v3.2", "0.00042", "97 %"] in [row[:3] for row in rows(capsys.readouterr().out)]


def test_without_blended_prices_the_error_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cost", "compare", "--tokens", "1M", "--provider", "openai"]) == 1
    assert "mcpmeter cost estimate" in capsys.readouterr().err


def test_estimate_uses_prompt_and_completion_prices(capsys: pytest.CaptureFixture[str]) -> None:
    call = ["cost", "estimate", "--model", "gpt-4.1", "--prompt-tokens", "1200", "--completion-tokens", "400"]
    assert run(call) == 0
    assert capsys.readouterr().out.startswith("$0.007 for 1,200 prompt and 400 completion tokens of gpt-4.1")
    assert run([*call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "provider": "holysheep",
        "model": "gpt-4.1",
        "prompt_tokens": 1200,
        "completion_tokens": 400,
        "cost_usd": "0.007",
        "price_list": "holysheep 2026-11-01",
    }


def test_estimate_applies_the_tier_of_a_long_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    call = ["cost", "estimate", "--provider", "anthropic", "--model", "claude-sonnet-4-5-20250929"]
    assert run([*call, "--prompt-tokens", "250k", "--completion-tokens", "1k", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost_usd"] == "1.5225"


def test_a_model_without_a_price_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    call = ["cost", "estimate", "--prompt-tokens", "1", "--completion-tokens", "1", "--model"]
    assert run([*call, "gpt4.1"]) == 1
    err = capsys.readouterr().err
    assert "no price for 'gpt4.1' at 'holysheep'; nearest: gpt-4.1." in err
    assert err.count("\n") == 1
    assert run([*call, "\ud800" * 500]) == 1
    assert "nearest: none" in capsys.readouterr().err
