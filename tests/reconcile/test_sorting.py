"""The temporary database sorts as `match` wants its lines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.reconcile.lines import BillLine
from mcpmeter.reconcile.match import order_of
from mcpmeter.reconcile.sorting import SortedLines

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
figures = st.none() | st.integers(-(2**62), 2**62)
bills = st.lists(
    st.builds(
        BillLine, st.integers(0, 9), st.integers(0, 3), texts, texts, texts, figures, figures, figures, figures,
        st.just(0),
    ),
    max_size=20,
)  # fmt: skip


@given(bills)
def test_lines_are_returned_complete_and_in_order(lines: list[BillLine]) -> None:
    with SortedLines() as store:
        store.add(0, 0, lines)
        assert list(store.lines(0, 0, 10)) == sorted(lines, key=order_of)


def test_bills_files_and_periods_are_separate() -> None:
    first, second, third = (BillLine(place, place) for place in (1, 2, 3))
    with SortedLines() as store:
        store.add(0, 0, [first, third])
        store.add(0, 1, [second])
        store.add(1, 0, [second])
        assert [(line.line, line.file) for line in store.lines(0, 0, 10)] == [(1, 0), (2, 1), (3, 0)]
        assert [line.line for line in store.lines(0, 2, 3)] == [2]
        assert [line.line for line in store.lines(1, 0, 10)] == [2]
