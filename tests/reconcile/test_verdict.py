"""Totals of a bill and the tolerance."""

from __future__ import annotations

from decimal import Decimal

import pytest

from mcpmeter.reconcile.lines import Amount, ReconcileItem, Verdict
from mcpmeter.reconcile.verdict import ReconcileTotals, Tolerance

DOLLAR = 10**9


def item(verdict: Verdict, billed: int | None, recorded: int | None, tokens: tuple[int, int] = (10, 10), line: int = 0):
    sides = [
        None if nanousd is None else Amount(1, tokens[side], 0, nanousd)
        for side, nanousd in enumerate((billed, recorded))
    ]
    return ReconcileItem(verdict, "2026-11-02", "m", f"r{line}", "", sides[0], sides[1], line=line)


def totals(*items: ReconcileItem, max_largest: int = 20) -> ReconcileTotals:
    counted = ReconcileTotals(max_largest)
    for one in items:
        counted.add(one)
    return counted


def test_the_largest_differences_are_kept_in_order() -> None:
    counted = totals(*(item("price", line * DOLLAR, 0, line=line) for line in (3, 1, 4, 1, 5, 9, 2, 6)), max_largest=3)
    assert [one.line for one in counted.largest] == [9, 6, 5]
    assert counted.differences == 8


def test_no_difference_is_kept_with_a_maximum_of_0() -> None:
    assert totals(item("price", DOLLAR, 0), max_largest=0).largest == []


@pytest.mark.parametrize(
    ("off_nanousd", "share", "floor", "beyond"),
    [
        (DOLLAR, "0.01", 0, False),
        (DOLLAR + 1, "0.01", 0, True),
        (DOLLAR + 1, "0.01", DOLLAR + 1, False),
        (1, "0", 0, True),
        (0, "0", 0, False),
    ],
)
def test_the_tolerance_is_the_larger_of_share_and_floor(off_nanousd: int, share: str, floor: int, beyond: bool) -> None:
    counted = totals(item("price", 100 * DOLLAR, 100 * DOLLAR - off_nanousd))
    assert counted.is_beyond(Tolerance(Decimal(share), floor)) is beyond


def test_opposite_differences_do_not_cancel_out() -> None:
    counted = totals(item("missing_in_ledger", DOLLAR, None), item("missing_in_bill", None, DOLLAR))
    assert (counted.drift_nanousd, counted.off_nanousd) == (0, 2 * DOLLAR)
    assert counted.is_beyond(Tolerance())


def test_a_bill_without_cost_is_judged_by_its_tokens() -> None:
    def bill_of(tokens: int) -> ReconcileTotals:
        return totals(ReconcileItem("tokens", "", "", "", "", Amount(1, tokens, 0, None), Amount(1, 1000, 0, DOLLAR)))

    assert not bill_of(1010).is_beyond(Tolerance())
    assert bill_of(1011).is_beyond(Tolerance())
    assert bill_of(1011).off_nanousd == 0


def test_a_bill_without_tokens_is_judged_by_its_cost_alone() -> None:
    counted = totals(
        ReconcileItem("matched", "", "", "", "", Amount(1, None, None, DOLLAR), Amount(1, 5, 5, DOLLAR)),
        ReconcileItem("missing_in_bill", "", "", "", "", None, Amount(1, 10**9, 0, 1)),
    )
    assert not counted.has_tokens
    assert not counted.is_beyond(Tolerance())


@pytest.mark.parametrize("nanousd", [DOLLAR, 1, 0])
def test_calls_against_an_empty_bill_are_beyond(nanousd: int) -> None:
    assert totals(item("missing_in_bill", None, nanousd)).is_beyond(Tolerance())


def test_unlisted_and_free_calls_are_counted_but_not_compared() -> None:
    counted = totals(item("unlisted", DOLLAR, None), item("free", None, 0))
    assert not counted.is_beyond(Tolerance(Decimal(0), 0))
    assert counted.by_verdict["unlisted"].billed_nanousd == DOLLAR
    assert counted.compared.billed_nanousd == 0


def test_a_credit_counts_by_its_absolute_amount() -> None:
    counted = totals(item("missing_in_ledger", -DOLLAR, None))
    assert (counted.drift_nanousd, counted.off_nanousd, counted.base_nanousd) == (-DOLLAR, DOLLAR, DOLLAR)
