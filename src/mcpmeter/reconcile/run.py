"""One reconciliation from files to findings: read and sort the bills, then compare each with its provider's calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Final

from mcpmeter.ledger.bills import SettledCall, settled_calls
from mcpmeter.ledger.location import Location
from mcpmeter.pricing import PriceBook, names
from mcpmeter.reconcile.bills.base import unix_ns
from mcpmeter.reconcile.lines import BillLine, Finding
from mcpmeter.reconcile.match import Rules, inline, match
from mcpmeter.reconcile.reading import PROGRESS_LINES, BillFile, Progress, has_more, read
from mcpmeter.reconcile.sorting import SortedLines
from mcpmeter.reconcile.verdict import Tally, Tolerance
from mcpmeter.records import Usage

MARGIN_NS: Final = 3600 * 10**9
"""A call at the edge of the period may be booked by the provider up to an hour earlier or later."""

_LAST_NS: Final = 2**63 - 1 - MARGIN_NS
_QUARTER_NS: Final = 900 * 10**9


@dataclass(frozen=True)
class Options:
    """What to compare and how closely."""

    since_ns: int | None = None
    until_ns: int | None = None
    by_day: bool = False
    """Ignore the bill's request ids."""
    tolerance: Tolerance = field(default_factory=Tolerance)
    most: int = 20
    """How many of the largest differences are kept."""


@dataclass
class Result:
    """What one bill of one provider came to."""

    provider: str
    format: str
    files: list[BillFile] = field(default_factory=list)
    zone: tzinfo = UTC
    since_ns: int = 0
    until_ns: int = 0
    lines: int = 0
    """Lines that bill something."""
    outside: int = 0
    """How many of them are before or after the period."""
    lines_with_id: int = 0
    paired_by_id: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    unread_pages: bool = False
    tally: Tally = field(default_factory=Tally)

    def place(self, finding: Finding) -> str:
        """Where the bill says so; empty for a sum of lines and for what is not in it."""
        return self.files[finding.file].place(finding.line) if finding.line else ""


OnFinding = Callable[[Result, Finding], None]


def reconcile(
    bills: Iterable[tuple[str, BillFile]],
    ledger: Location,
    book: PriceBook,
    options: Options,
    *,
    progress: Progress,
    on_finding: OnFinding,
) -> list[Result]:
    """Compare bills, each with the name of its provider, with the ledger.

    Files of one provider and one format are one bill. Raises BillInvalid and LedgerNotUsable, and then nothing counts.
    """
    results = _grouped(bills, options)
    with SortedLines() as store:
        for number, result in enumerate(results):
            # Each page says whether one follows; all of them do if the last one is not there.
            result.unread_pages = all(map(has_more, result.files))
            for place, file in enumerate(result.files):
                store.add(number, place, _watched(result, read(file, progress), options))
        for number, result in enumerate(results):
            _set_period(result, options)
            lines = store.lines(number, result.since_ns, result.until_ns)
            _compare(result, match(lines, _calls(result, ledger), _rules(result, book)), progress, on_finding)
    return results


def reconcile_inline(
    ledger: Location,
    book: PriceBook,
    options: Options,
    *,
    provider: str | None,
    progress: Progress,
    on_finding: OnFinding,
) -> list[Result]:
    """Compare what answers said they cost with the price lists: a result a provider. Raises LedgerNotUsable."""
    since, until = options.since_ns or 0, options.until_ns or _LAST_NS
    calls = settled_calls(ledger, since_ns=since, until_ns=until, provider=provider, with_reported_cost=True)
    results: dict[str, Result] = {}
    rules: dict[str, Rules] = {}
    for number, call in enumerate(calls, start=1):
        if call.provider not in results:
            result = Result(call.provider, "inline", since_ns=since, until_ns=until, tally=Tally(options.most))
            results[call.provider], rules[call.provider] = result, _rules(result, book)
        result = results[call.provider]
        result.lines += 1
        finding = inline(call, _listed(call, book), rules[call.provider])
        result.tally.add(finding)
        on_finding(result, finding)
        if number % PROGRESS_LINES == 0:
            progress("comparing calls", number, 0)
    return [results[name] for name in sorted(results)]


def _grouped(bills: Iterable[tuple[str, BillFile]], options: Options) -> list[Result]:
    found: dict[tuple[str, str], Result] = {}
    for provider, file in bills:
        new = Result(provider, file.format.name, zone=file.format.zone, tally=Tally(options.most))
        found.setdefault((provider, file.format.name), new).files.append(file)
    return list(found.values())


def _watched(result: Result, lines: Iterable[BillLine], options: Options) -> Iterator[BillLine]:
    since, until = options.since_ns, options.until_ns
    for line in lines:
        result.lines += 1
        at = line.at_ns
        result.first_ns = at if result.first_ns is None else min(at, result.first_ns)
        result.last_ns = at if result.last_ns is None else max(at, result.last_ns)
        if (since is not None and at < since) or (until is not None and at >= until):
            result.outside += 1
        if options.by_day and line.request_id:
            yield _without_id(line)
        else:
            result.lines_with_id += bool(line.request_id)
            yield line


def _without_id(line: BillLine) -> BillLine:
    return BillLine(
        line.line,
        line.at_ns,
        "",
        line.model,
        "",
        line.requests,
        line.prompt_tokens,
        line.completion_tokens,
        line.nanousd,
    )


def _set_period(result: Result, options: Options) -> None:
    """Where nobody said: from the bill's first day to its last, whole days in its own zone."""
    since, until = options.since_ns, options.until_ns
    if since is None:
        since = 0 if result.first_ns is None else _midnight(result.first_ns, result.zone, 0)
    if until is None:
        until = since if result.last_ns is None else _midnight(result.last_ns, result.zone, 1)
    result.since_ns, result.until_ns = since, max(since, until)


def _calls(result: Result, ledger: Location) -> Iterator[SettledCall]:
    since, until = max(0, result.since_ns - MARGIN_NS), min(result.until_ns, _LAST_NS) + MARGIN_NS
    return settled_calls(ledger, since_ns=since, until_ns=until, provider=result.provider)


def _compare(result: Result, findings: Iterator[Finding], progress: Progress, on_finding: OnFinding) -> None:
    for number, finding in enumerate(findings, start=1):
        result.paired_by_id += bool(finding.request_id and finding.call_id and finding.billed is not None)
        result.tally.add(finding)
        on_finding(result, finding)
        if number % PROGRESS_LINES == 0:
            progress(f"comparing with {result.provider}", number, max(result.lines, number))


def _rules(result: Result, book: PriceBook) -> Rules:
    return Rules(day_reader(result.zone), model_reader(result.provider, book), result.since_ns, result.until_ns)


def day_reader(zone: tzinfo) -> Callable[[int], str]:
    """Unix ns to the day in a time zone."""

    # Offsets of time zones are multiples of a quarter of an hour, so that this is right within one.
    @lru_cache(maxsize=8192)
    def day(quarter: int) -> str:
        return datetime.fromtimestamp(quarter * 900, zone).date().isoformat()

    return lambda ns: day(ns // _QUARTER_NS)


def model_reader(provider: str, book: PriceBook) -> Callable[[str], str]:
    """A model's name, dated or not, to the one that the provider's price list prints; else without its date."""

    @lru_cache(maxsize=8192)
    def canonical(model: str) -> str:
        plain = names.normal(model) or model
        return book.canonical(provider, model) or names.dated_base(plain) or names.release_base(plain) or plain

    return canonical


def _listed(call: SettledCall, book: PriceBook) -> int | None:
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


def _midnight(ns: int, zone: tzinfo, days: int) -> int:
    day = datetime.fromtimestamp(ns // 10**9, zone).date() + timedelta(days=days)
    return unix_ns(datetime.combine(day, time(), zone))
