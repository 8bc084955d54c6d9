"""Plain numbers of one catalog row: its children by their label values, and a copy of them for a scrape."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass

from mcpmeter.catalog import Metric

Labels = tuple[str, ...]


class Cell:
    """A counter's or gauge's child."""

    __slots__ = ("created", "value")

    def __init__(self, created: float) -> None:
        self.value = 0
        self.created = created


class HistogramCell:
    """A histogram's child: one count a bucket (not cumulated), the sum, and the last exemplar of each bucket."""

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: list[int]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0
        self.exemplars: dict[int, tuple[str, int, float]] = {}

    def observe(self, value: int, trace_id: str = "", at: float = 0.0) -> None:
        """Count a value; with a trace's id, of Unix second `at`, it is the bucket's exemplar."""
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.sum += value
        if trace_id:
            self.exemplars[bucket] = (trace_id, value, at)


class Family:
    """All children of one catalog row."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.bounds = [round(bound * metric.scale) for bound in metric.buckets]
        self.cells: dict[Labels, Cell] = {}
        self.histograms: dict[Labels, HistogramCell] = {}

    def cell(self, labels: Labels) -> Cell:
        """The child of a counter or gauge, made if it is not there. Counters' children stay, so they may be kept."""
        cell = self.cells.get(labels)
        # In one step: the garbage collector may let somebody in who makes the same child.
        return self.cells.setdefault(labels, Cell(time.time())) if cell is None else cell

    def histogram(self, labels: Labels) -> HistogramCell:
        """As `cell`, of a histogram."""
        cell = self.histograms.get(labels)
        return self.histograms.setdefault(labels, HistogramCell(self.bounds)) if cell is None else cell

    def add(self, labels: Labels, amount: int = 1) -> None:
        self.cell(labels).value += amount

    def set(self, labels: Labels, value: int) -> None:
        self.cell(labels).value = value

    def observe(self, labels: Labels, value: int, trace_id: str = "") -> None:
        self.histogram(labels).observe(value, trace_id, time.time() if trace_id else 0.0)

    def ensure(self, labels: Labels) -> None:
        """Make the child exist, so that its first real value is an increase and not an appearance."""
        if self.metric.type == "histogram":
            self.histogram(labels)
        else:
            self.cell(labels)


@dataclass(frozen=True, slots=True)
class FamilySnapshot:
    """A copy of one family: `values` of counters and gauges, `histograms` of the others."""

    metric: Metric
    values: list[tuple[Labels, int, float]]
    histograms: list[tuple[Labels, list[int], int, dict[int, tuple[str, int, float]]]]
