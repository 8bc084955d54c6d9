"""A key's requests and tokens a minute."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.access.callers import Caller
from mcpmeter.budgets.rates import MINUTE_NS, rate_claims, rate_refusal

CALLER = Caller(team="t", key_id="key_1", requests_per_minute=5, tokens_per_minute=100)
NOON = 1_793_534_400_000_000_000


def test_a_key_without_limits_claims_nothing():
    assert rate_claims(Caller(team="t", key_id="key_1"), 1000, NOON) == ()


def test_a_call_claims_one_request_and_the_tokens_it_may_take():
    requests, tokens = rate_claims(CALLER, 60, NOON)
    assert (requests.unit, requests.amount, requests.limit) == ("requests", 1, 5)
    assert (tokens.unit, tokens.amount, tokens.limit) == ("tokens", 60, 100)
    assert requests.balance != tokens.balance
    assert tokens.scope.key_id == "key_1"


def test_a_call_larger_than_the_minute_claims_all_of_it_and_no_more():
    _, tokens = rate_claims(CALLER, 10_000, NOON)
    assert tokens.amount == 100


@given(at_ns=st.integers(0, 2**62), later_ns=st.integers(0, 10 * MINUTE_NS))
def test_minutes_follow_each_other_without_gap_or_overlap(at_ns, later_ns):
    first, second = (rate_claims(CALLER, 1, now)[0] for now in (at_ns, at_ns + later_ns))
    assert first.period_start_ns <= at_ns < first.period_end_ns == first.period_start_ns + MINUTE_NS
    assert (second.period_start_ns - first.period_start_ns) % MINUTE_NS == 0
    assert (second.period_start_ns == first.period_start_ns) == (at_ns + later_ns < first.period_end_ns)


def test_a_refusal_says_what_is_left_and_when_to_come_back():
    _, tokens = rate_claims(CALLER, 60, NOON + 5)
    refusal = rate_refusal(tokens, -3, NOON + 30 * 10**9)
    assert refusal.retry_after == "30"
    assert "100 tokens a minute" in refusal.message
    assert "0 are left" in refusal.message
    assert refusal.http_status == 429
