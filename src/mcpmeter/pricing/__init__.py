"""What model calls cost: dated price lists, looked up by exact names, charged in integers.

A `PriceBook` holds lists and, for each provider, where its prices come from. Names that no list prints are unpriced:
see `names` for the rule, `genai` for what genai-prices can and cannot say, `lists/README.md` for the files' format.
"""

from mcpmeter.money import MAX_NANOUSD, format_usd, nanousd_to_usd, plain_usd, usd_to_nanousd
from mcpmeter.pricing.book import ModelPrice, PriceBook, PriceSource
from mcpmeter.pricing.price_list import PriceEntry, PriceList, bundled_price_lists, load_price_list, parse_price_list
from mcpmeter.pricing.rates import RateBand, Rates

__all__ = [
    "MAX_NANOUSD",
    "ModelPrice",
    "PriceBook",
    "PriceEntry",
    "PriceList",
    "PriceSource",
    "RateBand",
    "Rates",
    "bundled_price_lists",
    "format_usd",
    "load_price_list",
    "nanousd_to_usd",
    "parse_price_list",
    "plain_usd",
    "usd_to_nanousd",
]
