"""What a call reserves of budgets and of its key's minute, and the error of a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mcpmeter.access.callers import Caller
from mcpmeter.budgets.budget import Budget, Budgets
from mcpmeter.budgets.period import Period
from mcpmeter.budgets.reservations import ASSUMED_COMPLETION_TOKENS, ASSUMED_TOOL_USES, MINUTE_NS, Limits
from mcpmeter.dialects.base import RequestInfo
from mcpmeter.errors import BudgetExhausted, RateLimited
from mcpmeter.ledger.store import InsufficientBudget
from mcpmeter.records import (
    STANDARD,
    AddedCall,
    Call,
    Charge,
    ChargeLine,
    Conditions,
    LlmTarget,
    Reservation,
    Scope,
    UsageItem,
)

NOON = 1_793_534_400_000_000_000
TARGETS = [("holysheep", "cheap"), ("openai", "expensive")]
CALLER = Caller(team="search", project="web", key_id="key_1")
LIMITED = replace(CALLER, requests_per_minute=5, tokens_per_minute=100)
BUDGET = Budget(name="search", scope=Scope(team="search"), limit_nanousd=100, period=Period(kind="month"))


FEE = 1000


def max_cost(
    provider: str,
    model: str,
    at_ns: int,
    *,
    prompt_tokens: int,
    completion_tokens: int,
    conditions: Conditions = STANDARD,
    max_items: Sequence[UsageItem] = (),
) -> int:
    tokens = (prompt_tokens + 10 * completion_tokens) * {"cheap": 1, "expensive": 3, "other": 7}[model]
    return tokens * (2 if conditions.tier else 1) + FEE * sum(item.quantity for item in max_items)


def reserve(
    limits: Limits, caller: Caller, *, prompt: int, completion: int | None = None, at_ns: int = NOON, **more: Any
):
    request = RequestInfo("cheap", max_prompt_tokens=prompt, max_completion_tokens=completion, **more)
    return limits.reserve(caller, TARGETS, request, size=10**9, at_ns=at_ns)


def cost(prompt: int = 7, completion: int | None = 2, **more: Any) -> int:
    """What is reserved of money, at the dearer target."""
    changed = {name: more.pop(name) for name in ("assumed_prompt_tokens", "assumed_tool_uses") if name in more}
    windows = {"expensive": 500} if more.pop("known", True) else {}
    limits = Limits(
        budgets=Budgets([BUDGET]),
        max_cost_nanousd=max_cost,
        context_window=lambda provider, model: windows.get(model),
        **changed,
    )
    return reserve(limits, CALLER, prompt=prompt, completion=completion, **more)[1]


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


def test_each_choice_without_a_limit_reserves_the_assumed():
    assert cost(0, None, choices=3) == 10 * 3 * ASSUMED_COMPLETION_TOKENS * 3


def test_the_body_bounds_a_prompt_that_it_holds(limits):
    request = RequestInfo("cheap", max_completion_tokens=0)
    assert limits.reserve(CALLER, TARGETS, request, size=9, at_ns=NOON)[1] == 9 * 3


def test_a_prompt_by_reference_reserves_the_context_window():
    by_reference = {"references": ("previous_response_id",)}
    assert cost(7, 0, **by_reference) == max(500 * 3, 200_007)  # of the cheap target no window is known
    assert cost(7, 0, known=False, **by_reference) == 200_007 * 3
    assert cost(7, 0, assumed_prompt_tokens=40, **by_reference) == 47 * 3


def test_hosted_tools_reserve_their_fees():
    items = (UsageItem("web_search", 5), UsageItem("file_search", 0))
    assert cost(max_items=items) == 27 * 3 + FEE * (5 + ASSUMED_TOOL_USES)
    assert cost(max_items=items, assumed_tool_uses=2) == 27 * 3 + FEE * 7


def test_tokens_without_a_limit_are_at_most_those_of_the_prompt():
    assert cost(max_items=(UsageItem("cache_write_1h", 0),)) == 27 * 3 + FEE * 7


def test_the_requested_tier_multiplies_the_reservation():
    assert cost(conditions=Conditions(tier="priority")) == 2 * 27 * 3


def test_further_model_calls_of_the_provider_are_reserved():
    instead = AddedCall(model="other", is_instead=True)
    assert cost(added_calls=(instead,)) == 27 * 7
    assert cost(added_calls=(AddedCall(model="other", times=2, max_completion_tokens=4),)) == 27 * 3 + 2 * 47 * 7
    assert (
        cost(added_calls=(AddedCall(model="", times=0, max_completion_tokens=4),), assumed_tool_uses=3)
        == 27 * 3 + 3 * 47 * 3
    )
    assert cost(added_calls=(AddedCall(model="", times=1, max_completion_tokens=4, by_reference=True),)) == max(
        27 * 3 + 540 * 3, 27 + 200_047
    )


def test_budgets_of_every_model_that_may_answer_are_reserved():
    everything = Budget(name="all", scope=Scope(), limit_nanousd=900, period=Period(kind="month"))
    of = {
        model: Budget(name=model, scope=Scope(model=model), limit_nanousd=900, period=Period(kind="month"))
        for model in ("cheap", "expensive", "other")
    }
    limits = Limits(budgets=Budgets([everything, *of.values()]), max_cost_nanousd=max_cost)
    reservations, _ = reserve(limits, CALLER, prompt=7, completion=2)
    assert {one.balance: (one.amount, one.answered_by) for one in reservations} == {
        everything.balance: (81, ""),
        of["cheap"].balance: (27, "cheap"),
        of["expensive"].balance: (81, "expensive"),
    }
    assert [one.balance for one in reservations] == sorted(one.balance for one in reservations)


def test_lines_of_other_models_post_to_the_budgets_of_these():
    of = {
        model: Budget(name=model, scope=Scope(model=model), limit_nanousd=900, period=Period(kind="month"))
        for model in ("cheap", "other")
    }
    limits = Limits(budgets=Budgets([BUDGET, *of.values()]))
    call = Call(
        id="c",
        started_at_ns=NOON,
        endpoint="/",
        method="POST",
        team="search",
        llm=LlmTarget(provider="holysheep", model="cheap"),
    )
    own, other = ChargeLine("prompt", 5, 50), ChargeLine("prompt", 9, 20, model="other")
    charge = Charge(nanousd=70, source="listed", lines=(own, other))
    posted = {one.balance: one.amount for one in limits.postings(call, charge)}
    assert posted == {of["cheap"].balance: 50, of["other"].balance: 20}
    assert limits.postings(call, replace(charge, lines=(own,))) == ()


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
    assert isinstance(limits.refusal(InsufficientBudget(money, left=3), NOON, RequestInfo("m")), BudgetExhausted)
    (_, tokens, _), _ = reserve(limits, LIMITED, prompt=60, completion=0)
    refusal = limits.refusal(InsufficientBudget(tokens, left=-3), NOON + 30 * 10**9, RequestInfo("m"))
    assert isinstance(refusal, RateLimited)
    assert refusal.retry_after == "30"
    assert "100 tokens a minute; 0 are left" in refusal.message
    assert refused == [money, tokens]
