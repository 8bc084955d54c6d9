"""When a budget will be exhausted at the burn rate of the last hours, and when that is unknown."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.budgets.budget import Budget
from mcpmeter.budgets.forecast import (
    BETWEEN_POINTS_NS,
    MAX_INSTANT_NS,
    MIN_WINDOW_NS,
    NS_PER_HOUR,
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


def balance_of(budget: Budget, at_ns: int, *, spent: int = 0, reserved: int = 0, credit: int = 0) -> Balance:
    empty = budget.reservation(0, at_ns)
    return Balance(
        balance=budget.balance,
        unit="nanousd",
        period_start_ns=empty.period_start_ns,
        period_end_ns=empty.period_end_ns,
        spent=spent,
        reserved=reserved,
        credit=credit,
        carried=0,
    )


def status(
    hours: float, spent: int = 0, burned: int = 0, reserved: int = 0, credit: int = 0, of: Budget = BUDGET
) -> BudgetStatus:
    now_ns = MIDNIGHT + round(hours * NS_PER_HOUR)
    balance = balance_of(of, now_ns, spent=spent, reserved=reserved, credit=credit)
    return status_of(of, balance, burned, now_ns)


def exhausted_after_hours(of: BudgetStatus) -> float | None:
    return None if of.exhausted_at_ns is None else (of.exhausted_at_ns - MIDNIGHT) / NS_PER_HOUR


def test_the_burn_rate_is_that_of_the_last_six_hours() -> None:
    found = status(hours=12, spent=70 * USD, burned=30 * USD)
    assert found.burn_nanousd_per_hour == 5 * USD
    assert exhausted_after_hours(found) == 12 + 6


def test_a_period_younger_than_six_hours_uses_its_own_age() -> None:
    found = status(hours=2, spent=20 * USD, burned=20 * USD)
    assert found.burn_nanousd_per_hour == 10 * USD
    assert exhausted_after_hours(found) == 10


def test_the_first_minutes_are_spread_over_a_quarter_hour() -> None:
    found = status(hours=1 / 60, spent=USD, burned=USD)
    assert found.burn_nanousd_per_hour == USD * NS_PER_HOUR // MIN_WINDOW_NS == 4 * USD
    assert exhausted_after_hours(found) == pytest.approx(1 / 60 + 99 / 4)


def test_exhaustion_may_lie_beyond_the_period() -> None:
    found = status(hours=12, spent=10 * USD, burned=USD)
    assert found.exhausted_at_ns is not None
    assert found.exhausted_at_ns > found.period_end_ns == NEXT


def test_without_burn_there_is_no_forecast() -> None:
    found = status(hours=12, spent=70 * USD)
    assert (found.burn_nanousd_per_hour, found.exhausted_at_ns) == (0, None)


def test_reservations_of_open_calls_are_not_left() -> None:
    found = status(hours=12, spent=70 * USD, burned=30 * USD, reserved=10 * USD)
    assert found.left_nanousd == 20 * USD
    assert exhausted_after_hours(found) == 12 + 4


@pytest.mark.parametrize("spent", [100, 130])
def test_a_budget_with_nothing_left_is_exhausted_now(spent: int) -> None:
    found = status(hours=12, spent=spent * USD)
    assert exhausted_after_hours(found) == 12
    assert found.left_nanousd == (100 - spent) * USD


def test_credit_raises_limit_and_soft_limit() -> None:
    found = status(hours=12, spent=10 * USD, credit=50 * USD, of=PREPAID)
    assert (found.left_nanousd, found.soft_limit_nanousd, found.period_end_ns) == (40 * USD, 40 * USD, 0)


def test_a_clock_before_the_period_gives_no_negative_rate() -> None:
    assert burn_since_ns(MIDNIGHT, MIDNIGHT - NS_PER_HOUR) == MIDNIGHT
    found = status_of(BUDGET, balance_of(BUDGET, MIDNIGHT, spent=USD), USD, MIDNIGHT - NS_PER_HOUR)
    assert found.burn_nanousd_per_hour == 4 * USD


def test_an_instant_beyond_any_clock_is_not_forecast() -> None:
    assert exhausted_at_ns(MAX_INSTANT_NS, 1, WINDOW_NS, MIDNIGHT) is None


@given(left=amounts, burned=amounts, more=st.integers(1, 10**12), window_ns=st.integers(MIN_WINDOW_NS, WINDOW_NS))
def test_more_burn_never_delays_exhaustion(left: int, burned: int, more: int, window_ns: int) -> None:
    slow, fast = (exhausted_at_ns(left, burn, window_ns, MIDNIGHT) for burn in (burned, burned + more))
    assert slow is None or (fast is not None and MIDNIGHT <= fast <= slow <= MAX_INSTANT_NS)


@given(spent=amounts, reserved=amounts, burned=amounts, hours=st.floats(0, 23.9), credit=st.integers(-(2**40), 2**40))
def test_a_status_has_only_whole_numbers(spent: int, reserved: int, burned: int, hours: float, credit: int) -> None:
    found = status(hours, spent, burned, reserved, credit)
    assert found.left_nanousd == 100 * USD + credit - spent - reserved
    numbers = [value for value in msgspec.structs.astuple(found) if isinstance(value, int | float)]
    assert all(isinstance(value, int) for value in numbers)


class TestBurn:
    def test_a_young_period_needs_no_sum_of_the_ledger(self) -> None:
        burn = Burn()
        assert burn.knows(MIDNIGHT, MIDNIGHT + NS_PER_HOUR)
        assert burn.take(MIDNIGHT + NS_PER_HOUR, 7 * USD) == 7 * USD

    def test_an_older_period_needs_the_sum_once(self) -> None:
        burn, now_ns = Burn(), MIDNIGHT + 10 * NS_PER_HOUR
        assert not burn.knows(MIDNIGHT, now_ns)
        burn.begin(now_ns - WINDOW_NS, 40 * USD)
        assert burn.take(now_ns, 52 * USD) == 12 * USD
        for _ in range(3 * 60):
            now_ns += BETWEEN_POINTS_NS
            assert burn.knows(MIDNIGHT, now_ns)
            burned = burn.take(now_ns, 52 * USD)
        assert burned == 6 * USD  # half of the ledger's sum, interpolated

    def test_another_period_starts_from_nothing(self) -> None:
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
    def test_burn_is_between_zero_and_spent_for_any_clock(self, steps: list[tuple[int, int]]) -> None:
        burn, now_ns, spent = Burn(), MIDNIGHT + NS_PER_HOUR, 0
        for step_ns, cost in steps:
            now_ns, spent = max(now_ns + step_ns, MIDNIGHT), spent + cost
            if not burn.knows(MIDNIGHT, now_ns):
                burn.begin(burn_since_ns(MIDNIGHT, now_ns), spent)
            assert 0 <= burn.take(now_ns, spent) <= spent

    @given(per_minute=st.integers(0, USD), minutes=st.integers(1, 20 * 60))
    def test_an_even_burn_is_exact(self, per_minute: int, minutes: int) -> None:
        burn, burned = Burn(), 0
        for minute in range(1, minutes + 1):
            now_ns = MIDNIGHT + minute * BETWEEN_POINTS_NS
            assert burn.knows(MIDNIGHT, now_ns)
            burned = burn.take(now_ns, minute * per_minute)
        assert burned == min(minutes, 6 * 60) * per_minute
