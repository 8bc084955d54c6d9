"""A model's rates as integers, so that a charge is a handful of multiplications.

A rate is in atto-dollars (1e-18 USD) per million tokens: some lists print eighteen decimals, and none is rounded.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Context, Decimal, Inexact
from typing import Final

import msgspec

from mcpmeter.money import plain_usd
from mcpmeter.records import Usage

AttousdPerMtok = int
"""1e-18 USD per million tokens."""

DAY_NS: Final = 86_400 * 10**9
FIRST_NS: Final = -(2**63)
LAST_NS: Final = 2**63
"""Bounds of all instants in Unix nanoseconds."""
_ATTO_DIGITS: Final = 18
_ATTOUSD_PER_MTOK_IN_NANOUSD: Final = 10**15
_PROMPT_RATES: Final = ("prompt", "cached_read", "cache_write", "audio_prompt", "audio_cached_read")
_COMPLETION_RATES: Final = ("completion", "reasoning", "audio_completion")
_EXACT: Final = Context(prec=60, traps=[Inexact])


class RateBand(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The rates of one tier. All of a call's tokens are billed by the highest band that its prompt exceeds (a cliff).

    None for `prompt` or `completion`: the list cannot price such tokens. None for a detail: it is billed like the other
    tokens of its side.
    """

    above_prompt_tokens: int = 0
    """The band applies to prompts of more tokens than this; the first band applies to all."""
    prompt: AttousdPerMtok | None = None
    completion: AttousdPerMtok | None = None
    cached_read: AttousdPerMtok | None = None
    cache_write: AttousdPerMtok | None = None
    reasoning: AttousdPerMtok | None = None
    audio_prompt: AttousdPerMtok | None = None
    audio_completion: AttousdPerMtok | None = None
    audio_cached_read: AttousdPerMtok | None = None


class Rates(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A model's rates at one instant. `bands` ascend; the first is the base."""

    list_name: str
    """The list and its date or version: `holysheep 2026-11-01`, `genai-prices 0.2.3`."""
    bands: tuple[RateBand, ...]
    request: AttousdPerMtok = 0
    """Per request, in addition to its tokens, in 1e-18 USD per million requests."""

    def band(self, prompt_tokens: int) -> RateBand:
        """The band for a prompt of this size."""
        for band in self.bands[:0:-1]:
            if prompt_tokens > band.above_prompt_tokens:
                return band
        return self.bands[0]

    def cost_nanousd(self, usage: Usage) -> int | None:
        """The cost in nano-dollars, rounded half to even once. None if usage and rates do not determine it:

        tokens without a rate, counts that contradict each other, or audio that the usage does not fully describe.
        """
        prompt_tokens, completion_tokens = usage.prompt_tokens, usage.completion_tokens
        if contradictory(usage):
            return None
        band = self.bands[0] if len(self.bands) == 1 else self.band(prompt_tokens)
        amount = self.request
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
            amount += band.completion * completion_tokens
            if usage.reasoning_tokens and band.reasoning is not None:
                amount += (band.reasoning - band.completion) * usage.reasoning_tokens
        if usage.audio_tokens:
            surcharge = _audio_surcharge(band, usage)
            if surcharge is None:
                return None
            amount += surcharge
        return half_even(amount, _ATTOUSD_PER_MTOK_IN_NANOUSD)

    def max_cost_nanousd(self, prompt_tokens: int, completion_tokens: int) -> int | None:
        """The most that at most so many tokens can cost, whatever their details. None if a rate is missing."""
        amount = self.request
        for tokens, names in ((prompt_tokens, _PROMPT_RATES), (completion_tokens, _COMPLETION_RATES)):
            if tokens:
                rate = self._highest(prompt_tokens, names)
                if rate is None:
                    return None
                amount += rate * tokens
        # Rounded up: a reservation is never less than the cost.
        return -(-amount // _ATTOUSD_PER_MTOK_IN_NANOUSD)

    def _highest(self, prompt_tokens: int, names: tuple[str, ...]) -> AttousdPerMtok | None:
        reached = [band for band in self.bands[1:] if prompt_tokens > band.above_prompt_tokens]
        rates = [
            rate for band in (self.bands[0], *reached) for name in names if (rate := getattr(band, name)) is not None
        ]
        return max(rates, default=None)


class Dated(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Rates and their validity: from an instant on, and in a daily interval of UTC."""

    rates: Rates | None
    from_ns: int | None = None
    """Unix nanoseconds, UTC; None for always."""
    daily_from_ns: int = 0
    daily_to_ns: int = DAY_NS
    """Less than `daily_from_ns` if the interval passes midnight."""

    def active(self, at_ns: int) -> bool:
        """Whether these rates are valid at an instant in Unix nanoseconds."""
        if self.from_ns is not None and at_ns < self.from_ns:
            return False
        of_day = at_ns % DAY_NS
        if self.daily_to_ns < self.daily_from_ns:
            return of_day >= self.daily_from_ns or of_day < self.daily_to_ns
        return self.daily_from_ns <= of_day < self.daily_to_ns

    def edges(self, at_ns: int) -> list[int]:
        """The instants around this one at which these rates may begin or end."""
        edges = [] if self.from_ns is None else [self.from_ns]
        if self.daily_from_ns > 0 or self.daily_to_ns < DAY_NS:
            midnight = at_ns - at_ns % DAY_NS
            days = (midnight - DAY_NS, midnight, midnight + DAY_NS)
            edges += [day + of_day for day in days for of_day in (self.daily_from_ns, self.daily_to_ns)]
        return edges


class Span(msgspec.Struct, frozen=True, gc=False):
    """Rates, and the half-open interval of Unix nanoseconds in which they are valid."""

    rates: Rates | None
    from_ns: int
    until_ns: int


class Timeline(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """All rates of one model. At an instant, the last valid entry applies."""

    model: str
    """The id under which the list knows the model."""
    entries: tuple[Dated, ...]
    otherwise: Rates | None = None
    """The rates if no entry is valid."""

    def at(self, at_ns: int) -> Rates | None:
        """The rates at an instant in Unix nanoseconds, UTC."""
        for entry in reversed(self.entries):
            if entry.active(at_ns):
                return entry.rates
        return self.otherwise

    def span(self, at_ns: int) -> Span:
        """The rates at an instant, and an interval around it in which they are certainly valid."""
        edges = [edge for entry in self.entries for edge in entry.edges(at_ns)]
        return Span(
            self.at(at_ns),
            max([edge for edge in edges if edge <= at_ns], default=FIRST_NS),
            min([edge for edge in edges if edge > at_ns], default=LAST_NS),
        )


def unix_ns(at: datetime) -> int:
    """An aware instant in Unix nanoseconds, exactly. ValueError for a naive one."""
    if at.tzinfo is None:
        raise ValueError("A price depends on the instant; give a datetime with a time zone.")
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86_400 + since.seconds) * 10**6 + since.microseconds) * 1000


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


def _audio_surcharge(band: RateBand, usage: Usage) -> int | None:
    """What audio tokens cost beyond the ordinary tokens that they were counted as (may be negative).

    The usage does not report whether audio was input or output, nor how much of it was cached. None if that does not
    follow from the rates or from the other counts.
    """
    extra_in = _difference(band.audio_prompt, band.prompt)
    extra_out = _difference(band.audio_completion, band.completion)
    if not extra_in and not extra_out:
        return 0
    is_input = not usage.completion_tokens or (not extra_out and bool(usage.prompt_tokens))
    is_output = not usage.prompt_tokens or (not extra_in and bool(usage.completion_tokens))
    if is_input and usage.audio_tokens <= usage.prompt_tokens:
        return None if _cached_audio_matters(band, usage) else extra_in * usage.audio_tokens
    if is_output and usage.audio_tokens <= usage.completion_tokens and not _reasoned_audio_matters(band, usage):
        return extra_out * usage.audio_tokens
    return None


def _cached_audio_matters(band: RateBand, usage: Usage) -> bool:
    extra_audio = _difference(band.audio_prompt, band.prompt)
    extra_read = _difference(band.cached_read, band.prompt)
    cached_audio = band.audio_cached_read
    if cached_audio is None:
        cached_audio = band.audio_prompt if band.cached_read is None else band.cached_read
    overlap = _difference(cached_audio, band.prompt) - extra_audio - extra_read
    if usage.cached_read_tokens and overlap:
        return True
    return bool(usage.cache_write_tokens and extra_audio and _difference(band.cache_write, band.prompt))


def _reasoned_audio_matters(band: RateBand, usage: Usage) -> bool:
    return bool(usage.reasoning_tokens and _difference(band.reasoning, band.completion))


def _difference(rate: AttousdPerMtok | None, ordinary: AttousdPerMtok | None) -> AttousdPerMtok:
    return 0 if rate is None or ordinary is None else rate - ordinary
