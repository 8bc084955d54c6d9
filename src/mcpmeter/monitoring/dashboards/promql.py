"""Builds PromQL from catalog rows, so that a dashboard cannot use a metric or label that does not exist."""

from __future__ import annotations

import re
from typing import Final

from mcpmeter.catalog import Metric, service
from mcpmeter.catalog.labels import MODEL, PROVIDER, PROVIDER_NAME, REQUEST_MODEL, SERVER, TEAM

SCOPE: Final = 'job=~"$job", instance=~"$instance", region=~"$region"'
"""Matchers of every selector: the variables of every page."""

CHOSEN: Final = {
    TEAM.name: "$team",
    MODEL.name: "$model",
    REQUEST_MODEL.name: "$model",
    PROVIDER.name: "$provider",
    PROVIDER_NAME.name: "$provider",
    SERVER.name: "$server",
}
"""Labels that a page narrows if it has the variable."""

LABEL: Final = re.compile(r"(?:^|, )(\w+)[=!]")


class PageQueries:
    """Expressions of one page; its `variables` narrow the series that have their label."""

    def __init__(self, *variables: str) -> None:
        self._variables = {f"${name}" for name in variables}

    def series(self, row: Metric, where: str = "", suffix: str = "") -> str:
        """A selector of the row's series in scope. Raises ValueError for a label the row does not have."""
        labels = set(LABEL.findall(where))
        if unknown := labels - set(row.label_names):
            raise ValueError(f"{row.name} has no label {', '.join(sorted(unknown))}")
        chosen = [
            f'{name}=~"{variable}"'
            for name, variable in CHOSEN.items()
            if name in row.label_names and variable in self._variables and name not in labels
        ]
        return f"{row.name}{suffix}{{{', '.join([SCOPE, *chosen, *([where] if where else [])])}}}"

    def rate(self, row: Metric, *by: str, where: str = "", suffix: str = "") -> str:
        """Rate per second, summed."""
        return f"sum{_by(row, by)} (rate({self.series(row, where, suffix)}[$__rate_interval]))"

    def moving(self, row: Metric, *by: str, where: str = "") -> str:
        """Rate per second, without the many series of a closed set whose rate is 0."""
        return f"{self.rate(row, *by, where=where)} > 0"

    def count_rate(self, row: Metric, *by: str, where: str = "") -> str:
        """Observations of a histogram per second."""
        return self.rate(row, *by, where=where, suffix="_count")

    def grown(self, row: Metric, *by: str, where: str = "", suffix: str = "") -> str:
        """Increase over the time range of the dashboard."""
        return f"sum{_by(row, by)} (increase({self.series(row, where, suffix)}[$__range]))"

    def quantile(self, share: float, row: Metric, *by: str, where: str = "") -> str:
        """Quantile of a histogram over all replicas."""
        return f"histogram_quantile({share}, {self.rate(row, 'le', *by, where=where, suffix='_bucket')})"

    def quantile_of_range(self, share: float, row: Metric, *by: str, where: str = "") -> str:
        """Quantile of a histogram over the time range of the dashboard."""
        return f"histogram_quantile({share}, {self.grown(row, 'le', *by, where=where, suffix='_bucket')})"

    def of_ours(self, name: str) -> str:
        """A series that Prometheus or the process adds to a target, for targets of mcpmeter in the last day.

        With All, any job matches; without this condition, targets of other programs would count.
        """
        metered = f"max_over_time({self.series(service.BUILD_INFO)}[1d])"
        return f"{name}{{{SCOPE}}} and on (job, instance) {metered}"

    def cores(self) -> str:
        """Cores used by each mcpmeter process."""
        used = f"rate(process_cpu_seconds_total{{{SCOPE}}}[$__rate_interval])"
        return f"{used} and on (job, instance) {self.series(service.BUILD_INFO)}"

    def greatest(self, row: Metric, *by: str, where: str = "") -> str:
        """Maximum, for a gauge with the same value on every replica."""
        return f"max{_by(row, by)} ({self.series(row, where)})"

    def least(self, row: Metric, *by: str, where: str = "") -> str:
        """Minimum, for a gauge whose worst replica counts."""
        return f"min{_by(row, by)} ({self.series(row, where)})"

    def total(self, row: Metric, *by: str, where: str = "") -> str:
        """Sum, for a gauge of which each replica has a part."""
        return f"sum{_by(row, by)} ({self.series(row, where)})"


def share(part: str, whole: str) -> str:
    """Part of whole; 0 instead of NaN if the whole is 0."""
    return f"({part} / ({whole} > 0) or 0 * {whole})"


def yes(condition: str) -> str:
    """1 if a comparison with `bool` is true for any series, else 0, also without series."""
    return f"max({condition}) or vector(0)"


def _by(row: Metric, by: tuple[str, ...]) -> str:
    if unknown := set(by) - {*row.label_names, "job", "instance", "le"}:
        raise ValueError(f"{row.name} has no label {', '.join(sorted(unknown))}")
    return f" by ({', '.join(by)})" if by else ""
