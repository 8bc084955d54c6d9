"""Builds PromQL from catalog rows, so that a metric that does not exist cannot be written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

from mcpmeter.catalog import Metric
from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.spans import milliseconds, span

DIMENSIONS: Final = ("cluster", "job", "region")
"""Labels kept by every aggregation, so that one Prometheus can watch several regions. Absent labels do no harm."""

WATCHING: Final = 'endpoint!~"/|/metrics|/health|/-/.*|/api/.*|other"'
"""Excludes probes, scrapes and the live page, which would dilute every ratio."""

Part = Literal["", "bucket", "sum", "count"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number of an alert that operators can set: `monitoring.thresholds.ALERT.name`."""

    name: str
    default: str
    what: str
    most: str = "1000000000"
    """Upper bound: a higher value is never reached, for example one above a histogram's top bucket."""


class Queries:
    """Builds selectors and aggregations with the job, labels and speedup of the options."""

    def __init__(self, options: MonitoringOptions, thresholds: Mapping[str, Decimal] | None = None) -> None:
        self.options = options
        self._thresholds = thresholds or {}
        self._own = [_equals(name, value) for name, value in options.matchers.items()]
        self._dimensions = sorted({*DIMENSIONS, *options.matchers})

    def __getitem__(self, parameter: Parameter) -> str:
        """The parameter's value, as text for an expression."""
        return plain(self._thresholds.get(parameter.name, Decimal(parameter.default)))

    def of(self, row: Metric, part: Part = "", *where: str) -> str:
        """A selector: `mcp_errors_total{job="mcpmeter",side="server"}`."""
        return f"{row.name}{f'_{part}' if part else ''}{{{self.matching(*where)}}}"

    def of_job(self, job: str, row: Metric) -> str:
        """A selector of one job, so that the result of `absent` has its label."""
        return f"{row.name}{{{','.join([_equals('job', job), *self._own])}}}"

    def recorded(self, name: str, *where: str) -> str:
        """A selector of a recorded series."""
        return f"{name}{{{self.matching(*where)}}}"

    def matching(self, *where: str) -> str:
        """The matchers of every selector, followed by these."""
        jobs = self.options.jobs
        job = _equals("job", jobs[0]) if len(jobs) == 1 else f'job=~"{"|".join(map(re.escape, jobs))}"'
        return ",".join([job, *self._own, *where])

    def by(self, *labels: str) -> str:
        """`by (cluster, job, region, team)`."""
        return f"by ({', '.join([*self._dimensions, *labels])})"

    def on(self, *labels: str) -> str:
        """`on (cluster, job, region, team)`."""
        return f"on ({', '.join([*self._dimensions, *labels])})"

    def rate(self, row: Metric, window: str, *labels: str, part: Part = "", where: tuple[str, ...] = ()) -> str:
        """Rate per second, summed over replicas, by these labels."""
        return f"sum {self.by(*labels)} (rate({self.of(row, part, *where)}[{self.span(window)}]))"

    def increase(self, row: Metric, window: str, *labels: str, part: Part = "", where: tuple[str, ...] = ()) -> str:
        """Increase in the window, summed over replicas, by these labels."""
        return f"sum {self.by(*labels)} (increase({self.of(row, part, *where)}[{self.span(window)}]))"

    def quantile(self, share: str, row: Metric, window: str, *labels: str, where: tuple[str, ...] = ()) -> str:
        """Quantile over all replicas, by these labels."""
        return f"histogram_quantile({share}, {self.rate(row, window, *labels, 'le', part='bucket', where=where)})"

    def highest(self, row: Metric, *labels: str, where: tuple[str, ...] = ()) -> str:
        """Maximum of a gauge for which every replica exports the same value."""
        return f"max {self.by(*labels)} ({self.of(row, '', *where)})"

    def span(self, text: str) -> str:
        """A duration, divided by the speedup of the options."""
        return span(max(1, milliseconds(text) // self.options.speedup))

    def seconds(self, text: str) -> str:
        """The same duration as a number of seconds."""
        return plain(Decimal(milliseconds(text)) / 1000 / self.options.speedup)


def _equals(name: str, value: str) -> str:
    return f'{name}="{value}"'


def plain(number: Decimal) -> str:
    """Format without exponent and trailing zeros."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
