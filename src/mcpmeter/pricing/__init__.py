"""What model calls cost: dated price lists, exact names, integer arithmetic.

A `PriceBook` holds the lists and, per provider, the sources of its prices; `charge_for` prices a call. A plain call is
a handful of multiplications in `rates`; one with items or conditions gets a bill of `lines`, at rates that `patches`
makes of genai-prices and the overlays; `bounds` has the most that a call can cost. The package owns no tokens and no
limits: usage comes from dialects, budgets decide what a call may cost.

Invariants: money is never a float and is rounded once; a name that no list prints is unpriced, never guessed or free;
nothing a client or provider sends makes a charge raise. `names` has the rule for names, `genai` the gaps of
genai-prices, `lists/README.md` the formats of files.
"""

from mcpmeter.money import MAX_NANOUSD, format_usd, nanousd_to_usd, plain_usd, usd_to_nanousd
from mcpmeter.pricing.book import ModelPrice, PriceBook, PriceSource
from mcpmeter.pricing.overlays import Overlay
from mcpmeter.pricing.price_files import load_price_file
from mcpmeter.pricing.price_list import PriceEntry, PriceList, bundled_price_lists, load_price_list, parse_price_list
from mcpmeter.pricing.rates import RateBand, Rates

__all__ = [
    "MAX_NANOUSD",
    "ModelPrice",
    "Overlay",
    "PriceBook",
    "PriceEntry",
    "PriceList",
    "PriceSource",
    "RateBand",
    "Rates",
    "bundled_price_lists",
    "format_usd",
    "load_price_file",
    "load_price_list",
    "nanousd_to_usd",
    "parse_price_list",
    "plain_usd",
    "usd_to_nanousd",
]
