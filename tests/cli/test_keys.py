"""`mcpmeter keys`: shown once, listed without the secret, revoked while a service runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from mcpmeter.access.keys import KeyRing
from mcpmeter.cli._group import run
from mcpmeter.errors import NotAuthenticated
from mcpmeter.ledger.queries.keys import list_keys
from mcpmeter.ledger.sqlite.connection import open_for_writing
from mcpmeter.ledger.sqlite.store import SqliteStore


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "state" / "ledger.db"
    monkeypatch.setenv("MCPMETER_LEDGER", str(path))
    return path


@pytest.fixture
def create(capsys):
    def create(*arguments: str) -> dict[str, str]:
        assert run(["keys", "create", "--name", "notebook", "--team", "research", "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return create


def test_only_the_key_is_on_stdout_and_only_its_hash_is_kept(capsys, ledger):
    assert run(["keys", "create", "--name", "notebook", "--team", "research"]) == 0
    out, err = capsys.readouterr()
    secret = out.removesuffix("\n")
    assert secret.startswith("mk_")
    assert "\n" not in secret
    assert secret not in err
    assert "shown only once" in err
    files = b"".join(file.read_bytes() for file in ledger.parent.iterdir())
    assert secret.encode() not in files


def test_list_shows_every_key_without_its_secret(capsys, create):
    first, second = create(), create()
    assert run(["keys", "revoke", first["id"]]) == 0
    assert f"Revoked {first['id']} (notebook, team research)" in capsys.readouterr().out
    assert run(["keys", "list", "--json"]) == 0
    text = capsys.readouterr().out
    listed = {key["id"]: key for key in json.loads(text)}
    assert set(listed) == {first["id"], second["id"]}
    assert listed[first["id"]]["revoked_at"] is not None
    assert listed[second["id"]]["revoked_at"] is None
    assert first["key"] not in text

    assert run(["keys", "list"]) == 0
    table = capsys.readouterr().out
    assert first["id"] in table
    assert second["prefix"] in table
    assert second["key"] not in table


def test_revoking_twice_keeps_the_first_time(capsys, create):
    key = create()
    answers = []
    for _ in range(2):
        assert run(["keys", "revoke", key["id"], "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]
    assert answers[0]["revoked_at"]


def test_an_unknown_id_and_a_missing_ledger_are_one_line_each(capsys, create, ledger):
    for arguments in (["keys", "list"], ["keys", "revoke", "key_000000000000"]):
        assert run(arguments) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert "There is no ledger at" in err
    assert not ledger.parent.exists()
    create()
    assert run(["keys", "revoke", "key_\x1b[31m"]) == 1
    err = capsys.readouterr().err
    assert "has no key with the ID" in err
    assert "mcpmeter keys list" in err
    assert "\x1b" not in err


def test_an_unusable_name_is_refused_in_one_line(capsys):
    assert run(["keys", "create", "--name", "n", "--team", "a\nb"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("mcpmeter: 'a\\nb' cannot be the team.")
    assert err.count("\n") == 1


def test_the_option_names_another_ledger(capsys, tmp_path, create):
    create("--ledger", str(tmp_path / "other.db"))
    assert run(["keys", "list", "--json", "--ledger", str(tmp_path / "other.db")]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_an_empty_list_says_how_to_create_a_key(capsys, ledger):
    open_for_writing(ledger).close()
    assert run(["keys", "list"]) == 0
    assert "mcpmeter keys create --name" in capsys.readouterr().err
    assert run(["keys", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


async def test_keys_are_created_and_revoked_under_a_running_service(ledger, create, make_ring):
    store = SqliteStore(ledger)
    await store.start()
    assert (await make_ring(store)).empty
    created = await asyncio.to_thread(create)
    assert await store.keys_changed()
    assert (await make_ring(store)).identify(created["key"]).team == "research"
    assert await asyncio.to_thread(run, ["keys", "revoke", created["id"]]) == 0
    assert await store.keys_changed()
    with pytest.raises(NotAuthenticated):
        (await make_ring(store)).identify(created["key"])
    await store.close()


@pytest.fixture
def make_ring():
    async def make(store: SqliteStore) -> KeyRing:
        return KeyRing(await store.keys())

    return make


def test_a_keys_limits_are_kept_and_listed(capsys, create):
    made = create("--project", "web", "--role", "admin", "--model", "gpt-4.1*", "--model", "deepseek-*",
                  "--requests-per-minute", "60", "--tokens-per-minute", "9000", "--expires", "2099-01-01")  # fmt: skip
    assert run(["keys", "list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert {**listed, "key": made["key"]} == made
    assert (listed["project"], listed["role"], listed["models"]) == ("web", "admin", ["gpt-4.1*", "deepseek-*"])
    assert (listed["requests_per_minute"], listed["tokens_per_minute"]) == (60, 9000)
    assert listed["expires_at"] == "2099-01-01T00:00:00Z"
    assert run(["keys", "list"]) == 0
    assert "gpt-4.1*, deepseek-*" in capsys.readouterr().out


@pytest.mark.parametrize("when", ["soon", "90", "2026-13-01", "-5d"])
def test_an_invalid_lifetime_is_refused_with_an_example(capsys, when):
    assert run(["keys", "create", "--name", "n", "--team", "t", "--expires", when]) == 2
    assert "90d" in capsys.readouterr().err


def test_an_expired_key_is_not_created(capsys, ledger):
    assert run(["keys", "create", "--name", "n", "--team", "t", "--expires", "2020-01-01"]) == 1
    assert "expired before it is made" in capsys.readouterr().err
    assert not ledger.exists()


def test_a_rotated_keys_previous_secret_is_valid_during_grace(capsys, ledger, create):
    made = create()
    assert run(["keys", "rotate", made["id"], "--grace", "24h", "--json"]) == 0
    turned = json.loads(capsys.readouterr().out)
    assert turned["id"] == made["id"]
    assert turned["key"] != made["key"]
    ring = KeyRing(list_keys(ledger))
    assert ring.identify(turned["key"]).id == ring.identify(made["key"]).id == made["id"]

    assert run(["keys", "rotate", made["id"]]) == 0
    latest = capsys.readouterr().out.strip()
    ring = KeyRing(list_keys(ledger))
    assert ring.identify(latest).id == made["id"]
    for secret in (made["key"], turned["key"]):
        with pytest.raises(NotAuthenticated):
            ring.identify(secret)


def test_an_unknown_key_cannot_be_rotated(capsys, create):
    create()
    assert run(["keys", "rotate", "key_000000000000"]) == 1
    assert "has no key with the ID" in capsys.readouterr().err
