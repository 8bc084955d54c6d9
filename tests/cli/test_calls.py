"""`mcpmeter calls show` and the views of items: a charge line by line, and what has no price."""

from __future__ import annotations

import asyncio
import csv
import json
from pathlib import Path

import pytest

from mcpmeter.cli._group import run
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.records import Call, Charge, ChargeLine, Conditions, LlmTarget, Settlement, Usage, UsageItem

STARTED_AT_NS = 1_793_534_400_000_000_000  # 2026-11-01T12:00:00Z
LIST = "anthropic 2026-11-30"
LINES = (
    ChargeLine("prompt", 1_000, 3_000_000, "3.00/Mtok", LIST, "listed"),
    ChargeLine("web_search", 2, 20_000_000, "10/1000", LIST, "listed"),
    ChargeLine("completion", 10, 250_000, "25.00/Mtok", LIST, "listed", "advisor-1"),
    ChargeLine("code_session", 1, None),
)
ITEMISED = (
    Usage(
        prompt_tokens=1_000,
        completion_tokens=10,
        source="reported",
        unknown=(UsageItem("usage.smell_tokens\x1b", 3),),
        conditions=Conditions(tier="priority", batch=True),
    ),
    Charge(nanousd=23_250_000, source="listed", price_list=LIST, lines=LINES, fallback_nanousd=5_000),
)
PLAIN = (Usage(prompt_tokens=5, source="reported"), Charge(nanousd=750_000, source="listed", price_list=LIST))


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger with an itemised call, `call_1`, and a plain one, `call_2`."""
    path = tmp_path / "ledger.db"
    monkeypatch.setenv("MCPMETER_LEDGER", str(path))

    async def write() -> None:
        store = SqliteStore(path)
        await store.start()
        for number, (usage, charge) in enumerate((ITEMISED, PLAIN), start=1):
            call = Call(
                id=f"call_{number}",
                started_at_ns=STARTED_AT_NS,
                endpoint="/v1/messages",
                method="POST",
                team="search",
                llm=LlmTarget(provider="anthropic", model="claude-opus-5"),
            )
            await store.open(call)
            ended = STARTED_AT_NS + 10**9
            await store.settle(
                Settlement(call=call, ended_at_ns=ended, duration_ns=10**9, status="200", usage=usage, charge=charge)
            )
        await store.close()

    asyncio.run(write())
    return path


def test_a_call_is_shown_with_every_line_of_its_charge(capsys):
    assert run(["calls", "show", "call_1"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "cost $0.02325, listed by anthropic 2026-11-30" in lines
    assert "conditions tier priority, batch True" in lines
    assert "budgets also count $0.000005" in lines
    assert lines[-5:] == [
        "prompt 1,000 3.00/Mtok 0.003 anthropic 2026-11-30 listed -",
        "web_search 2 10/1000 0.02 anthropic 2026-11-30 listed -",
        "completion 10 25.00/Mtok 0.00025 anthropic 2026-11-30 listed advisor-1",
        "code_session 1 - no price - unpriced -",
        "usage.smell_tokens\ufffd 3 - no price - unpriced -",
    ]


def test_a_plain_call_is_shown_without_lines(capsys):
    assert run(["calls", "show", "call_2", "--json"]) == 0
    call = json.loads(capsys.readouterr().out)
    assert (call["lines"], call["unpriced_items"], call["conditions"]) == ([], [], {})
    assert (call["cost_usd"], call["started_at"]) == ("0.00075", "2026-11-01T12:00:00Z")


def test_a_call_that_the_ledger_lacks_is_exit_code_1(capsys):
    assert run(["calls", "show", "call_3"]) == 1
    assert "no call with this id" in capsys.readouterr().err


def test_items_add_up_to_the_report(capsys):
    assert run(["report", "items", "--by", "model", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = [(row["model"], row["item"], row["component"], row["quantity"], row["unpriced_lines"], row["cost_usd"])
            for row in report["rows"]]  # fmt: skip
    assert rows == [
        ("advisor-1", "completion", "completion", 10, 0, "0.00025"),
        ("claude-opus-5", "code_session", "tool_fee", 1, 1, "0.00"),
        ("claude-opus-5", "plain", None, 0, 0, "0.00075"),
        ("claude-opus-5", "prompt", "prompt", 1_000, 0, "0.003"),
        ("claude-opus-5", "usage.smell_tokens\x1b", "other", 3, 1, "0.00"),
        ("claude-opus-5", "web_search", "tool_fee", 2, 0, "0.02"),
    ]
    assert report["total_usd"] == "0.024"
    assert run(["report", "items"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Total: $0.024"


def test_reports_and_statements_name_the_items_without_a_price(capsys, tmp_path):
    assert run(["report", "--by", "team"]) == 0
    printed = capsys.readouterr()
    assert "unpriced items" in printed.out
    assert "No price: code_session, 1 in 1 lines." in printed.err
    assert run(["report", "--by", "team", "--json"]) == 0
    total = json.loads(capsys.readouterr().out)["total"]
    assert (total["unpriced_items"], total["unpriced_item_calls"], total["unpriced_calls"]) == (2, 1, 0)

    page, lines = tmp_path / "november.html", tmp_path / "november.csv"
    assert run(["report", "statement", "--month", "2026-11", "--html", str(page), "--csv", str(lines)]) == 0
    assert "Without a price: code_session, 1 in 1 lines." in page.read_text()
    rows = list(csv.DictReader(lines.read_text().splitlines()))
    assert [(row["model"], row["cost_usd"], row["unpriced_item_calls"]) for row in rows] == [
        ("advisor-1", "0.00025", "0"),
        ("claude-opus-5", "0.02375", "1"),
        ("", "0.024", "1"),
    ]
