"""Lines of a bill against calls of the ledger, pure: by request id where there is one, else by model and day.

Both sides come sorted by request id, so that a million of each pass through without being kept.
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
"""A day and a model; the model is empty where the bill names none at all."""

WEAK_COUNTS: Final = ("estimated", "partial", "missing")


@dataclass(frozen=True)
class Rules:
    """How names and instants of both sides are made comparable."""

    day_of: Callable[[int], str]
    """Unix ns to YYYY-MM-DD in the bill's time zone."""
    model_of: Callable[[str], str]
    """`gpt-4.1-2025-04-14` to `gpt-4.1`."""
    since_ns: int
    until_ns: int
    """Calls outside only explain lines that name them: a provider may book a call a little later than we do."""


def order_of(line: BillLine) -> tuple[object, ...]:
    """The order in which `match` wants the lines: ids first of all, equal lines beside each other."""
    amounts = (line.requests, line.prompt_tokens, line.completion_tokens, line.nanousd)
    amounts_or_none = tuple((-1 if amount is None else 0, amount or 0) for amount in amounts)
    return (line.request_id, line.at_ns, line.model, line.part, amounts_or_none, line.file, line.line)


def match(lines: Iterable[BillLine], calls: Iterable[SettledCall], rules: Rules) -> Iterator[ReconcileItem]:
    """Put every line and every call of the period into exactly one finding.

    `lines` are in the order of `order_of`, `calls` in that of `upstream_request_id`, by code points.
    """
    left, right = _Ahead(lines), _Ahead(calls)
    billed = _Sums()
    yield from _sum_lines(left, billed, rules)
    kept = _Sums()
    for call in right.without("upstream_request_id"):
        yield from _without_line(call, billed, kept, rules, pooled=True)
    yield from _by_id(left, right, billed, kept, rules)
    yield from _by_day(billed, kept)


def _sum_lines(lines: _Ahead[BillLine], billed: _Sums, rules: Rules) -> Iterator[ReconcileItem]:
    """The lines without a request id: summed, but for those that are there twice."""
    last: BillLine | None = None
    for line in lines.without("request_id"):
        if last is not None and line.part and _is_same(line, last):
            yield _of_line("duplicate", line, rules)
        else:
            billed.add_line(rules.day_of(line.at_ns), rules.model_of(line.model) if line.model else "", line)
        last = line


def _by_id(
    lines: _Ahead[BillLine], calls: _Ahead[SettledCall], billed: _Sums, kept: _Sums, rules: Rules
) -> Iterator[ReconcileItem]:
    last_id = ""
    while (line := lines.head) is not None or calls.head is not None:
        call = calls.head
        if line is not None and line.request_id == last_id:
            yield _of_line("duplicate", lines.take(), rules)
        elif call is None or (line is not None and line.request_id < call.upstream_request_id):
            line = lines.take()
            last_id = line.request_id
            yield _of_line("missing_in_ledger", line, rules)
        elif line is None or call.upstream_request_id < line.request_id:
            yield from _without_line(calls.take(), billed, kept, rules, pooled=bool(billed.sums))
        else:
            last_id = lines.take().request_id
            yield _pair(line, calls.take(), rules)


def _without_line(
    call: SettledCall, billed: _Sums, kept: _Sums, rules: Rules, *, pooled: bool
) -> Iterator[ReconcileItem]:
    """A call that no line names by id: part of its model's day, or missing in the bill."""
    if not _is_within(call, rules):
        return
    day, model, amount = rules.day_of(call.started_at_ns), _model(call, rules), _amount(call)
    if not (call.cost_nanousd or call.prompt_tokens or call.completion_tokens):
        yield ReconcileItem("free", day, model, call.upstream_request_id, call.id, None, amount)
    elif pooled:
        kept.add_call(day, "" if billed.nameless else model, amount, _weakness(call))
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


def _by_day(billed: _Sums, kept: _Sums) -> Iterator[ReconcileItem]:
    for key in sorted(billed.sums.keys() | kept.sums.keys()):
        told, own = billed.amount(key), kept.amount(key)
        verdict: Verdict = "missing_in_bill"
        if told is not None:
            verdict = compare(told, own) if own is not None else "missing_in_ledger"
        file, line = billed.only_place(key)
        note = "" if verdict == "matched" else kept.note(key)
        yield ReconcileItem(verdict, *key, "", "", told, own, file, line, note)


def compare(billed: Amount, kept: Amount) -> Verdict:
    """What two amounts of one thing are to each other. Rounding to nano-dollars is no difference."""
    if billed.prompt_tokens is not None and (
        billed.prompt_tokens != kept.prompt_tokens or billed.completion_tokens != kept.completion_tokens
    ):
        return "tokens"
    if billed.nanousd is None or kept.nanousd is None:
        return "matched"
    rounded = (billed.roundings + kept.roundings) // 2
    return "matched" if abs(billed.nanousd - kept.nanousd) <= rounded else "price"


def inline(call: SettledCall, listed_nanousd: int | None, rules: Rules) -> ReconcileItem:
    """What a call's answer said it cost, against what the price list says; the answer is the bill."""
    counted = (1, call.prompt_tokens, call.completion_tokens)
    told = Amount(*counted, call.reported_cost_nanousd)
    own = Amount(*counted, listed_nanousd)
    verdict: Verdict = "unlisted" if listed_nanousd is None else compare(told, own)
    note = "" if verdict == "matched" else _weakness(call)
    day, model = rules.day_of(call.started_at_ns), _model(call, rules)
    return ReconcileItem(verdict, day, model, call.upstream_request_id, call.id, told, own, note=note)


def _of_line(verdict: Verdict, line: BillLine, rules: Rules) -> ReconcileItem:
    day, model = rules.day_of(line.at_ns), rules.model_of(line.model) if line.model else ""
    return ReconcileItem(verdict, day, model, line.request_id, "", _amount_of_line(line), None, line.file, line.line)


def _amount_of_line(line: BillLine) -> Amount:
    calls = 1 if line.requests is None else line.requests
    return Amount(calls, line.prompt_tokens, line.completion_tokens, line.nanousd)


def _amount(call: SettledCall) -> Amount:
    return Amount(1, call.prompt_tokens, call.completion_tokens, call.cost_nanousd)


def _model(call: SettledCall, rules: Rules) -> str:
    # As the answer named it: an alias of ours, or a moving name, is not what the provider bills by.
    return rules.model_of(call.response_model or call.model)


def _weakness(call: SettledCall) -> str:
    """Why the ledger's own figures may be the wrong ones; empty for a call that was counted and priced."""
    if call.token_source in WEAK_COUNTS:
        return f"tokens {call.token_source}"
    return "unpriced" if call.cost_source == "unpriced" else ""


def _is_within(call: SettledCall, rules: Rules) -> bool:
    return rules.since_ns <= call.started_at_ns < rules.until_ns


def _is_same(line: BillLine, other: BillLine) -> bool:
    return order_of(line)[:-2] == order_of(other)[:-2]


class _Ahead(Generic[_Item]):
    """An iterator whose next item can be looked at."""

    def __init__(self, items: Iterable[_Item]) -> None:
        self._items = iter(items)
        self.head: _Item | None = next(self._items, None)

    def take(self) -> _Item:
        """The head; the next one takes its place."""
        taken = self.head
        if taken is None:
            raise IndexError("nothing is left")
        self.head = next(self._items, None)
        return taken

    def without(self, name: str) -> Iterator[_Item]:
        """The items at the front whose `name` is empty."""
        while self.head is not None and not getattr(self.head, name):
            yield self.take()


@dataclass
class _Sum:
    calls: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    nanousd: int | None = None
    roundings: int = 0
    place: tuple[int, int] = (0, 0)
    weak: dict[str, int] = field(default_factory=dict)

    def add(self, amount: Amount) -> None:
        self.calls += amount.calls
        self.prompt_tokens = _plus(self.prompt_tokens, amount.prompt_tokens)
        self.completion_tokens = _plus(self.completion_tokens, amount.completion_tokens)
        self.nanousd = _plus(self.nanousd, amount.nanousd)
        self.roundings += amount.roundings


class _Sums:
    """Amounts by day and model: as many as there are models times days, however many calls there were."""

    def __init__(self) -> None:
        self.sums: dict[Key, _Sum] = {}
        self.nameless = False
        """Whether there are lines and none of them names a model."""

    def add_line(self, day: str, model: str, line: BillLine) -> None:
        self.nameless = not model and (self.nameless or not self.sums)
        found = self.sums.setdefault((day, model), _Sum())
        found.add(_amount_of_line(line))
        found.place = (line.file, line.line) if found.roundings == 1 else (0, 0)

    def add_call(self, day: str, model: str, amount: Amount, weakness: str) -> None:
        found = self.sums.setdefault((day, model), _Sum())
        found.add(amount)
        if weakness:
            found.weak[weakness] = found.weak.get(weakness, 0) + 1

    def amount(self, key: Key) -> Amount | None:
        found = self.sums.get(key)
        if found is None:
            return None
        return Amount(found.calls, found.prompt_tokens, found.completion_tokens, found.nanousd, found.roundings)

    def only_place(self, key: Key) -> tuple[int, int]:
        """File and line of a sum of one line."""
        return self.sums[key].place if key in self.sums else (0, 0)

    def note(self, key: Key) -> str:
        """How many of the calls have weak figures: `tokens partial: 2 of 40 calls`."""
        found = self.sums.get(key)
        if found is None:
            return ""
        return ", ".join(f"{why}: {count} of {found.calls} calls" for why, count in sorted(found.weak.items()))


def _plus(total: int | None, more: int | None) -> int | None:
    return total if more is None else (total or 0) + more
