"""Variables are replaced as by Grafana."""

from __future__ import annotations

import pytest
from pictures.queries import fill_variables


def test_all_matches_series_without_the_label_too() -> None:
    expr = 'a{job=~"$job", instance=~"$instance", region=~"$region", team=~"$team"}'
    assert fill_variables(expr, range_seconds=60) == 'a{job=~".+", instance=~".+", region=~".*", team=~".*"}'


def test_a_chosen_value_stands_in_its_place_alone() -> None:
    assert fill_variables('{team=~"$team", model=~"$model"}', range_seconds=60, team="search") == (
        '{team=~"search", model=~".*"}'
    )


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ("rate(a[$__rate_interval])", "rate(a[15s])"),
        ("increase(a[$__range])", "increase(a[240s])"),
    ],
)
def test_windows_are_those_of_the_run(expr: str, expected: str) -> None:
    assert fill_variables(expr, range_seconds=240) == expected
