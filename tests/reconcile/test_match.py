"""Lines against calls: each is in exactly one item, and no nano-dollar is lost."""

from __future__ import annotations

from collections import Counter
from datetime import UTC
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reconcile.conftest import at

from mcpmeter.ledger.queries.settled_calls import SettledCall
from mcpmeter.reconcile.lines import Amount, BillLine, ReconcileItem
from mcpmeter.reconcile.match import Rules, compare, match, match_inline, order_of
from mcpmeter.reconcile.run import MARGIN_NS, day_reader

DAY = 86_400 * 10**9
START = at("2026-11-02")
RULES = Rules(day_reader(UTC), lambda name: name.removesuffix("-2025-04-14"), START, START + 3 * DAY)


def call(
    place: int, *, request_id: str = "", at_ns: int = START, model: str = "gpt-4.1", tokens: int = 10, **more: object
):
    values = {
        "id": f"call_{place}", "started_at_ns": at_ns, "provider": "p", "model": model, "response_model": "",
        "status": "200", "prompt_tokens": tokens, "completion_tokens": tokens, "cached_read_tokens": 0,
        "cache_write_tokens": 0, "reasoning_tokens": 0, "audio_tokens": 0, "token_source": "reported",
        "cost_nanousd": 1000, "cost_source": "listed", "reported_cost_nanousd": None,
        "upstream_request_id": request_id, **more,
    }  # fmt: skip
    return SettledCall(**values)  # type: ignore[arg-type]


def line(
    place: int, *, request_id: str = "", at_ns: int = START, model: str = "gpt-4.1", tokens: int | None = 10, **more
):
    figures = {"requests": 1, "prompt_tokens": tokens, "completion_tokens": tokens, "nanousd": 1000, **more}
    return BillLine(place, at_ns, request_id, model, **figures)


def found(lines: list[BillLine], calls: list[SettledCall], rules: Rules = RULES) -> list[ReconcileItem]:
    in_order = sorted(calls, key=lambda c: (c.upstream_request_id, c.id))
    return list(match(sorted(lines, key=order_of), in_order, rules))


def verdicts(items: list[ReconcileItem]) -> dict[str, int]:
    return dict(Counter(item.verdict for item in items))


class TestById:
    def test_a_line_and_a_call_with_one_id_match_by_any_model_name(self) -> None:
        (item,) = found([line(1, request_id="a", model="gpt-4.1-2025-04-14")], [call(1, request_id="a")])
        assert (item.verdict, item.request_id, item.call_id, item.line) == ("matched", "a", "call_1", 1)

    def test_equal_tokens_and_another_cost_differ_in_price(self) -> None:
        (item,) = found([line(1, request_id="a", nanousd=1500)], [call(1, request_id="a")])
        assert (item.verdict, item.nanousd, item.tokens) == ("price", 500, (0, 0))

    def test_other_tokens_at_the_same_cost_differ_in_tokens(self) -> None:
        (item,) = found([line(1, request_id="a", tokens=12)], [call(1, request_id="a")])
        assert (item.verdict, item.nanousd, item.tokens) == ("tokens", 0, (2, 2))

    def test_a_line_or_call_without_counterpart_is_missing(self) -> None:
        items = found([line(1, request_id="a")], [call(1, request_id="b")])
        assert [(f.verdict, f.request_id, f.nanousd) for f in items] == [
            ("missing_in_ledger", "a", 1000),
            ("missing_in_bill", "b", -1000),
        ]

    def test_a_line_billed_twice_is_a_duplicate(self) -> None:
        items = found([line(1, request_id="a"), line(2, request_id="a", nanousd=9000)], [call(1, request_id="a")])
        assert [(f.verdict, f.line) for f in items] == [("matched", 1), ("duplicate", 2)]

    def test_a_second_call_with_one_id_is_missing_in_the_bill(self) -> None:
        items = found([line(1, request_id="a")], [call(1, request_id="a"), call(2, request_id="a")])
        assert verdicts(items) == {"matched": 1, "missing_in_bill": 1}

    def test_a_call_without_tokens_and_cost_need_not_be_billed(self) -> None:
        (item,) = found([], [call(1, request_id="a", tokens=0, cost_nanousd=0)])
        assert item.verdict == "free"

    def test_a_call_outside_the_period_matches_by_id_or_is_ignored(self) -> None:
        early = call(1, request_id="a", at_ns=START - 1)
        (item,) = found([line(1, request_id="a")], [early])
        assert (item.verdict, item.is_outside) == ("matched", True)
        assert found([], [early]) == []

    @pytest.mark.parametrize(
        ("weak", "note"),
        [
            ({"token_source": "partial"}, "tokens partial"),
            ({"token_source": "estimated"}, "tokens estimated"),
            ({"cost_source": "unpriced", "cost_nanousd": 0}, "unpriced"),
        ],
    )
    def test_weak_figures_of_the_ledger_are_noted(self, weak: dict[str, object], note: str) -> None:
        (item,) = found([line(1, request_id="a", nanousd=7000)], [call(1, request_id="a", **weak)])
        assert item.note == note


class TestByDay:
    def test_lines_and_calls_of_a_models_day_are_summed(self) -> None:
        lines = [line(1, requests=2, tokens=15, part="in"), line(2, requests=1, tokens=15, part="out", nanousd=2000)]
        (item,) = found(lines, [call(place) for place in range(3)])
        assert item.verdict == "matched"
        assert item.billed == Amount(3, 30, 30, 3000, 2)
        assert item.ledger == Amount(3, 30, 30, 3000, 3)

    def test_a_dated_name_is_the_same_model(self) -> None:
        assert verdicts(found([line(1, model="gpt-4.1-2025-04-14")], [call(1)])) == {"matched": 1}

    def test_the_responses_model_name_counts_for_an_alias(self) -> None:
        aliased = call(1, model="fast", response_model="gpt-4.1-2025-04-14")
        assert verdicts(found([line(1)], [aliased])) == {"matched": 1}

    def test_days_are_kept_apart(self) -> None:
        items = found([line(1, at_ns=START + DAY)], [call(1)])
        assert [(f.verdict, f.day) for f in items] == [
            ("missing_in_bill", "2026-11-02"),
            ("missing_in_ledger", "2026-11-03"),
        ]

    def test_a_bill_without_models_is_compared_by_day(self) -> None:
        lines = [line(1, model="", tokens=None, nanousd=2000)]
        (item,) = found(lines, [call(1), call(2, model="other")])
        assert (item.verdict, item.model, item.ledger) == ("matched", "", Amount(2, 20, 20, 2000, 2))

    def test_a_line_without_model_in_a_bill_with_models_is_separate(self) -> None:
        items = found([line(1), line(2, model="", tokens=None, nanousd=30)], [call(1)])
        assert sorted((f.verdict, f.model) for f in items) == [("matched", "gpt-4.1"), ("missing_in_ledger", "")]

    def test_a_repeated_summed_line_is_a_duplicate(self) -> None:
        items = found([line(1, part="x"), line(2, part="x"), line(3, part="y")], [call(1), call(2)])
        assert verdicts(items) == {"duplicate": 1, "matched": 1}

    def test_equal_lines_of_single_requests_are_no_duplicates(self) -> None:
        assert verdicts(found([line(1), line(2)], [call(1), call(2)])) == {"matched": 1}

    def test_calls_without_a_line_of_their_id_count_for_the_day(self) -> None:
        lines = [line(1, request_id="a"), line(2)]
        items = found(lines, [call(1, request_id="a"), call(2, request_id="b")])
        assert verdicts(items) == {"matched": 2}

    def test_a_sum_notes_the_number_of_weak_calls(self) -> None:
        calls = [call(1, token_source="partial"), call(2), call(3, token_source="partial")]
        (item,) = found([line(1, tokens=30, nanousd=99_000)], calls)
        assert item.note == "tokens partial: 2 of 3 calls"

    def test_only_differences_beyond_rounding_count(self) -> None:
        calls = [call(place) for place in range(9)]
        for off, verdict in ((5, "matched"), (6, "price")):
            (item,) = found([line(1, tokens=90, requests=9, nanousd=9000 + off)], calls)
            assert item.verdict == verdict


class TestCompare:
    def test_figures_missing_in_the_bill_are_not_compared(self) -> None:
        assert compare(Amount(1, None, None, 5), Amount(1, 7, 7, 5)) == "matched"
        assert compare(Amount(1, 7, 7, None), Amount(1, 7, 7, 5)) == "matched"
        assert compare(Amount(1, 7, 8, None), Amount(1, 7, 7, 5)) == "tokens"


class TestInline:
    @pytest.mark.parametrize(("listed", "verdict"), [(1000, "matched"), (1500, "price"), (None, "unlisted")])
    def test_the_cost_reported_in_a_response_is_the_bill(self, listed: int | None, verdict: str) -> None:
        item = match_inline(call(1, reported_cost_nanousd=1000), listed, RULES)
        assert (item.verdict, item.call_id) == (verdict, "call_1")


ids = st.sampled_from(["", "", "a", "b", "c", "d"])
times = st.integers(START - MARGIN_NS, START + 3 * DAY + MARGIN_NS)
models = st.sampled_from(["gpt-4.1", "gpt-4.1-2025-04-14", "other", ""])
amounts = st.integers(-(10**12), 10**18)
lines_of_bills = st.lists(
    st.builds(
        BillLine, st.integers(1, 10**6), st.integers(START, START + 3 * DAY - 1), ids, models,
        st.sampled_from(["", "x", "y"]), st.none() | st.integers(0, 9),
        *[st.none() | st.integers(0, 10**9)] * 2, st.none() | amounts,
    ),
    max_size=25,
)  # fmt: skip
settled = st.lists(
    st.builds(
        lambda request_id, at_ns, model, tokens, cost, source: (request_id, at_ns, model, tokens, cost, source),
        ids, times, models.filter(bool), st.integers(0, 3), st.integers(0, 10**18),
        st.sampled_from(["reported", "partial"]),
    ),
    max_size=25,
)  # fmt: skip


def to_calls(drawn: list[tuple]) -> list[SettledCall]:
    return [
        call(place, request_id=i, at_ns=t, model=m, tokens=n, cost_nanousd=c, token_source=s)
        for place, (i, t, m, n, c, s) in enumerate(drawn)
    ]


class TestWhateverComes:
    @given(lines_of_bills, settled)
    def test_nothing_is_lost_or_counted_twice(self, lines: list[BillLine], drawn: list[tuple]) -> None:
        calls = to_calls(drawn)
        items = found(lines, calls)
        assert sum((f.billed.nanousd or 0) for f in items if f.billed) == sum(li.nanousd or 0 for li in lines)
        for name in ("prompt_tokens", "completion_tokens"):
            figures = sum(getattr(f.billed, name) or 0 for f in items if f.billed)
            assert figures == sum(getattr(li, name) or 0 for li in lines)
        assert sum(f.billed.roundings for f in items if f.billed) == len(lines)

        by_id = {f.call_id for f in items if f.call_id}
        inside = [c for c in calls if START <= c.started_at_ns < START + 3 * DAY or c.id in by_id]
        assert sum(f.ledger.calls for f in items if f.ledger) == len(inside)
        assert sum(f.ledger.nanousd or 0 for f in items if f.ledger) == sum(c.cost_nanousd for c in inside)
        assert len(by_id) == sum(1 for f in items if f.call_id)

    @given(lines_of_bills, settled, st.randoms(use_true_random=False))
    def test_the_order_of_the_bill_does_not_matter(self, lines: list, drawn: list[tuple], random: Random) -> None:
        calls = to_calls(drawn)
        shuffled = random.sample(lines, len(lines))
        first, second = found(lines, calls), found(shuffled, random.sample(calls, len(calls)))
        assert _comparable(first) == _comparable(second)

    @given(st.lists(ids.filter(bool), min_size=1, max_size=30))
    def test_every_line_of_an_id_but_one_is_a_duplicate(self, given_ids: list[str]) -> None:
        items = found([line(place, request_id=i) for place, i in enumerate(given_ids, start=1)], [])
        assert verdicts(items).get("duplicate", 0) == len(given_ids) - len(set(given_ids))


def _comparable(items: list[ReconcileItem]) -> list[str]:
    names = ("verdict", "day", "model", "request_id", "call_id", "billed", "ledger", "note")
    return sorted(repr([getattr(item, name) for name in names]) for item in items)
