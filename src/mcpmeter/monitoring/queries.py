"""PromQL from rows of the catalog: a metric or label that does not exist cannot be written."""

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
"""Kept by every aggregation, so that one Prometheus may watch several regions. Absent labels cost nothing."""

WATCHING: Final = 'endpoint!~"/|/metrics|/health|/-/.*|/api/.*|other"'
"""What probes, scrapes and this page's readers ask for is no traffic: it would water every ratio down."""

Part = Literal["", "bucket", "sum", "count"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number of an alert that operators may set: `monitoring.thresholds.ALERT.name`."""

    name: str
    default: str
    what: str
    most: str = "1000000000"
    """A higher value could never be reached, for example one beyond a histogram's top bucket."""


class Queries:
    """Writes selectors and aggregations with the options' job, labels and time scale."""

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
        """A selector of one job alone, whose labels `absent` then has."""
        return f"{row.name}{{{','.join([_equals('job', job), *self._own])}}}"

    def recorded(self, name: str, *where: str) -> str:
        """A selector of what a recording rule made."""
        return f"{name}{{{self.matching(*where)}}}"

    def matching(self, *where: str) -> str:
        """The matchers of every selector, and these."""
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
        """Per second, over all replicas, by these labels."""
        return f"sum {self.by(*labels)} (rate({self.of(row, part, *where)}[{self.span(window)}]))"

    def increase(self, row: Metric, window: str, *labels: str, part: Part = "", where: tuple[str, ...] = ()) -> str:
        """In the window, over all replicas, by these labels."""
        return f"sum {self.by(*labels)} (increase({self.of(row, part, *where)}[{self.span(window)}]))"

    def quantile(self, share: str, row: Metric, window: str, *labels: str, where: tuple[str, ...] = ()) -> str:
        """A quantile over all replicas, by these labels."""
        return f"histogram_quantile({share}, {self.rate(row, window, *labels, 'le', part='bucket', where=where)})"

    def highest(self, row: Metric, *labels: str, where: tuple[str, ...] = ()) -> str:
        """Of a gauge that every replica exports alike."""
        return f"max {self.by(*labels)} ({self.of(row, '', *where)})"

    def span(self, text: str) -> str:
        """A window or a wait, divided by the options' speedup."""
        return span(max(1, milliseconds(text) // self.options.speedup))

    def seconds(self, text: str) -> str:
        """The same as a number of seconds."""
        return plain(Decimal(milliseconds(text)) / 1000 / self.options.speedup)


def _equals(name: str, value: str) -> str:
    return f'{name}="{value}"'


def plain(number: Decimal) -> str:
    """Without exponent and trailing zeros."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
