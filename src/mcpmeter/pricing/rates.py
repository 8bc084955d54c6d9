"""A model's rates as integers, so that a charge is a handful of multiplications.

A rate is in atto-dollars (1e-18 USD) per million units: some lists print eighteen decimals, and none is rounded. Rates
of milliseconds are per hour, as lists print them: a third of such a price is no integer.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Context, Decimal, Inexact
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec.structs import force_setattr

from mcpmeter.items import ITEMS
from mcpmeter.money import plain_usd
from mcpmeter.records import Usage

AttousdPerMtok = int
"""1e-18 USD per million tokens; of an item's other units see `rate_of`."""

PLAIN_ITEMS: Final = ("prompt", "completion", "cached_read", "cache_write", "reasoning")
"""The items of a call that its five counts say all about."""

SCALE: Final = 36
"""Amounts of items are in 1/36 of 1e-18 USD per million, so that those per million and those per hour are integers."""

_HOURLY_SCALE: Final = 10
_ATTO_DIGITS: Final = 18
_ATTOUSD_PER_MTOK_IN_NANOUSD: Final = 10**15
SCALED_NANOUSD: Final = _ATTOUSD_PER_MTOK_IN_NANOUSD * SCALE
"""A nano-dollar in the unit of items' amounts."""
_EXACT: Final = Context(prec=60, traps=[Inexact])
_UNIT_TEXTS: Final = {"token": "/Mtok", "character": "/Mchar", "millisecond": "/hour"}


class Price(msgspec.Struct, frozen=True, gc=False):
    """An item's rate, with what a reader of the charge needs to check it."""

    rate: int
    """After all factors."""
    listed: int | None = None
    """As the list prints it, if factors multiply it."""
    factors: str = ""
    """` x 0.5 (tier flex)`."""
    origin: str = ""
    """The list and its date, if it is not the one of the `Rates`."""

    def times(self, factor: Decimal, name: str, origin: str) -> Price:
        """The price multiplied. A rate that is then finer than 1e-18 USD is rounded to it."""
        numerator, denominator = factor.as_integer_ratio()
        return Price(
            rate=half_even(self.rate * numerator, denominator),
            listed=self.rate if self.listed is None else self.listed,
            factors=f"{self.factors} x {factor.normalize():f}" + (f" ({name})" if name else ""),
            origin=origin,
        )

    def text(self, item: str) -> str:
        """`2.50/Mtok x 0.5 (tier flex)`."""
        unit = ITEMS[item].unit
        rate = self.rate if self.listed is None else self.listed
        shown = rate if unit in _UNIT_TEXTS else Decimal(rate).scaleb(-3, _EXACT)
        return (
            f"{plain_usd(Decimal(shown).scaleb(-_ATTO_DIGITS, _EXACT))}{_UNIT_TEXTS.get(unit, '/1000')}{self.factors}"
        )


NO_PRICES: Final[Mapping[str, Price]] = MappingProxyType({})


class RateBand(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The rates of one tier. All of a call's tokens are billed by the highest band that its prompt exceeds (a cliff).

    The five direct rates are those of plain calls. None for `prompt` or `completion`: the list cannot price such tokens
    of a call that does not tell its items. None for a detail: it is billed like the other tokens of its side.
    """

    above_prompt_tokens: int = 0
    """The band applies to prompts of more tokens than this; the first band applies to all."""
    prompt: AttousdPerMtok | None = None
    completion: AttousdPerMtok | None = None
    cached_read: AttousdPerMtok | None = None
    cache_write: AttousdPerMtok | None = None
    reasoning: AttousdPerMtok | None = None
    items: Mapping[str, Price] = NO_PRICES
    """The prices of all other items, and of a direct one if it has an origin or factors, or is None above."""
    max_prompt: int | None = None
    max_completion: int | None = None
    """The highest rates of all items of a side; computed. None if the side has no price."""

    def __post_init__(self) -> None:
        """Compute the highest rates."""
        table = self.table()
        for side in ("prompt", "completion"):
            rates = [price.rate for item, price in table.items() if ITEMS[item].side == side]
            force_setattr(self, f"max_{side}", max(rates) if side in table else None)

    def price(self, item: str) -> Price | None:
        """An item's price, else that of the item it is like."""
        while item:
            if (found := self.own_price(item)) is not None:
                return found
            known = ITEMS.get(item)
            item = known.like if known else ""
        return None

    def own_price(self, item: str) -> Price | None:
        """The price that the list has for this very item."""
        found = self.items.get(item)
        if found is None and item in PLAIN_ITEMS and (rate := getattr(self, item)) is not None:
            return Price(rate)
        return found

    def table(self) -> dict[str, Price]:
        """All prices of the band."""
        direct = {item: price for item in PLAIN_ITEMS if (price := self.own_price(item)) is not None}
        return {**direct, **self.items}


class Variant(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Prices under conditions: factors of the standard ones, or token prices of their own."""

    when: frozenset[tuple[str, str]]
    """`{("tier", "flex")}`."""
    above_prompt_tokens: int = 0
    factors: Mapping[str, Decimal] | Decimal | None = None
    """Per item, or one for all tokens."""
    prices: Mapping[str, Price] = NO_PRICES
    has_all_tokens: bool = False
    """The prices are all token prices under the conditions."""
    origin: str = ""

    @property
    def name(self) -> str:
        """`tier flex`."""
        return ", ".join(key if value == "true" else f"{key} {value}" for key, value in sorted(self.when))

    @property
    def has_prices(self) -> bool:
        """Whether its token prices stand for themselves, so that no other variant's go with them."""
        return self.factors is None and any(ITEMS[item].unit == "token" for item in self.prices)


class Rates(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A model's rates at one instant. `bands` ascend; the first is the base."""

    list_name: str
    """The list and its date or version: `holysheep 2026-11-01`, `genai-prices 0.2.3`."""
    bands: tuple[RateBand, ...]
    request: AttousdPerMtok = 0
    """Per request, in addition to its tokens, in 1e-18 USD per million requests."""
    variants: tuple[Variant, ...] = ()
    """Its prices under conditions; the later one counts."""

    def band(self, prompt_tokens: int) -> RateBand:
        """The band for a prompt of this size."""
        for band in self.bands[:0:-1]:
            if prompt_tokens > band.above_prompt_tokens:
                return band
        return self.bands[0]

    def cost_nanousd(self, usage: Usage) -> tuple[int, int] | None:
        """The cost of a plain call in nano-dollars, rounded half to even once, and its completion's part, rounded down.

        None if usage and rates do not determine it: tokens without a rate, counts that contradict each other, or audio
        that has a price of its own and stands on no side.
        """
        prompt_tokens, completion_tokens = usage.prompt_tokens, usage.completion_tokens
        if contradictory(usage):
            return None
        band = self.bands[0] if len(self.bands) == 1 else self.band(prompt_tokens)
        amount, completion = self.request, 0
        if prompt_tokens:
            if band.prompt is None:
                return None
            amount += band.prompt * prompt_tokens
            if usage.cached_read_tokens and band.cached_read is not None:
                amount += (band.cached_read - band.prompt) * usage.cached_read_tokens
            if usage.cache_write_tokens and band.cache_write is not None:
                amount += (band.cache_write - band.prompt) * usage.cache_write_tokens
        if completion_tokens:
            if band.completion is None:
                return None
            completion = band.completion * completion_tokens
            if usage.reasoning_tokens and band.reasoning is not None:
                completion += (band.reasoning - band.completion) * usage.reasoning_tokens
        elif not prompt_tokens and band.prompt is None and band.completion is None and not amount:
            return None  # billed by other units, of which the usage tells none
        if usage.audio_tokens and not _costs_as_text(band):
            return None
        nanousd = half_even(amount + completion, _ATTOUSD_PER_MTOK_IN_NANOUSD)
        return nanousd, completion // _ATTOUSD_PER_MTOK_IN_NANOUSD

    def max_cost_nanousd(self, prompt_tokens: int, completion_tokens: int) -> int | None:
        """The most that at most so many tokens can cost, whatever their items. None if a rate is missing."""
        prompt = completion = 0
        for band in self.bands:
            if prompt_tokens > band.above_prompt_tokens or not band.above_prompt_tokens:
                if (prompt_tokens and band.max_prompt is None) or (completion_tokens and band.max_completion is None):
                    return None
                prompt, completion = max(prompt, band.max_prompt or 0), max(completion, band.max_completion or 0)
        amount = self.request + prompt * prompt_tokens + completion * completion_tokens
        # Rounded up: a reservation is never less than the cost.
        return -(-amount // _ATTOUSD_PER_MTOK_IN_NANOUSD)


def amount_of(item: str, price: Price, quantity: int) -> int:
    """What a quantity costs, in units of which `SCALED_NANOUSD` are a nano-dollar."""
    return price.rate * quantity * (_HOURLY_SCALE if ITEMS[item].unit == "millisecond" else SCALE)


def contradictory(usage: Usage) -> bool:
    """Whether the counts cannot all be true: one below zero, or parts greater than their whole."""
    if usage.cached_read_tokens or usage.cache_write_tokens or usage.reasoning_tokens or usage.audio_tokens:
        details = (usage.cached_read_tokens, usage.cache_write_tokens, usage.reasoning_tokens, usage.audio_tokens)
        if (
            min(details) < 0
            or usage.cached_read_tokens + usage.cache_write_tokens > usage.prompt_tokens
            or usage.reasoning_tokens > usage.completion_tokens
            or usage.audio_tokens > usage.prompt_tokens + usage.completion_tokens
        ):
            return True
    return usage.prompt_tokens < 0 or usage.completion_tokens < 0


def rate_of(item: str, usd: Decimal) -> int:
    """A list's price of an item as a rate: per million tokens or characters, per hour, or per thousand of the others.

    ValueError: negative, or finer than 1e-18 USD.
    """
    rate = attousd_per_mtok(usd)
    return rate if ITEMS[item].unit in _UNIT_TEXTS else rate * 1000


def attousd_per_mtok(usd_per_mtok: Decimal) -> AttousdPerMtok:
    """A list's price per million tokens as a rate. ValueError: negative, or finer than 1e-18 USD."""
    scaled = usd_per_mtok.scaleb(_ATTO_DIGITS, _EXACT)
    if not scaled.is_finite() or scaled < 0 or scaled != scaled.to_integral_value():
        raise ValueError(f"{usd_per_mtok} is not a price")
    return int(scaled)


def usd_per_mtok(rate: AttousdPerMtok) -> Decimal:
    """A rate as a price list prints it: US dollars per million tokens, exact, with at least two decimals."""
    return Decimal(plain_usd(Decimal(rate).scaleb(-_ATTO_DIGITS, _EXACT)))


def half_even(amount: int, divisor: int) -> int:
    """Integer division that rounds to nearest, ties to even."""
    quotient, rest = divmod(amount, divisor)
    twice = 2 * rest
    return quotient + (twice > divisor or (twice == divisor and quotient & 1))


def _costs_as_text(band: RateBand) -> bool:
    audio = {item: price for item, price in band.items.items() if item.endswith("_audio")}
    return all((text := band.price(item.removesuffix("_audio"))) and text.rate == audio[item].rate for item in audio)
