"""Keys over the API: made, listed, rotated and revoked by admins; told once, and written nowhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import SecretStr
from tests.integration.conftest import Relay, Reply, StartRelay, starting_relays

from mcpmeter.access.key_view import ShownKey
from mcpmeter.access.keys import new_key
from mcpmeter.config import KeySettings
from mcpmeter.errors import InvalidRequest, LedgerUnavailable
from mcpmeter.http.exchange import DIRECT_RESPONSE, HttpExchange
from mcpmeter.ledger.location import Location
from mcpmeter.ledger.queries.keys import list_keys
from mcpmeter.service.admin import is_local
from mcpmeter.service.api.keys import KeyRevocation, KeyRotation, NewKey, _decoded

KEYS, ROTATE, REVOKE = "/api/keys", "/api/keys/rotate", "/api/keys/revoke"
ADMIN = new_key("admin", "platform", 1)[0]
CONFIGURED = (KeySettings(name="operator", team="platform", secret=SecretStr(ADMIN), role="admin"),)
TOLD = {*ShownKey.__struct_fields__, "key"}
WRONG: tuple[dict[str, Any], ...] = (
    {"name": ""},
    {"name": "x" * 65},
    {"name": "\n"},
    {"team": "\ud800"},
    {"role": "root"},
    {"models": "gpt-4.1"},
    {"models": ["gpt 4.1"]},
    {"requests_per_minute": 0},
    {"requests_per_minute": "60"},
    {"tokens_per_minute": 1.5},
    {"tokens_per_minute": 10**30},
    {"expires": "2020-01-01T00:00:00Z"},
    {"expires": "2027-01-01"},
    {"expires": "9999-12-31T23:59:59Z"},
    {"id": "key_0123456789ab"},
    {"sha256": "0" * 64},
    {"created_at_ns": 1},
    {"prefix": "mk_"},
    {"revoked_at_ns": None},
    {"key": "mk_a-secret-that-the-caller-chose-0123"},
)


async def ask(relay: Relay, path: str, body: Any, secret: str | None = ADMIN) -> Reply:
    credentials = {"authorization": f"Bearer {secret}"} if secret else {}
    return await relay.ask(body, path, headers={"content-type": "application/json", **credentials})


async def listed(relay: Relay, secret: str | None = ADMIN) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {secret}"} if secret else None
    reply = await relay.ask(path=KEYS, method="GET", headers=headers)
    assert reply.status == 200, reply.body
    assert reply.headers["cache-control"] == "no-store"
    return {key["id"]: key for key in reply.json["keys"]}


@pytest.fixture
async def keyed(start_relay: StartRelay) -> Relay:
    """A service whose configuration holds an admin's key."""
    return await start_relay(keys=CONFIGURED)


@pytest.fixture
async def on_either(place_of_either_engine: Callable[[], Location]) -> AsyncIterator[Relay]:
    """The same, on each engine."""
    async with starting_relays(place_of_either_engine) as start:
        yield await start(keys=CONFIGURED)


class TestMaking:
    async def test_a_key_counts_at_once_and_is_told_only_once(self, on_either: Relay) -> None:
        asked = {
            "name": "notebook",
            "team": "research",
            "project": "atlas",
            "models": ["gpt-4.1*"],
            "requests_per_minute": 60,
            "tokens_per_minute": 100_000,
            "expires": "2100-01-01T00:00:00+01:00",
        }
        made = await ask(on_either, KEYS, asked)
        assert made.status == 200
        assert made.headers["cache-control"] == "no-store"
        key = made.json
        assert key.keys() == TOLD
        assert key["expires_at"] == "2099-12-31T23:00:00Z"
        assert {name: key[name] for name in asked if name != "expires"} == {
            name: value for name, value in asked.items() if name != "expires"
        }
        assert (await on_either.chat(key=key["key"])).status == 200
        shown = (await listed(on_either))[key["id"]]
        assert shown == {name: value for name, value in key.items() if name != "key"}
        assert (await on_either.scrape()).of("mcp_tokens_total", team="research", token_type="prompt") > 0

    async def test_nothing_else_can_be_said_of_a_key_and_nothing_wrong(self, keyed: Relay) -> None:
        found = [await ask(keyed, KEYS, {"name": "notebook", "team": "research", **wrong}) for wrong in WRONG]
        told = [(wrong, reply.status, reply.error["code"]) for wrong, reply in zip(WRONG, found, strict=True)]
        assert told == [(wrong, 400, "invalid_request") for wrong in WRONG]
        assert list_keys(keyed.ledger) == []

    async def test_a_field_is_named_where_it_is_wrong_and_its_value_is_not_repeated(self, keyed: Relay) -> None:
        reply = await ask(keyed, KEYS, {"name": "notebook", "team": "research", "role": "mk_pasted-by-mistake"})
        assert "$.role" in reply.error["message"]
        assert b"pasted" not in reply.body

    async def test_a_body_beyond_the_bound_is_refused(self, keyed: Relay) -> None:
        reply = await ask(keyed, KEYS, {"name": "x" * 70_000, "team": "research"})
        assert (reply.status, reply.error["code"]) == (413, "body_too_large")

    @settings(max_examples=60)
    @given(
        st.binary(max_size=200)
        | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda value: json.dumps(value).encode())
    )
    def test_any_other_body_is_the_callers_fault(self, body: bytes) -> None:
        for kind in (NewKey, KeyRotation, KeyRevocation):
            with pytest.raises(InvalidRequest):
                _decoded(body, kind)


class TestTheFirst:
    async def test_it_is_an_admins_and_from_then_on_only_admins_make_others(self, relay: Relay) -> None:
        refused = await ask(relay, KEYS, {"name": "first", "team": "research"}, None)
        assert (refused.status, refused.error["code"]) == (400, "invalid_request")
        assert "admin" in refused.error["message"]
        assert await listed(relay, None) == {}
        first = await ask(relay, KEYS, {"name": "first", "team": "platform", "role": "admin"}, None)
        assert first.status == 200
        second = {"name": "second", "team": "research", "role": "admin"}
        assert (await ask(relay, KEYS, second, None)).status == 401
        assert (await relay.chat()).status == 401, "the door is closed"
        assert (await ask(relay, KEYS, second, first.json["key"])).status == 200

    async def test_a_revoked_admin_opens_no_door(self, relay: Relay) -> None:
        first = (await ask(relay, KEYS, {"name": "first", "team": "platform", "role": "admin"}, None)).json
        assert (await ask(relay, REVOKE, {"id": first["id"]}, first["key"])).status == 200
        for secret in (None, first["key"]):
            reply = await ask(relay, KEYS, {"name": "again", "team": "platform", "role": "admin"}, secret)
            assert reply.status == 401

    async def test_where_keys_are_optional_none_is_still_no_admins(self, keyed: Relay) -> None:
        runtime = keyed.service.pipeline.runtime
        keyed.service.pipeline.runtime = replace(runtime, options=replace(runtime.options, keys_optional=True))
        assert (await keyed.chat()).status == 200
        assert (await ask(keyed, KEYS, {"name": "mine", "team": "platform", "role": "admin"}, None)).status == 401


class TestChanging:
    async def test_a_rotated_key_has_another_secret_and_the_one_before_for_its_grace(self, on_either: Relay) -> None:
        made = (await ask(on_either, KEYS, {"name": "notebook", "team": "research"})).json
        turned = (await ask(on_either, ROTATE, {"id": made["id"], "grace_seconds": 600})).json
        assert turned["key"] != made["key"]
        assert turned["previous_until"] is not None
        assert [(await on_either.chat(key=key)).status for key in (made["key"], turned["key"])] == [200, 200]
        last = (await ask(on_either, ROTATE, {"id": made["id"]})).json
        statuses = [(await on_either.chat(key=key)).status for key in (made["key"], turned["key"], last["key"])]
        assert statuses == [401, 401, 200]

    async def test_a_revoked_key_is_refused_at_once_and_its_end_stays(self, on_either: Relay) -> None:
        made = (await ask(on_either, KEYS, {"name": "notebook", "team": "research"})).json
        ended = (await ask(on_either, REVOKE, {"id": made["id"]})).json
        assert ended["revoked_at"] is not None
        assert (await on_either.chat(key=made["key"])).status == 401
        assert (await ask(on_either, REVOKE, {"id": made["id"]})).json == ended
        refused = await ask(on_either, ROTATE, {"id": made["id"]})
        assert (refused.status, refused.error["code"]) == (400, "invalid_request")
        assert (await on_either.ask(path="/-/ready", method="GET")).status == 200, "a refusal is no fault of the ledger"

    async def test_a_revocation_that_the_service_could_not_read_back_counts_as_soon_as_it_can(
        self, on_either: Relay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = (await ask(on_either, KEYS, {"name": "notebook", "team": "research"})).json
        store = on_either.service._store
        read, failed = store.keys, []

        async def fail_once() -> Any:
            if not failed:
                failed.append(True)
                raise LedgerUnavailable("The ledger cannot be read.")
            return await read()

        monkeypatch.setattr(store, "keys", fail_once)
        reply = await ask(on_either, REVOKE, {"id": made["id"]})
        assert (reply.status, reply.error["code"]) == (503, "ledger_unavailable")
        ring = on_either.service.pipeline.runtime.keys
        await on_either.until(lambda: on_either.service.pipeline.runtime.keys is not ring)
        assert (await on_either.chat(key=made["key"])).status == 401

    async def test_a_key_of_the_file_is_listed_but_not_changed(self, on_either: Relay) -> None:
        [(key_id, shown)] = (await listed(on_either)).items()
        assert (shown["name"], shown["role"], shown["created_at"]) == ("operator", "admin", None)
        for path in (ROTATE, REVOKE):
            reply = await ask(on_either, path, {"id": key_id})
            assert (reply.status, reply.error["code"]) == (409, "key_configured")
            assert "configured in the file" in reply.error["message"]
        assert (await on_either.chat(key=ADMIN)).status == 200

    async def test_an_id_that_nobody_has_is_not_found(self, on_either: Relay) -> None:
        for path in (ROTATE, REVOKE):
            reply = await ask(on_either, path, {"id": "key_000000000000"})
            assert (reply.status, reply.error["code"]) == (404, "key_not_found")

    async def test_of_many_changes_at_once_each_is_whole(self, on_either: Relay) -> None:
        made = (await ask(on_either, KEYS, {"name": "notebook", "team": "research"})).json
        turned = await asyncio.gather(*(ask(on_either, ROTATE, {"id": made["id"]}) for _ in range(8)))
        secrets = [made["key"], *(reply.json["key"] for reply in turned)]
        assert len(set(secrets)) == 9
        assert sorted([(await on_either.chat(key=key)).status for key in secrets]) == [200, *[401] * 8]

    async def test_a_grace_is_whole_seconds_up_to_a_year(self, keyed: Relay) -> None:
        graces = (-1, 366 * 86_400 + 1, 1.5, "60", None, 10**30)
        found = [await ask(keyed, ROTATE, {"id": "key_000000000000", "grace_seconds": grace}) for grace in graces]
        assert [(reply.status, reply.error["code"]) for reply in found] == [(400, "invalid_request")] * len(graces)


async def test_no_secret_and_no_hash_is_in_any_log_metric_list_or_error(
    keyed: Relay, everything_logged: pytest.LogCaptureFixture
) -> None:
    made = (await ask(keyed, KEYS, {"name": "notebook", "team": "research"})).json
    turned = (await ask(keyed, ROTATE, {"id": made["id"], "grace_seconds": 600})).json
    errors = [
        await ask(keyed, REVOKE, {"id": made["key"]}),
        await ask(keyed, ROTATE, {"id": made["id"], made["key"]: 1}),
        await ask(keyed, KEYS, {"name": "x", "team": made["key"], "role": turned["key"]}),
        await ask(keyed, KEYS, {"name": "x", "team": "y"}, made["key"]),
        await keyed.ask(b"", f"{KEYS}/{made['key']}", headers={"authorization": f"Bearer {ADMIN}"}),
    ]
    assert [reply.status for reply in errors] == [400, 400, 400, 403, 404]
    ended = await ask(keyed, REVOKE, {"id": made["id"]})
    told = [
        everything_logged.text,
        *(str(vars(record)) for record in everything_logged.records),
        await keyed.scrape_openmetrics(),
        json.dumps(await listed(keyed)),
        ended.body.decode(),
        *(reply.body.decode() for reply in errors),
    ]
    [kept] = list_keys(keyed.ledger)
    for secret in (ADMIN, made["key"], turned["key"], kept.sha256, kept.previous_sha256):
        assert secret
        assert [text for text in told if secret in text] == []
    assert f"key {made['id']} was created for team research by " in everything_logged.text


async def test_what_the_answers_and_bodies_are_is_described(keyed: Relay) -> None:
    reply = await keyed.ask(path="/api/openapi.json", method="GET", headers={"authorization": f"Bearer {ADMIN}"})
    described = reply.json

    def validator(schema: Any) -> Any:
        return Draft202012Validator({**schema, "components": described["components"]})

    create = described["paths"][KEYS]["post"]
    body = validator(create["requestBody"]["content"]["application/json"]["schema"])
    asked = {"name": "notebook", "team": "research", "models": ["gpt-4.1*"]}
    body.validate(asked)
    assert not body.is_valid({**asked, "sha256": "0" * 64})
    assert not body.is_valid({**asked, "role": "root"})
    made = (await ask(keyed, KEYS, asked)).json
    validator(create["responses"]["200"]["content"]["application/json"]["schema"]).validate(made)
    seen = await keyed.ask(path=KEYS, method="GET", headers={"authorization": f"Bearer {ADMIN}"})
    schema = described["paths"][KEYS]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    validator(schema).validate(seen.json)
    assert described["paths"][REVOKE].keys() == described["paths"][ROTATE].keys() == {"post"}


def test_only_a_program_on_this_machine_is_local() -> None:
    def exchange(peer: str | None, **headers: bytes) -> HttpExchange:
        sent = {"host": b"localhost:8000", **headers}
        scope = {
            "type": "http",
            "method": "POST",
            "path": KEYS,
            "headers": [(name.encode(), value) for name, value in sent.items()],
            "client": (peer, 1) if peer else None,
            "extensions": {DIRECT_RESPONSE: None},
        }
        return HttpExchange(scope, endpoint=KEYS)

    assert is_local(exchange("127.0.0.1"))
    assert is_local(exchange("::1", host=b"[::1]:8000"))
    assert not is_local(exchange("192.0.2.7"))
    assert not is_local(exchange(None))
    for name, value in (
        ("x-forwarded-for", b"127.0.0.1"),
        ("x-forwarded-proto", b"https"),
        ("x-real-ip", b"127.0.0.1"),
        ("forwarded", b"for=127.0.0.1"),
        ("via", b"1.1 proxy"),
        ("cf-connecting-ip", b"127.0.0.1"),
        ("true-client-ip", b"127.0.0.1"),
        ("x-client-ip", b"127.0.0.1"),
        ("origin", b"http://localhost:8000"),
        ("host", b"meter.example.com"),
        ("host", b""),
    ):
        assert not is_local(exchange("127.0.0.1", **{name: value})), name
