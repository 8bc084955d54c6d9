"""The type of a dashboard: plain data, read by the builder of Grafana's JSON, by tests and by `pictures`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

Kind = Literal["timeseries", "stat", "table", "verdict"]

OK: Final = "#1f8a4c"
WARN: Final = "#b7791f"
BAD: Final = "#c53030"
"""Colours of the verdicts."""

SERVED: Final = "#0b7a75"
TOOL: Final = "#3b6fd4"
UPSTREAM: Final = "#c2702c"
OURS: Final = "#b8477a"
CALLER: Final = "#6b7280"
"""Colours of the side that caused a failure, the same on every dashboard."""

HEADINGS: Final = {
    "gen_ai_tool_name": "Tool",
    "server": "Server",
    "team": "Team",
    "budget": "Budget",
    "model": "Model",
    "provider": "Provider",
    "credential": "Credential",
    "resource": "Resource",
    "job": "Job",
    "instance": "Instance",
    "version": "Version",
    "python_version": "Python",
}
"""Headings of a table's label columns."""

COLUMNS: Final = 24
"""Width of Grafana's grid."""


@dataclass(frozen=True, slots=True)
class Query:
    """One expression and the legend of its series. In a table, `legend` is the column heading."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `thresholds` are (from, colour) in rising order, the first from None; `colours` by series name."""

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    thresholds: tuple[tuple[float | None, str], ...] = ()
    colours: Mapping[str, str] | None = None
    stacked: bool = False
    decimals: int | None = None
    least: float = 0
    greatest: float | None = None
    """`least` and `greatest` are the ends of the scale, unless the data exceeds them."""
    units: Mapping[str, str] | None = None
    """Units of single columns of a table, by heading."""
    logarithmic: bool = False


tile: Final = partial(Panel, kind="stat", width=4, height=4, thresholds=((None, SERVED),))
"""A small panel with one figure."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """One statement of a verdict. `expr` is 1 if it is true, else 0, and never absent."""

    expr: str
    text: str
    colour: str


@dataclass(frozen=True, slots=True)
class Row:
    """A heading and its panels, from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """One dashboard. `wanted` names its variables besides datasource, job, instance and region."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    wanted: tuple[Literal["team", "model", "provider", "server"], ...] = ()

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels in reading order."""
        return tuple(panel for row in self.rows for panel in row.panels)


def verdict(well: str, sentences: tuple[Sentence, ...], description: str) -> Panel:
    """The sentence at the top of a page: the last of `sentences` that is true, or `well`.

    Each sentence is one bit of the panel's value, later ones in higher bits, so that a range of values selects it.
    """
    bits = " + ".join(f"{2**place} * ({sentence.expr})" for place, sentence in enumerate(sentences))
    return Panel(
        title="Summary",
        description=description,
        queries=(Query(bits, well),),
        unit="none",
        kind="verdict",
        width=COLUMNS,
        height=3,
        thresholds=((None, OK), *((float(2**place), sentence.colour) for place, sentence in enumerate(sentences))),
        colours={sentence.text: sentence.colour for sentence in sentences},
    )
