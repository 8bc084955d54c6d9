"""The most that a call can cost: whatever its items, and under whatever conditions its request can be served."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Final, NamedTuple

from mcpmeter.items import ITEMS
from mcpmeter.pricing.patches import PREPAID, known_values, under
from mcpmeter.pricing.rates import SCALED_NANOUSD, Rates, amount_of
from mcpmeter.records import Conditions, UsageItem

_MAX_VALUES: Final = 8


class Bound(NamedTuple):
    """The rates that can apply to a request of one model, since the answer decides which ones do."""

    rates: tuple[Rates, ...]
    is_open: bool
    """The request can be served under a condition without a price; then the fallback price counts."""
    hidden: tuple[str, ...]
    """The sides whose tokens can turn out to have no price."""


NO_BOUND: Final = Bound((), is_open=True, hidden=())
"""Of a model without a price."""


def bound_of(rates: Rates, conditions: Conditions) -> Bound:
    """The bound of a request with these conditions.

    The standard rates always can apply, and the requested conditions. A region can without being requested: an
    account's default may set it. A requested tier or speed without a price can be served as any that has one.
    """
    found = [under(rates, candidate) for candidate in _candidates(rates, conditions)]
    priced = tuple(one for one, unknown in found if not unknown)
    hidden = tuple(
        side for side in ("prompt", "completion") if any(getattr(band, side) is None for band in rates.bands)
    )
    return Bound(priced, any(unknown for _, unknown in found), hidden)


def max_items_nanousd(bound: Bound, items: Iterable[UsageItem], fallback: Callable[[str, int], int]) -> int:
    """The most that so many items can cost; those without a price at the fallback price."""
    return sum(_max_item(bound, item, fallback) for item in items)


def _max_item(bound: Bound, item: UsageItem, fallback: Callable[[str, int], int]) -> int:
    """What an item can add. Tokens with a price add nothing: the highest rate of their side counts them already."""
    bands = [band for rates in bound.rates for band in rates.bands] if item.item in ITEMS else []
    prices = [price for band in bands if (price := band.price(item.item)) is not None]
    if not prices:
        return fallback(item.item, item.quantity)
    if ITEMS[item.item].side != "beside":
        return 0
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
    return ("", wanted) if wanted in known or wanted in PREPAID else ("", wanted, *known)
