"""Whatever a provider does, in every other dialect than chat: what the client is told in the dialect's own words, what
the ledger keeps, which numbers move; and what is refused before any dialect is read."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from mcpmeter.config import ProviderSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

UPSTREAM_KEY = "sk-upstream-credential-0123456789"
CLIENT_KEY = f"mk_{secrets.token_urlsafe(36)}"
MEGABYTE = 1024 * 1024
GENERIC, GEMINI = "everything", "gemini"


@dataclass(frozen=True)
class Told:
    """An error of ours as a dialect words it."""

    code: str
    call_id: str
    message: str


class Speaker:
    """How a dialect asks, and where it says what. One for each form of an answer."""

    name: str
    path: str
    endpoint: str
    """The route as metrics and the ledger label it."""
    provider = GENERIC
    model = "gpt-4.1"
    streams = False
    """Whether the answer is one of events, of which each goes on as it comes."""

    def url(self, model: str) -> str:
        return self.path

    def body(self, simulate: str, model: str) -> dict[str, Any]:
        raise NotImplementedError

    def error(self, body: Any) -> Told:
        """Fails for any other shape than the dialect's."""
        assert set(body) == {"error"}
        error = body["error"]
        assert set(error) == {"message", "type", "param", "code", "call_id"}
        return Told(error["code"], error["call_id"], error["message"])

    def last_error(self, body: bytes) -> Told:
        """The error in the last event of a stream."""
        return self.error(json.loads(list(data_of(body))[-1]))

    def text(self, body: bytes) -> str:
        """What a stream delivered of the model's words."""
        raise NotImplementedError


def data_of(body: bytes) -> Iterator[bytes]:
    return (line[6:] for line in body.replace(b"\r\n", b"\n").split(b"\n") if line.startswith(b"data: "))


def events_of(body: bytes) -> Iterator[Any]:
    for data in data_of(body):
        try:
            yield json.loads(data)
        except ValueError:
            continue


class Embeddings(Speaker):
    name = "embeddings"
    path = endpoint = "/v1/embeddings"
    model = "text-embedding-3-small"

    def body(self, simulate: str, model: str) -> dict[str, Any]:
        return {"model": model, "input": "Hello", "metadata": {"simulate": simulate}}


class Responses(Speaker):
    name = "responses"
    path = endpoint = "/v1/responses"

    def body(self, simulate: str, model: str) -> dict[str, Any]:
        return {"model": model, "input": "Hello", "stream": self.streams, "metadata": {"simulate": simulate}}


class ResponsesStream(Responses):
    name = "responses stream"
    streams = True

    def last_error(self, body: bytes) -> Told:
        event = list(events_of(body))[-1]
        assert event.pop("type") == "error"
        return self.error(event)

    def text(self, body: bytes) -> str:
        return "".join(e["delta"] for e in events_of(body) if e["type"] == "response.output_text.delta")


class Messages(Speaker):
    name = "messages"
    path = endpoint = "/v1/messages"
    model = "claude-sonnet-4.5"

    def body(self, simulate: str, model: str) -> dict[str, Any]:
        asked = [{"role": "user", "content": "Hello"}]
        wish = {"user_id": f"simulate:{simulate}"} if simulate else {}
        return {"model": model, "max_tokens": 8192, "messages": asked, "stream": self.streams, "metadata": wish}

    def error(self, body: Any) -> Told:
        assert set(body) == {"type", "error", "request_id"}
        assert body["type"] == "error"
        error = body["error"]
        return Told(error["code"], body["request_id"], error["message"])


class MessagesStream(Messages):
    name = "messages stream"
    streams = True

    def last_error(self, body: bytes) -> Told:
        assert b"event: error\n" in body
        return self.error(list(events_of(body))[-1])

    def text(self, body: bytes) -> str:
        deltas = (e["delta"] for e in events_of(body) if e["type"] == "content_block_delta")
        return "".join(delta.get("text", "") for delta in deltas)


class Generate(Speaker):
    name = "gemini"
    provider = GEMINI
    model = "gemini-2.5-flash"
    action = "generateContent"
    endpoint = "/v1beta/models/{model}:generateContent"

    def url(self, model: str) -> str:
        return f"/v1beta/models/{model}:{self.action}"

    def body(self, simulate: str, model: str) -> dict[str, Any]:
        contents = [{"role": "user", "parts": [{"text": "Hello"}]}]
        return {"contents": contents, "labels": {"simulate": simulate}} if simulate else {"contents": contents}

    def error(self, body: Any) -> Told:
        assert set(body) == {"error"}
        error = body["error"]
        assert set(error) == {"code", "message", "status", "details"}
        assert error["status"].isupper()
        (detail,) = error["details"]
        return Told(detail["metadata"]["code"], detail["metadata"]["call_id"], error["message"])


class GenerateStream(Generate):
    name = "gemini stream"
    action = "streamGenerateContent?alt=sse"
    endpoint = "/v1beta/models/{model}:streamGenerateContent"
    streams = True

    def text(self, body: bytes) -> str:
        candidates = (c for event in events_of(body) for c in event.get("candidates", ()))
        return "".join(p.get("text", "") for c in candidates for p in c.get("content", {}).get("parts", ()))


class GenerateArray(Generate):
    name = "gemini array"
    action = "streamGenerateContent"
    endpoint = "/v1beta/models/{model}:streamGenerateContent"

    def error(self, body: Any) -> Told:
        (error,) = body
        return super().error(error)


WHOLE = (Embeddings(), Responses(), Messages(), Generate(), GenerateArray())
STREAMS = (ResponsesStream(), MessagesStream(), GenerateStream())
EVERY = (*WHOLE, *STREAMS)
by_name = {"ids": lambda speaker: speaker.name}


async def wired(relay: Any, url: str) -> Any:
    """The relay with a provider for each family of dialects, both of them at this address."""
    key = SecretStr(UPSTREAM_KEY)
    providers = (
        ProviderSettings(name=GENERIC, type="generic", base_url=f"{url}/v1", api_key=key),
        ProviderSettings(name=GEMINI, base_url=f"{url}/v1beta", api_key=key),
    )
    settings = relay.settings.model_copy(update={"providers": providers})
    relay.service._load = lambda: settings
    await relay.service.reload()
    return relay


async def before_the_simulator(start_module_relay: Any, **changes: Any) -> Any:
    relay = await start_module_relay(**changes)
    return await wired(relay, relay.simulator.url)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def before_raw(start_module_relay, raw_upstream) -> Any:
    """A relay that asks for a key, before an upstream that keeps every byte it was sent."""
    relay = await start_module_relay(upstream=raw_upstream.url, keys={"search": CLIENT_KEY})
    return await wired(relay, raw_upstream.url.removesuffix("/v1"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(start_module_relay) -> Any:
    return await before_the_simulator(start_module_relay, relay={"max_answer_bytes": MEGABYTE})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient(start_module_relay) -> Any:
    """A relay that soon gives up waiting."""
    return await before_the_simulator(start_module_relay, timeouts={"first_byte_seconds": 0.2, "idle_seconds": 0.2})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyed(start_module_relay) -> Any:
    """A relay that asks for a key."""
    return await before_the_simulator(start_module_relay, keys={"search": CLIENT_KEY}, server={"max_body_bytes": 2048})


async def ask(relay: Any, speaker: Speaker, simulate: str = "", model: str = "", **more: Any) -> Any:
    name = model or speaker.model
    return await relay.ask(speaker.body(simulate, name), speaker.url(name), **more)


def figures(relay: Any) -> dict[str, dict[tuple[str, ...], float]]:
    """What the counters of interest say, straight from the recorder."""
    names = ("mcp_requests_total", "mcp_errors_total", "mcp_usage_missing_total", "mcp_tokens_total")
    families = relay.service.recorder.families
    return {name: {labels: cell.value for labels, cell in families[name].cells.items()} for name in names}


def rose(before: Any, after: Any, name: str) -> dict[tuple[str, ...], float]:
    old = before[name]
    return {labels: value - old.get(labels, 0) for labels, value in after[name].items() if value != old.get(labels, 0)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault in one dialect and all that follows from it."""

    speaker: Speaker
    simulate: str
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
    counted: tuple[str, str] = ("upstream_error", "upstream")

    @property
    def name(self) -> str:
        return f"{self.speaker.name} {self.simulate}"

    @property
    def model(self) -> str:
        # Nothing more is sent for a model that was limited until its time has come.
        return f"limited-{self.speaker.name.replace(' ', '-')}" if "429" in self.simulate else self.speaker.model


CALLER = ("validation_error", "client")
TIMED_OUT = ("upstream_timeout", "upstream")
LIMITED = ("upstream_rate_limited", "upstream")


def refused(speaker: Speaker) -> Iterator[Case]:
    """Statuses: what is about the request or the provider goes on as it came, what is about our account does not."""
    for status in (400, 404, 422):
        yield Case(speaker=speaker, simulate=f"status={status}", status=status, error="invalid_request", counted=CALLER)
    for status in (401, 402, 403):
        yield Case(speaker=speaker, simulate=f"status={status}", status=502, code="upstream_refused_account")
    for status in (500, 503, 529):
        yield Case(speaker=speaker, simulate=f"status={status}", status=status, error="upstream_fault")
    yield Case(speaker=speaker, simulate="status=504", status=504, error="upstream_timed_out", counted=TIMED_OUT)
    yield Case(speaker=speaker, simulate="status=301", status=502, code="upstream_answered_garbage")
    limited = "status=429,retry_after=7"
    yield Case(speaker=speaker, simulate=limited, status=429, error="upstream_rate_limited", counted=LIMITED)


def garbage(speaker: Speaker, simulate: str, code: str = "upstream_answered_garbage") -> Case:
    return Case(speaker=speaker, simulate=simulate, status=502, code=code, tokens="partial", missing="upstream_broke")


def ok(speaker: Speaker, simulate: str, tokens: str = "reported", missing: str = "") -> Case:
    return Case(speaker=speaker, simulate=simulate, outcome="ok", tokens=tokens, missing=missing)


def broken_off(speaker: Speaker, simulate: str, **more: Any) -> Case:
    told = {"code": "upstream_broke", "outcome": "partial", "tokens": "partial", "missing": "upstream_broke", **more}
    return Case(speaker=speaker, simulate=simulate, **told)


def usage(speaker: Speaker) -> Iterator[Case]:
    """Usage told wrongly. An explicit zero is what the provider says, and is not guessed over."""
    yield from (ok(speaker, simulate) for simulate in ("", "usage=zero", "usage=twice", "encoding=gzip"))
    yield ok(speaker, "usage=missing", "estimated", "no_usage")
    for told in ("negative", "string", "nan"):
        yield ok(speaker, f"usage={told}", "estimated", "bad_usage")


def whole(speaker: Speaker) -> Iterator[Case]:
    yield from (garbage(speaker, f"body={body}") for body in ("html", "empty", "malformed_json"))
    for simulate in ("reset=headers", "reset=body", "content_length=long"):
        yield garbage(speaker, simulate, "upstream_broke")
    if not isinstance(speaker, GenerateArray):  # what begins as an array ends as one: see the tests below
        yield Case(speaker=speaker, simulate="body=error", error="upstream_fault")


def stream(speaker: Speaker) -> Iterator[Case]:
    yield from (garbage(speaker, f"body={body}") for body in ("html", "empty"))
    yield garbage(speaker, "reset=headers", "upstream_broke")
    yield from (broken_off(speaker, f"reset={where}") for where in ("body", "chunk"))
    yield from (ok(speaker, f"body={body}") for body in ("malformed_json", "malformed_sse"))
    yield Case(
        speaker=speaker, simulate="body=error", error="upstream_fault", tokens="partial", missing="upstream_broke"
    )


RESPONSES, MESSAGES, GENERATE = STREAMS
CASES = [
    *(case for speaker in EVERY for case in (*refused(speaker), *usage(speaker))),
    *(case for speaker in WHOLE for case in whole(speaker)),
    *(case for speaker in STREAMS for case in stream(speaker)),
    # The end event carries the usage; without it nobody can tell a whole answer from half a one.
    broken_off(RESPONSES, "done=missing"),
    broken_off(GENERATE, "done=missing"),
    # Usage and stop reason have come before `message_stop`: the answer is whole.
    ok(MESSAGES, "done=missing"),
    garbage(WHOLE[-1], "done=missing"),
    # The end has come; what else was announced is not waited for. Gemini's stream has no such mark.
    *(ok(speaker, "content_length=long") for speaker in (RESPONSES, MESSAGES)),
    broken_off(GENERATE, "content_length=long", tokens="reported", missing=""),
]
SILENT = {"code": "upstream_timed_out", "tokens": "partial", "missing": "upstream_broke", "counted": TIMED_OUT}
SLOW_CASES = [
    *(Case(speaker=speaker, simulate="stall=headers", status=504, **SILENT) for speaker in EVERY),
    *(Case(speaker=speaker, simulate="stall=body", status=504, **SILENT) for speaker in WHOLE),
    *(broken_off(speaker, "stall=body", code="upstream_timed_out", counted=TIMED_OUT) for speaker in STREAMS),
]


async def check(relay: Any, case: Case) -> tuple[Any, Any]:
    speaker, before = case.speaker, figures(relay)
    reply = await ask(relay, speaker, case.simulate, case.model)
    await relay.until_idle()
    after = figures(relay)
    (row,) = [row for row in relay.rows() if row.id == reply.headers["x-mcpmeter-call-id"]]

    assert reply.status == case.status, reply.body[:300]
    assert UPSTREAM_KEY not in f"{reply.headers}{reply.body!r}"
    if case.code:
        told = speaker.last_error(reply.body) if reply.status == 200 else speaker.error(reply.json)
        assert (told.code, told.call_id) == (case.code, row.id)
        assert told.message.endswith(".")

    error_id = case.error or case.code
    assert (row.state, row.status, row.outcome, row.error_id) == ("settled", str(case.status), case.outcome, error_id)
    assert (row.endpoint, row.token_source, row.provider, row.model) == (
        speaker.endpoint,
        case.tokens,
        speaker.provider,
        case.model,
    )
    assert rose(before, after, "mcp_requests_total") == {(speaker.endpoint, "POST", str(case.status)): 1}
    assert rose(before, after, "mcp_errors_total") == ({case.counted: 1} if error_id else {})
    missing = {(speaker.provider, case.missing): 1} if case.missing else {}
    assert rose(before, after, "mcp_usage_missing_total") == missing
    assert sum(rose(before, after, "mcp_tokens_total").values()) == row.prompt_tokens + row.completion_tokens
    return reply, row


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_providers_fault_is_told_in_the_dialects_words_settled_and_counted(relay, case):
    reply, row = await check(relay, case)
    if "429" in case.simulate:
        assert reply.headers["retry-after"] == "7"
    if case.outcome == "ok":
        assert_metered_as_the_provider_did(relay, case, row)
    elif not case.tokens:
        assert (row.prompt_tokens, row.completion_tokens, row.cost_nanousd) == (0, 0, 0)
    elif case.speaker.streams and reply.status == 200:
        assert row.prompt_tokens > 0
        assert row.completion_tokens == pytest.approx(len(case.speaker.text(reply.body)) / 4, rel=0.2, abs=3)


def assert_metered_as_the_provider_did(relay: Any, case: Case, row: Any) -> None:
    (call,) = [call for call in relay.simulator.books.calls() if call.request_id == row.upstream_request_id]
    if case.simulate == "usage=zero":
        assert (row.prompt_tokens, row.completion_tokens, row.cost_nanousd) == (0, 0, 0)
    elif case.tokens == "reported":
        assert (row.prompt_tokens, row.completion_tokens) == (call.prompt_tokens, call.completion_tokens)
    else:
        # An estimate, and marked as one: near, never zero.
        assert row.completion_tokens == pytest.approx(call.completion_tokens, rel=0.2, abs=3)
        assert row.prompt_tokens == pytest.approx(call.prompt_tokens, abs=2)


@pytest.mark.parametrize("case", SLOW_CASES, ids=lambda case: case.name)
async def test_a_provider_that_falls_silent_is_given_up_and_told_so(impatient, case):
    _, row = await check(impatient, case)
    await impatient.simulator.books.wait_until(lambda books: books.open_calls == 0)
    assert row.error_type == "upstream_timeout"


@pytest.mark.parametrize("speaker", EVERY, **by_name)
async def test_a_refusal_goes_on_byte_for_byte(relay, speaker):
    reply = await ask(relay, speaker, "status=422")
    body = speaker.body("status=422", speaker.model)
    headers = {"authorization": f"Bearer {UPSTREAM_KEY}", "x-goog-api-key": UPSTREAM_KEY}
    direct = f"{relay.simulator.url}{speaker.url(speaker.model)}"
    async with relay.session.post(direct, json=body, headers=headers) as answer:
        assert (reply.status, json.loads(reply.body)) == (answer.status, masked(await answer.json(), reply.json))


def masked(body: Any, like: Any) -> Any:
    """Anthropic's request ids differ from call to call."""
    return body | {"request_id": like["request_id"]} if "request_id" in body else body


# Clients that leave ------------------------------------------------------------------------------------------------


def request_of(speaker: Speaker, simulate: str, model: str = "") -> bytes:
    name = model or speaker.model
    body = json.dumps(speaker.body(simulate, name)).encode()
    head = f"POST {speaker.url(name)} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("speaker", EVERY, **by_name)
async def test_a_client_that_leaves_before_the_answer_cancels_the_provider_and_pays_for_the_prompt(relay, speaker):
    before, cancelled = figures(relay), relay.simulator.books.totals.cancelled
    _, writer = await asyncio.open_connection(*relay.address)
    writer.write(request_of(speaker, "stall=headers"))
    await relay.simulator.books.wait_until(lambda books: books.open_calls == 1)
    writer.transport.abort()
    await relay.simulator.books.wait_until(lambda books: books.totals.cancelled == cancelled + 1)
    await relay.until_idle()
    row = relay.rows()[-1]
    assert (row.status, row.outcome, row.error_id, row.token_source) == ("499", "partial", "caller_gone", "partial")
    assert (row.prompt_tokens > 0, row.completion_tokens) == (True, 0)
    assert rose(before, figures(relay), "mcp_errors_total") == {("client_disconnected", "client"): 1}


@pytest.mark.parametrize("speaker", STREAMS, **by_name)
async def test_a_client_that_leaves_in_the_middle_of_a_stream_pays_for_what_it_got(relay, speaker):
    before, cancelled = figures(relay), relay.simulator.books.totals.cancelled
    reader, writer = await asyncio.open_connection(*relay.address, limit=2**16)
    writer.write(request_of(speaker, "stall=body,after_tokens=20"))
    got = b""
    async with asyncio.timeout(10):
        while len(speaker.text(got)) < 20 * 4:
            got += await reader.read(65536)
    writer.transport.abort()
    await relay.simulator.books.wait_until(lambda books: books.totals.cancelled == cancelled + 1)
    await relay.until_idle()
    row, call = relay.rows()[-1], list(relay.simulator.books.calls())[-1]
    assert (row.status, row.outcome, row.error_id, row.token_source) == ("499", "partial", "caller_gone", "partial")
    assert call.delivered_tokens == 20
    assert row.completion_tokens == pytest.approx(20, abs=2)
    assert rose(before, figures(relay), "mcp_usage_missing_total") == {(speaker.provider, "client_gone"): 1}


# Before any dialect is read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("speaker", EVERY, **by_name)
async def test_who_has_no_key_is_refused_in_the_dialects_words_and_reaches_nobody(keyed, speaker):
    calls = keyed.simulator.books.totals.calls
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}, {"x-goog-api-key": "wrong"}):
        reply = await ask(keyed, speaker, headers=headers)
        told = speaker.error(reply.json)
        assert (reply.status, told.code) == (401, "not_authenticated")
        assert told.call_id == reply.headers["x-mcpmeter-call-id"]
        assert "wrong" not in told.message
        assert reply.headers["www-authenticate"] == "Bearer"
    assert keyed.simulator.books.totals.calls == calls
    assert keyed.rows() == [] or {row.team for row in keyed.rows()} == {"search"}


@pytest.mark.parametrize("speaker", EVERY, **by_name)
async def test_a_body_that_is_too_large_is_refused_in_the_dialects_words(keyed, speaker):
    body = speaker.body("", speaker.model) | {"padding": "x" * 4096}
    headers = {"authorization": f"Bearer {CLIENT_KEY}"}
    reply = await keyed.ask(body, speaker.url(speaker.model), headers=headers)
    assert (reply.status, speaker.error(reply.json).code) == (413, "body_too_large")


@pytest.mark.parametrize("speaker", EVERY, **by_name)
async def test_another_verb_is_refused_in_the_dialects_words(relay, speaker):
    before = figures(relay)
    reply = await relay.ask(path=speaker.url(speaker.model), method="GET")
    assert (reply.status, speaker.error(reply.json).code) == (405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"
    assert rose(before, figures(relay), "mcp_requests_total") == {(speaker.endpoint, "GET", "405"): 1}


@pytest.mark.parametrize("speaker", EVERY, **by_name)
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"a":' * 300], ids=repr)
async def test_what_is_no_request_is_refused_in_the_dialects_words(relay, speaker, body):
    calls = relay.simulator.books.totals.calls
    reply = await relay.ask(body, speaker.url(speaker.model))
    assert (reply.status, speaker.error(reply.json).code) == (400, "invalid_request")
    assert relay.simulator.books.totals.calls == calls


@pytest.mark.parametrize("version", ["v1", "v1beta"])
@pytest.mark.parametrize("action", ["computeTokens", "batchGenerateContent", "predict", "generatecontent", ""])
async def test_an_action_of_geminis_that_is_not_served_is_not_found_in_geminis_words(relay, version, action):
    before = figures(relay)
    reply = await relay.ask({"contents": []}, f"/{version}/models/gemini-2.5-flash:{action}")
    assert (reply.status, reply.json["error"]["code"]) == (404, 404)
    told = Generate().error(reply.json)
    assert told.code == "route_not_found"
    assert reply.json["error"]["status"] == "NOT_FOUND"
    # A caller's text makes no label.
    assert {labels[0] for labels in rose(before, figures(relay), "mcp_requests_total")} == {"other"}


async def test_a_path_below_anthropics_that_is_not_served_is_not_found_in_anthropics_words(relay):
    reply = await relay.ask({}, "/v1/messages/batches")
    assert (reply.status, reply.json["error"]["type"]) == (404, "not_found_error")
    assert Messages().error(reply.json).code == "route_not_found"


# Credentials -------------------------------------------------------------------------------------------------------

WAYS = {
    "bearer": ({"authorization": f"Bearer {CLIENT_KEY}"}, ""),
    "x-api-key": ({"x-api-key": CLIENT_KEY}, ""),
    "x-goog-api-key": ({"x-goog-api-key": CLIENT_KEY}, ""),
    "?key=": ({}, f"key={CLIENT_KEY}"),
}


async def answer_at_length(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An echo of nothing: what counts is what was sent."""
    body = b'{"error":{"message":"no","type":"invalid_request_error"}}'
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    await writer.drain()


OPENINGS = [
    pytest.param(speaker, way, id=f"{speaker.name} {way}")
    for speaker in EVERY
    for way in WAYS
    if speaker.provider == GEMINI or way != "?key="  # only Google's clients put a key into the query
]


@pytest.mark.parametrize(("speaker", "way"), OPENINGS)
async def test_a_clients_key_opens_the_relay_and_goes_no_further(before_raw, raw_upstream, speaker, way):
    raw_upstream.play(answer_at_length)
    headers, query = WAYS[way]
    url = speaker.url(speaker.model)
    url += f"{'&' if '?' in url else '?'}{query}" if query else ""
    reply = await before_raw.ask(speaker.body("", speaker.model), url, headers=headers)
    assert reply.status == 400
    (sent,) = raw_upstream.requests
    assert CLIENT_KEY.encode() not in sent
    assert sent.count(UPSTREAM_KEY.encode()) == 1
    assert UPSTREAM_KEY not in f"{reply.headers}{reply.body!r}"
    (row,) = [row for row in before_raw.rows() if row.id == reply.headers["x-mcpmeter-call-id"]]
    assert (row.team, row.key_id != "") == ("search", True)
    assert CLIENT_KEY not in repr(row)
