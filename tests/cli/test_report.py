"""`mcpmeter report`: exact dollars from integers, for people, programs and spreadsheets."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.cli._group import run
from mcpmeter.ledger.queries.reader import open_writer
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.money import usd_text
from mcpmeter.records import Call, Charge, LlmTarget, Settlement, Usage

NOON_NS = int(datetime(2026, 11, 2, 12, tzinfo=UTC).timestamp()) * 10**9
DAY_NS = 86_400 * 10**9


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "ledger.db"
    monkeypatch.setenv("MCPMETER_LEDGER", str(path))
    return path


@pytest.fixture
def write(ledger: Path) -> Callable[..., None]:
    """Settled calls, each (team, model, day after 2026-11-02, nano-dollars or None)."""

    async def write_all(calls: tuple[tuple[str, str, int, int | None], ...]) -> None:
        store = SqliteStore(ledger)
        await store.start()
        for place, (team, model, day, nanousd) in enumerate(calls):
            call = Call(
                id=f"call_{place}",
                started_at_ns=NOON_NS + day * DAY_NS,
                endpoint="/v1/chat/completions",
                method="POST",
                team=team,
                llm=LlmTarget(provider="holysheep", model=model),
            )
            await store.open(call)
            charge = Charge() if nanousd is None else Charge(nanousd=nanousd, source="listed")
            usage = Usage(prompt_tokens=10, completion_tokens=20, source="reported")
            await store.settle(
                Settlement(call=call, ended_at_ns=1, duration_ns=1, status="200", usage=usage, charge=charge)
            )
        await store.close()

    return lambda *calls: asyncio.run(write_all(calls))


def test_sums_are_exact_to_the_nano_dollar(write, capsys):
    write(("a", "m", 0, 1), ("a", "m", 0, 1_000_000_000), ("b", "m", 0, 270), ("b", "n", 0, None))
    assert run(["report", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["by"] == ["team", "model"]
    assert [(row["team"], row["model"], row["calls"], row["cost_usd"]) for row in report["rows"]] == [
        ("a", "m", 2, "1.000000001"),
        ("b", "m", 1, "0.00000027"),
        ("b", "n", 1, "0.00"),
    ]
    assert [row["unpriced_calls"] for row in report["rows"]] == [0, 0, 1]
    assert report["rows"][0]["cost_nanousd"] == 1_000_000_001
    assert report["rows"][0]["prompt_tokens"] == 20


def test_a_period_includes_its_first_day_and_not_its_last(write, capsys):
    write(*(("a", "m", day, 10**9) for day in range(4)))
    assert run(["report", "--by", "day", "--since", "2026-11-03", "--until", "2026-11-05", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["day"] for row in report["rows"]] == ["2026-11-03", "2026-11-04"]
    assert (report["since"], report["until"]) == ("2026-11-03T00:00:00Z", "2026-11-05T00:00:00Z")


def test_the_table_has_every_group_and_a_footer_with_the_sum(write, capsys):
    write(("a", "gpt-4.1", 0, 10**9), ("b", "deepseek-v3.2", 0, 5 * 10**8), ("b", "deepseek-v3.2", 0, 1))
    assert run(["report"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ["team", "model", "calls"]
    assert [lines[1][:3], lines[1][-1]] == [["a", "gpt-4.1", "1"], "1.00"]
    assert [lines[2][:3], lines[2][-1]] == [["b", "deepseek-v3.2", "2"], "0.500000001"]
    assert [lines[3][:2], lines[3][-1]] == [["total", "3"], "1.500000001"]


def test_names_are_defused_for_terminals_and_spreadsheets(write, capsys):
    write(("a", "=HYPERLINK(1)", 0, 1), ("a", "\x1b[31m[red]x[/red]", 0, 1))
    assert run(["report", "--by", "model"]) == 0
    table = capsys.readouterr().out
    assert "\x1b" not in table
    assert "[red]x[/red]" in table
    assert run(["report", "--by", "model", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert "'=HYPERLINK(1)" in {row["model"] for row in rows}


def test_csv_has_a_header_and_the_same_sums(write, capsys):
    write(("a", "m", 0, 12_345_678_901), ("b", "m", 0, 1))
    assert run(["report", "--by", "team", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["team"], row["calls"], row["cost_usd"]) for row in rows] == [
        ("a", "1", "12.345678901"),
        ("b", "1", "0.000000001"),
    ]


def test_a_period_without_calls_is_reported(write, capsys):
    write()
    assert run(["report"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", "The ledger has no calls in this period.\n")
    assert run(["report", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == []


def test_a_missing_ledger_is_one_line_with_what_to_do(capsys):
    assert run(["report"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "There is no ledger at" in err
    assert "mcpmeter serve" in err


def test_months_and_last_days_follow_the_time_zone(write, capsys):
    write(("a", "m", 0, 1), ("a", "m", 29, 1))
    arguments = ["report", "--by", "day", "--month", "2026-12", "--json"]
    assert run(arguments) == 0
    assert [row["day"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["2026-12-01"]
    assert run(["report", "--by", "day", "--time-zone", "Pacific/Kiritimati", "--json"]) == 0
    assert [row["day"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["2026-11-03", "2026-12-02"]
    assert run(["report", "--last", "1h", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == []


def test_a_second_currency_is_added_to_the_dollars(write, capsys, tmp_path):
    write(("a", "m", 0, 3_000_000_001))
    assert run(["report", "--by", "team", "--currency", "CNY", "--rate", "7.2", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["cost_usd"], row["cost_in_currency"]) == ("3.000000001", "21.600000007")
    config = tmp_path / "mcpmeter.yaml"
    config.write_text("pricing: {currency: {code: EUR, rate: 0.5}}\nproviders: [{name: ollama}]\n")
    assert run(["report", "--by", "team", "--config", str(config)]) == 0
    heading, line, _ = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (heading[-2:], line[-2:]) == (["EUR", "USD"], ["1.50", "3.000000001"])


def test_the_fallback_price_has_its_own_column(write, ledger, capsys):
    write(("a", "m", 0, 5), ("a", "m", 0, None))
    with open_writer(ledger) as writer:
        writer.execute("UPDATE calls SET fallback_cost_nanousd = 9 WHERE cost_source = 'unpriced'")
    assert run(["report", "--by", "team"]) == 0
    heading, line, _ = (line.split() for line in capsys.readouterr().out.splitlines())
    assert heading[-3:] == ["fallback", "USD", "USD"]
    assert line[-2:] == ["0.000000009", "0.000000005"]


def test_a_statement_is_written_as_html_and_csv(write, capsys, tmp_path):
    write(("a", "m", 0, 10**9), ("b", "n", 0, 1))
    page, lines = tmp_path / "november.html", tmp_path / "november.csv"
    arguments = ["report", "statement", "--month", "2026-11", "--html", str(page), "--csv", str(lines)]
    assert run([*arguments, "--currency", "EUR", "--rate", "0.9"]) == 0
    assert capsys.readouterr().err == "2 lines, 2 calls, $1.000000001.\n"
    assert "1.000000001" in page.read_text()
    rows = list(csv.DictReader(io.StringIO(lines.read_text())))
    assert [(row["kind"], row["cost_nanousd"], row["amount_eur"]) for row in rows] == [
        ("line", "1000000000", "0.90"),
        ("line", "1", "0.00"),
        ("total", "1000000001", "0.90"),
    ]
    assert run(["report", "statement", "--month", "2026-11"]) == 2
    assert run(["report", "statement", "--month", "11", "--html", str(page)]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--by", "colour"],
        ["--month", "2026-11", "--last", "7d"],
        ["--time-zone", "Mars/Olympus"],
        ["--currency", "CNY"],
        ["--since", "yesterday"],
        ["--since", "2026-11-02", "--until", "2026-11-01"],
        ["--json", "--csv"],
    ],
)
def test_wrong_usage_ends_with_2(capsys, arguments):
    assert run(["report", *arguments]) == 2
    assert "Error" in capsys.readouterr().err


def test_dates_beyond_the_ledgers_range_are_clamped(write, capsys):
    write(("a", "m", 0, 1))
    assert run(["report", "--since", "1600-01-01", "--until", "9999-12-31", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 1


@given(st.integers(0, 2**80))
def test_dollars_are_written_without_loss(nanousd):
    whole, _, decimals = usd_text(nanousd).partition(".")
    assert int(whole) * 10**9 + int(decimals.ljust(9, "0")) == nanousd
    assert len(decimals) >= 2
