"""Ledgers of earlier versions open with every figure, key and open call they were written with."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.recorded import as_recorded

LEDGERS = Path(__file__).parents[1] / "fixtures" / "ffcca79" / "ledgers"
RECORDED = sorted(LEDGERS.glob("*.json"))
UPSTREAM = {"UPSTREAM": "http://127.0.0.1:9"}
SECONDS_TO_RECOVER = 120


class Opened:
    """A copy of a ledger on which the service has run once: migrated, its open calls recovered."""

    def __init__(self, place: Path | str, folder: Path, run: Callable[..., Any]) -> None:
        self.place = place
        self._config = folder / "mcpmeter.yaml"
        self._run = run

    def serve_once(self, start: Callable[..., Any], keys: list[str]) -> list[int]:
        """Returns the status that each key gets."""
        relay = start("serve", "--config", self._config, "--ledger", self.place, env=UPSTREAM)
        address = relay.says(r"OpenAI SDKs +(http://\S+)/v1")[1]
        deadline = time.monotonic() + SECONDS_TO_RECOVER
        while self.json_of("ledger", "verify")["open_calls"]:  # on PostgreSQL a lease has to expire first
            assert time.monotonic() < deadline, "calls are still open"
        statuses = [_status(f"{address}/v1/models", key) for key in keys]
        assert relay.end().code == 0
        return statuses

    def json_of(self, *command: str) -> Any:
        """The JSON that a command prints; it has to succeed."""
        return json.loads(self.prints(*command, "--json"))

    def prints(self, *command: str) -> str:
        finished = self._run(*command, "--ledger", self.place, env=UPSTREAM)
        assert finished.code == 0, finished.stderr
        return str(finished.stdout)

    def report(self, groupings: str) -> Any:
        return self.json_of("report", *(word for name in groupings.split() for word in ("--by", name)))["rows"]

    def budget(self, name: str) -> Any:
        return self.json_of("budgets", "show", name, "--config", str(self._config))


def _status(url: str, key: str) -> int:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"}), timeout=120
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


@pytest.fixture(params=RECORDED, ids=lambda file: file.stem)
def recorded(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def opened(recorded: Path, request: pytest.FixtureRequest, run: Callable[..., Any], tmp_path: Path) -> Opened:
    """A copy of the ledger, not opened yet."""
    for name in ("mcpmeter.yaml", "prices.toml"):
        shutil.copy(LEDGERS / name, tmp_path)
    dump = recorded.with_suffix(".sql")
    if not dump.exists():
        for part in LEDGERS.glob(f"{recorded.stem}.db*.gz"):
            (tmp_path / part.stem).write_bytes(gzip.decompress(part.read_bytes()))
        return Opened(tmp_path / f"{recorded.stem}.db", tmp_path, run)
    place = request.getfixturevalue("postgres_url")
    with psycopg.connect(place, autocommit=True) as db:
        db.execute(dump.read_bytes())
    return Opened(place, tmp_path, run)


def rows_of(text: str) -> Iterator[dict[str, str]]:
    return csv.DictReader(io.StringIO(text))


def test_an_earlier_ledger_keeps_its_figures_and_keys(recorded, opened, start):
    expected = json.loads(recorded.read_text())
    statuses = opened.serve_once(start, [key["key"] for key in expected["keys"].values()])
    assert dict(zip(expected["keys"], statuses, strict=True)) == {
        n: key["status"] for n, key in expected["keys"].items()
    }

    verdict = opened.json_of("ledger", "verify")
    assert as_recorded(verdict, expected["verify"]) == expected["verify"]
    listed = opened.json_of("keys", "list")
    assert as_recorded(listed, expected["keys list"]) == expected["keys list"]
    for groupings, rows in expected["report"].items():
        assert as_recorded(opened.report(groupings), rows) == rows
    for name, budget in expected["budgets"].items():
        assert as_recorded(opened.budget(name), budget) == budget

    exported = {row["id"]: row for row in rows_of(opened.prints("ledger", "export", "--csv", "-"))}
    recovered = [exported.pop(call) for call in expected["open"]]
    assert {(row["state"], row["outcome"]) for row in recovered} == {("settled", "recovered")}
    rows = list(rows_of(recorded.with_suffix(".csv").read_text()))
    assert as_recorded([exported[row["id"]] for row in rows], rows) == rows
    assert len(exported) == len(rows)
