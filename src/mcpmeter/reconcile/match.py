"""Matches bill lines with ledger calls by request id, or else by model and day. Pure.

Both sides arrive sorted by request id and are merged in one pass, so that memory does not grow with their number. Lines
and calls without a request id sort first. Lines without one are summed by model and day; calls that no line names by
id are added to the other side of these sums, which are compared at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from mcpmeter.reconcile.lines import Amount, BillLine, ReconcileItem, Verdict

if TYPE_CHECKING:
    from mcpmeter.ledger.queries.settled_calls import SettledCall

_Item = TypeVar("_Item")

Key = tuple[str, str]
"""A day and a model; the model is empty if the bill names none."""

WEAK_COUNTS: Final = ("estimated", "partial", "missing")


@dataclass(frozen=True)
class Rules:
    """How names and instants of both sides are normalized."""

    day_of: Callable[[int], str]
    """Unix ns to YYYY-MM-DD in the bill's time zone."""
    model_of: Callable[[str], str]
    """`gpt-4.1-2025-04-14` to `gpt-4.1`."""
    since_ns: int
    until_ns: int
    """Calls outside only match lines with their id: a provider may book a call a little later than the ledger."""


def order_of(line: BillLine) -> tuple[object, ...]:
    """The sort key that `match` requires: by request id, equal lines adjacent."""
    amounts = (line.requests, line.prompt_tokens, line.completion_tokens, line.nanousd)
    amounts_or_none = tuple((-1 if amount is None else 0, amount or 0) for amount in amounts)
    return (line.request_id, line.at_ns, line.model, line.part, amounts_or_none, line.file, line.line)


def match(lines: Iterable[BillLine], calls: Iterable[SettledCall], rules: Rules) -> Iterator[ReconcileItem]:
    """Yields one item for every line and every call of the period.

    `lines` are sorted by `order_of`, `calls` by `upstream_request_id`, by code points.
    """
    left, right = _Peekable(lines), _Peekable(calls)
    billed = _Sums()
    yield from _sum_lines(left, billed, rules)
    recorded = _Sums()
    for call in right.without("upstream_request_id"):
        yield from _without_line(call, billed, recorded, rules, pooled=True)
    yield from _by_id(left, right, billed, recorded, rules)
    yield from _by_day(billed, recorded)


def _sum_lines(lines: _Peekable[BillLine], billed: _Sums, rules: Rules) -> Iterator[ReconcileItem]:
    """Sums the lines without a request id; repeated lines are duplicates."""
    last: BillLine | None = None
    for line in lines.without("request_id"):
        if last is not None and line.part and _is_same(line, last):
            yield _of_line("duplicate", line, rules)
        else:
            billed.add_line(rules.day_of(line.at_ns), rules.model_of(line.model) if line.model else "", line)
        last = line


def _by_id(
    lines: _Peekable[BillLine], calls: _Peekable[SettledCall], billed: _Sums, recorded: _Sums, rules: Rules
) -> Iterator[ReconcileItem]:
    last_id = ""
    while (line := lines.peek) is not None or calls.peek is not None:
        call = calls.peek
        if line is not None and line.request_id == last_id:
            yield _of_line("duplicate", lines.take(), rules)
        elif call is None or (line is not None and line.request_id < call.upstream_request_id):
            line = lines.take()
            last_id = line.request_id
            yield _of_line("missing_in_ledger", line, rules)
        elif line is None or call.upstream_request_id < line.request_id:
            yield from _without_line(calls.take(), billed, recorded, rules, pooled=bool(billed.sums))
        else:
            last_id = lines.take().request_id
            yield _pair(line, calls.take(), rules)


def _without_line(
    call: SettledCall, billed: _Sums, recorded: _Sums, rules: Rules, *, pooled: bool
) -> Iterator[ReconcileItem]:
    """A call that no line names by id: part of its model's day if `pooled`, else missing in the bill."""
    if not _is_within(call, rules):
        return
    day, model, amount = rules.day_of(call.started_at_ns), _model(call, rules), _amount(call)
    if not (call.cost_nanousd or call.prompt_tokens or call.completion_tokens):
        yield ReconcileItem("free", day, model, call.upstream_request_id, call.id, None, amount)
    elif pooled:
        recorded.add_call(day, "" if billed.nameless else model, amount, _weakness(call))
    else:
        yield ReconcileItem(
            "missing_in_bill", day, model, call.upstream_request_id, call.id, None, amount, note=_weakness(call)
        )


def _pair(line: BillLine, call: SettledCall, rules: Rules) -> ReconcileItem:
    billed, amount = _amount_of_line(line), _amount(call)
    verdict = compare(billed, amount)
    note = "" if verdict == "matched" else _weakness(call)
    return ReconcileItem(
        verdict, rules.day_of(line.at_ns), _model(call, rules), line.request_id, call.id, billed, amount,
        line.file, line.line, note, is_outside=not _is_within(call, rules),
    )  # fmt: skip


def _by_day(billed: _Sums, recorded: _Sums) -> Iterator[ReconcileItem]:
    for key in sorted(billed.sums.keys() | recorded.sums.keys()):
        bill, ledger = billed.amount(key), recorded.amount(key)
        verdict: Verdict = "missing_in_bill"
        if bill is not None:
            verdict = compare(bill, ledger) if ledger is not None else "missing_in_ledger"
        file, line = billed.only_line(key)
        note = "" if verdict == "matched" else recorded.note(key)
        yield ReconcileItem(verdict, *key, "", "", bill, ledger, file, line, note)


def compare(billed: Amount, recorded: Amount) -> Verdict:
    """The verdict on two amounts of the same calls. Rounding to nano-dollars is no difference."""
    if billed.prompt_tokens is not None and (
        billed.prompt_tokens != recorded.prompt_tokens or billed.completion_tokens != recorded.completion_tokens
    ):
        return "tokens"
    if billed.nanousd is None or recorded.nanousd is None:
        return "matched"
    rounding = (billed.roundings + recorded.roundings) // 2
    return "matched" if abs(billed.nanousd - recorded.nanousd) <= rounding else "price"


def match_inline(call: SettledCall, listed_nanousd: int | None, rules: Rules) -> ReconcileItem:
    """Compares the cost that a call's response reported, as the bill, with the cost by the price list."""
    counts = (1, call.prompt_tokens, call.completion_tokens)
    reported = Amount(*counts, call.reported_cost_nanousd)
    listed = Amount(*counts, listed_nanousd)
    verdict: Verdict = "unlisted" if listed_nanousd is None else compare(reported, listed)
    note = "" if verdict == "matched" else _weakness(call)
    day, model = rules.day_of(call.started_at_ns), _model(call, rules)
    return ReconcileItem(verdict, day, model, call.upstream_request_id, call.id, reported, listed, note=note)


def _of_line(verdict: Verdict, line: BillLine, rules: Rules) -> ReconcileItem:
    day, model = rules.day_of(line.at_ns), rules.model_of(line.model) if line.model else ""
    return ReconcileItem(verdict, day, model, line.request_id, "", _amount_of_line(line), None, line.file, line.line)


def _amount_of_line(line: BillLine) -> Amount:
    calls = 1 if line.requests is None else line.requests
    return Amount(calls, line.prompt_tokens, line.completion_tokens, line.nanousd)


def _amount(call: SettledCall) -> Amount:
    return Amount(1, call.prompt_tokens, call.completion_tokens, call.cost_nanousd)


def _model(call: SettledCall, rules: Rules) -> str:
    # The response's name, because providers bill neither by our aliases nor by names of changing versions.
    return rules.model_of(call.response_model or call.model)


def _weakness(call: SettledCall) -> str:
    """Why the ledger's own figures may be wrong; empty for a call that was counted and priced."""
    if call.token_source in WEAK_COUNTS:
        return f"tokens {call.token_source}"
    if call.cost_source == "unpriced":
        return "unpriced"
    return f"{call.unpriced_items} unpriced items" if call.unpriced_items else ""


def _is_within(call: SettledCall, rules: Rules) -> bool:
    return rules.since_ns <= call.started_at_ns < rules.until_ns


def _is_same(line: BillLine, other: BillLine) -> bool:
    return order_of(line)[:-2] == order_of(other)[:-2]


class _Peekable(Generic[_Item]):
    """An iterator with the next item in `peek`; None at the end."""

    def __init__(self, items: Iterable[_Item]) -> None:
        self._items = iter(items)
        self.peek: _Item | None = next(self._items, None)

    def take(self) -> _Item:
        """Returns the next item and advances."""
        taken = self.peek
        if taken is None:
            raise IndexError("no item is left")
        self.peek = next(self._items, None)
        return taken

    def without(self, name: str) -> Iterator[_Item]:
        """The leading items whose `name` is empty."""
        while self.peek is not None and not getattr(self.peek, name):
            yield self.take()


@dataclass
class _Sum:
    calls: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    nanousd: int | None = None
    roundings: int = 0
    file_and_line: tuple[int, int] = (0, 0)
    weaknesses: dict[str, int] = field(default_factory=dict)

    def add(self, amount: Amount) -> None:
        self.calls += amount.calls
        self.prompt_tokens = _plus(self.prompt_tokens, amount.prompt_tokens)
        self.completion_tokens = _plus(self.completion_tokens, amount.completion_tokens)
        self.nanousd = _plus(self.nanousd, amount.nanousd)
        self.roundings += amount.roundings


class _Sums:
    """Amounts by day and model; their number does not depend on the number of calls."""

    def __init__(self) -> None:
        self.sums: dict[Key, _Sum] = {}
        self.nameless = False
        """Whether there are lines and none of them names a model."""

    def add_line(self, day: str, model: str, line: BillLine) -> None:
        self.nameless = not model and (self.nameless or not self.sums)
        total = self.sums.setdefault((day, model), _Sum())
        total.add(_amount_of_line(line))
        total.file_and_line = (line.file, line.line) if total.roundings == 1 else (0, 0)

    def add_call(self, day: str, model: str, amount: Amount, weakness: str) -> None:
        total = self.sums.setdefault((day, model), _Sum())
        total.add(amount)
        if weakness:
            total.weaknesses[weakness] = total.weaknesses.get(weakness, 0) + 1

    def amount(self, key: Key) -> Amount | None:
        total = self.sums.get(key)
        if total is None:
            return None
        return Amount(total.calls, total.prompt_tokens, total.completion_tokens, total.nanousd, total.roundings)

    def only_line(self, key: Key) -> tuple[int, int]:
        """File and line of a sum of one line, else zeros."""
        return self.sums[key].file_and_line if key in self.sums else (0, 0)

    def note(self, key: Key) -> str:
        """The number of calls with weak figures: `tokens partial: 2 of 40 calls`."""
        total = self.sums.get(key)
        if total is None:
            return ""
        return ", ".join(f"{name}: {count} of {total.calls} calls" for name, count in sorted(total.weaknesses.items()))


def _plus(total: int | None, more: int | None) -> int | None:
    return total if more is None else (total or 0) + more
