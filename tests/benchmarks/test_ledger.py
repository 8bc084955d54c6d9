"""The ledger's benchmark writes complete ledgers and says whether its aim is held."""

from __future__ import annotations

from benchmarks.ledger import Figure, calls, page, settled_by_the_ledger, written_by_raw_sqlite

from benchmarks import ledger
from mcpmeter.ledger.maintenance.verify import verify
from mcpmeter.ledger.queries.totals import totals


async def test_ledger_and_raw_sqlite_write_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "WRITERS", 20)
    settlements = calls(90)
    assert await settled_by_the_ledger(tmp_path / "ours.db", settlements) > 0
    assert written_by_raw_sqlite(tmp_path / "raw.db", settlements) > 0
    assert totals(tmp_path / "ours.db", by=["team", "model"]) == totals(tmp_path / "raw.db", by=["team", "model"])
    assert totals(tmp_path / "raw.db", by=[])[0].calls == 90
    assert verify(tmp_path / "ours.db").wrong == verify(tmp_path / "raw.db").wrong == []


async def test_each_call_reserves_from_the_budget(tmp_path):
    await settled_by_the_ledger(tmp_path / "ours.db", calls(30, (ledger.BUDGET,)))
    verdict = verify(tmp_path / "ours.db")
    assert (verdict.wrong, verdict.balances, verdict.calls) == ([], 1, 30)


def test_the_page_says_whether_the_aim_is_held():
    held = page([Figure("the ledger", [16_000.0, 15_500.0]), Figure("raw SQLite", [40_000.0])], 10)
    assert "15,750 calls per second (aim: at least 15,000; held), 0.39 times raw SQLite's rate" in held
    missed = page([Figure("the ledger", [14_000.0]), Figure("raw SQLite", [40_000.0])], 10)
    assert "MISSED" in missed
