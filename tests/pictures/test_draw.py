"""Numbers are formatted with their units; a page becomes a picture."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pictures.draw import Results, draw, formatted
from pictures.queries import Series

from mcpmeter.monitoring.dashboards import pages

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "text"),
    [
        (0.0714, "percentunit", None, "7.14 %"),
        (0.0714, "percentunit", 1, "7.1 %"),
        (0.5, "s", None, "500 ms"),
        (90.0, "s", None, "1.5 min"),
        (0.00005, "s", None, "50 µs"),
        (0.0, "s", None, "0 s"),
        (12_345.0, "short", None, "12.3 K"),
        (0.1573, "currencyUSD", 2, "$0.16"),
        (1.0, "bool_yes_no", None, "Yes"),
        (0.0, "bool_on_off", None, "Off"),
        (17.34, "reqps", None, "17.3 req/s"),
        (2.0**27, "bytes", None, "128 MiB"),
        (math.nan, "s", None, "–"),
    ],
)
def test_a_number_is_formatted_with_its_unit(value: float, unit: str, decimals: int | None, text: str) -> None:
    assert formatted(value, unit, decimals) == text


@pytest.mark.parametrize(("name", "series"), [("overview", 1), ("llm_cost", 0)])
def test_a_page_is_drawn_with_and_without_series(name: str, series: int, tmp_path: Path) -> None:
    page = pages()[name]
    one = Series({"team": "search", "model": "gpt-4.1"}, tuple((float(at), 1.0 + at) for at in range(5)))
    results = {
        panel.title: Results(panel, [[one] * (1 if panel.kind == "verdict" else series) for _ in panel.queries])
        for panel in page.panels
    }
    draw(page, results, tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(PNG)
