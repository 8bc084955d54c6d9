"""Runs a reconciliation: reads and sorts the bills, then compares each with its provider's calls.

Each bill is read once into the sorted store, which also collects the period that it names (`Window`); then the ledger's
calls of this period, plus a margin, are matched with the sorted lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from typing import Final

from msgspec import structs

from mcpmeter.ledger.location import Location
from mcpmeter.ledger.queries.settled_calls import SettledCall, calls_outside, settled_calls
from mcpmeter.pricing import PriceBook, names
from mcpmeter.reconcile.bills.base import BillInvalid
from mcpmeter.reconcile.lines import BillLine, Period, ReconcileItem
from mcpmeter.reconcile.match import Rules, match, match_inline
from mcpmeter.reconcile.reading import PROGRESS_LINES, BillFile, Progress, has_more, read
from mcpmeter.reconcile.sorting import SortedLines
from mcpmeter.reconcile.verdict import ReconcileTotals, Tolerance
from mcpmeter.reconcile.window import Window, gaps, instants_of, named_period, unfollowed
from mcpmeter.records import Usage

MARGIN_NS: Final = 3600 * 10**9
"""A call at the edge of the period may be booked by the provider up to an hour earlier or later."""

_LAST_NS: Final = 2**63 - 1 - MARGIN_NS
_QUARTER_NS: Final = 900 * 10**9
MAX_FAULTS: Final = 5
"""Number of gaps that are listed one by one."""


@dataclass(frozen=True)
class Options:
    """The period, the method and the tolerance of the comparison."""

    since_ns: int | None = None
    until_ns: int | None = None
    by_day: bool = False
    """Ignore the bill's request ids."""
    tolerance: Tolerance = field(default_factory=Tolerance)
    max_largest: int = 20
    """How many of the largest differences are kept."""


@dataclass
class Result:
    """The comparison of one bill of one provider."""

    provider: str
    format: str
    files: list[BillFile] = field(default_factory=list)
    zone: tzinfo = UTC
    since_ns: int = 0
    until_ns: int = 0
    lines: int = 0
    """Lines that bill something."""
    outside: int = 0
    """Lines before or after the period."""
    lines_with_id: int = 0
    paired_by_id: int = 0
    windows: list[Window] = field(default_factory=list)
    """One per file."""
    faults: list[str] = field(default_factory=list)
    """Why the bill is incomplete, in sentences."""
    uncovered_calls: int = 0
    """Calls of the provider outside the period that have tokens or a cost."""
    uncovered_nanousd: int = 0
    calls_beyond_lines: int = 0
    """Calls missing in a bill of single requests, on days before its first line or after its last."""
    totals: ReconcileTotals = field(default_factory=ReconcileTotals)

    def location(self, item: ReconcileItem) -> str:
        """The bill's file and line; empty for a sum of lines and for what is not in the bill."""
        return self.files[item.file].location(item.line) if item.line else ""

    def is_ok(self, tolerance: Tolerance) -> bool:
        """Whether the bill is complete and agrees with the ledger within the tolerance."""
        return not self.faults and not self.totals.is_beyond(tolerance)


OnItem = Callable[[Result, ReconcileItem], None]


def reconcile(
    bills: Iterable[tuple[str, BillFile]],
    ledger: Location,
    book: PriceBook,
    options: Options,
    *,
    progress: Progress,
    on_item: OnItem,
) -> list[Result]:
    """Compares bills, given with their providers' names, with the ledger.

    Files of one provider and one format are one bill. Raises BillInvalid and LedgerNotUsable.
    """
    results = _grouped(bills, options)
    with SortedLines() as store:
        for number, result in enumerate(results):
            for index, file in enumerate(result.files):
                window = Window(file.path, has_more(file))
                result.windows.append(window)
                store.add(number, index, _counted(result, window, read(file, progress), options))
            _set_period(result, options)
            result.faults = list(_faults(result, options))
        for number, result in enumerate(results):
            lines = store.lines(number, result.since_ns, result.until_ns)
            _compare(result, match(lines, _calls(result, ledger), _rules(result, book)), progress, on_item)
            _set_uncovered(result, ledger)
    return results


def reconcile_inline(
    ledger: Location,
    book: PriceBook,
    options: Options,
    *,
    provider: str | None,
    progress: Progress,
    on_item: OnItem,
) -> list[Result]:
    """Compares costs reported in responses with the price lists; one result per provider. Raises LedgerNotUsable."""
    since, until = options.since_ns or 0, options.until_ns or _LAST_NS
    calls = settled_calls(ledger, since_ns=since, until_ns=until, provider=provider, with_reported_cost=True)
    results: dict[str, Result] = {}
    rules: dict[str, Rules] = {}
    for number, call in enumerate(calls, start=1):
        if call.provider not in results:
            totals = ReconcileTotals(options.max_largest)
            result = Result(call.provider, "inline", since_ns=since, until_ns=until, totals=totals)
            results[call.provider], rules[call.provider] = result, _rules(result, book)
        result = results[call.provider]
        result.lines += 1
        item = match_inline(call, _listed(call, book), rules[call.provider])
        result.totals.add(item)
        on_item(result, item)
        if number % PROGRESS_LINES == 0:
            progress("comparing calls", number, 0)
    return [results[name] for name in sorted(results)]


def _grouped(bills: Iterable[tuple[str, BillFile]], options: Options) -> list[Result]:
    results: dict[tuple[str, str], Result] = {}
    for provider, file in sorted(bills, key=lambda bill: bill[1].is_empty):
        name = _format_of_empty(provider, file, results.values()) if file.is_empty else file.format.name
        new = Result(provider, name, zone=file.format.zone, totals=ReconcileTotals(options.max_largest))
        results.setdefault((provider, name), new).files.append(file)
    return list(results.values())


def _format_of_empty(provider: str, page: BillFile, results: Iterable[Result]) -> str:
    """The format of the bill that a page of empty buckets belongs to."""
    candidates = [
        result.format
        for result in results
        if result.provider == provider and result.files[0].format.provider == page.format.provider
    ]
    if len(candidates) > 1:
        raise BillInvalid(
            f"The bill {page.path} has only empty buckets: it may be a page of {' or of '.join(candidates)}.",
            hint="Compare one of the two at a time.",
        )
    return candidates[0] if candidates else page.format.name


def _counted(
    result: Result, window: Window, items: Iterable[BillLine | Period], options: Options
) -> Iterator[BillLine]:
    """Passes the lines on and counts them and their periods."""
    since, until = options.since_ns, options.until_ns
    for line in items:
        window.add(line)
        if isinstance(line, Period):
            continue
        result.lines += 1
        at = line.at_ns
        if (since is not None and at < since) or (until is not None and at >= until):
            result.outside += 1
        if options.by_day and line.request_id:
            yield structs.replace(line, request_id="", part="")
        else:
            result.lines_with_id += bool(line.request_id)
            yield line


def _set_period(result: Result, options: Options) -> None:
    """The options' period, else the bill's."""
    named = named_period(result.windows, result.zone)
    since, until = options.since_ns, options.until_ns
    if named is not None:
        since = named.since_ns if since is None else since
        until = named.until_ns if until is None else until
    if since is None or until is None:
        raise BillInvalid(
            f"The bill {result.files[0].path} names no day and bills nothing.",
            hint="Download it again, or give its period: --since and --until.",
        )
    result.since_ns, result.until_ns = since, max(since, until)


def _faults(result: Result, options: Options) -> Iterator[str]:
    """The parts of the period that the bill lacks: times between its buckets, and pages after the last one."""
    since, until = options.since_ns or 0, options.until_ns or _LAST_NS
    all_gaps = gaps(result.windows)
    missing = [gap for gap in all_gaps if gap.until_ns > since and gap.since_ns < until]
    for gap in missing[:MAX_FAULTS]:
        yield (
            f"No bucket of the bill covers {instant(gap.since_ns)} to {instant(gap.until_ns)}: "
            "a page is missing. Fetch it and give all pages."
        )
    if len(missing) > MAX_FAULTS:
        yield f"{len(missing) - MAX_FAULTS:,} more times between its buckets are missing."
    before_gaps = {gap.since_ns for gap in all_gaps}
    for window in unfollowed(result.windows):
        end = window.span.until_ns if window.span else None
        if end is None or (end not in before_gaps and end < until):
            yield f"Another page follows {window.path}: fetch it and give all pages."


def _set_uncovered(result: Result, ledger: Location) -> None:
    calls, nanousd = calls_outside(ledger, since_ns=result.since_ns, until_ns=result.until_ns, provider=result.provider)
    result.uncovered_calls += calls
    result.uncovered_nanousd += nanousd


def _calls(result: Result, ledger: Location) -> Iterator[SettledCall]:
    since, until = max(0, result.since_ns - MARGIN_NS), min(result.until_ns, _LAST_NS) + MARGIN_NS
    return settled_calls(ledger, since_ns=since, until_ns=until, provider=result.provider)


def _compare(result: Result, items: Iterator[ReconcileItem], progress: Progress, on_item: OnItem) -> None:
    first, last = _days_of_requests(result)
    for number, item in enumerate(items, start=1):
        if item.verdict == "missing_in_bill" and not first <= item.day <= last:
            result.calls_beyond_lines += 1 if item.ledger is None else item.ledger.calls
        if item.is_outside and (recorded := item.ledger) is not None:
            # A line covers this call, but `_set_uncovered` counts it as uncovered unless it is free.
            result.uncovered_calls -= bool(recorded.nanousd or recorded.prompt_tokens or recorded.completion_tokens)
            result.uncovered_nanousd -= recorded.nanousd or 0
        result.paired_by_id += bool(item.request_id and item.call_id and item.billed is not None)
        result.totals.add(item)
        on_item(result, item)
        if number % PROGRESS_LINES == 0:
            progress(f"comparing with {result.provider}", number, max(result.lines, number))


def _days_of_requests(result: Result) -> tuple[str, str]:
    """The days of the first and the last line of a bill of single requests; every day for another bill."""
    instants = instants_of(result.windows)
    if instants is None or not any(window.has_requests for window in result.windows):
        return "", "~"
    day_of = day_reader(result.zone)
    return day_of(instants[0]), day_of(instants[1])


def _rules(result: Result, book: PriceBook) -> Rules:
    return Rules(day_reader(result.zone), model_reader(result.provider, book), result.since_ns, result.until_ns)


def day_reader(zone: tzinfo) -> Callable[[int], str]:
    """A function from Unix ns to the day in a time zone."""

    # Cached per quarter of an hour: the offsets of time zones are multiples of it.
    @lru_cache(maxsize=8192)
    def day(quarter: int) -> str:
        return datetime.fromtimestamp(quarter * 900, zone).date().isoformat()

    return lambda ns: day(ns // _QUARTER_NS)


def model_reader(provider: str, book: PriceBook) -> Callable[[str], str]:
    """A function from a model's name to its name in the provider's price list, else to the name without its date."""

    @lru_cache(maxsize=8192)
    def canonical(model: str) -> str:
        plain = names.normal(model) or model
        return book.canonical(provider, model) or names.dated_base(plain) or names.release_base(plain) or plain

    return canonical


def instant(ns: int) -> str:
    """`2026-11-01T00:00:00Z` of Unix ns."""
    return datetime.fromtimestamp(ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _listed(call: SettledCall, book: PriceBook) -> int | None:
    if call.unpriced_items is not None:  # it has lines, which its counts do not determine
        return call.listed_nanousd
    usage = Usage(
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        cached_read_tokens=call.cached_read_tokens,
        cache_write_tokens=call.cache_write_tokens,
        reasoning_tokens=call.reasoning_tokens,
        audio_tokens=call.audio_tokens,
        source="reported",
    )
    for model in (call.model, call.response_model):
        charge = book.charge(call.provider, model, usage, call.started_at_ns)
        if charge.listed_nanousd is not None:
            return charge.listed_nanousd
    return None
