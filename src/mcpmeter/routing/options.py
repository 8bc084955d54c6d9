"""What configuration says of retries and circuits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

from mcpmeter.catalog.spec import NANO


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryOptions:
    """How often and how soon a call is tried again, before its first byte to the client and never after."""

    max_attempts: int = 3
    """Of one call, the first among them; 1 never tries again."""
    budget_ratio: Decimal = Decimal("0.2")
    """Retries that each request earns for all."""
    base_seconds: float = 0.1
    cap_seconds: float = 5.0
    """The longest wait, whoever asks for it."""
    same_place: bool = True
    """Whether a provider and key that failed may be tried again in the same call, after a pause."""
    after_timeout: bool = False
    """Also when no head came in time: the provider may be working on the first attempt still, and bill for both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitOptions:
    """`failures` in a row, all within `window_seconds`, open the circuit for `open_seconds`.

    In a row: were successes in between not regarded, a busy upstream with one failure in ten thousand would be cut off.
    """

    failures: int = 5
    window_seconds: float = 30.0
    open_seconds: float = 15.0


def nanoseconds(seconds: float) -> int:
    """Whole nanoseconds, rounded up: a wait may be longer than was asked for, never shorter."""
    return math.ceil(seconds * NANO)
