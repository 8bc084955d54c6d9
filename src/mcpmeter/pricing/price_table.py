"""A model's prices at one instant as a table: per set of conditions and size of the prompt, every item's price."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import date
from decimal import Decimal
from typing import NamedTuple

from mcpmeter.items import ITEMS
from mcpmeter.pricing.overlays import Overlay, OverlayEntry, bundled_overlays
from mcpmeter.pricing.patches import under
from mcpmeter.pricing.rates import Price, Rates
from mcpmeter.records import STANDARD, Conditions

_PER_MILLION = frozenset({"token", "character"})


class TableRow(NamedTuple):
    """The prices of one band under one set of conditions."""

    conditions: Conditions
    above_prompt_tokens: int
    prices: dict[str, Price]

    def price(self, item: str) -> Price | None:
        """What an item costs: its price, else that of the item it is like."""
        while item and item not in self.prices:
            known = ITEMS.get(item)
            item = known.like if known else ""
        return self.prices.get(item)


def price_table(rates: Rates) -> list[TableRow]:
    """The standard prices, then those under each set of conditions that has an entry."""
    known = [STANDARD, *(_conditions(when) for when in dict.fromkeys(variant.when for variant in rates.variants))]
    return [row for conditions in known for row in rows_under(rates, conditions)]


def rows_under(rates: Rates, conditions: Conditions) -> Iterator[TableRow]:
    """The prices under conditions, one row per band. Empty if a condition has no price."""
    found, unknown = (rates, ()) if conditions == STANDARD else under(rates, conditions)
    for band in found.bands if not unknown else ():
        prices = band.table()
        if found.request and "request" not in prices:
            prices["request"] = Price(found.request)
        yield TableRow(conditions, band.above_prompt_tokens, prices)


def usd_of(item: str, price: Price) -> Decimal:
    """US dollars per million tokens or characters, per hour, or per thousand of any other unit."""
    unit = ITEMS[item].unit
    usd = Decimal(price.rate).scaleb(-18)
    return usd if unit in _PER_MILLION or unit == "millisecond" else usd / 1000


def per_unit(item: str) -> str:
    """The unit of `usd_of`, as a table's heading names it."""
    unit = ITEMS[item].unit
    return {"token": "1M tokens", "character": "1M characters", "millisecond": "hour"}.get(unit, f"1,000 ({unit})")


def condition_text(conditions: Conditions) -> str:
    """`tier=flex region=us`; empty for the standard price."""
    parts = [
        f"{name}={value}"
        for name in ("tier", "speed", "region", "completion_window")
        if (value := getattr(conditions, name))
    ]
    return " ".join([*parts, "batch"] if conditions.batch else parts)


def entries_of(
    provider_ids: Collection[str], model: str, on: date, overlays: Iterable[Overlay] = ()
) -> list[OverlayEntry]:
    """The overlay entries of a model that are valid on a day (UTC), with their sources; ids are genai-prices'."""
    return [
        entry
        for overlay in (*bundled_overlays(provider_ids), *overlays)
        for entry in (overlay.price if overlay.provider in provider_ids else ())
        if model in entry.models and entry.valid_from <= on and (entry.until is None or on < entry.until)
    ]


def _conditions(when: frozenset[tuple[str, str]]) -> Conditions:
    wanted = dict(when)
    return Conditions(
        tier=wanted.get("tier", ""),
        speed=wanted.get("speed", ""),
        region=wanted.get("region", ""),
        completion_window=wanted.get("completion_window", ""),
        batch="batch" in wanted,
    )
