"""The period of a bill: its buckets, including empty ones, or the days of its lines if it has no buckets. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from itertools import pairwise
from pathlib import Path
from typing import Final

from mcpmeter.reconcile.bills.base import BillInvalid
from mcpmeter.reconcile.lines import BillLine, Period

MAX_SPANS: Final = 10_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class Window:
    """The times that one file of a bill names."""

    path: Path
    has_more: bool = False
    """Another page follows it."""
    has_requests: bool = False
    """Lines are single requests, so that their instants do not tell where the file's period ends."""
    first_ns: int | None = None
    """The first day or instant outside of buckets."""
    last_ns: int | None = None
    spans: list[Period] = field(default_factory=list)
    """Its buckets; adjacent ones are joined if they follow each other in the file."""

    def add(self, item: BillLine | Period) -> None:
        """Adds a bucket, a day or a line. Raises `BillInvalid` for buckets with too many gaps."""
        if isinstance(item, BillLine):
            self.has_requests |= bool(item.request_id)
            if not self.spans:
                self._add_instant(item.at_ns)
        elif item.until_ns:
            self._add_bucket(item)
        else:
            self._add_instant(item.since_ns)

    @property
    def span(self) -> Period | None:
        """From the start of the first bucket to the end of the last."""
        if not self.spans:
            return None
        return Period(min(span.since_ns for span in self.spans), max(span.until_ns for span in self.spans))

    def _add_instant(self, ns: int) -> None:
        self.first_ns = ns if self.first_ns is None else min(ns, self.first_ns)
        self.last_ns = ns if self.last_ns is None else max(ns, self.last_ns)

    def _add_bucket(self, bucket: Period) -> None:
        last = self.spans[-1] if self.spans else bucket
        if last.since_ns <= bucket.since_ns <= last.until_ns:
            self.spans[-1:] = [Period(last.since_ns, max(last.until_ns, bucket.until_ns))]
        else:
            self.spans.append(bucket)
        if len(self.spans) >= 2 * MAX_SPANS:
            self.spans = _joined(self.spans)
            if len(self.spans) > MAX_SPANS:
                raise BillInvalid(
                    f"The bill {self.path} has more than {MAX_SPANS:,} gaps between its buckets.",
                    hint="Download the complete bill again.",
                )


def named_period(windows: Sequence[Window], zone: tzinfo) -> Period | None:
    """From the first bucket, day or line to the last; None for a bill that names no time.

    Days are in the time zone. For single requests whole calendar months count, so that calls after the last line are
    compared as well.
    """
    found = [span for window in windows if (span := window.span) is not None]
    if (instants := instants_of(windows)) is not None:
        first, last = (datetime.fromtimestamp(ns // 10**9, zone).date() for ns in instants)
        end = last + timedelta(days=1)
        if any(window.has_requests for window in windows):
            first, end = first.replace(day=1), (last.replace(day=28) + timedelta(days=4)).replace(day=1)
        found.append(Period(_midnight(first, zone), _midnight(end, zone)))
    if not found:
        return None
    return Period(min(span.since_ns for span in found), max(span.until_ns for span in found))


def instants_of(windows: Iterable[Window]) -> tuple[int, int] | None:
    """The first and the last of the days and instants outside of buckets."""
    found = [
        (window.first_ns, window.last_ns)
        for window in windows
        if window.first_ns is not None and window.last_ns is not None
    ]
    return (min(first for first, _ in found), max(last for _, last in found)) if found else None


def gaps(windows: Iterable[Window]) -> list[Period]:
    """The times between the first bucket and the last that no bucket covers."""
    spans = _joined(span for window in windows for span in window.spans)
    return [Period(span.until_ns, after.since_ns) for span, after in pairwise(spans)]


def unfollowed(windows: Iterable[Window]) -> list[Window]:
    """The pages whose following page is missing: no page starts where they end."""
    pages = list(windows)
    starts = Counter(span.since_ns for page in pages if (span := page.span) is not None)
    found: list[Window] = []
    for page in pages:
        if not page.has_more:
            continue
        if page.span is not None and starts[page.span.until_ns]:
            starts[page.span.until_ns] -= 1
        else:
            found.append(page)
    return found


def _joined(spans: Iterable[Period]) -> list[Period]:
    joined: list[Period] = []
    for span in sorted(spans, key=lambda span: span.since_ns):
        if joined and span.since_ns <= joined[-1].until_ns:
            joined[-1] = Period(joined[-1].since_ns, max(joined[-1].until_ns, span.until_ns))
        else:
            joined.append(span)
    return joined


def _midnight(day: date, zone: tzinfo) -> int:
    since = datetime.combine(day, time(), zone) - _EPOCH
    return max(0, since.days * 86_400 + since.seconds) * 10**9
