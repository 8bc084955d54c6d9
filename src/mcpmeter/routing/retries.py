"""When another attempt is allowed and how long it waits: options, backoff, Retry-After and the retry budget."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from decimal import ROUND_CEILING, Decimal
from email.utils import parsedate_to_datetime
from typing import Final

from mcpmeter.catalog.spec import NANO

MAX_RETRY_AFTER_NS: Final = 86_400 * NANO
"""A longer Retry-After counts as a day: a provider's mistake must not disable a credential for good."""

FLOOR: Final = 10
"""Retries available before requests have earned any, and the most a quiet period can save: what 50 requests earn at
the ratio of 0.2. Without it the first failures after a start could not fail over."""

_NUMBER: Final = re.compile(r"[0-9]{1,30}(\.[0-9]{1,30})?")
_NS_PER_MS: Final = 1_000_000
_MILLI: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryOptions:
    """How often and how soon a call is retried. Retries happen only before the first byte to the client."""

    max_attempts: int = 3
    """Per call, including the first; 1 disables retries."""
    budget_ratio: Decimal = Decimal("0.2")
    """Retries that each request earns for the whole pipeline."""
    base_seconds: float = 0.1
    cap_seconds: float = 5.0
    """Upper bound of every wait, including a Retry-After."""
    same_place: bool = True
    """Whether a call may retry a provider and key that failed, after a pause."""
    max_wait_seconds: float = 300.0
    """How long a Retry-After is honoured; then one call tries whether the provider answers again."""
    after_timeout: bool = False
    """Whether to retry when no response headers arrive in time. The provider may still be working on the first attempt
    and bill for both."""


class RetryBudget:
    """A token bucket: each request adds `ratio`, each retry takes one. One for a whole pipeline.

    From the start on, retries <= max(FLOOR, ratio * requests). Any later stretch of requests has at most FLOOR retries
    beyond ratio * requests.
    """

    __slots__ = ("_debt", "_per_request", "_tokens", "is_full")

    def __init__(self, ratio: Decimal) -> None:
        # Whole thousandths, rounded down: the limit must not drift with the number of requests.
        self._per_request = int(ratio * _MILLI)
        self._tokens = self._debt = FLOOR * _MILLI if self._per_request else 0
        self.is_full = False
        """Whether another `request` would change nothing and may be skipped."""

    def reconfigure(self, ratio: Decimal) -> None:
        """Use another ratio from now on; the tokens that are left stay."""
        self._per_request = int(ratio * _MILLI)
        if not self._per_request:
            self._tokens = self._debt = 0
        self.is_full = False

    def request(self) -> None:
        """Count a first attempt. It repays what the floor lent before it saves anything."""
        repaid = min(self._debt, self._per_request)
        self._debt -= repaid
        self._tokens = min(FLOOR * _MILLI, self._tokens + self._per_request - repaid)
        self.is_full = not self._debt and self._tokens == FLOOR * _MILLI

    def take(self) -> bool:
        """Take one retry if there is one."""
        if self._tokens < _MILLI:
            return False
        self._tokens -= _MILLI
        self.is_full = False
        return True


def nanoseconds(seconds: float) -> int:
    """Whole nanoseconds, rounded up: a wait may be longer than requested, never shorter."""
    return math.ceil(seconds * NANO)


def full_jitter(random: Callable[[], float], base_seconds: float, cap_seconds: float, retries: int) -> float:
    """Seconds to wait after `retries` earlier retries: random between 0 and min(cap, base * 2 ** retries).

    "Full Jitter" of AWS's "Exponential Backoff And Jitter". `random` returns values in [0, 1).
    """
    return random() * min(cap_seconds, base_seconds * 2.0 ** min(retries, 60))


def retry_after_ns(headers: Mapping[str, str], now_unix_ns: int) -> int | None:
    """Nanoseconds a response asks to wait: the longer of Retry-After (RFC 9110, 10.2.3) and retry-after-ms.

    Never rounded down, at most a day; 0 for a date in the past, None if both are missing or malformed.
    """
    text = headers.get("retry-after", "")
    after_ns = _number_ns(text, NANO)
    waits_ns = (
        _date_ns(text, now_unix_ns) if after_ns is None else after_ns,
        _number_ns(headers.get("retry-after-ms", ""), _NS_PER_MS),
    )
    known_ns = [ns for ns in waits_ns if ns is not None]
    return min(max(known_ns), MAX_RETRY_AFTER_NS) if known_ns else None


def seconds_of(text: str) -> Decimal | None:
    """A number of seconds of at most a day, None if it is malformed."""
    return min(Decimal(text), Decimal(MAX_RETRY_AFTER_NS // NANO)) if _NUMBER.fullmatch(text) else None


def _number_ns(text: str, unit_ns: int) -> int | None:
    """The largest of the values: the HTTP client joins a repeated header's values by commas."""
    values = [value.strip() for value in text.split(",")]
    if not all(_NUMBER.fullmatch(value) for value in values):
        return None
    return int((max(map(Decimal, values)) * unit_ns).to_integral_value(ROUND_CEILING))


def _date_ns(text: str, now_unix_ns: int) -> int | None:
    try:
        date = parsedate_to_datetime(text)
        at_seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):  # all that the parser raises for malformed dates
        return None
    return max(0, int(at_seconds) * NANO - now_unix_ns)
