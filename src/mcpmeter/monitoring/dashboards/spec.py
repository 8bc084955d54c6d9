"""What a dashboard is: plain data, for the builder of Grafana's JSON, for tests and for whoever draws pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["timeseries", "stat", "table", "verdict"]

OK: Final = "#1f8a4c"
WARN: Final = "#b7791f"
BAD: Final = "#c53030"
"""Three verdicts."""

SERVED: Final = "#0b7a75"
TOOL: Final = "#3b6fd4"
UPSTREAM: Final = "#c2702c"
OURS: Final = "#b8477a"
CALLER: Final = "#6b7280"
"""Whose fault it is: one colour each, the same on every dashboard."""

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
"""Of a table's columns that are labels."""

COLUMNS: Final = 24
"""Width of Grafana's grid."""


@dataclass(frozen=True, slots=True)
class Query:
    """One expression and what its series are called. In a table, `legend` is the heading of its column."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `thresholds` are (from, colour) in rising order, the first from None; `colours` go by series name."""

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
    """Both ends of the scale, if the data does not reach further."""
    units: Mapping[str, str] | None = None
    """Of a table: units of single columns, by heading."""
    logarithmic: bool = False


@dataclass(frozen=True, slots=True)
class Sentence:
    """One thing that a verdict can say. `expr` is 1 where it is true, 0 where not, and never absent."""

    expr: str
    text: str
    colour: str


@dataclass(frozen=True, slots=True)
class Row:
    """A heading and its panels, laid from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """One dashboard. `wanted` names the variables beyond datasource, job, instance and region."""

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
    """The sentence that a page opens with: the last of `sentences` that is true, or `well`.

    Each is a bit, later ones are worth more; so the number's range tells which one to say.
    """
    bits = " + ".join(f"{2**place} * ({sentence.expr})" for place, sentence in enumerate(sentences))
    return Panel(
        title="In a sentence",
        description=description,
        queries=(Query(bits, well),),
        unit="none",
        kind="verdict",
        width=COLUMNS,
        height=3,
        thresholds=((None, OK), *((float(2**place), sentence.colour) for place, sentence in enumerate(sentences))),
        colours={sentence.text: sentence.colour for sentence in sentences},
    )
