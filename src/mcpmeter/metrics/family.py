"""Accumulators of one catalog row: its children by label values, and a copy of them for a scrape."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from mcpmeter.catalog import Metric

Labels = tuple[str, ...]
"""Label values in the order of the row's labels: the key of a child. Callers name their labels instead."""


class Cell:
    """A counter's or gauge's child."""

    __slots__ = ("created", "value")

    def __init__(self, created: float) -> None:
        self.value = 0
        self.created = created


class HistogramCell:
    """A histogram's child: a count per bucket (not cumulative), the sum, and the last exemplar of each bucket."""

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: list[int]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0
        self.exemplars: dict[int, tuple[str, int, float]] = {}

    def observe(self, value: int, trace_id: str = "", at: float = 0.0) -> None:
        """Count a value; if it has a trace id, it becomes its bucket's exemplar at Unix second `at`."""
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.sum += value
        if trace_id:
            self.exemplars[bucket] = (trace_id, value, at)


class Family:
    """All children of one catalog row, addressed by label names. Label values are taken as they are."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.bounds = [round(bound * metric.scale) for bound in metric.buckets]
        self.cells: dict[Labels, Cell] = {}
        self.histograms: dict[Labels, HistogramCell] = {}
        self._label_names = metric.label_names

    def cell(self, **labels: str) -> Cell:
        """The child of a counter or gauge, created if missing. A counter's child is never removed, so callers may
        keep it.
        """
        key = self._key(labels)
        cell = self.cells.get(key)
        # `setdefault`, since the garbage collector may run code here that creates the same child.
        return self.cells.setdefault(key, Cell(time.time())) if cell is None else cell

    def histogram(self, **labels: str) -> HistogramCell:
        """The child of a histogram, created if missing. It is never removed, so callers may keep it."""
        key = self._key(labels)
        cell = self.histograms.get(key)
        return self.histograms.setdefault(key, HistogramCell(self.bounds)) if cell is None else cell

    def ensure(self, **labels: str) -> None:
        """Create the child at zero, so that its first value is an increase in queries."""
        if self.metric.type == "histogram":
            self.histogram(**labels)
        else:
            self.cell(**labels)

    def remove(self, **labels: str) -> None:
        """Remove a gauge's child, if it exists: a value that is unknown is absent, never 0."""
        self.cells.pop(self._key(labels), None)

    def _key(self, labels: Mapping[str, str]) -> Labels:
        if len(labels) != len(self._label_names):
            raise TypeError(f"{self.metric.name} has the labels {self._label_names}, not {tuple(labels)}")
        return tuple([labels[name] for name in self._label_names])


@dataclass(frozen=True, slots=True)
class FamilySnapshot:
    """A copy of one family: `values` of a counter or gauge, `histograms` of a histogram."""

    metric: Metric
    values: list[tuple[Labels, int, float]]
    histograms: list[tuple[Labels, list[int], int, dict[int, tuple[str, int, float]]]]
