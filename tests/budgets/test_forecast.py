"""When a budget will be exhausted, by what burned in the last hours, and when nothing can be said."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.budgets.budget import Budget
from mcpmeter.budgets.forecast import (
    BETWEEN_POINTS_NS,
    LAST_INSTANT,
    NS_PER_HOUR,
    SHORTEST_WINDOW_NS,
    WINDOW_NS,
    BudgetStatus,
    Burn,
    burn_since_ns,
    exhausted_at_ns,
    status_of,
)
from mcpmeter.budgets.period import Period
from mcpmeter.records import Balance, Scope

USD = 10**9
DAY = Period("day")
MIDNIGHT, NEXT = DAY.bounds(1_795_777_200_000_000_000)
BUDGET = Budget("search", Scope(team="search"), 100 * USD, DAY)
PREPAID = Budget("credit", Scope(team="search"), 0, Period("once"))

amounts = st.integers(0, 2**63 - 1)


def status(
    hours: float, spent: int = 0, burned: int = 0, reserved: int = 0, credit: int = 0, of: Budget = BUDGET
) -> BudgetStatus:
    now_ns = MIDNIGHT + round(hours * NS_PER_HOUR)
    claim = of.reservation(0, now_ns)
    balance = Balance(
        balance=of.balance,
        unit="nanousd",
        period_start_ns=claim.period_start_ns,
        period_end_ns=claim.period_end_ns,
        spent=spent,
        reserved=reserved,
        credit=credit,
        carried=0,
    )
    return status_of(of, balance, burned, now_ns)


def exhausted_after_hours(of: BudgetStatus) -> float | None:
    return None if of.exhausted_at_ns is None else (of.exhausted_at_ns - MIDNIGHT) / NS_PER_HOUR


def test_what_is_left_burns_on_as_in_the_last_six_hours() -> None:
    found = status(hours=12, spent=70 * USD, burned=30 * USD)
    assert found.burn_nanousd_per_hour == 5 * USD
    assert exhausted_after_hours(found) == 12 + 6


def test_a_period_that_is_younger_than_six_hours_counts_by_its_own_age() -> None:
    found = status(hours=2, spent=20 * USD, burned=20 * USD)
    assert found.burn_nanousd_per_hour == 10 * USD
    assert exhausted_after_hours(found) == 10


def test_the_first_minute_of_a_period_is_no_rate_for_the_rest_of_it() -> None:
    found = status(hours=1 / 60, spent=USD, burned=USD)
    assert found.burn_nanousd_per_hour == USD * NS_PER_HOUR // SHORTEST_WINDOW_NS == 4 * USD
    assert exhausted_after_hours(found) == pytest.approx(1 / 60 + 99 / 4)


def test_an_end_beyond_the_period_is_told_all_the_same() -> None:
    found = status(hours=12, spent=10 * USD, burned=USD)
    assert found.exhausted_at_ns is not None
    assert found.exhausted_at_ns > found.period_end_ns == NEXT


def test_nothing_is_projected_where_nothing_burns() -> None:
    found = status(hours=12, spent=70 * USD)
    assert (found.burn_nanousd_per_hour, found.exhausted_at_ns) == (0, None)


def test_what_open_calls_may_cost_is_not_left() -> None:
    found = status(hours=12, spent=70 * USD, burned=30 * USD, reserved=10 * USD)
    assert found.left_nanousd == 20 * USD
    assert exhausted_after_hours(found) == 12 + 4


@pytest.mark.parametrize("spent", [100, 130])
def test_a_budget_with_nothing_left_is_exhausted_now(spent: int) -> None:
    found = status(hours=12, spent=spent * USD)
    assert exhausted_after_hours(found) == 12
    assert found.left_nanousd == (100 - spent) * USD


def test_credit_goes_on_top_of_the_limit_and_of_the_soft_limit() -> None:
    found = status(hours=12, spent=10 * USD, credit=50 * USD, of=PREPAID)
    assert (found.left_nanousd, found.soft_limit_nanousd, found.period_end_ns) == (40 * USD, 40 * USD, 0)


def test_a_clock_that_steps_back_before_the_period_began_projects_nothing_negative() -> None:
    assert burn_since_ns(MIDNIGHT, MIDNIGHT - NS_PER_HOUR) == MIDNIGHT
    claim = BUDGET.reservation(0, MIDNIGHT)
    balance = Balance(
        balance=claim.balance,
        unit="nanousd",
        period_start_ns=claim.period_start_ns,
        period_end_ns=claim.period_end_ns,
        spent=USD,
        reserved=0,
        credit=0,
        carried=0,
    )
    found = status_of(BUDGET, balance, USD, MIDNIGHT - NS_PER_HOUR)
    assert found.burn_nanousd_per_hour == 4 * USD


def test_what_no_clock_will_see_is_not_projected() -> None:
    assert exhausted_at_ns(LAST_INSTANT, 1, WINDOW_NS, MIDNIGHT) is None


@given(left=amounts, burned=amounts, more=st.integers(1, 10**12), window_ns=st.integers(SHORTEST_WINDOW_NS, WINDOW_NS))
def test_more_burn_never_moves_the_end_further_away(left: int, burned: int, more: int, window_ns: int) -> None:
    slow, fast = (exhausted_at_ns(left, burn, window_ns, MIDNIGHT) for burn in (burned, burned + more))
    assert slow is None or (fast is not None and MIDNIGHT <= fast <= slow <= LAST_INSTANT)


@given(spent=amounts, reserved=amounts, burned=amounts, hours=st.floats(0, 23.9), credit=st.integers(-(2**40), 2**40))
def test_a_status_is_told_in_whole_numbers_whatever_the_ledger_holds(
    spent: int, reserved: int, burned: int, hours: float, credit: int
) -> None:
    found = status(hours, spent, burned, reserved, credit)
    assert found.left_nanousd == 100 * USD + credit - spent - reserved
    numbers = [value for value in msgspec.structs.astuple(found) if isinstance(value, int | float)]
    assert all(isinstance(value, int) for value in numbers)


class TestBurn:
    def test_a_young_period_needs_no_ledger_it_has_spent_all_of_it_since_it_began(self) -> None:
        burn = Burn()
        assert burn.knows(MIDNIGHT, MIDNIGHT + NS_PER_HOUR)
        assert burn.take(MIDNIGHT + NS_PER_HOUR, 7 * USD) == 7 * USD

    def test_an_older_period_asks_the_ledger_once_and_goes_on_from_there(self) -> None:
        burn, now_ns = Burn(), MIDNIGHT + 10 * NS_PER_HOUR
        assert not burn.knows(MIDNIGHT, now_ns)
        burn.begin(now_ns - WINDOW_NS, 40 * USD)
        assert burn.take(now_ns, 52 * USD) == 12 * USD
        for _ in range(3 * 60):
            now_ns += BETWEEN_POINTS_NS
            assert burn.knows(MIDNIGHT, now_ns)
            burned = burn.take(now_ns, 52 * USD)
        assert burned == 6 * USD  # half of what the ledger told of, as if it had burned evenly

    def test_another_period_begins_from_nothing_and_the_one_before_is_asked_for_again(self) -> None:
        burn = Burn()
        burn.begin(NEXT - WINDOW_NS, 0)
        assert burn.knows(NEXT, NEXT + 1)
        assert burn.take(NEXT + 1, 3) == 3
        assert not burn.knows(MIDNIGHT, NEXT - 1)

    @given(
        steps=st.lists(
            st.tuples(st.integers(-NS_PER_HOUR, 2 * NS_PER_HOUR), st.integers(0, USD)), min_size=1, max_size=60
        )
    )
    def test_it_never_burns_less_than_nothing_nor_more_than_was_spent_wherever_the_clock_goes(
        self, steps: list[tuple[int, int]]
    ) -> None:
        burn, now_ns, spent = Burn(), MIDNIGHT + NS_PER_HOUR, 0
        for step_ns, cost in steps:
            now_ns, spent = max(now_ns + step_ns, MIDNIGHT), spent + cost
            if not burn.knows(MIDNIGHT, now_ns):
                burn.begin(burn_since_ns(MIDNIGHT, now_ns), spent)
            assert 0 <= burn.take(now_ns, spent) <= spent

    @given(per_minute=st.integers(0, USD), minutes=st.integers(1, 20 * 60))
    def test_an_even_burn_is_told_to_within_a_minute_of_it(self, per_minute: int, minutes: int) -> None:
        burn, burned = Burn(), 0
        for minute in range(1, minutes + 1):
            now_ns = MIDNIGHT + minute * BETWEEN_POINTS_NS
            assert burn.knows(MIDNIGHT, now_ns)
            burned = burn.take(now_ns, minute * per_minute)
        assert burned == min(minutes, 6 * 60) * per_minute
