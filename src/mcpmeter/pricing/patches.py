"""Overlays on a model's rates: corrections of its standard prices, and its prices under conditions.

Works on tables, one per band from its threshold on: threshold → item → `Price`. All of it runs when rates change, or
once per set of conditions, never per call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Final

import msgspec

from mcpmeter.items import ITEMS
from mcpmeter.pricing.calendars import Holidays, Validity
from mcpmeter.pricing.overlays import Overlay, OverlayEntry, condition_pairs
from mcpmeter.pricing.rates import PLAIN_ITEMS, Price, RateBand, Rates, Variant, rate_of
from mcpmeter.records import Conditions

Tables = dict[int, dict[str, Price]]

PREPAID: Final = frozenset({"scale", "provisioned"})
"""Tiers whose tokens are paid in advance: https://openai.com/api-scale-tier/ and Vertex AI's provisioned throughput."""


class Patch(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of an overlay, for one model."""

    valid: Validity
    variant: Variant
    """Without conditions it changes the standard price."""
    replaces: bool = False
    origin: str = ""

    @property
    def kind(self) -> object:
        """Of patches of one kind, the last valid one counts."""
        valid = self.valid
        return (self.variant.above_prompt_tokens, valid.daily, valid.weekdays, valid.holidays and valid.holidays.name)


def patch_of(overlay: Overlay, entry: OverlayEntry, holidays: Mapping[str, Holidays]) -> Patch:
    """The patch that an entry is for each of its models."""
    origin = f"{overlay.provider} {entry.read.isoformat()}"
    when = frozenset(condition_pairs(entry.when))
    variant = Variant(
        when=when,
        above_prompt_tokens=entry.above_prompt_tokens,
        factors=_factors(entry),
        prices={item: Price(rate_of(item, Decimal(usd)), origin=origin) for item, usd in entry.prices.items()},
        has_all_tokens=bool(when) and not entry.times and bool(entry.prices),
        origin=origin,
    )
    return Patch(valid=entry.validity(holidays), variant=variant, replaces=entry.replaces, origin=origin)


def patched(base: Rates | None, patches: Sequence[Patch]) -> Rates | None:
    """The rates with all patches, the later ones going before; None if there is no price at all."""
    tables: Tables = {0: {}} if base is None else _tables(base)
    list_name = base.list_name if base else patches[-1].origin
    standard = [patch for patch in patches if not patch.variant.when]
    for patch in standard:
        if patch.replaces:
            tables = {0: {item: price for item, price in tables[0].items() if not _is_token(item)}}
        _set_prices(tables, patch.variant)
    for patch in {patch.kind: patch for patch in standard if patch.variant.factors is not None}.values():
        _multiply(tables, [patch.variant], "", list_name)
    if not any(tables.values()):
        return None
    variants = (*(base.variants if base else ()), *(patch.variant for patch in patches if patch.variant.when))
    hidden = frozenset() if base is None or any(patch.replaces for patch in standard) else _hidden(base)
    return _rates(list_name, tables, hidden, variants)


def under(rates: Rates, conditions: Conditions) -> tuple[Rates, tuple[str, ...]]:
    """The rates under conditions, and the conditions that they have no price for: `tier:flex`."""
    wanted = dict(condition_pairs(conditions))
    tables, prepaid = _tables(rates), wanted.get("tier") in PREPAID
    name = rates.list_name
    if prepaid:
        origin = f"prepaid ({wanted.pop('tier')} tier)"
        tables = {above: _prepaid(table, origin) for above, table in tables.items()}
        name = origin
    chosen, left = _cover(rates.variants, frozenset(wanted.items()))
    for variants in chosen:
        _replace_prices(tables, variants)
    for variants in chosen:
        if any(variant.factors is not None for variant in variants):
            _multiply(tables, variants, variants[0].name, name)
    unknown = tuple(f"{key}:{value}" for key, value in sorted(left))
    return _rates(name, tables, _hidden(rates), ()), unknown


def known_values(rates: Rates, key: str) -> tuple[str, ...]:
    """The values of a condition for which the rates have a price."""
    return tuple(sorted({value for variant in rates.variants for name, value in variant.when if name == key}))


def _cover(
    variants: Iterable[Variant], wanted: frozenset[tuple[str, str]]
) -> tuple[list[list[Variant]], frozenset[tuple[str, str]]]:
    """The variants that together have all wanted conditions, those with most of them first, and what is left."""
    by_when: dict[frozenset[tuple[str, str]], dict[int, Variant]] = {}
    for variant in variants:
        if variant.when <= wanted:
            # The last one counts, in the order of the last ones: so it is removed and added.
            same = by_when.setdefault(variant.when, {})
            same[variant.above_prompt_tokens] = variant
    chosen: list[list[Variant]] = []
    has_prices = False
    for when in sorted(by_when, key=lambda when: (-len(when), sorted(when))):
        found = [by_when[when][above] for above in sorted(by_when[when])]
        with_prices = any(variant.has_prices for variant in found)
        if when <= wanted and not (with_prices and has_prices):
            chosen.append(found)
            wanted -= when
            has_prices = has_prices or with_prices
    return chosen, wanted


def _set_prices(tables: Tables, variant: Variant) -> None:
    """Set a variant's prices from its threshold on, in all bands that had the same price before."""
    above = variant.above_prompt_tokens
    _split(tables, above)
    for item, price in variant.prices.items():
        before = tables[above].get(item)
        for start, table in tables.items():
            if start == above or (start > above and table.get(item) == before):
                table[item] = price


def _replace_prices(tables: Tables, variants: Sequence[Variant]) -> None:
    for variant in variants:
        _split(tables, variant.above_prompt_tokens)
    for start, table in tables.items():
        found = _reached(variants, start)
        if found is not None and found.prices:
            kept = {item: price for item, price in table.items() if not (found.has_all_tokens and _is_token(item))}
            tables[start] = {**kept, **{item: _named(price, found.name) for item, price in found.prices.items()}}


def _multiply(tables: Tables, variants: Sequence[Variant], name: str, list_name: str) -> None:
    for variant in variants:
        _split(tables, variant.above_prompt_tokens)
    for start, table in tables.items():
        found = _reached(variants, start)
        if found is None or found.factors is None:
            continue
        for item, price in table.items():
            factor = None if item in found.prices else _factor(found.factors, item)
            if factor is not None:
                origin = " + ".join(dict.fromkeys(one for one in (price.origin or list_name, found.origin) if one))
                table[item] = price.times(factor, name, origin)


def _split(tables: Tables, above: int) -> None:
    if above not in tables:
        below = max(start for start in tables if start < above)
        tables[above] = dict(tables[below])


def _reached(variants: Sequence[Variant], start: int) -> Variant | None:
    return next((variant for variant in reversed(variants) if variant.above_prompt_tokens <= start), None)


def _factors(entry: OverlayEntry) -> Mapping[str, Decimal] | Decimal | None:
    if isinstance(entry.times, str):
        return Decimal(entry.times)
    return {item: Decimal(factor) for item, factor in entry.times.items()} or None


def _factor(factors: Mapping[str, Decimal] | Decimal, item: str) -> Decimal | None:
    if isinstance(factors, Decimal):
        return factors if _is_token(item) else None
    while item:
        if item in factors:
            return factors[item]
        known = ITEMS[item]
        # A write of an hour rises with writes, and these with prompts.
        item = known.like or ("cache_write" if known.component == "cache_write" else "")
    return None


def _prepaid(table: Mapping[str, Price], origin: str) -> dict[str, Price]:
    return {item: Price(0, origin=origin) if _is_token(item) else price for item, price in table.items()}


def _named(price: Price, name: str) -> Price:
    return msgspec.structs.replace(price, factors=f"{price.factors} ({name})")


def _is_token(item: str) -> bool:
    return ITEMS[item].unit == "token"


def _hidden(rates: Rates) -> frozenset[str]:
    """The sides of which a plain call's tokens have no price, although the list has one for text."""
    base = rates.bands[0]
    return frozenset(side for side in ("prompt", "completion") if getattr(base, side) is None and side in base.items)


def _tables(rates: Rates) -> Tables:
    tables = {band.above_prompt_tokens: band.table() for band in rates.bands}
    if rates.request and "request" not in tables[0]:
        tables[0]["request"] = Price(rates.request)
    return tables


def _rates(list_name: str, tables: Tables, hidden: frozenset[str], variants: tuple[Variant, ...]) -> Rates:
    base = tables[0]
    origins = dict.fromkeys(base[side].origin or list_name for side in ("prompt", "completion") if side in base)
    request = base.get("request")
    return Rates(
        list_name=" + ".join(origins) or list_name,
        bands=tuple(_band(above, tables[above], hidden) for above in sorted(tables)),
        request=request.rate if request else 0,
        variants=variants,
    )


def _band(above: int, table: dict[str, Price], hidden: frozenset[str]) -> RateBand:
    direct = {item: table[item].rate for item in PLAIN_ITEMS if item in table and item not in hidden}
    return RateBand(above_prompt_tokens=above, items=table, **direct)
