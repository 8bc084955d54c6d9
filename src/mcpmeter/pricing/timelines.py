"""All rates of one model over time, and the span of time in which one set of them is valid."""

from __future__ import annotations

from typing import Final

import msgspec

from mcpmeter.pricing.calendars import ALWAYS, Validity
from mcpmeter.pricing.patches import Patch, patched
from mcpmeter.pricing.rates import Rates

FIRST_NS: Final = -(2**63)
LAST_NS: Final = 2**63
"""Bounds of all instants in Unix nanoseconds."""


class Dated(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Rates and their validity."""

    rates: Rates | None
    valid: Validity = ALWAYS


class Span(msgspec.Struct, frozen=True, gc=False):
    """Rates, and the half-open interval of Unix nanoseconds in which they are valid."""

    rates: Rates | None
    from_ns: int
    until_ns: int


class Timeline(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """All rates of one model. At an instant, the last valid entry applies, and then all valid patches."""

    model: str
    """The id under which the list knows the model."""
    entries: tuple[Dated, ...]
    otherwise: Rates | None = None
    """The rates if no entry is valid."""
    patches: tuple[Patch, ...] = ()

    def at(self, at_ns: int) -> Rates | None:
        """The rates at an instant in Unix nanoseconds, UTC."""
        base = next((entry.rates for entry in reversed(self.entries) if entry.valid.active(at_ns)), self.otherwise)
        patches = [patch for patch in self.patches if patch.valid.active(at_ns)]
        return patched(base, patches) if patches else base

    def span(self, at_ns: int) -> Span:
        """The rates at an instant, and an interval around it in which they are certainly valid."""
        validities = [*(entry.valid for entry in self.entries), *(patch.valid for patch in self.patches)]
        edges = [edge for valid in validities for edge in valid.edges(at_ns)]
        return Span(
            self.at(at_ns),
            max([edge for edge in edges if edge <= at_ns], default=FIRST_NS),
            min([edge for edge in edges if edge > at_ns], default=LAST_NS),
        )
