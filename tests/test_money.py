"""Dollars as text and as nano-dollars."""

import ast
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mcpmeter
from mcpmeter.pricing import MAX_NANOUSD, format_usd, nanousd_to_usd, plain_usd, usd_to_nanousd

SOURCES = Path(mcpmeter.__file__).parent
MONEY_PATH = [
    *sorted((SOURCES / "pricing").glob("*.py")),
    *sorted((SOURCES / "reconcile").rglob("*.py")),
    *sorted((SOURCES / "usage").glob("*.py")),
    *(
        SOURCES / "ledger" / f"{name}.py"
        for name in (
            "sqlite/balances",
            "postgres/balances",
            "rows",
            "queries/totals",
            "maintenance/prune",
            "maintenance/verify",
            "maintenance/export",
            "queries/days",
        )
    ),
    *(SOURCES / "cli" / name for name in ("cost.py", "models.py", "reconcile.py", "report.py")),
]


@pytest.mark.parametrize(
    ("text", "nanousd"),
    [
        ("0", 0),
        ("0.0042", 4_200_000),
        (" 1.4e-05\t", 14_000),
        ("1.", 10**9),
        ("3E2", 300 * 10**9),
        ("0.0000000005", 0),
        ("0.0000000015", 2),
        ("0.00000000050000000000001", 1),
        ("0e99", 0),
        ("1e-99", 0),
        ("9223372036.854775807", MAX_NANOUSD),
    ],
)
def test_amounts_are_parsed_and_rounded_half_to_even(text: str, nanousd: int) -> None:
    assert usd_to_nanousd(text) == nanousd


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "NaN", "nan", "Infinity", "-inf", "-1", "-0", "+1", "1e400", "1e99", "9223372036.854775808", "$1",
        "1,5", "1_000", "٣", "0x10", ".5", "1 2", "1\n", "1" * 10_000, "0." + "1" * 10_000, "1e", "1e-999", "\ud800",
    ],
)  # fmt: skip
def test_text_that_is_not_a_plain_amount_is_none(text: str) -> None:
    assert usd_to_nanousd(text) is None


@pytest.mark.parametrize("text", ["NaN", "sNaN", "Infinity", "-1", "-0", "1e400", "1e999999", "1" * 100])
def test_decimals_that_are_not_an_amount_are_none(text: str) -> None:
    assert usd_to_nanousd(Decimal(text)) is None


@given(st.text(max_size=80) | st.from_regex(r"[0-9]{0,14}\.?[0-9]{0,32}([eE][+-]?[0-9]{0,3})?", fullmatch=True))
def test_any_text_is_an_amount_in_range_or_none(text: str) -> None:
    nanousd = usd_to_nanousd(text)
    assert nanousd is None or 0 <= nanousd <= MAX_NANOUSD


@given(st.decimals() | st.decimals(min_value=0, max_value=10**10, places=12))
def test_any_decimal_is_rounded_by_at_most_half_a_nanodollar(amount: Decimal) -> None:
    nanousd = usd_to_nanousd(amount)
    if nanousd is not None:
        assert abs(nanousd_to_usd(nanousd) - amount) <= Decimal("0.5e-9")


@given(st.integers(min_value=0, max_value=MAX_NANOUSD))
def test_nanodollars_survive_the_conversion_to_dollars_and_back(nanousd: int) -> None:
    assert usd_to_nanousd(nanousd_to_usd(nanousd)) == nanousd
    assert usd_to_nanousd(plain_usd(nanousd_to_usd(nanousd))) == nanousd


@pytest.mark.parametrize(
    ("nanousd", "text"),
    [
        (0, "$0.00"),
        (1, "$0.000000001"),
        (2_700_000, "$0.0027"),
        (420_000_000, "$0.42"),
        (999_999_999, "$0.999999999"),
        (4_200_000_000, "$4.20"),
        (1_234_505_000_000, "$1,234.50"),
        (1_234_515_000_000, "$1,234.52"),
        (-2_700_000, "-$0.0027"),
        (10**30, "$1,000,000,000,000,000,000,000.00"),
    ],
)
def test_amounts_display_cents_from_a_dollar_up(nanousd: int, text: str) -> None:
    assert format_usd(nanousd) == text


@pytest.mark.parametrize(("amount", "text"), [("2.5", "2.50"), ("0.2288", "0.2288"), ("1E+2", "100.00"), ("3", "3.00")])
def test_a_price_is_printed_plainly(amount: str, text: str) -> None:
    assert plain_usd(Decimal(amount)) == text


@pytest.mark.parametrize("file", MONEY_PATH, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_money_is_computed_without_floats(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        written = isinstance(node, ast.Constant) and isinstance(node.value, float)
        assert not written, f"{file.name}:{node.lineno} writes a float"
        assert not (isinstance(node, ast.Name) and node.id == "float"), f"{file.name}:{node.lineno} uses float"


def test_rates_are_never_divided_into_floats() -> None:
    tree = ast.parse((SOURCES / "pricing" / "rates.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Div)]
