"""`mcpmeter ledger`: what each command prints, writes and ends with."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from pathlib import Path

import pytest

from mcpmeter.cli._group import run
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.records import Call, Charge, LlmTarget, Settlement, Usage

START_NS = 1_767_268_800_000_000_000  # 2026-01-01T12:00:00Z


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "ledger.db"
    monkeypatch.setenv("MCPMETER_LEDGER", str(path))
    return path


@pytest.fixture
def calls(ledger: Path) -> None:
    async def write() -> None:
        store = SqliteStore(ledger)
        await store.start()
        for place in range(6):
            call = Call(
                id=f"call_{place}",
                started_at_ns=START_NS + place * 86_400 * 10**9,
                endpoint="/mcp",
                method="POST",
                llm=LlmTarget(provider="p", model="m"),
            )
            await store.open(call)
            charge, usage = Charge(nanousd=10**9, source="listed"), Usage(prompt_tokens=1, source="reported")
            await store.settle(
                Settlement(call=call, ended_at_ns=1, duration_ns=1, status="200", usage=usage, charge=charge)
            )
        await store.close()

    asyncio.run(write())


@pytest.mark.usefixtures("calls")
class TestCommands:
    def test_verify_exits_with_0_for_a_consistent_ledger(self, capsys):
        assert run(["ledger", "verify"]) == 0
        printed = capsys.readouterr().err
        assert "6 settled calls (0 of them kept as sums), 0 open, 0 balances, $6.00. The ledger is" in printed
        assert run(["ledger", "verify", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["wrong"] == []

    def test_verify_exits_with_1_and_prints_the_faults(self, ledger, capsys):
        with ledger.open("r+b") as file:
            file.seek(3 * 4096)
            file.write(b"\xa5" * 4096)
        assert run(["ledger", "verify"]) == 1
        out, err = capsys.readouterr()
        assert "damaged" in out + err

    def test_backup_and_recover_write_new_files(self, tmp_path, capsys):
        assert run(["ledger", "backup", str(tmp_path / "copy.db")]) == 0
        assert run(["ledger", "recover", str(tmp_path / "copy.db"), str(tmp_path / "new.db")]) == 0
        assert "calls: 6 rows kept, 0 lost" in capsys.readouterr().out
        assert run(["ledger", "verify", "--ledger", str(tmp_path / "new.db")]) == 0
        assert run(["ledger", "recover", str(tmp_path / "copy.db"), str(tmp_path / "new.db")]) == 1
        assert "There is something at" in capsys.readouterr().err

    def test_recover_exits_with_1_if_rows_are_lost(self, ledger, tmp_path, capsys):
        content = bytearray(ledger.read_bytes())
        leaf = content.index(b"call_0settled") // 4096
        content[leaf * 4096 : (leaf + 1) * 4096] = bytes(4096)
        (tmp_path / "damaged.db").write_bytes(content)
        assert run(["ledger", "recover", str(tmp_path / "damaged.db"), str(tmp_path / "new.db"), "--json"]) == 1
        out, err = capsys.readouterr()
        assert "Nothing of a ledger" in err or json.loads(out)[0]["lost"] == 6

    def test_export_writes_csv_and_parquet(self, tmp_path, capsys):
        assert run(["ledger", "export", "--csv", str(tmp_path / "a.csv"), "--since", "2026-01-03"]) == 0
        assert "4 calls written" in capsys.readouterr().err
        assert len(list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))) == 4
        assert run(["ledger", "export", "--parquet", str(tmp_path / "a.parquet")]) == 0
        assert (tmp_path / "a.parquet").read_bytes()[:4] == b"PAR1"
        assert run(["ledger", "export", "--csv", "-"]) == 0
        assert capsys.readouterr().out.count("\n") == 7
        assert run(["ledger", "export"]) == 2

    def test_prune_prints_the_effect_and_needs_yes(self, capsys):
        assert run(["ledger", "prune", "--before", "2026-01-04"]) == 0
        assert "3 calls (2026-01-01 to 2026-01-03) would become sums" in capsys.readouterr().err
        assert run(["ledger", "prune", "--before", "2026-01-04", "--yes"]) == 0
        assert "3 calls are kept as sums" in capsys.readouterr().err
        assert run(["ledger", "verify", "--json"]) == 0
        verdict = json.loads(capsys.readouterr().out)
        assert (verdict["calls"], verdict["pruned_calls"], verdict["cost_nanousd"]) == (6, 3, 6 * 10**9)
        assert run(["ledger", "prune", "--before", "2026-01-04"]) == 0
        assert "no settled calls" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["verify"], ["backup", "x.db"], ["export", "--csv", "-"]])
def test_a_missing_ledger_is_one_line(arguments, capsys):
    assert run(["ledger", *arguments]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "There is no ledger at" in err
    assert not Path("x.db").exists()
