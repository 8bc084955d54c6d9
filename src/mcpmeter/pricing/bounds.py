"""The most that a call can cost: whatever its items, and under whatever conditions its request can be served."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Final

from mcpmeter.items import ITEMS
from mcpmeter.pricing.patches import known_values, under
from mcpmeter.pricing.rates import SCALED_NANOUSD, Rates, amount_of
from mcpmeter.records import Conditions, UsageItem

_MAX_VALUES: Final = 8


class Bound:
    """The rates that can apply to a request of one model, since the answer decides which ones do.

    The standard rates always can, and the requested conditions. A region can without being requested: an account's
    default may set it. A requested tier or speed without a price can be served as any that has one.
    """

    def __init__(self, rates: Rates, conditions: Conditions) -> None:
        found = [under(rates, candidate) for candidate in _candidates(rates, conditions)]
        self._rates = tuple(priced for priced, unknown in found if not unknown)
        self._is_open = any(unknown for _, unknown in found)

    def max_cost_nanousd(self, prompt_tokens: int, completion_tokens: int) -> int | None:
        """The most that at most so many tokens can cost. None if a rate is missing."""
        costs = [rates.max_cost_nanousd(prompt_tokens, completion_tokens) for rates in self._rates]
        known = [cost for cost in costs if cost is not None]
        return max(known) if known and len(known) == len(costs) else None

    def may_be_unpriced(self, prompt_tokens: int, completion_tokens: int) -> bool:
        """Whether the answer can turn out to have no price, so that the fallback price counts."""
        sides = [side for side, tokens in (("prompt", prompt_tokens), ("completion", completion_tokens)) if tokens]
        bands = [band for rates in self._rates for band in rates.bands]
        return self._is_open or any(getattr(band, side) is None for band in bands for side in sides)

    def max_items_nanousd(self, items: Iterable[UsageItem], fallback: Callable[[str, int], int]) -> int:
        """The most that so many items can cost; those without a price at the fallback price."""
        return sum(self._max_item(item, fallback) for item in items)

    def _max_item(self, item: UsageItem, fallback: Callable[[str, int], int]) -> int:
        bands = [band for rates in self._rates for band in rates.bands] if item.item in ITEMS else []
        prices = [price for band in bands if (price := band.price(item.item)) is not None]
        if not prices:
            return fallback(item.item, item.quantity)
        return max(-(-amount_of(item.item, price, item.quantity) // SCALED_NANOUSD) for price in prices)


def _candidates(rates: Rates, wanted: Conditions) -> Iterable[Conditions]:
    combinations = product(
        _values(rates, "tier", wanted.tier),
        _values(rates, "speed", wanted.speed),
        dict.fromkeys(("", wanted.region, *known_values(rates, "region")[:_MAX_VALUES])),
        dict.fromkeys(("", wanted.completion_window)),
        dict.fromkeys((False, wanted.batch)),
    )
    for tier, speed, region, window, batch in combinations:
        yield Conditions(tier=tier, speed=speed, region=region, completion_window=window, batch=batch)


def _values(rates: Rates, key: str, wanted: str) -> tuple[str, ...]:
    known = known_values(rates, key)[:_MAX_VALUES]
    if not wanted:
        return ("",)
    return ("", wanted) if wanted in known else ("", wanted, *known)
