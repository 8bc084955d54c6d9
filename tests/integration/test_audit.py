"""Every administrative act leaves one row in the audit, and no act or row is without the other."""

from __future__ import annotations

import asyncio
import json
import time
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr
from tests.acting import BY
from tests.integration.conftest import Relay

from mcpmeter.access.keys import KeyLimits, new_key
from mcpmeter.config import BudgetSettings, KeySettings
from mcpmeter.errors import ConfigInvalid, LedgerUnavailable
from mcpmeter.ledger.queries.audit import AuditQuery, read_audit
from mcpmeter.ledger.queries.keys import add_key
from mcpmeter.records import AuditEntry

ADMIN, ADMIN_KEY = new_key("ops", "platform", 1, KeyLimits(role="admin"))
CALLER, CALLER_KEY = new_key("notebook", "research", 1)
REPLACED = "mk_" + "q8Vd2Lr7" * 6


@pytest.fixture
def new_place(place_of_either_engine):
    return place_of_either_engine


def rows(relay: Relay, action: str = "") -> list[AuditEntry]:
    return read_audit(relay.ledger, AuditQuery(action=action)).entries


@pytest.fixture
async def keyed(relay) -> Relay:
    for key in (ADMIN_KEY, CALLER_KEY):
        add_key(relay.ledger, key, BY)
    await relay.until(lambda: len(relay.service.pipeline.runtime.keys.keys) == 2)
    return relay


async def post(relay: Relay, path: str, body: Any, key: str | None) -> Any:
    credentials = {"authorization": f"Bearer {key}"} if key else {}
    return await relay.ask(body, path, headers={"content-type": "application/json", **credentials})


async def test_the_first_key_is_created_by_this_machine(relay):
    made = await post(relay, "/api/keys", {"name": "first", "team": "platform", "role": "admin"}, None)
    [row] = rows(relay)
    assert (row.actor, row.source) == ("this machine", "127.0.0.1")
    assert (row.action, row.subject) == ("key.create", made.json["id"])
    assert abs(time.time_ns() - row.at_ns) < 60 * 10**9
    change = json.loads(row.change)
    assert change["role"] == [None, "admin"]
    assert made.json["key"] not in row.change
    assert "sha256" not in row.change


async def test_each_change_of_a_key_names_the_admin_and_what_changed(keyed):
    secrets = [(await post(keyed, "/api/keys/rotate", {"id": CALLER_KEY.id, "grace_seconds": 60}, ADMIN)).json["key"]]
    assert (await post(keyed, "/api/keys/revoke", {"id": CALLER_KEY.id}, ADMIN)).status == 200
    rotated, revoked = rows(keyed)[-2:]
    assert {row.actor for row in (rotated, revoked)} == {f"{ADMIN_KEY.id} (ops)"}
    assert {row.subject for row in (rotated, revoked)} == {CALLER_KEY.id}
    assert [row.action for row in (rotated, revoked)] == ["key.rotate", "key.revoke"]
    assert json.loads(rotated.change).keys() == {"prefix", "previous_until"}
    assert json.loads(revoked.change).keys() == {"revoked_at"}
    kept = "".join(row.change for row in rows(keyed))
    assert not any(secret in kept for secret in (*secrets, ADMIN, CALLER, CALLER_KEY.sha256))


async def test_an_act_that_fails_leaves_no_row(keyed):
    before = rows(keyed)
    assert (await post(keyed, "/api/keys/revoke", {"id": "key_0123456789ab"}, ADMIN)).status == 404
    assert (await post(keyed, "/api/keys", {"name": "", "team": "t"}, ADMIN)).status == 400
    assert (await post(keyed, "/api/keys/revoke", {"id": CALLER_KEY.id}, ADMIN)).status == 200
    assert (await post(keyed, "/api/keys/rotate", {"id": CALLER_KEY.id}, ADMIN)).status == 400, "it was revoked"
    assert [row.action for row in rows(keyed)[len(before) :]] == ["key.revoke"]


async def test_what_is_refused_to_a_callers_key_is_noted_once(keyed):
    before = rows(keyed)
    for _ in range(3):
        assert (await post(keyed, "/api/keys/revoke", {"id": ADMIN_KEY.id}, CALLER)).status == 403
        assert (await post(keyed, "/api/keys/revoke", {"id": ADMIN_KEY.id}, "mk_unknown")).status == 401
        assert (await post(keyed, "/api/keys/revoke", {"id": ADMIN_KEY.id}, None)).status == 401
    [row] = rows(keyed)[len(before) :]
    assert (row.actor, row.action, row.outcome) == (f"{CALLER_KEY.id} (notebook)", "key.revoke", "refused")


def settings_of(relay: Relay, limit: int, secret: str, **more: Any) -> Any:
    budget = BudgetSettings(name="search-monthly", team="search", limit_usd=Decimal(limit))
    key = KeySettings(name="backend", team="search", secret=SecretStr(secret), **more)
    return relay.settings.model_copy(update={"budgets": (budget,), "keys": (key,)})


async def test_a_reload_says_what_changed_and_no_secret(relay):
    relay.service._load = lambda: settings_of(relay, 500, ADMIN)
    assert (await relay.ask(path="/-/reload")).status == 200
    relay.service._load = lambda: settings_of(relay, 800, REPLACED, role="admin")
    await relay.service.reload()
    added, changed = rows(relay)
    assert (added.actor, added.action, added.subject) == ("this machine", "config.reload", relay.settings.source)
    assert json.loads(added.change)["budgets.search-monthly.limit_usd"] == [None, "500"]
    assert json.loads(added.change)["keys.backend"] == "added"
    assert json.loads(changed.change) == {
        "budgets.search-monthly.limit_usd": ["500", "800"],
        "keys.backend.secret": "changed",
        "keys.backend.role": ["caller", "admin"],
    }
    assert not any(secret in added.change + changed.change for secret in (ADMIN, REPLACED))


async def test_a_refused_reload_is_a_row_too(relay):
    fault = "mcpmeter.yaml:3: unknown key 'prot' in 'server'."

    def broken() -> Any:
        raise ConfigInvalid(fault)

    relay.service._load = broken
    assert (await relay.ask(path="/-/reload")).status == 400
    [row] = rows(relay)
    assert (row.outcome, json.loads(row.change)) == ("refused", {"error": fault})


async def test_a_reload_does_not_wait_for_the_ledger_and_its_row_follows(relay, monkeypatch):
    store = relay.service._store
    audit = type(store).audit
    away = asyncio.Event()

    async def unavailable(*_: object) -> None:
        away.set()
        raise LedgerUnavailable("The ledger could not be written.")

    monkeypatch.setattr(store, "audit", unavailable)
    relay.service._load = lambda: settings_of(relay, 500, ADMIN)
    await relay.service.reload()
    assert away.is_set()
    assert rows(relay) == []
    assert not relay.service.pipeline.runtime.keys.empty, "it is applied all the same"
    monkeypatch.setattr(store, "audit", lambda entry: audit(store, entry))
    await relay.until(lambda: len(rows(relay)) == 1, seconds=5)
