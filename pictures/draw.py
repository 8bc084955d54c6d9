"""Draws a dashboard's panels with matplotlib, at their positions in Grafana's grid."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, MultipleLocator, NullLocator

from mcpmeter.monitoring.dashboards.spec import COLUMNS, HEADINGS, Page, Panel
from pictures.queries import Series

INK, SECOND, THIRD, LINE, CARD, GROUND = "#14181f", "#5b6573", "#8d96a3", "#e3e6eb", "#ffffff", "#f5f6f8"
PALETTE: Final = ("#0b7a75", "#3b6fd4", "#c2702c", "#8a57c2", "#b8477a", "#6b7280", "#1f8a4c", "#b7791f")
CELL: Final = 0.62
"""Width of one grid unit in inches; its height is ROW."""

ROW: Final = 0.42
HEAD_ROWS: Final = 2.2
TITLE_ROWS: Final = 1.0
GAP: Final = 0.07
MAX_IN_A_LEGEND: Final = 6
MAX_NAME_LENGTH: Final = 38
MAX_LINES_OF_A_TABLE: Final = 7
NOTE: Final = "From the panels' queries on a seeded run under a real Prometheus; drawn with matplotlib, not by Grafana."


class Results(NamedTuple):
    """Prometheus's results for a panel, one list of series per query."""

    panel: Panel
    found: Sequence[Sequence[Series]]


class Place(NamedTuple):
    """A panel's rectangle, in inches from the top left."""

    left: float
    top: float
    width: float
    height: float


def draw(page: Page, results: Mapping[str, Results], path: Path) -> None:
    """Write one page as PNG."""
    mpl.rcParams.update({"font.family": "DejaVu Sans", "font.size": 8, "axes.edgecolor": LINE, "text.color": INK})
    placed, headings, height = _laid_out(page)
    figure = Figure(figsize=(COLUMNS * CELL, height), facecolor=GROUND)
    figure.text(0.012, 1 - 0.36 / height, page.title, fontsize=14, fontweight="bold", va="center")
    figure.text(0.012, 1 - 0.68 / height, NOTE, fontsize=8, color=SECOND, va="center")
    for top, title in headings:
        figure.text(0.012, 1 - (top + 0.21) / height, title, fontsize=9.5, color=SECOND, va="center")
    for title, place in placed.items():
        _draw(_card(figure, place, height), results[title], place)
    figure.savefig(path, dpi=100, facecolor=GROUND)


def _laid_out(page: Page) -> tuple[dict[str, Place], list[tuple[float, str]], float]:
    placed: dict[str, Place] = {}
    headings: list[tuple[float, str]] = []
    top = HEAD_ROWS * ROW
    for row in page.rows:
        headings.append((top, row.title))
        top += TITLE_ROWS * ROW
        across, tallest = 0, 0
        for panel in row.panels:
            if across + panel.width > COLUMNS:
                top, across, tallest = top + tallest * ROW, 0, 0
            placed[panel.title] = Place(across * CELL, top, panel.width * CELL, panel.height * ROW)
            across, tallest = across + panel.width, max(tallest, panel.height)
        top += tallest * ROW
    return placed, headings, top + GAP


def _card(figure: Figure, place: Place, height: float) -> Axes:
    width = COLUMNS * CELL
    across = ((place.left + GAP) / width, (place.width - 2 * GAP) / width)
    up = (1 - (place.top + place.height - GAP) / height, (place.height - 2 * GAP) / height)
    card = figure.add_axes((across[0], up[0], across[1], up[1]), facecolor=CARD)
    card.set_xticks([])
    card.set_yticks([])
    card.set_xlim(0, 1)
    card.set_ylim(0, 1)
    return card


def _draw(card: Axes, results: Results, place: Place) -> None:
    panel = results.panel
    if panel.kind == "verdict":
        _sentence(card, results)
        return
    inch = 1 / place.height
    card.text(0.09 / place.width, 1 - 0.17 * inch, panel.title, fontsize=8.5, fontweight="bold", va="center")
    if panel.kind == "stat":
        _figures(card, results)
    elif panel.kind == "table":
        _table(card, results, place)
    else:
        _lines(card, results, place)


def _sentence(card: Axes, results: Results) -> None:
    value = int(results.found[0][0].points[-1][1])
    texts = [results.panel.queries[0].legend, *(results.panel.colours or {})]
    place = value.bit_length()
    card.set_facecolor(results.panel.thresholds[place][1])
    card.text(0.012, 0.5, texts[place], fontsize=14, fontweight="bold", color="white", va="center")


def _figures(card: Axes, results: Results) -> None:
    shown = [
        (_named(query.legend, series.labels), series.points[-1][1])
        for query, found in zip(results.panel.queries, results.found, strict=True)
        for series in found
    ]
    several = len(shown) > 1 or "{{" in results.panel.queries[0].legend
    for number, (name, value) in enumerate(shown[:4]):
        middle = (number + 0.5) / min(len(shown), 4)
        text = formatted(value, results.panel.unit, results.panel.decimals)
        colour = _threshold(results.panel, value)
        card.text(middle, 0.47, text, fontsize=15, fontweight="bold", color=colour, ha="center", va="center")
        if several:
            card.text(middle, 0.15, name, fontsize=7, color=SECOND, ha="center", va="center")


def _threshold(panel: Panel, value: float) -> str:
    chosen = INK
    for least, colour in panel.thresholds:
        if least is None or value >= least:
            chosen = colour
    return chosen


def _lines(card: Axes, results: Results, place: Place) -> None:
    panel = results.panel
    drawn = [
        (_named(query.legend, series.labels), series.points)
        for query, found in zip(panel.queries, results.found, strict=True)
        for series in found
    ]
    names = [_cut(name) for name, _ in drawn[:MAX_IN_A_LEGEND]]
    columns = max(1, min(6, int(place.width / (0.45 + 0.062 * max(map(len, names), default=1)))))
    legend = 0.2 + 0.15 * math.ceil(len(names) / columns)
    bottom = (0.24 + legend) / place.height
    axes = card.inset_axes((0.6 / place.width, bottom, 1 - 0.72 / place.width, 1 - bottom - 0.38 / place.height))
    axes.set_facecolor(CARD)
    colours = {name: (panel.colours or {}).get(name, PALETTE[n % len(PALETTE)]) for n, (name, _) in enumerate(drawn)}
    _plot(axes, panel, drawn, colours)
    _finish(axes, panel)
    handles, _ = axes.get_legend_handles_labels()
    card.legend(
        handles[:MAX_IN_A_LEGEND],
        names,
        loc="lower left",
        ncols=columns,
        frameon=False,
        fontsize=6.5,
        handlelength=1,
        columnspacing=1,
        borderaxespad=0.3,
        labelcolor=SECOND,
    )


def _cut(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…"


Drawn = Sequence[tuple[str, Sequence[tuple[float, float]]]]


def _plot(axes: Axes, panel: Panel, drawn: Drawn, colours: Mapping[str, str]) -> None:
    if not panel.stacked:
        for name, points in drawn:
            axes.plot(
                [at for at, _ in points], [value for _, value in points], color=colours[name], linewidth=1.2, label=name
            )
        return
    instants = sorted({at for _, points in drawn for at, _ in points})
    below = [0.0] * len(instants)
    for name, points in drawn:
        value_at = {at: value for at, value in points if math.isfinite(value)}
        above = [base + value_at.get(at, 0.0) for base, at in zip(below, instants, strict=True)]
        axes.fill_between(instants, below, above, color=colours[name], alpha=0.75, linewidth=0, label=name)
        below = above


def _finish(axes: Axes, panel: Panel) -> None:
    if panel.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        _, high = axes.get_ylim()
        axes.set_ylim(min(panel.least, axes.dataLim.y0), max(high, panel.greatest or high))
        axes.yaxis.set_major_locator(_steps(panel.unit, axes.get_ylim()[1]))
    low, high = axes.get_ylim()
    for least, colour in panel.thresholds:
        if least is not None and low <= least <= high:
            axes.axhline(least, color=colour, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatted(value, panel.unit)))
    begin, end = axes.get_xlim()
    axes.xaxis.set_major_locator(MultipleLocator(15 * math.ceil((end - begin) / 5 / 15)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{datetime.fromtimestamp(at, UTC):%H:%M:%S}"))
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=THIRD, labelsize=6.5, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.margins(x=0)


def _steps(unit: str, high: float) -> Locator:
    """Ticks at round numbers of the unit."""
    if unit == "bytes":
        return MultipleLocator(2 ** max(20, math.ceil(math.log2(max(high, 1) / 8))))
    if unit == "s" and high > 120:
        return MultipleLocator(60 * math.ceil(high / 60 / 7))
    return MaxNLocator(6)


def _table(card: Axes, results: Results, place: Place) -> None:
    heads, lines = _cells(results)
    step = 0.27 / place.height
    xs = [0.09 / place.width + number * (1 - 0.2 / place.width) / len(heads) for number in range(len(heads))]
    top = 1 - 0.48 / place.height
    for x, head in zip(xs, heads, strict=True):
        card.text(x, top, head, fontsize=7.5, color=THIRD, va="center")
    for number, line in enumerate(lines[:MAX_LINES_OF_A_TABLE], 1):
        card.axhline(top - (number - 0.5) * step, color=LINE, linewidth=0.6)
        for x, cell in zip(xs, line, strict=True):
            card.text(x, top - number * step, cell, fontsize=7.5, va="center")


def _cells(results: Results) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: the queries' values joined on their labels, sorted by the first query, descending."""
    panel = results.panel
    labels = sorted({name for found in results.found for series in found for name in series.labels})
    values: dict[tuple[str, ...], dict[str, float]] = {}
    for query, found in zip(panel.queries, results.found, strict=True):
        for series in found:
            key = tuple(series.labels.get(name, "") for name in labels)
            values.setdefault(key, {})[query.legend] = series.points[-1][1]
    first = panel.queries[0].legend
    ordered = sorted(values.items(), key=lambda item: -item[1].get(first, 0.0))
    units = panel.units or {}
    lines = [
        [*key, *(_cell(found.get(q.legend), units.get(q.legend, panel.unit), panel.decimals) for q in panel.queries)]
        for key, found in ordered
    ]
    return [*(HEADINGS.get(name, name) for name in labels), *(query.legend for query in panel.queries)], lines


def _cell(value: float | None, unit: str, decimals: int | None) -> str:
    return "" if value is None or math.isnan(value) else formatted(value, unit, decimals)


def _named(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend).strip() or "value"


def formatted(value: float, unit: str, decimals: int | None = None) -> str:
    """A number with its unit, formatted similarly to Grafana."""
    if not math.isfinite(value):
        return "–"
    if unit == "percentunit":
        return f"{100 * value:.3g} %" if decimals is None else f"{100 * value:.{decimals}f} %"
    if unit in ("bool_yes_no", "bool_on_off"):
        return {"bool_yes_no": ("No", "Yes"), "bool_on_off": ("Off", "On")}[unit][value >= 1]
    if unit == "dateTimeFromNow":
        return datetime.fromtimestamp(value / 1000, UTC).strftime("%H:%M:%S")
    if unit == "currencyUSD":
        return f"${_short(value, decimals)}"
    if unit == "s":
        return _duration(value)
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    return _short(value, decimals) + {"reqps": " req/s", "cps": " c/s"}.get(unit, "")


def _duration(value: float) -> str:
    for size, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms")):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return "0 s" if value == 0 else f"{value * 1e6:.3g} µs"


def _short(value: float, decimals: int | None) -> str:
    for size, name in ((1e9, " Bil"), (1e6, " Mil"), (1e3, " K")):
        if abs(value) >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.{decimals}f}" if decimals is not None else f"{value:.3g}"
