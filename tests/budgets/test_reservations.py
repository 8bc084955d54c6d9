"""What a call claims of its limits, wherever its plan may take it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from mcpmeter.access.callers import Caller
from mcpmeter.budgets.budget import Budget, Budgets
from mcpmeter.budgets.period import Period
from mcpmeter.budgets.reservations import ASSUMED_COMPLETION_TOKENS, Limits
from mcpmeter.errors import BudgetExhausted, RateLimited
from mcpmeter.ledger.store import InsufficientBudget
from mcpmeter.records import Reservation, Scope

NOON = 1_793_534_400_000_000_000
TARGETS = [("holysheep", "cheap"), ("openai", "dear")]
CALLER = Caller(team="search", project="web", key_id="key_1")
BUDGET = Budget(name="search", scope=Scope(team="search"), limit_nanousd=100, period=Period(kind="month"))


def most(provider: str, model: str, at_ns: int, *, prompt_tokens: int, completion_tokens: int) -> int:
    return (prompt_tokens + 10 * completion_tokens) * {"cheap": 1, "dear": 3}[model]


def claims_of(limits: Limits, caller: Caller, *, prompt: int, completion: int | None = None):
    return limits.reserve(caller, TARGETS, max_prompt_tokens=prompt, max_completion_tokens=completion, at_ns=NOON)


@pytest.fixture
def limits() -> Limits:
    return Limits(budgets=Budgets([BUDGET]), max_cost_nanousd=most)


def test_without_budgets_and_rates_nothing_has_to_be_known(limits):
    assert not Limits().apply_to(CALLER)
    assert limits.apply_to(CALLER)
    assert Limits().apply_to(replace(CALLER, tokens_per_minute=5))


def test_a_call_claims_what_the_dearest_place_of_its_plan_could_cost(limits):
    claims, max_cost_nanousd = claims_of(limits, CALLER, prompt=7, completion=2)
    assert max_cost_nanousd == (7 + 20) * 3
    assert [(claim.balance, claim.amount, claim.limit) for claim in claims] == [(BUDGET.balance, 81, 100)]


def test_a_call_without_a_limit_of_its_answer_is_taken_at_the_assumed_length(limits):
    _, max_cost_nanousd = claims_of(limits, CALLER, prompt=0)
    assert max_cost_nanousd == 10 * ASSUMED_COMPLETION_TOKENS * 3


def test_rates_are_claimed_beside_budgets(limits):
    caller = replace(CALLER, requests_per_minute=5, tokens_per_minute=100)
    claims, _ = claims_of(limits, caller, prompt=7, completion=2)
    assert [(claim.unit, claim.amount) for claim in claims] == [("requests", 1), ("tokens", 9), ("nanousd", 81)]


def test_a_call_under_no_budget_claims_nothing(limits):
    claims, _ = claims_of(limits, replace(CALLER, team="support"), prompt=7)
    assert claims == ()


def test_a_refusal_is_said_in_the_words_of_its_limit_and_told():
    told: list[Reservation] = []
    limits = Limits(budgets=Budgets([BUDGET]), max_cost_nanousd=most, on_refusal=told.append)
    money = BUDGET.reservation(81, NOON)
    assert isinstance(limits.refusal(InsufficientBudget(money, left=3), NOON), BudgetExhausted)
    caller = replace(CALLER, requests_per_minute=5)
    (request, _), _ = claims_of(limits, caller, prompt=7)
    refusal = limits.refusal(InsufficientBudget(request, left=0), NOON)
    assert isinstance(refusal, RateLimited)
    assert refusal.retry_after is not None
    assert told == [money, request]
