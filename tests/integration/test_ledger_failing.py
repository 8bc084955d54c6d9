"""Nothing passes unmetered: a ledger that cannot be written stops calls before they are made, and known costs wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

import pytest

from mcpmeter.errors import LedgerUnavailable
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.ledger.store import RowRefused, SettlementConflict
from mcpmeter.records import Call, Settlement

CHAT, GUIDE = "/v1/chat/completions", "/mcp/chat"


class FailingStore:
    """The real store, with one of its two writes failing."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.fails_to_open: Exception | None = None
        self.fails_to_settle: Exception | None = None

    def open(self, call: Call) -> Awaitable[None]:
        return _raising(self.fails_to_open) if self.fails_to_open else self._store.open(call)

    def settle(self, settlement: Settlement) -> asyncio.Future[None]:
        if self.fails_to_settle:
            raise self.fails_to_settle
        return self._store.settle(settlement)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


async def _raising(fault: Exception) -> None:
    raise fault


@pytest.fixture
async def failing(relay):
    """The store of a running service, as its meter uses it."""
    store = FailingStore(relay.service._store)
    relay.service.meter.store = store
    yield store
    store.fails_to_open = store.fails_to_settle = None


def full_disk() -> LedgerUnavailable:
    return LedgerUnavailable("The ledger could not be written: the disk is full.", hint="Make room.")


@pytest.mark.parametrize(("path", "stream"), [(CHAT, False), (CHAT, True), (GUIDE, False)])
async def test_a_call_that_cannot_be_recorded_is_not_made(relay, failing, stream, path):
    failing.fails_to_open = full_disk()
    before = relay.counts()
    reply = await relay.chat(path=path, stream=stream)
    assert (reply.status, reply.error["code"]) == (503, "ledger_unavailable")
    assert "Make room" in reply.error["message"]
    assert (relay.simulator.billing_log.totals.calls, relay.rows()) == (0, [])
    after = await relay.scrape()
    assert after.since(before, "mcp_errors_total") == {("internal_error", "server"): 1}
    assert after.since(before, "mcp_requests_total")[path, "POST", "503"] == 1
    assert after.since(before, "mcp_tokens_total") == {}

    failing.fails_to_open = None
    assert (await relay.chat(path=path, stream=stream)).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_is_settled_for_its_client_while_the_ledger_cannot_take_it(relay, failing, stream):
    failing.fails_to_settle = full_disk()
    before = relay.counts()
    reply = await relay.chat(stream=stream, stream_options={"include_usage": True} if stream else None)
    usage = json.loads(reply.events[-2])["usage"] if stream else reply.json["usage"]
    assert reply.status == 200
    if stream:
        assert reply.events[-1] == b"[DONE]"
    await relay.until_idle()
    (row,) = relay.rows()
    assert (row.state, row.outcome, row.token_source) == ("settled", "ok", "reported")
    assert (row.prompt_tokens, row.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    after = await relay.scrape()
    assert after.since(before, "mcp_errors_total") == {}
    assert sum(after.since(before, "mcp_tokens_total").values()) == usage["total_tokens"]
    assert after.of("mcp_settlements_pending") == 0


@pytest.mark.parametrize("fault", [RowRefused("No."), SettlementConflict("No.")], ids=lambda fault: fault.id)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_whose_settlement_is_refused_fails_and_stays_open(relay, failing, stream, fault):
    failing.fails_to_settle = fault
    before = relay.counts()
    reply = await relay.chat(stream=stream)
    error = json.loads(reply.events[-1])["error"] if stream else reply.error
    assert (reply.status, error["code"]) == (200 if stream else 503, "ledger_unavailable")
    assert b"[DONE]" not in reply.body
    assert "completion_tokens" not in reply.body.decode()

    (row,) = relay.rows()
    assert row.state == "open"
    assert relay.simulator.billing_log.totals.complete == 1
    after = await relay.scrape()
    assert after.since(before, "mcp_errors_total") == {("internal_error", "server"): 1}
    # Counters must not show what the ledger does not; the next start settles both.
    assert after.since(before, "mcp_tokens_total") == {}
    assert after.since(before, "mcp_cost_usd_total") == {}
    assert (after.of("mcp_ledger_open_rows"), after.of("mcp_active_requests")) == (1, 0)


async def test_a_refused_settlement_hides_a_fault_of_the_provider(relay, failing):
    failing.fails_to_settle = RowRefused("No.")
    reply = await relay.chat("body=html")
    assert (reply.status, reply.error["code"]) == (503, "ledger_unavailable")
    assert [row.state for row in relay.rows()] == ["open"]


async def test_a_ledger_file_moved_away_refuses_calls_until_it_is_back(relay):
    assert (await relay.ask(path="/-/ready", method="GET")).status == 200
    assert (await relay.scrape()).of("mcp_ledger_healthy") == 1
    away = relay.ledger.with_name("moved.db")
    relay.ledger.rename(away)
    assert (await relay.chat()).error["code"] == "ledger_unavailable"
    assert (await relay.ask(path="/-/ready", method="GET")).status == 503
    assert (await relay.scrape()).of("mcp_ledger_healthy") == 0
    assert (await relay.ask(path="/health", method="GET")).status == 200
    assert relay.simulator.billing_log.totals.calls == 0

    away.rename(relay.ledger)
    assert (await relay.chat()).status == 200
    assert (await relay.ask(path="/-/ready", method="GET")).status == 200
    assert (await relay.scrape()).of("mcp_ledger_healthy") == 1
