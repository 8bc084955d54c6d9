"""The overlay files that come with mcpmeter, against the genai-prices that is installed."""

from __future__ import annotations

from datetime import date
from importlib.resources import files

import pytest

from mcpmeter.pricing.genai import GenaiPrices, genai_providers
from mcpmeter.pricing.overlays import Overlay, bundled_overlays

FILES = [file.name for file in files("mcpmeter.pricing").joinpath("lists", "overlays").iterdir()]
IDS = sorted(name.removesuffix(".toml") for name in FILES if name.endswith(".toml"))


def overlay(provider: str) -> Overlay:
    [found] = bundled_overlays([provider])
    return found


@pytest.mark.parametrize("provider", IDS)
def test_an_entry_names_models_by_id(provider: str) -> None:
    """An entry by another name changes the whole model: gpt-4o-mini-search-preview is a name of gpt-4o-mini."""
    genai = GenaiPrices(genai_providers()[provider])
    named = {model for entry in overlay(provider).price for model in entry.models}
    found = {name: genai.model(name.lower()) for name in named}
    other = {name: model.id for name, model in found.items() if model and model.id.lower() != name.lower()}
    assert other == ({"o3": "o3-2025-04-16"} if provider == "azure" else {})


@pytest.mark.parametrize("provider", IDS)
def test_an_alias_names_a_model_that_has_a_price(provider: str) -> None:
    found = overlay(provider)
    known = {model.id.lower() for model in genai_providers()[provider].models}
    known |= {model for entry in found.price for model in entry.models}
    assert set(found.aliases.values()) <= known


@pytest.mark.parametrize("provider", IDS)
def test_an_entry_is_read_before_it_is_written(provider: str) -> None:
    assert all(date(2026, 11, 1) <= entry.read <= date.today() for entry in overlay(provider).price)
