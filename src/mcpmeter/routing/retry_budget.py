"""The retry budget: however much fails, further attempts stay a small share of the requests."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

FLOOR: Final = 10
"""So many retries may come before requests have earned them, and in one burst after a quiet time: 50 requests' worth at
the ratio of 0.2. Without it the first failures after a start could not fail over."""

_MILLI: Final = 1000


class RetryBudget:
    """A token bucket that requests fill, by `ratio` each, and retries empty, by one each. One for a whole pipeline.

    From the start on, retries <= max(FLOOR, ratio * requests). In any later stretch of requests there are at most FLOOR
    beyond ratio * requests.
    """

    __slots__ = ("_debt", "_per_request", "_tokens", "is_full")

    def __init__(self, ratio: Decimal) -> None:
        # Whole thousandths, rounded down: the promise must not drift with the number of requests.
        self._per_request = int(ratio * _MILLI)
        self._tokens = self._debt = FLOOR * _MILLI if self._per_request else 0
        self.is_full = False
        """Whether another request adds nothing to it, and need not be told."""

    def reconfigure(self, ratio: Decimal) -> None:
        """Take another ratio from now on; what is left stays."""
        self._per_request = int(ratio * _MILLI)
        if not self._per_request:
            self._tokens = self._debt = 0
        self.is_full = False

    def request(self) -> None:
        """A request was sent for the first time. What the floor lent is paid back before anything is saved."""
        repaid = min(self._debt, self._per_request)
        self._debt -= repaid
        self._tokens = min(FLOOR * _MILLI, self._tokens + self._per_request - repaid)
        self.is_full = not self._debt and self._tokens == FLOOR * _MILLI

    def take(self) -> bool:
        """Take one retry out, if there is one."""
        if self._tokens < _MILLI:
            return False
        self._tokens -= _MILLI
        self.is_full = False
        return True
