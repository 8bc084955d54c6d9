"""The retry budget, full jitter and Retry-After, each alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmeter.routing.retries import FLOOR, MAX_RETRY_AFTER_NS, RetryBudget, full_jitter, retry_after_ns

unhurried = settings(deadline=None)

SECOND = 1_000_000_000
NOW = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * SECOND


class TestRetryBudget:
    def test_a_new_budget_lends_the_floor(self) -> None:
        fresh = RetryBudget(Decimal("0.2"))
        assert [fresh.take() for _ in range(FLOOR + 1)] == [True] * FLOOR + [False]

    def test_the_loan_is_repaid_first(self) -> None:
        lent = RetryBudget(Decimal("0.2"))
        taken = 0
        for request in range(1, 1001):
            lent.request()
            while lent.take():
                taken += 1
            assert taken == max(FLOOR, request // 5)

    def test_a_quiet_period_saves_at_most_the_floor(self) -> None:
        saved = RetryBudget(Decimal("0.2"))
        for _ in range(100_000):
            saved.request()
        assert sum(saved.take() for _ in range(1000)) == FLOOR

    def test_it_is_full_until_a_retry_is_taken(self) -> None:
        full = RetryBudget(Decimal("0.3"))
        while not full.is_full:
            full.request()
        assert sum(full.take() for _ in range(1000)) == FLOOR
        assert not full.is_full

    def test_a_ratio_of_zero_allows_none(self) -> None:
        none = RetryBudget(Decimal(0))
        for _ in range(1000):
            none.request()
            assert not none.take()

    @unhurried
    @given(ratio=st.decimals(0, 1, places=4), steps=st.lists(st.booleans(), max_size=400), begin=st.integers(0, 400))
    def test_retries_stay_within_share_and_floor_in_any_stretch(
        self, ratio: Decimal, steps: list[bool], begin: int
    ) -> None:
        bucket = RetryBudget(ratio)
        requests = retries = since_requests = since_retries = 0
        for index, is_request in enumerate(steps):
            if is_request:
                bucket.request()
            got = not is_request and bucket.take()
            requests, retries = requests + is_request, retries + got
            assert retries <= max(FLOOR if ratio else 0, ratio * requests)
            if index >= begin:
                since_requests, since_retries = since_requests + is_request, since_retries + got
                assert since_retries <= FLOOR + ratio * since_requests


def test_full_jitter_is_uniform_up_to_the_doubled_base_or_cap() -> None:
    random = Random(7).random
    for retries, longest in ((0, 0.1), (1, 0.2), (3, 0.8), (6, 5.0), (5000, 5.0)):
        waits = [full_jitter(random, 0.1, 5.0, retries) for _ in range(4000)]
        assert 0 <= min(waits) < 0.01 * longest
        assert 0.99 * longest < max(waits) < longest
        assert sum(waits) / len(waits) == pytest.approx(longest / 2, rel=0.05)


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({}, None),
            ({"retry-after": "0"}, 0),
            ({"retry-after": "7"}, 7),
            ({"retry-after": " 7 "}, 7),
            ({"retry-after": "1.5"}, 1.5),
            ({"retry-after": "7, 9"}, 9),
            ({"retry-after-ms": "1500"}, 1.5),
            ({"retry-after": "2", "retry-after-ms": "1500"}, 2),
            ({"retry-after": "1", "retry-after-ms": "1500"}, 1.5),
            ({"retry-after": "soon", "retry-after-ms": "1500"}, 1.5),
            ({"retry-after": format_datetime(NOW + timedelta(seconds=90), usegmt=True)}, 90),
            ({"retry-after": format_datetime(NOW - timedelta(seconds=90), usegmt=True)}, 0),
            ({"retry-after": "Sunday, 22-Nov-26 10:01:30 GMT"}, 90),
            ({"retry-after": "Sun Nov 22 10:01:30 2026"}, 90),
            ({"retry-after": "Sun, 22 Nov 2026 11:01:30 +0100"}, 90),
            ({"retry-after": "999999999999"}, 86_400),
            ({"retry-after": format_datetime(NOW + timedelta(days=900), usegmt=True)}, 86_400),
            ({"retry-after": "99999999999999999999"}, 86_400),
            ({"retry-after": "-5"}, None),
            ({"retry-after": "NaN"}, None),
            ({"retry-after": "1e9"}, None),
            ({"retry-after": "inf"}, None),
            ({"retry-after": "٧"}, None),
            ({"retry-after": "soon"}, None),
            ({"retry-after": ""}, None),
            ({"retry-after": "Sun, 99 Nov 2026 10:01:30 GMT"}, None),
            ({"retry-after": "Sun, 22 Nov 99999999999 10:01:30 GMT"}, None),
        ],
    )
    def test_every_form_is_read_and_malformed_ones_ignored(
        self, headers: dict[str, str], seconds: float | None
    ) -> None:
        assert retry_after_ns(headers, NOW_NS) == (None if seconds is None else seconds * SECOND)

    def test_it_is_never_rounded_down(self) -> None:
        assert retry_after_ns({"retry-after": "0.000000001"}, NOW_NS) == 1
        assert retry_after_ns({"retry-after-ms": "0.0000001"}, NOW_NS) == 1
        date = format_datetime(NOW + timedelta(seconds=1), usegmt=True)
        assert retry_after_ns({"retry-after": date}, NOW_NS + 1) == SECOND - 1

    @unhurried
    @given(text=st.text() | st.from_regex(r"\w{3}, \d{1,3} \w{3} \d{1,12} \d+:\d+:\d+ [-+\w]{1,9}"), now=st.integers(0))
    def test_any_text_is_a_time_up_to_a_day_or_none(self, text: str, now: int) -> None:
        asked = retry_after_ns({"retry-after": text, "retry-after-ms": text}, now)
        assert asked is None or 0 <= asked <= MAX_RETRY_AFTER_NS
