"""What a call reserves of budgets and of its key's minute, and the error of a refusal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mcpmeter.access.callers import Caller
from mcpmeter.budgets.budget import Budget, Budgets
from mcpmeter.budgets.period import Period
from mcpmeter.budgets.reservations import ASSUMED_COMPLETION_TOKENS, MINUTE_NS, Limits
from mcpmeter.errors import BudgetExhausted, RateLimited
from mcpmeter.ledger.store import InsufficientBudget
from mcpmeter.records import Reservation, Scope

NOON = 1_793_534_400_000_000_000
TARGETS = [("holysheep", "cheap"), ("openai", "expensive")]
CALLER = Caller(team="search", project="web", key_id="key_1")
LIMITED = replace(CALLER, requests_per_minute=5, tokens_per_minute=100)
BUDGET = Budget(name="search", scope=Scope(team="search"), limit_nanousd=100, period=Period(kind="month"))


def max_cost(provider: str, model: str, at_ns: int, *, prompt_tokens: int, completion_tokens: int) -> int:
    return (prompt_tokens + 10 * completion_tokens) * {"cheap": 1, "expensive": 3}[model]


def reserve(limits: Limits, caller: Caller, *, prompt: int, completion: int | None = None, at_ns: int = NOON):
    return limits.reserve(caller, TARGETS, max_prompt_tokens=prompt, max_completion_tokens=completion, at_ns=at_ns)


@pytest.fixture
def limits() -> Limits:
    return Limits(budgets=Budgets([BUDGET]), max_cost_nanousd=max_cost)


def test_only_callers_with_limits_need_upper_bounds(limits):
    assert not Limits().apply_to(CALLER)
    assert limits.apply_to(CALLER)
    assert Limits().apply_to(replace(CALLER, tokens_per_minute=5))


def test_the_most_expensive_target_is_reserved(limits):
    reservations, max_cost_nanousd = reserve(limits, CALLER, prompt=7, completion=2)
    assert max_cost_nanousd == (7 + 20) * 3
    assert [(one.balance, one.amount, one.limit) for one in reservations] == [(BUDGET.balance, 81, 100)]


def test_a_request_without_max_tokens_reserves_the_assumed(limits):
    _, max_cost_nanousd = reserve(limits, CALLER, prompt=0)
    assert max_cost_nanousd == 10 * ASSUMED_COMPLETION_TOKENS * 3


def test_the_minute_of_a_key_is_reserved_beside_budgets(limits):
    reservations, _ = reserve(limits, LIMITED, prompt=7, completion=2)
    assert [(one.unit, one.amount, one.limit) for one in reservations] == [
        ("requests", 1, 5),
        ("tokens", 9, 100),
        ("nanousd", 81, 100),
    ]
    assert len({one.balance for one in reservations}) == 3
    assert reservations[0].scope == reservations[1].scope == Scope(key_id="key_1")


def test_a_call_larger_than_the_minute_reserves_all_of_it():
    (_, tokens), _ = reserve(Limits(), LIMITED, prompt=10_000)
    assert tokens.amount == 100


def test_a_call_under_no_limit_reserves_nothing(limits):
    assert reserve(limits, replace(CALLER, team="support"), prompt=7)[0] == ()


@given(at_ns=st.integers(0, 2**62), later_ns=st.integers(0, 10 * MINUTE_NS))
def test_minutes_tile_the_time_line(at_ns, later_ns):
    first, second = (reserve(Limits(), LIMITED, prompt=1, at_ns=now)[0][0] for now in (at_ns, at_ns + later_ns))
    assert first.period_start_ns <= at_ns < first.period_end_ns == first.period_start_ns + MINUTE_NS
    assert (second.period_start_ns - first.period_start_ns) % MINUTE_NS == 0
    assert (second.period_start_ns == first.period_start_ns) == (at_ns + later_ns < first.period_end_ns)


def test_a_refusal_is_the_error_of_its_limit_and_reported():
    refused: list[Reservation] = []
    limits = Limits(budgets=Budgets([BUDGET]), max_cost_nanousd=max_cost, on_refusal=refused.append)
    money = BUDGET.reservation(81, NOON)
    assert isinstance(limits.refusal(InsufficientBudget(money, left=3), NOON), BudgetExhausted)
    (_, tokens, _), _ = reserve(limits, LIMITED, prompt=60, completion=0)
    refusal = limits.refusal(InsufficientBudget(tokens, left=-3), NOON + 30 * 10**9)
    assert isinstance(refusal, RateLimited)
    assert refusal.retry_after == "30"
    assert "100 tokens a minute; 0 are left" in refusal.message
    assert refused == [money, tokens]
