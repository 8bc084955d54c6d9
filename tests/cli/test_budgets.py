"""`mcpmeter budgets`: from the ledger, with or without a running service."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from mcpmeter.cli._group import run
from mcpmeter.config import budgets_of, load
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.records import Call, Charge, LlmTarget, Settlement, Usage

CONFIG = """\
teams: [{name: search, time_zone: Europe/Berlin}, support]
budgets:
  - {name: search-monthly, team: search, limit_usd: 100}
  - {name: support-credit, team: support, period: once, start: 2026-01-01, limit_usd: 10}
"""


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "ledger.db"
    monkeypatch.setenv("MCPMETER_LEDGER", str(path))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-0001")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mcpmeter.yaml").write_text(CONFIG)
    return path


@pytest.fixture
def spend(ledger: Path):
    """Settle calls as a service would; one that is only opened stays open."""

    def spend(*amounts_usd: int, team: str = "search", settles: bool = True) -> None:
        asyncio.run(_spend(ledger, amounts_usd, team, settles))

    return spend


async def _spend(ledger: Path, amounts_usd: tuple[int, ...], team: str, settles: bool) -> None:
    budgets = budgets_of(load(Path("mcpmeter.yaml"), {"OPENAI_API_KEY": "sk-openai-0001"}))
    store = SqliteStore(ledger)
    await store.start()
    for number, usd in enumerate(amounts_usd):
        now_ns = time.time_ns()
        reservations = budgets.reservations(team=team, max_cost_nanousd=usd * 10**9, at_ns=now_ns)
        target = LlmTarget(provider="openai", model="gpt-4.1")
        call = Call(id=f"call_{team}_{number}_{now_ns}", started_at_ns=now_ns, endpoint="/v1/chat/completions",
                    method="POST", team=team, llm=target, reservations=reservations,
                    reserved_nanousd=usd * 10**9)  # fmt: skip
        await store.open(call)
        if settles:
            charge = Charge(nanousd=usd * 10**9, source="listed", price_list="test")
            usage = Usage(prompt_tokens=1, source="reported")
            await store.settle(
                Settlement(call=call, ended_at_ns=now_ns + 1, duration_ns=1, status="200", usage=usage, charge=charge)
            )
    await store.close()


def budgets_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert run(["budgets", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_list_has_amounts_and_the_time_of_exhaustion(capsys, spend) -> None:
    spend(20, 5)
    spend(30, settles=False)
    search, support = budgets_json(capsys, "list")["budgets"]
    assert {name: search[name] for name in ("spent_usd", "reserved_usd", "left_usd", "limit_usd")} == {
        "spent_usd": "25.00",
        "reserved_usd": "30.00",
        "left_usd": "45.00",
        "limit_usd": "100.00",
    }
    assert search["resets_at"].endswith(("+01:00", "+02:00"))
    assert search["exhausted_at"] > search["period_start"]
    assert (support["resets_at"], support["exhausted_at"], support["left_usd"]) == (None, None, "10.00")


def test_list_prints_a_table(capsys, spend) -> None:
    spend(100)
    assert run(["budgets", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["budget", "for"]
    assert "search-monthly  team=search" in lines[1]
    assert lines[1].rstrip().endswith("now")
    assert "never" in lines[2]
    assert lines[2].rstrip().endswith("no spending")


def test_a_top_up_is_recorded_with_its_note(capsys, spend) -> None:
    spend(4, team="support")
    first = budgets_json(capsys, "top-up", "support-credit", "--usd", "50", "--note", "invoice 7")
    second = budgets_json(capsys, "top-up", "support-credit", "--usd", "-20.5")
    assert (first["amount_usd"], first["credit_usd"], second["credit_usd"]) == ("50.00", "50.00", "29.50")
    shown = budgets_json(capsys, "show", "support-credit")
    assert [(entry["id"], entry["amount_usd"], entry["note"]) for entry in shown["top_ups"]] == [
        (first["id"], "50.00", "invoice 7"),
        (second["id"], "-20.50", ""),
    ]
    assert (shown["budget"]["credit_usd"], shown["budget"]["left_usd"]) == ("29.50", "35.50")
    assert [period["spent_usd"] for period in shown["periods"]] == ["4.00"]


def test_a_top_up_prints_amount_and_total(capsys, spend) -> None:
    spend(1)
    assert run(["budgets", "top-up", "support-credit", "--usd", "50"]) == 0
    assert "$50.00 to 'support-credit'; total of its top-ups: $50.00." in capsys.readouterr().out


def test_show_prints_a_table(capsys, spend) -> None:
    spend(25)
    assert run(["budgets", "show", "search-monthly"]) == 0
    out = capsys.readouterr().out
    assert "left_usd           75.00" in out
    assert "Periods" in out
    assert "Top-ups" not in out


@pytest.mark.parametrize("amount", ["0", "ten", "1e-10", "NaN", "1e30", "$5", ""])
def test_an_invalid_amount_is_wrong_usage(capsys, spend, amount: str) -> None:
    spend(1)
    assert run(["budgets", "top-up", "support-credit", "--usd", amount]) == 2
    assert "is no amount" in capsys.readouterr().err


def test_a_budget_that_resets_cannot_be_topped_up(capsys, spend) -> None:
    spend(1)
    assert run(["budgets", "top-up", "search-monthly", "--usd", "5"]) == 1
    err = capsys.readouterr().err
    assert "only a prepaid one can be topped up" in err
    assert "'limit_usd'" in err


@pytest.mark.parametrize("arguments", [["show", "serch-monthly"], ["top-up", "serch-monthly", "--usd", "5"]])
def test_an_unknown_budget_names_the_nearest(capsys, spend, arguments: list[str]) -> None:
    spend(1)
    assert run(["budgets", *arguments]) == 1
    assert "did you mean 'search-monthly'" in capsys.readouterr().err


def test_a_note_of_several_lines_is_wrong_usage(capsys, spend) -> None:
    spend(1)
    assert run(["budgets", "top-up", "support-credit", "--usd", "5", "--note", "a\nb"]) == 2


def test_without_budgets_the_list_names_the_documentation(capsys, tmp_path: Path) -> None:
    (tmp_path / "mcpmeter.yaml").write_text("server: {}\n")
    assert run(["budgets", "list"]) == 0
    assert "docs/budgets.md" in capsys.readouterr().err
    assert budgets_json(capsys, "list")["budgets"] == []


def test_without_a_ledger_nothing_is_created(capsys, ledger: Path) -> None:
    assert run(["budgets", "list"]) == 1
    assert run(["budgets", "top-up", "support-credit", "--usd", "5"]) == 1
    assert "There is no ledger" in capsys.readouterr().err
    assert not ledger.exists()
