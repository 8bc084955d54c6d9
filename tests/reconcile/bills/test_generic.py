"""Any CSV file by a mapping."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.reconcile.conftest import GOLDEN, at, figures

from mcpmeter.reconcile.bills.base import BillInvalid
from mcpmeter.reconcile.bills.generic import load_mapping, mapped_format
from mcpmeter.reconcile.reading import read, recognise

MINIMAL = 'provider = "p"\n[columns]\ntime = "Day"\ncost = "Cost"\n'


def read_mapped(bill: Path, mapping: Path):
    found = recognise(bill, {"mapped": mapped_format(load_mapping(mapping), mapping)})
    return list(read(found, lambda what, done, total: None))


def test_columns_units_zone_and_filters_follow_the_mapping() -> None:
    lines = read_mapped(GOLDEN / "mapped.csv", GOLDEN / "mapped.toml")
    eight_hours = 8 * 3600 * 10**9
    assert [figures(line) for line in lines] == [
        {
            "at_ns": at("2025-11-01") - eight_hours, "request_id": "r-1", "model": "gpt-4.1", "requests": None,
            "prompt_tokens": 42, "completion_tokens": 20, "nanousd": 285_000,
        },
        {
            "at_ns": at("2025-11-02") - eight_hours, "request_id": "r-2", "model": "deepseek-v3.2", "requests": None,
            "prompt_tokens": 100, "completion_tokens": 7, "nanousd": 35_000,
        },
    ]  # fmt: skip
    assert [line.line for line in lines] == [2, 4]


@pytest.mark.parametrize(
    ("more", "cells", "found"),
    [
        ("", "2025-11-01,1.5", (at("2025-11-01"), 1_500_000_000)),
        ("", "2025-11-01T01:00:00+02:00,-1", (at("2025-10-31T23:00:00"), -(10**9))),
        ('time_format = "unix"\n', "1761955200,0.0000000015", (at("2025-11-01"), 2)),
        ('cost_multiplier = "0.14"\n', "2025-11-01,7.1", (at("2025-11-01"), 994_000_000)),
        ('timezone = "America/New_York"\n', "2025-11-01,1", (at("2025-11-01T04:00:00"), 10**9)),
        ('timezone = "America/New_York"\n', "2025-11-03,1", (at("2025-11-03T05:00:00"), 10**9)),
    ],
)
def test_instants_and_amounts(tmp_path: Path, more: str, cells: str, found: tuple[int, int]) -> None:
    (tmp_path / "m.toml").write_text(more + MINIMAL)
    (tmp_path / "b.csv").write_text(f"Day,Cost\n{cells}\n")
    (line,) = read_mapped(tmp_path / "b.csv", tmp_path / "m.toml")
    assert (line.at_ns, line.nanousd) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("provider", "m.toml: Expected '='"),
        (MINIMAL + 'colour = "red"\n', "unknown field `colour`"),
        (MINIMAL.replace('time = "Day"\n', ""), "required field `time`"),
        (MINIMAL.replace('cost = "Cost"', ""), "neither a cost column nor"),
        (MINIMAL + 'prompt_tokens = "In"\n', "token columns of one kind only"),
        ('timezone = "Mars/Base"\n' + MINIMAL, "unknown time zone 'Mars/Base'"),
        ('timezone = "../etc/passwd"\n' + MINIMAL, "unknown time zone"),
        ("cost_multiplier = 0.01\n" + MINIMAL, "Expected `str`, got `float`"),
        ('delimiter = ";;"\n' + MINIMAL, "length <= 1"),
    ],
)
def test_a_wrong_mapping_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "m.toml"
    path.write_text(text)
    with pytest.raises(BillInvalid) as refused:
        load_mapping(path)
    assert message in str(refused.value)
    assert "m.toml" in str(refused.value)


def test_a_column_missing_in_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(MINIMAL)
    (tmp_path / "b.csv").write_text("Day,Amount\n2025-11-01,1\n")
    with pytest.raises(BillInvalid, match="lacks columns of mapped: 'Cost'; it has: 'Day', 'Amount'"):
        read_mapped(tmp_path / "b.csv", tmp_path / "m.toml")


def test_the_mapping_of_the_documentation_is_valid(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "reconcile.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "m.toml").write_text(text)
    mapping = load_mapping(tmp_path / "m.toml")
    assert mapping.provider == "holysheep"
    assert mapping.only[0].is_ == ("usage",)
