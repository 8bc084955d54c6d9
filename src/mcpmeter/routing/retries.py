"""How long to wait before another attempt: what the provider says, or full jitter."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC
from decimal import ROUND_CEILING, Decimal
from email.utils import parsedate_to_datetime
from typing import Final

from mcpmeter.catalog.spec import NANO

MAX_NS: Final = 86_400 * NANO
"""A Retry-After of more counts as a day: a provider's slip must not shut a credential off for ever."""

_NUMBER: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_NS_PER_MS: Final = 1_000_000


def full_jitter(random: Callable[[], float], base_seconds: float, cap_seconds: float, retries: int) -> float:
    """Seconds to wait after `retries` earlier retries: random between 0 and min(cap, base * 2 ** retries).

    "Full Jitter" of AWS's "Exponential Backoff And Jitter". `random` gives values in [0, 1).
    """
    return random() * min(cap_seconds, base_seconds * 2.0 ** min(retries, 60))


def retry_after_ns(headers: Mapping[str, str], now_unix_ns: int) -> int | None:
    """Nanoseconds that an answer asks to wait: the longer of Retry-After (RFC 9110, 10.2.3) and retry-after-ms.

    Never rounded down, at most a day; 0 for a date that has passed, None where nothing is asked or understood.
    """
    after = headers.get("retry-after", "")
    asked_ns = [_of_number(after, NANO), _of_number(headers.get("retry-after-ms", ""), _NS_PER_MS)]
    if asked_ns[0] is None:
        asked_ns[0] = _of_date(after, now_unix_ns)
    known = [ns for ns in asked_ns if ns is not None]
    return min(max(known), MAX_NS) if known else None


def _of_number(text: str, unit_ns: int) -> int | None:
    """The client joins a repeated header's values by commas; the largest of them counts."""
    values = [value.strip() for value in text.split(",")]
    if not all(_NUMBER.fullmatch(value) for value in values):
        return None
    return int((max(map(Decimal, values)) * unit_ns).to_integral_value(ROUND_CEILING))


def _of_date(text: str, now_unix_ns: int) -> int | None:
    try:
        date = parsedate_to_datetime(text)
        at_seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):  # the parser's ways to say that it is no date
        return None
    return max(0, int(at_seconds) * NANO - now_unix_ns)
