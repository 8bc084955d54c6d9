"""LiteLLM's price map: which of its fields mean what, and when they hold."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mcpmeter.errors import SetupError
from mcpmeter.pricing.comparison import MapModel, PriceKey, read_litellm

MONDAY = datetime(2026, 11, 30, tzinfo=UTC)


def read(folder: Path, name: str, entry: dict[str, Any], at: datetime = MONDAY) -> dict[str, dict[str, MapModel]]:
    (folder / "model_prices_and_context_window_backup.json").write_text(json.dumps({name: entry}))
    return read_litellm(folder, at).providers


def prices(folder: Path, entry: dict[str, Any], at: datetime = MONDAY) -> dict[PriceKey, Decimal]:
    return read(folder, "m", {"litellm_provider": "openai", **entry}, at)["openai"]["m"].prices


def test_tokens_are_per_million_and_fees_per_thousand(tmp_path: Path) -> None:
    found = prices(
        tmp_path,
        {
            "input_cost_per_token": 2.5e-06,
            "output_cost_per_audio_token": 8e-05,
            "cache_creation_input_token_cost_above_1hr": 5e-06,
            "search_context_cost_per_query": {"search_context_size_low": 0.01, "search_context_size_high": 0.025},
        },
    )
    assert found == {
        PriceKey("prompt"): Decimal("2.5"),
        PriceKey("completion_audio"): Decimal(80),
        PriceKey("cache_write_1h"): Decimal(5),
        PriceKey("web_search"): Decimal(25),
    }


def test_suffixes_are_conditions_and_bands(tmp_path: Path) -> None:
    found = prices(
        tmp_path,
        {
            "input_cost_per_token_flex": 1e-06,
            "output_cost_per_token_batches": 2e-06,
            "cache_read_input_token_cost_above_272k_tokens_priority": 3e-06,
        },
    )
    assert found == {
        PriceKey("prompt", "tier=flex"): Decimal(1),
        PriceKey("completion", "batch"): Decimal(2),
        PriceKey("cached_read", "tier=priority", 272_000): Decimal(3),
    }


def test_multipliers_are_prices_under_their_condition(tmp_path: Path) -> None:
    found = prices(
        tmp_path,
        {
            "input_cost_per_token": 1e-05,
            "regional_processing_uplift_multiplier_eu": 1.1,
            "provider_specific_entry": {"us": 1.1, "fast": 2},
            "search_context_cost_per_query": {"search_context_size_low": 0.01},
        },
    )
    assert found[PriceKey("prompt", "region=eu")] == found[PriceKey("prompt", "region=us")] == Decimal(11)
    assert found[PriceKey("prompt", "speed=fast")] == Decimal(20)
    assert [key for key in found if key.item == "web_search"] == [PriceKey("web_search")]


@pytest.mark.parametrize(
    ("at", "price"),
    [
        (datetime(2026, 11, 30, 0, 30, tzinfo=UTC), 1),
        (datetime(2026, 11, 30, 2, 0, tzinfo=UTC), 2),
        (datetime(2026, 11, 28, 2, 0, tzinfo=UTC), 1),
    ],
)
def test_off_peak_prices_hold_in_their_windows(tmp_path: Path, at: datetime, price: int) -> None:
    windows = [
        {"hours_utc": ["00:00-01:00", "10:00-00:00"], "weekdays": [1, 2, 3, 4, 5]},
        {"hours_utc": "00:00-00:00", "weekdays": [6, 7]},
    ]
    entry = {"input_cost_per_token": 2e-06, "off_peak_pricing": {"input_cost_per_token": 1e-06, "windows": windows}}
    assert prices(tmp_path, entry, at) == {PriceKey("prompt"): Decimal(price)}


def test_zero_is_no_price_and_a_past_day_is_deprecated(tmp_path: Path) -> None:
    entry = {"litellm_provider": "gemini", "input_cost_per_token": 1e-06, "output_cost_per_token": 0.0}
    found = read(tmp_path, "gemini/m", {**entry, "deprecation_date": "2026-11-30"})["gemini"]["m"]
    assert found == MapModel({PriceKey("prompt"): Decimal(1)}, deprecated=True)
    assert not read(tmp_path, "gemini/m", {**entry, "deprecation_date": "2026-12-01"})["gemini"]["m"].deprecated


def test_strange_entries_are_skipped_and_a_strange_file_is_refused(tmp_path: Path) -> None:
    strange = {"input_cost_per_token": "a", "output_cost_per_token": None, "tiered_pricing": [7, {"range": []}]}
    assert read(tmp_path, "m", {"litellm_provider": "openai", **strange})["openai"] == {}
    (tmp_path / "model_prices_and_context_window_backup.json").write_text("[]")
    with pytest.raises(SetupError, match="not LiteLLM's price map"):
        read_litellm(tmp_path, MONDAY)
    with pytest.raises(SetupError, match="No litellm/"):
        read_litellm(tmp_path / "nowhere", MONDAY)
