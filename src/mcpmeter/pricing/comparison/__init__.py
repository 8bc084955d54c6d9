"""Our prices against the price maps of other projects, item by item.

Owns the reading of the maps of genai-prices and LiteLLM, and the reasons of known differences (`differences.toml`).
It changes no price: a map is an opinion to check ours by, never a source.

Invariants: no map's code runs in this process; amounts are exact decimals; a price of zero in a map is no price, since
both use it for `none`.
"""

from mcpmeter.pricing.comparison.differences import Comparison, Difference, Reason, common_models, compare
from mcpmeter.pricing.comparison.genai_map import read_genai_prices
from mcpmeter.pricing.comparison.litellm_map import read_litellm
from mcpmeter.pricing.comparison.price_map import MapModel, PriceKey, PriceMap, Prices

__all__ = [
    "Comparison",
    "Difference",
    "MapModel",
    "PriceKey",
    "PriceMap",
    "Prices",
    "Reason",
    "common_models",
    "compare",
    "read_genai_prices",
    "read_litellm",
]
