"""Lines of charges in reports: sums by item, and what calls used of other models than their own.

Lines of calls are JSON, which is decoded here because the engines' JSON functions differ; pruned ones are sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from mcpmeter.items import ITEMS
from mcpmeter.ledger.charges import lines_of, unknown_of
from mcpmeter.ledger.queries.reader import Reader
from mcpmeter.ledger.queries.selection import Select, Selection, group_of, statement

_DETAILS: Final = {"cached_read": "cached_read_tokens", "cache_write": "cache_write_tokens"}
"""The figure of a total that tokens of a component count in, beside that of their side."""


class ItemSum(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of one item over the calls of one group."""

    group: tuple[str, ...]
    item: str
    lines: int
    unpriced_lines: int
    """Those without a price. Lines of unpriced calls are not among them: such a call is unpriced as a whole."""
    quantity: int
    cost_nanousd: int


class _Line(NamedTuple):
    """One line, or equal ones of pruned calls."""

    group: tuple[str, ...]
    cost_source: str
    item: str
    model: str
    """Empty for the call's own."""
    lines: int
    unpriced: int
    quantity: int
    nanousd: int


def sums_by_item(reader: Reader, selection: Selection) -> list[ItemSum]:
    """What calls were billed by, for those that have lines, and everything that has no price; ordered."""
    sums: dict[tuple[tuple[str, ...], str], list[int]] = {}
    for line in _lines(reader, selection, ""):
        if line.cost_source == "unpriced" and not line.unpriced:
            continue
        figures = [line.lines, line.unpriced, line.quantity, line.nanousd]
        key = _shown_group(selection, line), line.item
        known = sums.get(key)
        sums[key] = figures if known is None else [a + b for a, b in zip(known, figures, strict=True)]
    return [
        ItemSum(group=group, item=item, lines=lines, unpriced_lines=unpriced, quantity=quantity, cost_nanousd=nanousd)
        for (group, item), (lines, unpriced, quantity, nanousd) in sorted(sums.items())
    ]


def _shown_group(selection: Selection, line: _Line) -> tuple[str, ...]:
    """Its group in a report, where a line of another model stands with that model."""
    if not line.model or "model" not in selection.by:
        return line.group
    at = selection.by.index("model")
    return (*line.group[:at], line.model, *line.group[at + 1 :])


def parts_of_other_models(
    reader: Reader, selection: Selection
) -> Iterator[tuple[tuple[str, ...], str, Mapping[str, int]]]:
    """The group of a call, another model, and what of the group's figures belongs to that model."""
    for line in _lines(reader, selection, "other_models = 1"):
        if line.model:
            yield line.group, line.model, _figures_of(line)


def _figures_of(line: _Line) -> Mapping[str, int]:
    figures = Counter(cost_nanousd=line.nanousd)
    if line.cost_source == "listed":
        figures["listed_cost_nanousd"] = line.nanousd
    item = ITEMS.get(line.item)
    if item is None or item.side == "beside":
        return figures
    figures[f"{item.side}_tokens"] = line.quantity
    if detail := _DETAILS.get(item.component):
        figures[detail] = line.quantity
    if line.item == "reasoning":
        figures["reasoning_tokens"] = line.quantity
    if line.item.endswith("_audio"):
        figures["audio_tokens"] = line.quantity
    return figures


def _lines(reader: Reader, selection: Selection, only: str) -> Iterator[_Line]:
    """The lines of a selection's calls, and their unknown items; `only` limits the rows of `charges` by a condition."""

    def live(groups: Sequence[str], where: str) -> list[str]:
        where = where.format(start="call_started_at_ns") + (f" AND {only}" if only else "")
        columns = ", ".join([*groups, "cost_source", "lines", "unknown"])
        # As in `totals`: SQLite reads the rows of charges first.
        return [f"SELECT {columns} FROM charges CROSS JOIN calls WHERE call_id = calls.id AND {where}"]  # noqa: S608

    def pruned(groups: Sequence[str], where: str) -> list[str]:
        where = where.format(start="started_at_ns") + (" AND line_model <> ''" if only else "")
        columns = ", ".join([*groups, *PRUNED_LINE])
        return [f"SELECT {columns} FROM pruned_lines WHERE {where}"]  # noqa: S608 (constants only)

    width = len(selection.by)
    for row in _rows(reader, selection, live):
        yield from _of_call(group_of(selection.by, row[:width]), *row[width:])
    for row in _rows(reader, selection, pruned):
        yield _Line(group_of(selection.by, row[:width]), *row[width:])


PRUNED_LINE: Final = ("cost_source", "item", "line_model", "lines", "unpriced_lines", "quantity", "line_nanousd")
"""Columns of `pruned_lines` beside those of the calls' group, in the order of `_Line`."""


def _rows(reader: Reader, selection: Selection, select: Select) -> Iterator[tuple[Any, ...]]:
    sql, values = statement(reader, selection, select)
    if sql:
        yield from reader.rows(sql, values)


def _of_call(group: tuple[str, ...], cost_source: str, lines: str, unknown: str) -> Iterator[_Line]:
    for line in lines_of(lines):
        is_unpriced = line.nanousd is None and cost_source != "unpriced"
        amounts = int(is_unpriced), line.quantity, line.nanousd or 0
        yield _Line(group, cost_source, line.item, line.model, 1, *amounts)
    for item in unknown_of(unknown):
        yield _Line(group, cost_source, item.item, "", 1, 1, item.quantity, 0)
