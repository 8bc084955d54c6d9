"""`mcpmeter prices`."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import pytest

from mcpmeter.cli._group import run

PAGE = Path(__file__).parents[2] / "docs" / "prices.md"
DAY = ("--at", "2026-11-30")


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["prices", "show", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def prices(found: dict[str, Any]) -> dict[tuple[str, str, int], str]:
    return {(each["conditions"], each["item"], each["above_prompt_tokens"]): each["usd"] for each in found["prices"]}


@pytest.mark.parametrize(
    ("arguments", "condition", "item", "usd"),
    [
        (("gpt-4.1", "--tier", "priority"), "tier=priority", "prompt", "3.50"),
        (("gpt-5", "--tier", "flex"), "tier=flex", "prompt", "0.625"),
        (("gemini-2.5-flash", "--provider", "gemini", "--tier", "flex"), "tier=flex", "prompt", "0.15"),
        (("claude-sonnet-4-5",), "", "cache_write_1h", "6.00"),
        (("claude-sonnet-4-5",), "", "web_search", "10.00"),
        (("gpt-4.1", "--provider", "openai"), "", "web_search_preview", "25.00"),
        (("gemini-2.5-pro",), "", "grounded_prompt", "35.00"),
        (("gemini-3.8-flash",), "", "web_search", "14.00"),
        (("gpt-4.1", "--provider", "openai"), "", "file_search", "2.50"),
        (("claude-opus-4-8",), "", "completion", "25.00"),
        (("claude-opus-4-8", "--speed", "fast", "--region", "us"), "speed=fast region=us", "prompt", "11.00"),
        (("gpt-6.1-sol", "--completion-window", "8h"), "completion_window=8h", "completion", "6.00"),
        (("gpt-6-astra",), "tier=flex", "cache_write_12h", "12.50"),
        (("gpt-4o", "--provider", "azure-openai"), "", "prompt", "2.50"),
    ],
)
def test_show_prints_the_published_price(
    arguments: tuple[str, ...], condition: str, item: str, usd: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prices(shown(capsys, *arguments, *DAY))[condition, item, 0] == usd


def test_show_has_bands_and_the_day_of_a_change(capsys: pytest.CaptureFixture[str]) -> None:
    found = prices(shown(capsys, "gpt-6.2-sol", "--tier", "ultrafast", *DAY))
    assert found["tier=ultrafast", "prompt", 0] == "6.00"
    assert found["tier=ultrafast", "completion", 272_000] == "45.00"
    later = prices(shown(capsys, "gpt-6.2-sol", "--tier", "ultrafast", "--at", "2027-03-01"))
    assert later["tier=ultrafast", "prompt", 0] == "12.00"


def test_show_takes_the_hour_into_account(capsys: pytest.CaptureFixture[str]) -> None:
    monday, sunday = "2026-11-30T02:00", "2026-11-29T02:00"
    assert prices(shown(capsys, "deepseek-v4-pro", "--at", monday))["", "completion", 0] == "3.96"
    assert prices(shown(capsys, "deepseek-v4-pro", "--at", sunday))["", "completion", 0] == "1.98"


def test_show_names_list_source_and_day(capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(capsys, "claude-opus-5-5", "--region", "us", *DAY)
    assert found["price_list"].startswith("genai-prices ")
    [entry] = [entry for entry in found["sources"] if entry["conditions"] == "region=us"]
    assert entry["source"].startswith("https://platform.claude.com/")
    assert entry["read"] == "2026-11-30"
    assert run(["prices", "show", "claude-opus-5-5", "--region", "us", *DAY]) == 0
    out = capsys.readouterr().out
    assert entry["source"] in out
    assert "region=us" in out


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """A configuration with a list and an overlay of its own."""
    (tmp_path / "own.toml").write_text(
        'name = "own"\ncurrency = "USD"\n[[price]]\nmodel = "our-model"\nfrom = 2026-01-01\n'
        'prompt = "3"\ncompletion = "9"\n'
    )
    (tmp_path / "contract.toml").write_text(
        'provider = "openai"\n[[price]]\nmodels = ["gpt-4.1"]\nfrom = 2026-11-01\nwhen = {tier = "priority"}\n'
        'times = "1.9"\nsource = "contract 7"\nread = 2026-11-01\n'
    )
    config = tmp_path / "mcpmeter.yaml"
    config.write_text(
        "providers:\n"
        "  - {name: ours, type: generic, base_url: 'http://127.0.0.1:9', price_list: own}\n"
        "  - {name: openai, api_key: sk-0123456789abcdef0123456789abcdef}\n"
        "pricing: {files: [own.toml, contract.toml]}\n"
    )
    return config


def test_show_reads_the_files_of_a_configuration(configured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ("--config", str(configured))
    listed = shown(capsys, "our-model", *config, *DAY)
    assert (listed["provider"], prices(listed)["", "completion", 0]) == ("ours", "9.00")
    contract = shown(capsys, "gpt-4.1", "--tier", "priority", *config, *DAY)
    assert prices(contract)["tier=priority", "prompt", 0] == "3.80"
    assert "contract 7" in [source["source"] for source in contract["sources"]]
    assert shown(capsys, "claude-opus-4-8", *config, *DAY)["provider"] == "anthropic"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpt-5", "--tier", "ultrafast"), "'gpt-5' has no price with tier=ultrafast at openai"),
        (("gtp-5",), "No price for 'gtp-5'; nearest: gpt-5"),
        (("gpt-5", "--provider", "opneai"), "No prices for a provider 'opneai'"),
    ],
)
def test_show_says_what_has_no_price(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["prices", "show", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_show_refuses_what_is_no_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prices", "show", "gpt-5", "--at", "yesterday"]) == 2
    assert "is no date" in capsys.readouterr().err


@pytest.fixture
def litellm(tmp_path: Path) -> Path:
    """A map in LiteLLM's shape, for models that genai-prices has too."""
    entries = {
        "gpt-5": {"litellm_provider": "openai", "input_cost_per_token": 1.25e-06, "input_cost_per_token_flex": 7e-07},
        "groq/openai/gpt-oss-safeguard-20b": {
            "litellm_provider": "groq",
            "input_cost_per_token": 7.5e-08,
            "cache_read_input_token_cost": 3.7e-08,
        },
        "deepseek/deepseek-v4-pro": {"litellm_provider": "deepseek", "output_cost_per_token": 1.98e-06},
        "gemini/gemini-2.5-pro": {
            "litellm_provider": "gemini",
            "input_cost_per_token": 1,
            "deprecation_date": "2026-10-16",
        },
        "acme/own-model": {"litellm_provider": "openai", "input_cost_per_token": 1},
    }
    file = tmp_path / "model_prices_and_context_window_backup.json"
    file.write_text(json.dumps(entries))
    return file


def test_diff_prints_differences_with_reason_or_unknown(litellm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prices", "diff", "--litellm", str(litellm), *DAY, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["models"], found["unknown"]) == (3, 1)
    rows = {(row["model"], row["item"], row["conditions"]): row for row in found["differences"]}
    flex = rows["gpt-5", "prompt", "tier=flex"]
    assert (flex["ours"], flex["theirs"], flex["map"], flex["reason"]) == ("0.625", "0.70", "litellm", None)
    assert rows["openai/gpt-oss-safeguard-20b", "cached_read", ""]["reason"] == "LiteLLM rounds 0.0375"
    assert run(["prices", "diff", "--litellm", str(litellm), *DAY]) == 1
    assert re.search(r"openai +gpt-5 +prompt \(tier=flex\) +0.625 +0.70 +litellm +unknown", capsys.readouterr().out)


def test_diff_of_one_provider_passes_without_a_difference(litellm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prices", "diff", "--litellm", str(litellm.parent), *DAY, "--provider", "deepseek"]) == 0
    assert "1 models and 4 prices compared, 0 differences" in capsys.readouterr().out


def test_diff_reads_a_genai_prices_apart(litellm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apart = str(distribution("genai-prices").locate_file(""))
    assert run(["prices", "diff", "--litellm", str(litellm), "--genai-prices", apart, *DAY, "--provider", "groq"]) == 0
    assert f"genai-prices {version('genai-prices')} and litellm unknown version: 1 models" in capsys.readouterr().out


def test_diff_says_that_a_reason_is_stale(litellm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prices", "diff", "--litellm", str(litellm), *DAY]) == 1
    assert "Explains nothing any more: mistral open-mistral-nemo" in capsys.readouterr().err


def test_diff_writes_its_table_between_the_marks(litellm: Path, tmp_path: Path) -> None:
    page = tmp_path / "prices.md"
    marks = re.findall(r"<!-- (?:begin|end): mcpmeter prices diff -->", PAGE.read_text(encoding="utf-8"))
    page.write_text(f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
    run(["prices", "diff", "--litellm", str(litellm), *DAY, "--provider", "groq", "--write", str(page)])
    lines = page.read_text().splitlines()
    cells = ("groq", "`openai/gpt-oss-safeguard-20b`", "cached_read: ours 0.0375, theirs 0.037", "litellm")
    assert f"| {' | '.join(cells)} | LiteLLM rounds 0.0375 |" in lines
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines


def test_diff_needs_a_place_for_its_table_and_a_map(
    litellm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks")
    assert run(["prices", "diff", "--litellm", str(litellm), *DAY, "--write", str(page)]) == 1
    assert "has no place for the table" in capsys.readouterr().err
    assert run(["prices", "diff", "--litellm", str(tmp_path / "nowhere")]) == 1
    assert "--litellm PATH" in capsys.readouterr().err
    assert run(["prices", "diff", "--litellm", str(litellm), "--genai-prices", str(tmp_path)]) == 1
    assert "--genai-prices PATH" in capsys.readouterr().err


@pytest.mark.trial
def test_the_page_has_the_differences_of_today(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    stamp = re.search(r"Prices of (?P<day>\S+) against genai-prices (?P<genai>\S+) and litellm (?P<litellm>\S+):", text)
    assert stamp is not None
    try:
        installed = (version("genai-prices"), version("litellm"))
    except PackageNotFoundError:
        pytest.skip("LiteLLM is not installed")
    if installed != (stamp["genai"], stamp["litellm"]):
        pytest.skip(f"the page is of genai-prices {stamp['genai']} and litellm {stamp['litellm']}")
    page = tmp_path / "prices.md"
    page.write_text(text, encoding="utf-8")
    assert run(["prices", "diff", "--at", stamp["day"], "--write", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == text
