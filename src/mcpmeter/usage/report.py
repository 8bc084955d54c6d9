"""A usage report from the ledger: rows by group in a stable order, their total, and the cursor of the next page."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Annotated, Any, Final

import msgspec

from mcpmeter.errors import InvalidRequest
from mcpmeter.ledger.location import Location
from mcpmeter.ledger.queries.reader import open_reader
from mcpmeter.ledger.queries.selection import GROUPINGS, Grouping, Selection
from mcpmeter.ledger.queries.totals import Total, select_in
from mcpmeter.money import nanousd_to_usd, plain_usd, usd_text
from mcpmeter.usage.group_row import GroupRow
from mcpmeter.usage.items import UnpricedItem, unpriced_in
from mcpmeter.usage.periods import Span, time_zone, utc_text

FIGURES: Final = tuple(name for name in Total.__struct_fields__ if name != "group")
_CONTEXT: Final = Context(prec=60, rounding=ROUND_HALF_EVEN)
_NANO: Final = Decimal("1e-9")

Count = Annotated[int, msgspec.Meta(ge=0)]
Money = Annotated[str, msgspec.Meta(pattern=r"^[0-9]+\.[0-9]{2,}$", description="Decimal text.")]


class Currency(msgspec.Struct, frozen=True):
    """A second currency for display; the ledger stays in USD."""

    code: str
    rate: Decimal
    """Units per US dollar."""


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Groupings, period and page of a report."""

    by: tuple[Grouping, ...] = ()
    span: Span = Span(None, None)
    zone: str = "UTC"
    team: str | None = None
    currency: Currency | None = None
    limit: int | None = None
    cursor: str = ""


class UsageRow(GroupRow, frozen=True, kw_only=True):
    """Sums of one group of calls, with the requested groupings.

    Tokens and cost are those of settled calls. `cost_usd` is exact and excludes calls without a price.
    """

    calls: Count
    open_calls: Count
    prompt_tokens: Count
    completion_tokens: Count
    cached_read_tokens: Count
    cache_write_tokens: Count
    reasoning_tokens: Count
    audio_tokens: Count
    reported_calls: Count
    estimated_calls: Count
    partial_calls: Count
    missing_calls: Count
    unpriced_calls: Count
    cost_nanousd: Count
    listed_cost_nanousd: Count
    reported_cost_nanousd: Count
    reported_cost_calls: Count
    fallback_calls: Count
    fallback_cost_nanousd: Count
    unpriced_item_calls: Count
    unpriced_items: Count
    cost_usd: Money
    reported_cost_usd: Money
    fallback_cost_usd: Money
    cost_in_currency: Money | msgspec.UnsetType = msgspec.UNSET
    """At the report's rate, rounded half to even at nine decimals."""


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """Usage in a period. A call belongs to the period in which it started."""

    since: str | None
    """Instants are UTC; null is unbounded."""
    until: str | None
    time_zone: str
    by: list[Grouping]
    team: str | None
    """The only team included; null for all teams."""
    currency: str | None = None
    rate: str | None = None
    rows: list[UsageRow]
    total: UsageRow
    """Sums of all groups, including those on other pages."""
    unpriced_items: list[UnpricedItem] = []
    """Items without a price in all groups, the most frequent first; calls without a price are not among them."""
    left_out: Count = 0
    """Number of groups after the last row."""
    next_cursor: str | None = None
    """Cursor of the next page; null on the last page."""


def usage_report(ledger: Location, query: UsageQuery) -> UsageReport:
    """Reads the ledger; blocks. Raises InvalidRequest for an invalid query, and `LedgerNotUsable`."""
    by = tuple(dict.fromkeys(query.by))
    zone = time_zone(query.zone)
    after = _group_of(query.cursor, len(by))
    since_ns, until_ns = query.span
    selection = Selection(by, since_ns or 0, until_ns, query.team, zone)
    with open_reader(ledger) as reader:
        totals = select_in(reader, selection)
        total = summed(totals)
        unpriced = unpriced_in(reader, selection) if total.unpriced_items else []
    rest = [total for total in totals if after is None or total.group > after]
    page = rest if query.limit is None else rest[: query.limit]
    return UsageReport(
        since=utc_text(since_ns),
        until=utc_text(until_ns),
        time_zone=query.zone,
        by=list(by),
        team=query.team,
        currency=query.currency.code if query.currency else None,
        rate=f"{query.currency.rate:f}" if query.currency else None,
        rows=[usage_row(by, total, query.currency) for total in page],
        total=usage_row((), total, query.currency),
        unpriced_items=unpriced,
        left_out=len(rest) - len(page),
        next_cursor=_cursor_of(page[-1].group) if page and len(page) < len(rest) else None,
    )


def grouping(name: str) -> Grouping:
    """The grouping of this name. Raises InvalidRequest."""
    for known in GROUPINGS:
        if known == name:
            return known
    raise InvalidRequest(f"There is no grouping {name[:40]!a}.", hint=f"Groupings: {', '.join(GROUPINGS)}.")


def summed(totals: Iterable[Total]) -> Total:
    """The sum of all totals, without a group."""
    sums = dict.fromkeys(FIGURES, 0)
    for total in totals:
        for name in FIGURES:
            sums[name] += getattr(total, name)
    return Total(group=(), **sums)


def usage_row(by: Sequence[Grouping], total: Total, currency: Currency | None = None) -> UsageRow:
    """A row of the report from a total of the ledger."""
    groups: dict[str, Any] = dict(zip(by, total.group, strict=True))
    return UsageRow(
        **groups,
        **{name: getattr(total, name) for name in FIGURES},
        cost_usd=usd_text(total.cost_nanousd),
        reported_cost_usd=usd_text(total.reported_cost_nanousd),
        fallback_cost_usd=usd_text(total.fallback_cost_nanousd),
        cost_in_currency=in_currency(total.cost_nanousd, currency) if currency else msgspec.UNSET,
    )


def in_currency(nanousd: int, currency: Currency) -> str:
    """The amount at the rate, rounded half to even at nine decimals."""
    amount = _CONTEXT.multiply(nanousd_to_usd(nanousd), currency.rate)
    return plain_usd(amount.quantize(_NANO, context=_CONTEXT))


def _cursor_of(group: tuple[str, ...]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(group)).decode().rstrip("=")


def _group_of(cursor: str, groupings: int) -> tuple[str, ...] | None:
    if not cursor:
        return None
    try:
        group = msgspec.json.decode(base64.urlsafe_b64decode(f"{cursor}{'=' * (-len(cursor) % 4)}"), type=list[str])
    except (binascii.Error, ValueError, msgspec.DecodeError):
        group = []
    if len(group) != groupings or not group:
        raise InvalidRequest(
            "The cursor does not belong to this report.", hint="Use next_cursor of a response to the same query."
        )
    return tuple(group)
