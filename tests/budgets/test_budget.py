"""Which budgets cover a call, what survives their changes, and the message of a refusal."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.budgets.budget import Budget, Budgets
from mcpmeter.budgets.period import Period
from mcpmeter.errors import BudgetExhausted, ConfigInvalid
from mcpmeter.records import Reservation, Scope

USD = 10**9
MONTH = Period("month", "Europe/Berlin")
NOON = 1_795_777_200_000_000_000  # 2026-11-27T12:00 in Berlin


def budget(name: str = "search", limit_usd: int = 100, period: Period = MONTH, **changes: object) -> Budget:
    values = {"scope": Scope(team="search"), **changes}
    return Budget(name, limit_nanousd=limit_usd * USD, period=period, **values)  # type: ignore[arg-type]


def reserved(budgets: Budgets, at_ns: int = NOON, **call: str) -> list[str]:
    return [one.balance for one in budgets.reservations(max_cost_nanousd=7, at_ns=at_ns, **call)]  # type: ignore[arg-type]


def refused(of: Budget, left: int, amount: int = 2 * USD) -> BudgetExhausted:
    return Budgets([of]).refusal(of.reservation(amount, NOON), left)


def test_a_call_reserves_of_the_month_it_starts_in() -> None:
    (reservation,) = Budgets([budget()]).reservations(team="search", max_cost_nanousd=7, at_ns=NOON)
    start, end = MONTH.bounds(NOON)
    assert reservation == Reservation(
        balance=budget().balance,
        period_start_ns=start,
        period_end_ns=end,
        amount=7,
        limit=100 * USD,
        refuses=True,
        scope=Scope(team="search"),
    )
    assert budget().reservation(7, NOON) == reservation


def test_a_call_reserves_of_every_budget_that_covers_it() -> None:
    names = {"team": "search", "project": "web", "key_id": "key_0123456789ab", "model": "gpt-4.1"}
    scopes = [
        Scope(**{part: name for part, name in zip(names, values, strict=True) if name})
        for values in product(*[("", name, f"other {name}") for name in names.values()])
    ]
    every = [budget(f"b{place}", scope=scope) for place, scope in enumerate(scopes)]
    budgets = Budgets(every)
    for call in ({}, {"team": "search"}, {"team": "search", "model": "gpt-4.1"}, names):
        covering = {
            one.balance
            for one in every
            if all(call.get(part) == value for part in names if (value := getattr(one.scope, part)))
        }
        found = reserved(budgets, **call)
        assert set(found) == covering
        assert len(found) == 2 ** len(call)
        assert found == sorted(found)


def test_the_reserved_period_follows_the_clock_both_ways() -> None:
    budgets = Budgets([budget()])
    start, end = MONTH.bounds(NOON)
    starts = [
        budgets.reservations(team="search", max_cost_nanousd=1, at_ns=at)[0].period_start_ns
        for at in (end - 1, end, NOON)
    ]
    assert starts == [start, end, start]


def test_name_and_limit_keep_the_balance_scope_and_period_do_not() -> None:
    kept = budget().balance
    assert budget("renamed").balance == kept
    assert budget(limit_usd=7, soft_shares=(), refuses=False).balance == kept
    others = [
        budget(scope=Scope(team="support")),
        budget(scope=Scope(project="search")),
        budget(scope=Scope(team="search", model="gpt-4.1")),
        budget(period=Period("month", "UTC")),
        budget(period=Period("month", "Europe/Berlin", 15)),
        budget(period=Period("week", "Europe/Berlin")),
        budget(period=Period("once")),
    ]
    assert len({kept, *(other.balance for other in others)}) == len(others) + 1


def test_a_prepaid_budget_keeps_its_balance_by_its_name() -> None:
    once = Period("once")
    assert budget(period=once).balance != budget("renamed", period=once).balance
    assert budget(period=once).balance == budget(period=Period("once", start_ns=5), limit_usd=1).balance


@given(st.lists(st.text(max_size=12), min_size=4, max_size=4), st.lists(st.text(max_size=12), min_size=4, max_size=4))
def test_two_scopes_never_share_a_balance(one: list[str], another: list[str]) -> None:
    a, b = (budget(scope=Scope(team=t, project=p, key_id=k, model=m)) for t, p, k, m in (one, another))
    assert (a.balance == b.balance) == (one == another)


def test_a_prepaid_budget_covers_calls_from_its_start_on() -> None:
    budgets = Budgets([budget(period=Period("once", start_ns=NOON))])
    assert reserved(budgets, NOON - 1, team="search") == []
    assert len(reserved(budgets, NOON, team="search")) == 1


def test_current_lists_every_budget_with_its_present_period() -> None:
    every = [budget("z"), budget("a", scope=Scope(model="gpt-4.1")), budget("m", period=Period("once"))]
    current = Budgets(every).current(NOON)
    assert [one for one, _ in current] == every == list(Budgets(every))
    assert all(empty == one.reservation(0, NOON) for one, empty in current)


@pytest.mark.parametrize("second", [budget("search", period=Period("day")), budget("twin", limit_usd=5)])
def test_budgets_of_one_name_or_one_balance_are_refused(second: Budget) -> None:
    with pytest.raises(ConfigInvalid, match=f"'search' and '{second.name}'"):
        Budgets([budget(), second])


class TestRefusal:
    def test_names_budget_rest_upper_bound_and_reset(self) -> None:
        error = refused(budget(), left=1_250_000_000)
        assert error.message == (
            "The budget 'search' has $1.25 left of $100.00, after reserving for open calls; "
            "this call could cost up to $2.00. It resets at 2026-12-01T00:00:00+01:00."
        )
        assert "ask the operator to raise 'limit_usd' of 'search'" in error.hint
        assert (error.http_status, error.id) == (402, "budget_exhausted")

    def test_says_overspent_instead_of_a_negative_amount(self) -> None:
        message = refused(budget(), left=-400_000_000).message
        assert "The budget 'search' of $100.00 is overspent by $0.40; this call" in message
        assert "-" not in message.partition("It resets")[0]

    def test_says_nothing_left_instead_of_zero(self) -> None:
        assert "has nothing left of $100.00" in refused(budget(), left=0).message

    def test_a_prepaid_budget_needs_a_top_up(self) -> None:
        error = refused(budget(period=Period("once")), left=5)
        assert "has $0.000000005 left, after" in error.message
        assert error.message.endswith("It is prepaid and does not reset.")
        assert "mcpmeter budgets top-up search --usd AMOUNT" in error.hint

    def test_names_the_field_that_stands_for_a_prompt(self) -> None:
        reservation = budget().reservation(2_000_000_000, NOON)
        error = Budgets([budget()]).refusal(reservation, 1_000_000_000, ("image_url",))
        assert "'image_url' can stand for as long a prompt as the model reads" in error.message
        assert "relay.assumed_prompt_tokens" in error.hint

    def test_a_budget_removed_by_a_reload_still_refuses(self) -> None:
        error = Budgets().refusal(budget().reservation(2, NOON), 1)
        assert error.message.startswith("A budget has $0.000000001 left")

    def test_the_reset_is_in_the_zone_of_the_budget(self) -> None:
        period = Period("month", "Europe/Berlin")
        reservation = budget(period=period).reservation(1, round(datetime(2026, 3, 30).timestamp()) * 10**9)
        assert "2026-04-01T00:00:00+02:00" in Budgets([budget(period=period)]).refusal(reservation, 0).message


@pytest.mark.parametrize(
    ("shares", "credit", "expected"),
    [
        (("0.8",), 0, [80 * USD]),
        (("0.95", "0.5"), 0, [50 * USD, 95 * USD]),
        (("0.8",), 50 * USD, [120 * USD]),
        ((), 0, [100 * USD]),
        (("0.333333333333",), 0, [33_333_333_333]),
        (("0.8",), -200 * USD, [0]),
    ],
)
def test_soft_limits_are_shares_of_limit_and_credit(shares: tuple[str, ...], credit: int, expected: list[int]) -> None:
    assert budget(soft_shares=tuple(map(Decimal, shares))).soft_limits(credit) == expected
