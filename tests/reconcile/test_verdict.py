"""Sums of findings and the tolerance."""

from __future__ import annotations

from decimal import Decimal

import pytest

from mcpmeter.reconcile.lines import Amount, ReconcileItem, Verdict
from mcpmeter.reconcile.verdict import Tally, Tolerance

DOLLAR = 10**9


def finding(verdict: Verdict, billed: int | None, kept: int | None, tokens: tuple[int, int] = (10, 10), place: int = 0):
    sides = [
        None if nanousd is None else Amount(1, tokens[side], 0, nanousd) for side, nanousd in enumerate((billed, kept))
    ]
    return ReconcileItem(verdict, "2026-11-02", "m", f"r{place}", "", sides[0], sides[1], line=place)


def tally(*findings: ReconcileItem, most: int = 20) -> Tally:
    counted = Tally(most)
    for one in findings:
        counted.add(one)
    return counted


def test_the_largest_differences_are_kept_and_come_first() -> None:
    counted = tally(*(finding("price", place * DOLLAR, 0, place=place) for place in (3, 1, 4, 1, 5, 9, 2, 6)), most=3)
    assert [one.line for one in counted.largest] == [9, 6, 5]
    assert counted.differences == 8


def test_none_are_kept_when_none_are_wanted() -> None:
    assert tally(finding("price", DOLLAR, 0), most=0).largest == []


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
def test_the_larger_of_share_and_floor_is_allowed_and_no_more(
    off_nanousd: int, share: str, floor: int, beyond: bool
) -> None:
    counted = tally(finding("price", 100 * DOLLAR, 100 * DOLLAR - off_nanousd))
    assert counted.is_beyond(Tolerance(Decimal(share), floor)) is beyond


def test_differences_that_cancel_out_are_still_differences() -> None:
    counted = tally(finding("missing_in_ledger", DOLLAR, None), finding("missing_in_bill", None, DOLLAR))
    assert (counted.drift_nanousd, counted.off_nanousd) == (0, 2 * DOLLAR)
    assert counted.is_beyond(Tolerance())


def test_a_bill_without_cost_is_judged_by_its_tokens() -> None:
    def told(tokens: int) -> Tally:
        return tally(ReconcileItem("tokens", "", "", "", "", Amount(1, tokens, 0, None), Amount(1, 1000, 0, DOLLAR)))

    assert not told(1010).is_beyond(Tolerance())
    assert told(1011).is_beyond(Tolerance())
    assert told(1011).off_nanousd == 0


def test_a_bill_without_tokens_is_judged_by_its_cost_alone() -> None:
    counted = tally(
        ReconcileItem("matched", "", "", "", "", Amount(1, None, None, DOLLAR), Amount(1, 5, 5, DOLLAR)),
        ReconcileItem("missing_in_bill", "", "", "", "", None, Amount(1, 10**9, 0, 1)),
    )
    assert not counted.tells_tokens
    assert not counted.is_beyond(Tolerance())


@pytest.mark.parametrize("nanousd", [DOLLAR, 1, 0])
def test_calls_against_an_empty_bill_are_beyond(nanousd: int) -> None:
    assert tally(finding("missing_in_bill", None, nanousd)).is_beyond(Tolerance())


def test_what_has_no_price_or_no_cost_is_counted_and_not_judged() -> None:
    counted = tally(finding("unlisted", DOLLAR, None), finding("free", None, 0))
    assert not counted.is_beyond(Tolerance(Decimal(0), 0))
    assert counted.totals["unlisted"].billed_nanousd == DOLLAR
    assert counted.compared.billed_nanousd == 0


def test_a_credit_adds_to_what_is_judged_by_its_size() -> None:
    counted = tally(finding("missing_in_ledger", -DOLLAR, None))
    assert (counted.drift_nanousd, counted.off_nanousd, counted.base_nanousd) == (-DOLLAR, DOLLAR, DOLLAR)
