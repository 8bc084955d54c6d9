"""A file of prices of either kind: a price list, or an overlay."""

from __future__ import annotations

from importlib.resources.abc import Traversable
from pathlib import Path

from mcpmeter.pricing import list_files
from mcpmeter.pricing.overlays import Overlay, parse_overlay
from mcpmeter.pricing.price_list import PriceList, parse_price_list


def load_price_file(file: Traversable | Path) -> PriceList | Overlay:
    """Load a file: an overlay names a `provider`, a list does not. Raises ConfigInvalid."""
    text, origin = list_files.read_text(file), str(file)
    is_overlay = "provider" in list_files.parse_toml(text, origin)
    return parse_overlay(text, origin) if is_overlay else parse_price_list(text, origin)
