"""`mcpmeter audit`: who changed what, newest last, from either engine."""

from __future__ import annotations

import json

import pytest

from mcpmeter.cli._group import run


@pytest.fixture(autouse=True, params=["sqlite", "postgres"])
def ledger(request, tmp_path, monkeypatch):
    place = str(tmp_path / "ledger.db") if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    monkeypatch.setenv("MCPMETER_LEDGER", place)
    return place


@pytest.fixture
def audit(capsys):
    def audit(*options: str) -> dict:
        capsys.readouterr()
        assert run(["audit", "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)

    return audit


def test_acts_of_commands_are_listed_newest_last(capsys, audit):
    assert run(["keys", "create", "--name", "ci", "--team", "search", "--role", "admin", "--json"]) == 0
    key = json.loads(capsys.readouterr().out)
    assert run(["keys", "rotate", key["id"], "--grace", "24h"]) == 0
    assert run(["keys", "revoke", key["id"]]) == 0
    entries = audit()["entries"]
    assert [entry["action"] for entry in entries] == ["key.create", "key.rotate", "key.revoke"]
    assert {entry["subject"] for entry in entries} == {key["id"]}
    assert all(entry["actor"].endswith(" (command line)") and entry["source"] for entry in entries)
    assert entries[0]["change"]["role"] == [None, "admin"]
    assert key["key"] not in json.dumps(entries)

    assert run(["audit"]) == 0
    table = capsys.readouterr().out
    assert table.index("key.create") < table.index("key.revoke")
    assert "role - → admin" in table


def test_filters_and_the_limit_choose_entries(capsys, audit):
    for name in ("a", "b", "c"):
        assert run(["keys", "create", "--name", name, "--team", "t"]) == 0
    newest = audit("--limit", "2")
    assert ([entry["change"]["name"][1] for entry in newest["entries"]], newest["left_out"]) == (["b", "c"], 1)
    user = newest["entries"][0]["actor"]
    for actor in (user, user.split()[0]):
        assert len(audit("--actor", actor)["entries"]) == 3
    assert audit("--actor", user[:1])["entries"] == []
    assert audit("--action", "ledger.prune")["entries"] == []
    assert audit("--until", "2020-01-01")["entries"] == []
    assert len(audit("--since", "2020-01-01")["entries"]) == 3
    assert len(audit("--last", "1h")["entries"]) == 3
    capsys.readouterr()
    assert run(["audit", "--since", "yesterday"]) == 2
    assert "ISO 8601" in capsys.readouterr().err
    assert run(["audit", "--action", "key.steal"]) == 2
