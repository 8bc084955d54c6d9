"""What calls were billed by: sums by item, with whatever has no price, that add up to the cost of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from mcpmeter.items import ITEMS, Component, component_of
from mcpmeter.ledger.location import Location
from mcpmeter.ledger.queries.charge_lines import ItemSum, sums_by_item
from mcpmeter.ledger.queries.reader import Reader, open_reader
from mcpmeter.ledger.queries.selection import Grouping, Selection
from mcpmeter.ledger.queries.totals import select_in
from mcpmeter.money import usd_text
from mcpmeter.usage.group_row import GroupRow
from mcpmeter.usage.periods import Span, time_zone, utc_text

MAX_UNPRICED: Final = 50
"""Items of `unpriced_in`. Providers name their fields as they like, so the rest is one sum."""

PLAIN: Final = "plain"
"""Stands for the prompt and completion of calls without lines."""


class UnpricedItem(msgspec.Struct, frozen=True, kw_only=True):
    """An item without a price, over all calls of a report."""

    item: str
    occurrences: int
    """One per call and line."""
    quantity: int
    """In the item's unit."""


class ItemRow(GroupRow, frozen=True, kw_only=True):
    """Sums of one item in one group of calls."""

    item: str
    component: Component | None
    """None for `plain`, whose prompt and completion the ledger does not divide."""
    unit: str
    lines: int
    unpriced_lines: int
    quantity: int
    cost_nanousd: int
    cost_usd: str


class ItemReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the calls of a period were billed by. The rows add up to the total, which is that of the usage report."""

    since: str | None
    until: str | None
    time_zone: str
    by: list[Grouping]
    team: str | None
    rows: list[ItemRow]
    total_nanousd: int
    total_usd: str


def item_report(
    ledger: Location, *, by: Sequence[Grouping] = (), span: Span, zone: str = "UTC", team: str | None = None
) -> ItemReport:
    """Reads the ledger; blocks. Raises InvalidRequest for an unknown time zone, and `LedgerNotUsable`."""
    by = tuple(dict.fromkeys(by))
    selection = Selection(by, span.since_ns or 0, span.until_ns, team, time_zone(zone))
    with open_reader(ledger) as reader:
        items, totals = sums_by_item(reader, selection), select_in(reader, selection)
    plain = Counter({total.group: total.cost_nanousd for total in totals})
    for item in items:
        plain[item.group] -= item.cost_nanousd
    rest = [_plain(group, nanousd) for group, nanousd in plain.items() if nanousd]
    total = sum(total.cost_nanousd for total in totals)
    return ItemReport(
        since=utc_text(span.since_ns),
        until=utc_text(span.until_ns),
        time_zone=zone,
        by=list(by),
        team=team,
        rows=[_row(by, item) for item in sorted([*items, *rest], key=lambda item: (item.group, item.item))],
        total_nanousd=total,
        total_usd=usd_text(total),
    )


def unpriced_in(reader: Reader, selection: Selection) -> list[UnpricedItem]:
    """The items without a price in a selection's calls, the most frequent ones first, from an open ledger."""
    occurrences: Counter[str] = Counter()
    quantities: Counter[str] = Counter()
    for item in sums_by_item(reader, selection._replace(by=())):
        if item.unpriced_lines:
            occurrences[item.item] += item.unpriced_lines
            quantities[item.item] += item.quantity
    names = sorted(occurrences, key=lambda name: (-occurrences[name], name))
    shown, rest = names[:MAX_UNPRICED], names[MAX_UNPRICED:]
    found = [UnpricedItem(item=name, occurrences=occurrences[name], quantity=quantities[name]) for name in shown]
    if rest:
        counts = sum(occurrences[name] for name in rest), sum(quantities[name] for name in rest)
        found.append(UnpricedItem(item="more", occurrences=counts[0], quantity=counts[1]))
    return found


def _plain(group: tuple[str, ...], nanousd: int) -> ItemSum:
    return ItemSum(group=group, item=PLAIN, lines=0, unpriced_lines=0, quantity=0, cost_nanousd=nanousd)


def _row(by: Sequence[Grouping], item: ItemSum) -> ItemRow:
    groups: dict[str, Any] = dict(zip(by, item.group, strict=True))
    known = ITEMS.get(item.item)
    return ItemRow(
        **groups,
        item=item.item,
        component=None if item.item == PLAIN else component_of(item.item),
        unit=known.unit if known else "",
        lines=item.lines,
        unpriced_lines=item.unpriced_lines,
        quantity=item.quantity,
        cost_nanousd=item.cost_nanousd,
        cost_usd=usd_text(item.cost_nanousd),
    )
