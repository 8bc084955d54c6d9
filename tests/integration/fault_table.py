"""A row of the fault table and its check: the real service, the fault proxy, the simulator behind it.

The same request goes directly to a twin of proxy and simulator, so that responses are compared byte for byte.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2
import msgspec
import pytest
from pydantic import SecretStr
from tests.integration.speakers import ANTHROPIC, GEMINI, OPENAI, Speaker

from mcpmeter.config import ProviderSettings
from mcpmeter.ledger.rows import ROW_COLUMNS, SELECT_ROWS_SQL
from mcpmeter.ledger.sqlite.connection import open_for_reading
from mcpmeter.records import LedgerRow
from mcpmeter.simulator import FaultProxy, Simulator, WireFault

SEED = 1
UPSTREAM_KEY = "sk-upstream-credential-0123456789"
REFUSE = "refuse"
"""The connection fault that is made by not listening."""

BROKE, TIMED_OUT = ("upstream_error", "upstream"), ("upstream_timeout", "upstream")
CALLER, LIMITED = ("validation_error", "client"), ("upstream_rate_limited", "upstream")
UNREACHABLE = ("upstream_unreachable", "upstream")
_numbers = itertools.count(1)

Moved = Mapping[str, Mapping[tuple[str, ...], float]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A fault and all its effects."""

    speaker: Speaker
    fault: str = ""
    """A fault of the simulator."""
    wire: str = ""
    """A fault of the connection."""

    # The client
    sees: Literal["all", "ours", "cut"] = "all"
    """All bytes of the provider's; an error of ours alone; its events up to the fault, then an error of ours."""
    status: int = 200
    delivered: bool = True
    """Whether the client got anything before a stream was cut."""

    # The ledger
    outcome: str = "ok"
    error: str = ""
    """The error's id, which the client sees if the error is ours."""
    tokens: str = "reported"
    """The source of the tokens; empty if the provider cannot have worked for the call."""
    upstream_status: int = 200

    # The counters: requests and attempts always by one, tokens and cost as in the ledger, and
    counted: tuple[str, str] | None = None
    """mcp_errors_total, by type and side."""
    missing: str = ""
    """mcp_usage_missing_total, by reason."""
    attempt: str = "ok"
    """mcp_upstream_attempts_total, by outcome."""
    empty: int = 0
    """mcp_empty_completions_total."""

    number: int = field(default_factory=lambda: next(_numbers))
    """Makes the request of each row unique, so that the twin generates the same response."""

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.speaker.name, self.fault, self.wire))) or "nothing"

    @property
    def model(self) -> str:
        # After a 429 nothing is sent for the model until its Retry-After has passed.
        return f"limited-{self.number}" if "429" in self.fault else self.speaker.model

    @property
    def body(self) -> dict[str, Any]:
        length = f"completion_tokens={40 + self.number}"
        return self.speaker.body(f"{self.fault},{length}" if self.fault else length, self.model)


@dataclass
class Bench:
    """The servers that rows are checked on."""

    relay: Any
    simulator: Simulator
    proxy: FaultProxy
    twin: FaultProxy

    async def check(self, row: Row) -> Any:
        """Send the request and compare all effects with the row. Returns the ledger's row."""
        before = counters(self.relay)
        reply = await self._request(row)
        await self.relay.until_idle()
        stored = row_of(self.relay, reply.headers["x-mcpmeter-call-id"])
        await self._check_client(row, reply, stored)
        check_ledger(row, stored)
        self._check_tokens(row, reply, stored)
        moved = {name: by for name in before if (by := increase(before[name], counters(self.relay)[name]))}
        check_counters(row, stored, moved)
        return stored

    async def _request(self, row: Row) -> Any:
        if row.wire == REFUSE:
            await self.proxy.refuse()
        else:
            self.proxy.fault = WireFault.parse(row.wire)
        try:
            return await self.relay.ask(row.body, row.speaker.url(row.model))
        finally:
            if row.wire == REFUSE:
                await self.proxy.listen()

    async def _check_client(self, row: Row, reply: Any, stored: Any) -> None:
        assert reply.status == row.status, reply.body[:500]
        assert UPSTREAM_KEY not in f"{reply.headers}{reply.body[:100_000]!r}"
        assert reply.headers["x-mcpmeter-provider"] == row.speaker.provider
        assert reply.headers["x-mcpmeter-attempts"] == "1"
        if row.sees == "all":
            sent, status, headers = await self._direct_response(row)
            assert (without_ids(reply.body), reply.status) == (without_ids(sent), status)
            for name in ("content-type", "retry-after"):
                assert reply.headers.get(name) == headers.get(name)
            return
        error = row.speaker.last_error(reply.body) if row.sees == "cut" else row.speaker.error(reply.json)
        assert (error.code, error.call_id) == (row.error, stored.id)
        assert error.message.endswith(".")
        passed = before_the_error(reply.body) if row.sees == "cut" else b""
        if passed and "stall" not in row.name:
            sent, _, _ = await self._direct_response(row)
            assert sent.startswith(passed)
        assert bool(passed) == (row.sees == "cut" and row.delivered)

    def _check_tokens(self, row: Row, reply: Any, stored: Any) -> None:
        """Reported tokens are equal to the provider's, estimated ones close to them."""
        if row.sees == "cut" and row.delivered:
            delivered = len(row.speaker.text(reply.body)) / 4
            assert stored.completion_tokens == pytest.approx(delivered, rel=0.2, abs=3)
            assert stored.prompt_tokens > 0
        if row.outcome != "ok":
            return
        (call,) = [call for call in self.simulator.billing_log.calls() if call.request_id == stored.upstream_request_id]
        if "usage=zero" in row.fault:
            assert (stored.prompt_tokens, stored.completion_tokens, stored.cost_nanousd) == (0, 0, 0)
        elif row.tokens == "reported":
            assert (stored.prompt_tokens, stored.completion_tokens) == (call.prompt_tokens, call.completion_tokens)
        else:
            assert stored.completion_tokens == pytest.approx(call.completion_tokens, rel=0.2, abs=3)
            assert stored.prompt_tokens == pytest.approx(call.prompt_tokens, rel=0.2, abs=3)

    async def _direct_response(self, row: Row) -> tuple[bytes, int, Mapping[str, str]]:
        """The provider's response to a direct client, as far as it arrives."""
        self.twin.fault = WireFault.parse(row.wire)
        body = json.dumps(row.body).encode()
        headers = {"authorization": f"Bearer {UPSTREAM_KEY}", "x-goog-api-key": UPSTREAM_KEY}
        received = b""
        url = self.twin.url + row.speaker.upstream_url(row.model)
        async with self.relay.http.stream("POST", url, content=body, headers=headers) as answer:
            try:
                async for piece in answer.aiter_raw():
                    received += piece
            except httpx2.TransportError:
                assert row.sees == "cut"
            if answer.headers.get("content-encoding") == "gzip":
                received = gzip.decompress(received)
            return received, answer.status_code, answer.headers


def row_of(relay: Any, call_id: str) -> LedgerRow:
    """A call's row, as another process would read it."""
    db = open_for_reading(relay.ledger)
    try:
        (found,) = db.execute(f"{SELECT_ROWS_SQL} WHERE id = ?", (call_id,)).fetchall()
    finally:
        db.close()
    return msgspec.convert(dict(zip(ROW_COLUMNS, found, strict=True)), LedgerRow, strict=False)


def before_the_error(body: bytes) -> bytes:
    """A stream up to the error event at its end."""
    for mark in (b"event: error\n", b"data: "):
        before, found, after = body.rpartition(mark)
        if found and b"call_id" in after:
            return before
    raise AssertionError(body[-500:])


def without_ids(body: bytes) -> bytes:
    """The body without request ids, which differ between calls."""
    start = body.find(b'"request_id":"req_')
    return body if start < 0 else body[:start] + body[start + 55 :]


def check_ledger(row: Row, stored: Any) -> None:
    assert (stored.state, stored.status, stored.outcome, stored.error_id) == (
        "settled",
        str(row.status),
        row.outcome,
        row.error,
    )
    assert (stored.endpoint, stored.provider, stored.model, stored.stream) == (
        row.speaker.endpoint,
        row.speaker.provider,
        row.model,
        row.speaker.streams,
    )
    assert (stored.token_source, stored.error_type) == (row.tokens, row.counted[0] if row.counted else "")
    assert stored.upstream_status == row.upstream_status
    if not row.tokens:
        assert (stored.prompt_tokens, stored.completion_tokens, stored.cost_nanousd) == (0, 0, 0)


def check_counters(row: Row, stored: Any, moved: Moved) -> None:
    """Exactly these counters moved, by these amounts."""
    expected = {
        "mcp_requests_total": {(row.speaker.endpoint, "POST", str(row.status)): 1},
        "mcp_errors_total": {row.counted: 1} if row.counted else {},
        "mcp_usage_missing_total": {(row.speaker.provider, row.missing): 1} if row.missing else {},
        "mcp_upstream_attempts_total": {(row.speaker.provider, row.attempt): 1},
        "mcp_empty_completions_total": {(row.model,): 1} if row.empty else {},
    }
    for name, amounts in expected.items():
        assert dict(moved.get(name, {})) == amounts, name
    tokens = moved.get("mcp_tokens_total", {})
    assert sum(tokens.values()) == stored.prompt_tokens + stored.completion_tokens
    assert {row.tokens} >= {source for labels in tokens for source in labels if source in SOURCES}
    assert sum(moved.get("mcp_cost_usd_total", {}).values()) == stored.cost_nanousd
    reasons = sum(moved.get("mcp_finish_reasons_total", {}).values())
    assert reasons == (1 if stored.finish_reason else 0)
    assert sum(moved.get("mcp_cost_component_usd_total", {}).values()) == stored.cost_nanousd
    money = {"mcp_tokens_total", "mcp_cost_usd_total", "mcp_cost_component_usd_total"}
    assert moved.keys() <= {*expected, *money, "mcp_finish_reasons_total"}


SOURCES = {"reported", "estimated", "partial"}


def counters(relay: Any) -> Moved:
    """The children of every counter, read from the recorder."""
    families = relay.service.recorder.families
    return {
        name: {labels: cell.value for labels, cell in family.cells.items()}
        for name, family in families.items()
        if family.metric.type == "counter"
    }


def increase(before: Mapping[tuple[str, ...], float], after: Mapping[tuple[str, ...], float]) -> dict[Any, float]:
    return {labels: value - before.get(labels, 0) for labels, value in after.items() if value != before.get(labels, 0)}


@asynccontextmanager
async def bench(start_relay: Any, rows: Iterable[Row], **changes: Any) -> AsyncIterator[Bench]:
    """The service with each vendor's provider behind one fault proxy, and the twin."""
    key = SecretStr(UPSTREAM_KEY)
    async with (
        Simulator(seed=SEED, key=UPSTREAM_KEY) as simulator,
        Simulator(seed=SEED, key=UPSTREAM_KEY) as other,
        FaultProxy(simulator.url) as proxy,
        FaultProxy(other.url) as twin,
    ):
        bases = {OPENAI: "/v1", ANTHROPIC: "/v1", GEMINI: "/v1beta"}
        relay = await start_relay(upstream=proxy.base_url, **changes)
        providers = tuple(
            ProviderSettings(name=name, base_url=proxy.url + base, api_key=key, models=_models(name, rows))
            for name, base in bases.items()
        )
        settings = relay.settings.model_copy(update={"providers": providers})
        relay.service._load = lambda: settings
        await relay.service.reload()
        yield Bench(relay, simulator, proxy, twin)


def _models(provider: str, rows: Iterable[Row]) -> tuple[str, ...]:
    """The models to configure, so that each is a label value of its own."""
    return tuple(sorted({row.model for row in rows if row.speaker.provider == provider}))


def table(rows: Any) -> Any:
    """One test per row."""
    return pytest.mark.parametrize("row", list(rows), ids=lambda row: row.name)
