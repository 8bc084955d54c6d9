"""`mcpmeter models`."""

import json

import pytest

from mcpmeter.cli._group import run


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_the_default_is_the_guides_list_with_its_recommendations(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models"]) == 0
    rows = {row[0]: row[1:] for line in capsys.readouterr().out.splitlines() if (row := cells(line))}
    assert rows["gpt-4.1"] == ["2.50", "10.00", "8.00", "Complex reasoning, code generation"]
    assert rows["deepseek-v3.2"] == ["0.27", "1.10", "0.42", "Cost optimization, standard tasks"]
    assert "holysheep 2026-11-01" in " ".join(rows)


def test_json_has_the_http_responses_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["models"]
    assert [model["id"] for model in listed] == ["gpt-4.1", "claude-sonnet-4.5", "gemini-2.5-flash", "deepseek-v3.2"]
    assert listed[2]["pricing_per_1m_tokens"] == {"prompt": "0.10", "completion": "0.40", "blended": "2.50"}
    assert listed[2]["recommended_for"] == "High-volume, latency-sensitive tasks"


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4.1"),
        ("anthropic", "claude-sonnet-4-5"),
        ("gemini", "gemini-2.5-flash"),
        ("deepseek", "deepseek-v3.2"),
    ],
)
def test_other_providers_have_prices_of_genai_prices(
    provider: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "--provider", provider, "--json"]) == 0
    listed = {found["id"]: found for found in json.loads(capsys.readouterr().out)["models"]}
    assert listed[model]["price_list"].startswith("genai-prices ")
    assert listed[model]["recommended_for"] == "General purpose"
    assert listed[model]["pricing_per_1m_tokens"]["blended"] is None


def test_models_with_tiers_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--provider", "anthropic"]) == 0
    out = capsys.readouterr().out
    assert "3.00+" in out
    assert "long prompts cost more" in out


def test_an_unknown_provider_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--provider", "opnai"]) == 1
    err = capsys.readouterr().err
    assert "opnai" in err
    assert "holysheep, openai" in err
    assert err.count("\n") == 1
