"""PromQL out of catalog rows, so that no dashboard can name a metric or a label that nothing emits."""

from __future__ import annotations

import re
from typing import Final

from mcpmeter.catalog import Metric, service
from mcpmeter.catalog.labels import MODEL, PROVIDER, PROVIDER_NAME, REQUEST_MODEL, SERVER, TEAM

SCOPE: Final = 'job=~"$job", instance=~"$instance", region=~"$region"'
"""In front of every selector: what the reader chose at the top."""

CHOSEN: Final = {
    TEAM.name: "$team",
    MODEL.name: "$model",
    REQUEST_MODEL.name: "$model",
    PROVIDER.name: "$provider",
    PROVIDER_NAME.name: "$provider",
    SERVER.name: "$server",
}
"""Labels that a variable of the page narrows, where the page has it."""


LABEL: Final = re.compile(r"(?:^|, )(\w+)[=!]")


class PageQueries:
    """Expressions of one page: its `variables` narrow the series that carry their label."""

    def __init__(self, *variables: str) -> None:
        self._variables = {f"${name}" for name in variables}

    def series(self, row: Metric, where: str = "", suffix: str = "") -> str:
        """The row's series in scope. Raises ValueError for a label that the row has not."""
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
        """A second's increase, summed."""
        return f"sum{_by(row, by)} (rate({self.series(row, where, suffix)}[$__rate_interval]))"

    def moving(self, row: Metric, *by: str, where: str = "") -> str:
        """The same, without the many series of a closed set that stand still."""
        return f"{self.rate(row, *by, where=where)} > 0"

    def count_rate(self, row: Metric, *by: str, where: str = "") -> str:
        """How many observations of a histogram a second."""
        return self.rate(row, *by, where=where, suffix="_count")

    def grown(self, row: Metric, *by: str, where: str = "", suffix: str = "") -> str:
        """The increase over what the reader looks at."""
        return f"sum{_by(row, by)} (increase({self.series(row, where, suffix)}[$__range]))"

    def quantile(self, share: float, row: Metric, *by: str, where: str = "") -> str:
        """A quantile of a histogram over the replicas together."""
        return f"histogram_quantile({share}, {self.rate(row, 'le', *by, where=where, suffix='_bucket')})"

    def quantile_of_range(self, share: float, row: Metric, *by: str, where: str = "") -> str:
        """The same over all that the reader looks at."""
        return f"histogram_quantile({share}, {self.grown(row, 'le', *by, where=where, suffix='_bucket')})"

    def of_ours(self, name: str) -> str:
        """A series that Prometheus or the process adds to a target, of targets that were metered in the last day.

        Under All the job may be any: without this, strangers' targets would count as ours.
        """
        metered = f"max_over_time({self.series(service.BUILD_INFO)}[1d])"
        return f"{name}{{{SCOPE}}} and on (job, instance) {metered}"

    def cores(self) -> str:
        """Cores that each of our processes uses."""
        used = f"rate(process_cpu_seconds_total{{{SCOPE}}}[$__rate_interval])"
        return f"{used} and on (job, instance) {self.series(service.BUILD_INFO)}"

    def greatest(self, row: Metric, *by: str, where: str = "") -> str:
        """A gauge that every replica shows the same."""
        return f"max{_by(row, by)} ({self.series(row, where)})"

    def least(self, row: Metric, *by: str, where: str = "") -> str:
        """A gauge whose worst replica counts."""
        return f"min{_by(row, by)} ({self.series(row, where)})"

    def total(self, row: Metric, *by: str, where: str = "") -> str:
        """A gauge of which each replica has its part."""
        return f"sum{_by(row, by)} ({self.series(row, where)})"


def share(part: str, whole: str) -> str:
    """Part of whole; 0 where there was nothing, and not NaN."""
    return f"({part} / ({whole} > 0) or 0 * {whole})"


def yes(condition: str) -> str:
    """1 where a comparison with `bool` holds anywhere, 0 where it does not or where there is nothing to compare."""
    return f"max({condition}) or vector(0)"


def _by(row: Metric, by: tuple[str, ...]) -> str:
    if unknown := set(by) - {*row.label_names, "job", "instance", "le"}:
        raise ValueError(f"{row.name} has no label {', '.join(sorted(unknown))}")
    return f" by ({', '.join(by)})" if by else ""
