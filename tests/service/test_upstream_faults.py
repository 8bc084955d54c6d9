"""Whatever a provider does: what the client is told, what the ledger keeps, which numbers move. One row each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT, GUIDE = "/v1/chat/completions", "/mcp/chat"
MEGABYTE = 1024 * 1024
DONE = b"[DONE]"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(start_module_relay) -> Any:
    return await start_module_relay(relay={"max_answer_bytes": MEGABYTE})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient(start_module_relay) -> Any:
    """A relay that soon gives up waiting."""
    return await start_module_relay(timeouts={"first_byte_seconds": 0.2, "idle_seconds": 0.2})


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault of the provider and all that follows from it."""

    simulate: str
    stream: bool = False
    model: str = "gpt-4.1"
    path: str = CHAT
    status: int = 200
    code: str = ""
    """Of our own error, in the body or as the stream's last event; empty: what the provider said went on."""
    outcome: str = "error"
    tokens: str = ""
    """The row's token source; empty where the provider cannot have worked for the call."""
    missing: str = ""
    """Reason under which the missing usage is counted."""
    error: str = ""
    """The row's error id, where it is not `code`."""
    counted: tuple[str, str] | None = None
    """Type and side in `mcp_errors_total`; a fault of the provider unless given."""
    upstream_status: int = 200

    @property
    def name(self) -> str:
        return f"{'stream' if self.stream else 'json'} {self.path} {self.simulate or 'nothing'}"


UPSTREAM = ("upstream_error", "upstream")
TIMED_OUT = ("upstream_timeout", "upstream")
CALLER = ("validation_error", "client")


def refused(upstream: int, path: str = CHAT, *, stream: bool = False, **more: Any) -> Case:
    return Case(simulate=f"status={upstream}", path=path, stream=stream, upstream_status=upstream, **more)


def ok(simulate: str, *, stream: bool = False, tokens: str = "reported", missing: str = "") -> Case:
    return Case(simulate=simulate, stream=stream, outcome="ok", tokens=tokens, missing=missing)


def garbage(simulate: str, *, stream: bool = False, code: str = "upstream_answered_garbage") -> Case:
    return Case(simulate=simulate, stream=stream, status=502, code=code, tokens="partial", missing="upstream_broke")


def broken_off(simulate: str, code: str = "upstream_broke", counted: tuple[str, str] = UPSTREAM) -> Case:
    return Case(
        simulate=simulate,
        stream=True,
        code=code,
        outcome="partial",
        tokens="partial",
        missing="upstream_broke",
        counted=counted,
    )


CASES = [
    *(ok("", stream=stream) for stream in (False, True)),
    *(refused(s, p, status=s, error="invalid_request", counted=CALLER) for s in (400, 404, 422) for p in (CHAT, GUIDE)),
    *(refused(s, p, status=502, code="upstream_refused_account") for s in (401, 402, 403) for p in (CHAT, GUIDE)),
    refused(401, stream=True, status=502, code="upstream_refused_account"),
    refused(400, stream=True, status=400, error="invalid_request", counted=CALLER),
    *(
        Case(
            simulate="status=429,retry_after=7",
            model=f"limited-{stream}-{path[-4:]}",  # nothing more is sent for a model until its time has come
            path=path,
            stream=stream,
            status=429,
            error="upstream_rate_limited",
            counted=("upstream_rate_limited", "upstream"),
            upstream_status=429,
        )
        for path in (CHAT, GUIDE)
        for stream in (False, True)
    ),
    *(refused(s, status=s, error="upstream_fault") for s in (500, 502, 503, 529)),
    *(refused(s, GUIDE, status=502, code="upstream_fault") for s in (500, 502, 503, 529)),
    refused(504, status=504, error="upstream_timed_out", counted=TIMED_OUT),
    refused(504, GUIDE, status=504, code="upstream_timed_out", counted=TIMED_OUT),
    refused(503, stream=True, status=503, error="upstream_fault"),
    *(refused(s, status=502, code="upstream_answered_garbage") for s in (301, 307, 304)),
    *(garbage(f"body={body}", stream=stream) for body in ("html", "empty") for stream in (False, True)),
    garbage("status=204"),
    garbage("body=malformed_json"),
    garbage("body=malformed_sse"),
    garbage("content_length=short"),
    *(garbage(f"reset={where}", code="upstream_broke") for where in ("headers", "body", "chunk")),
    garbage("reset=headers", stream=True, code="upstream_broke"),
    garbage("content_length=long", code="upstream_broke"),
    garbage("huge_mb=2", code="upstream_answer_too_large"),
    Case(simulate="body=error", error="upstream_fault"),
    *(ok("encoding=gzip", stream=stream) for stream in (False, True)),
    *(ok("usage=missing", stream=stream, tokens="estimated", missing="no_usage") for stream in (False, True)),
    *(
        ok(f"usage={told}", stream=stream, tokens="estimated", missing="bad_usage")
        for told in ("negative", "string", "nan")
        for stream in (False, True)
    ),
    *(ok(f"usage={told}", stream=stream) for told in ("zero", "twice", "with_choices") for stream in (False, True)),
    *(ok(simulate, stream=True) for simulate in ("done=missing", "body=malformed_json", "body=malformed_sse")),
    *(broken_off(f"reset={where}") for where in ("body", "chunk")),
    broken_off("huge_mb=2", "upstream_answer_too_large"),
    Case(simulate="body=error", stream=True, error="upstream_fault", tokens="partial", missing="upstream_broke"),
    Case(
        simulate="content_length=long", stream=True, outcome="ok", tokens="reported"
    ),  # [DONE] came; what else was announced is not waited for
]
SILENT = {"code": "upstream_timed_out", "tokens": "partial", "missing": "upstream_broke", "counted": TIMED_OUT}
SLOW_CASES = [
    *(
        Case(simulate="stall=headers", stream=stream, path=path, status=504, upstream_status=0, **SILENT)
        for stream in (False, True)
        for path in (CHAT, GUIDE)
    ),
    Case(simulate="stall=body", status=504, **SILENT),
    broken_off("stall=body", "upstream_timed_out", TIMED_OUT),
]


async def check(relay: Any, case: Case) -> Any:
    before, old = relay.counts(), {row.id for row in relay.rows()}
    reply = await relay.chat(case.simulate, path=case.path, stream=case.stream, model=case.model)
    await relay.until_idle()
    after = await relay.scrape()
    (row,) = [row for row in relay.rows() if row.id not in old]

    assert reply.status == case.status, reply.body[:300]
    told = case.code and (json.loads(reply.events[-1])["error"] if reply.status == 200 else reply.error)
    if case.code:
        assert (told["code"], told["call_id"]) == (case.code, row.id)
        assert told["message"].endswith(".")
    assert reply.headers["x-mcpmeter-call-id"] == row.id
    assert "sk-upstream-credential" not in f"{reply.headers}{reply.body!r}"

    error_id = case.error or case.code
    assert (row.state, row.status, row.outcome, row.error_id) == ("settled", str(case.status), case.outcome, error_id)
    assert (row.token_source, row.stream, row.provider, row.model) == (
        case.tokens,
        case.stream,
        "holysheep",
        case.model,
    )

    request = (case.path, "POST", str(case.status))
    assert after.since(before, "mcp_requests_total")[request] == 1
    assert after.since(before, "mcp_errors_total") == ({case.counted or UPSTREAM: 1} if error_id else {})
    assert after.since(before, "mcp_usage_missing_total") == ({("holysheep", case.missing): 1} if case.missing else {})
    tokens = after.since(before, "mcp_tokens_total")
    assert sum(tokens.values()) == row.prompt_tokens + row.completion_tokens
    assert {labels[2] for labels in tokens} <= {case.tokens}
    cost = after.of("mcp_cost_usd_total") - before.of("mcp_cost_usd_total")
    assert cost == pytest.approx(row.cost_nanousd / 1e9, abs=1e-12)
    assert (after.of("mcp_active_requests"), after.of("mcp_ledger_open_rows")) == (0, 0)
    return reply, row


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_providers_fault_is_told_settled_and_counted(relay, case):
    reply, row = await check(relay, case)
    assert row.upstream_status in upstream_statuses(case)
    if case.simulate.startswith("status=429"):
        assert reply.headers["retry-after"] == "7"
    if case.outcome == "ok":
        assert_metered_as_the_provider_did(relay, case, row)


def upstream_statuses(case: Case) -> tuple[int, ...]:
    if case.simulate == "content_length=short":
        return 0, 200  # what comes too much may arrive together with the head, which then is no answer at all
    return {"reset=headers": (0,), "status=204": (204,)}.get(case.simulate, (case.upstream_status,))


def assert_metered_as_the_provider_did(relay: Any, case: Case, row: Any) -> None:
    (call,) = [call for call in relay.simulator.books.calls() if call.request_id == row.upstream_request_id]
    if case.simulate == "usage=zero":
        assert (row.prompt_tokens, row.completion_tokens, row.cost_nanousd) == (0, 0, 0)
    elif case.tokens == "reported":
        assert (row.prompt_tokens, row.completion_tokens) == (call.prompt_tokens, call.completion_tokens)
    else:
        # An estimate, and marked as one: near, never zero.
        assert row.completion_tokens == pytest.approx(call.completion_tokens, rel=0.2, abs=3)
        assert row.prompt_tokens > 0


@pytest.mark.parametrize("case", SLOW_CASES, ids=lambda case: case.name)
async def test_a_provider_that_falls_silent_is_given_up_and_told_so(impatient, case):
    _, row = await check(impatient, case)
    await impatient.simulator.books.wait_until(lambda books: books.open_calls == 0)
    assert row.error_type == "upstream_timeout"


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.stream and case.outcome == "partial"], ids=lambda case: case.name
)
async def test_a_stream_that_breaks_off_charges_what_was_delivered(relay, case):
    reply, row = await check(relay, case)
    texts = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in reply.events[:-1]]
    assert row.completion_tokens == pytest.approx(len("".join(texts)) / 4, abs=2)
    assert row.chunks == len(texts)
    assert DONE not in reply.events


async def test_a_stream_that_ends_well_keeps_its_own_last_event(relay):
    reply = await relay.chat("", stream=True)
    assert reply.events[-1] == DONE


async def test_an_error_inside_a_stream_of_the_providers_own_goes_on_as_it_came(relay):
    reply = await relay.chat("body=error", stream=True)
    assert json.loads(reply.events[-1])["error"]["type"] == "server_error"


async def test_the_metric_names_only_what_its_catalog_row_allows(relay):
    await relay.scrape_openmetrics()
    scrape = await relay.scrape()
    statuses = {dict(labels)["status"] for name, labels in scrape.counts if name == "mcp_requests_total"}
    assert "other" not in statuses
    assert scrape.of("mcp_label_overflow_total", label="status") == 0
    assert scrape.of("mcp_label_overflow_total", label="reason") == 0
