"""Price lists as files: what is accepted; everything else is refused with file, line and hint."""

from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.errors import ConfigInvalid
from mcpmeter.pricing import PriceBook, PriceSource, bundled_price_lists, load_price_list, parse_price_list
from mcpmeter.records import Usage

FAULTS = sorted((Path(__file__).parent / "faults").glob("*.toml"))
DATED = """
name = "acme"
currency = "USD"

[[price]]
model = "M-1"
from = 2026-06-01
prompt = "4.00"
completion = "8.00"

[[price]]
model = "M-1"
from = 2026-01-01
prompt = "2.00"
completion = "6.00"
cached_read = "0.50"
cache_write = "2.50"
aliases = ["m-one"]

[[price]]
model = "m-1-2026-02-02"
from = 2026-01-01
prompt = "9.00"

[[price]]
model = "embed"
from = 2026-01-01
prompt = "0.02"
"""
MILLION = 10**6


def book(text: str = DATED) -> PriceBook:
    return PriceBook([parse_price_list(text, "acme.toml")], sources={"acme": PriceSource("acme")})


def at(*day: int) -> int:
    return int(datetime(*day, tzinfo=UTC).timestamp()) * 10**9


@pytest.mark.parametrize("file", FAULTS, ids=lambda file: file.stem)
def test_a_fault_is_refused_with_its_line_and_a_hint(file: Path) -> None:
    expected = file.read_text().splitlines()[0].removeprefix("# ")
    with pytest.raises(ConfigInvalid) as refused:
        load_price_list(file)
    assert expected in str(refused.value)
    assert file.name in refused.value.message
    assert refused.value.hint
    assert "\n" not in str(refused.value)


def test_there_are_faults_to_refuse() -> None:
    assert len(FAULTS) >= 20


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    for file in (binary, tmp_path / "absent.toml", tmp_path):
        with pytest.raises(ConfigInvalid, match=file.name):
            load_price_list(file)


@given(st.text(max_size=200) | st.text(alphabet='[]{}="\n.price', max_size=200))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigInvalid):
        parse_price_list(text, "hostile.toml")


def test_deeply_nested_text_is_refused() -> None:
    with pytest.raises(ConfigInvalid):
        parse_price_list("x = " + "[" * 100_000, "hostile.toml")


def test_the_bundled_list_is_dated() -> None:
    (holysheep,) = [lst for lst in bundled_price_lists() if lst.name == "holysheep"]
    assert holysheep.name == "holysheep"
    assert {entry.valid_from for entry in holysheep.price} == {date(2026, 11, 1)}
    assert "second currency" in holysheep.note


def test_the_latest_valid_entry_applies() -> None:
    prices, usage = book(), Usage(prompt_tokens=MILLION, source="reported")
    assert prices.charge("acme", "M-1", usage, at(2026, 5, 31)).nanousd == 2 * 10**9
    assert prices.charge("acme", "M-1", usage, at(2026, 6, 1) - 1).price_list == "acme 2026-01-01"
    assert prices.charge("acme", "M-1", usage, at(2026, 6, 1)).price_list == "acme 2026-06-01"
    assert prices.charge("acme", "M-1", usage, at(2026, 6, 1)).nanousd == 4 * 10**9


def test_before_the_first_day_a_model_is_unpriced() -> None:
    usage = Usage(prompt_tokens=MILLION, source="reported")
    assert book().charge("acme", "M-1", usage, at(2025, 12, 31)).source == "unpriced"


def test_details_without_a_price_cost_as_much_as_their_side() -> None:
    usage = Usage(
        prompt_tokens=10 * MILLION,
        completion_tokens=MILLION,
        cached_read_tokens=4 * MILLION,
        cache_write_tokens=2 * MILLION,
        reasoning_tokens=MILLION,
        source="reported",
    )
    with_cache_prices = book().charge("acme", "M-1", usage, at(2026, 5, 1)).nanousd
    without = book().charge("acme", "M-1", usage, at(2026, 7, 1)).nanousd
    assert with_cache_prices == (4 * 2 + 4 * 500_000 // MILLION + 2 * 2 + 1 + 6) * 10**9
    assert without == (10 * 4 + 8) * 10**9


def test_only_printed_names_aliases_and_snapshots_are_found() -> None:
    prices = book()
    for name in ("M-1", "m-1", "m-one", "m-1-20250401", "m-1@20250401", "m-one-2025-04-01"):
        assert prices.canonical("acme", name) == "M-1"
    assert prices.canonical("acme", "m-1-2026-02-02") == "m-1-2026-02-02"
    for name in ("m-1-mini", "m-1-latest", "my-m-1", "m-1-20251399", "m-1-2025-04-01-x", "m", "", "acme/m-1", "ｍ-1"):
        assert prices.canonical("acme", name) is None


def test_completions_without_a_price_are_unpriced() -> None:
    prompt_only = Usage(prompt_tokens=MILLION, source="reported")
    both = Usage(prompt_tokens=MILLION, completion_tokens=1, source="reported")
    assert book().charge("acme", "embed", prompt_only, at(2026, 7, 1)).nanousd == 20_000_000
    assert book().charge("acme", "embed", both, at(2026, 7, 1)).source == "unpriced"
