"""Distributions of numbers: fixed, uniform or lognormal, sampled from a seeded generator."""

from __future__ import annotations

import math
from random import Random
from typing import Literal, Self

import msgspec

from mcpmeter.errors import ConfigInvalid

NS_PER_MS = 1_000_000
LARGEST = 1e9
MAX_SIGMA = 5
_FORMS = "Write a number, uniform:LOW-HIGH or lognormal:MEDIAN,SIGMA."


class Spread(msgspec.Struct, frozen=True):
    """A distribution of non-negative numbers. Raises `ConfigInvalid` for invalid parameters."""

    kind: Literal["fixed", "uniform", "lognormal"] = "fixed"
    a: float = 0.0
    """The value, the lower end, or the median."""
    b: float = 0.0
    """Unused, the upper end, or sigma (the standard deviation of the logarithm)."""

    def __post_init__(self) -> None:
        if not (0 <= self.a <= LARGEST and 0 <= self.b <= (LARGEST if self.kind == "uniform" else MAX_SIGMA)):
            raise ConfigInvalid(
                f"A distribution needs numbers from 0 to {LARGEST:.0f} and a sigma of {MAX_SIGMA} at most.", hint=_FORMS
            )
        if self.kind == "uniform" and self.b < self.a:
            raise ConfigInvalid("The upper end of a uniform distribution is below its lower end.", hint=_FORMS)

    @classmethod
    def fixed(cls, value: float) -> Self:
        """Always the same value."""
        return cls("fixed", value)

    @classmethod
    def uniform(cls, low: float, high: float) -> Self:
        """Every value between both ends is equally likely."""
        return cls("uniform", low, high)

    @classmethod
    def lognormal(cls, median: float, sigma: float) -> Self:
        """A long right tail, as real latencies have."""
        return cls("lognormal", median, sigma)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `20`, `uniform:10-50` or `lognormal:200,0.5`. Raises `ConfigInvalid`."""
        kind, _, numbers = text.strip().rpartition(":")
        try:
            match kind:
                case "":
                    return cls.fixed(float(numbers))
                case "uniform":
                    low, high = numbers.split("-")
                    return cls.uniform(float(low), float(high))
                case "lognormal":
                    median, sigma = numbers.split(",")
                    return cls.lognormal(float(median), float(sigma))
        except ValueError:
            pass
        raise ConfigInvalid(f"'{text[:60]}' is not a distribution.", hint=_FORMS)

    def sample(self, random: Random) -> float:
        """One value."""
        match self.kind:
            case "fixed":
                return self.a
            case "uniform":
                return random.uniform(self.a, self.b)
            case "lognormal":
                return min(LARGEST, self.a * math.exp(self.b * random.gauss(0.0, 1.0)))

    def __str__(self) -> str:
        match self.kind:
            case "fixed":
                return f"{self.a:g}"
            case "uniform":
                return f"uniform:{self.a:g}-{self.b:g}"
            case "lognormal":
                return f"lognormal:{self.a:g},{self.b:g}"


class Latency(Spread, frozen=True):
    """A distribution of delays in milliseconds."""

    @classmethod
    def from_rate(cls, text: str) -> Self:
        """Parse a rate per second as delays: `40`, `uniform:20-60`, `lognormal:40,0.3`. Raises `ConfigInvalid`."""
        rate = Spread.parse(text)
        if rate.a <= 0:
            raise ConfigInvalid(f"'{text[:60]}' is not a rate.", hint="Rates are above zero. " + _FORMS)
        match rate.kind:
            case "fixed":
                return cls.fixed(1000 / rate.a)
            case "uniform":
                return cls.uniform(1000 / rate.b, 1000 / rate.a)
            case "lognormal":
                return cls.lognormal(1000 / rate.a, rate.b)  # the reciprocal of a lognormal is lognormal

    def as_rate(self) -> str:
        """The text that `from_rate` parses; delays of zero become 1 µs."""
        low, high = self.a or 0.001, self.b or 0.001
        match self.kind:
            case "uniform":
                return str(Spread.uniform(1000 / high, 1000 / low))
            case kind:
                return str(Spread(kind, 1000 / low, self.b))

    def sample_ns(self, random: Random) -> int:
        """One delay in nanoseconds."""
        return round(self.sample(random) * NS_PER_MS)

    @property
    def is_zero(self) -> bool:
        """Whether every delay is zero."""
        return self.kind != "uniform" and self.a == 0
