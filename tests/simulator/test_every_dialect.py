"""Every dialect: exact billing, the same text with and without streaming, faults, and clients that disconnect."""

import gzip
import json
import math
from decimal import Decimal

import pytest

from mcpmeter.simulator import Price, Simulator, Spread
from mcpmeter.simulator.request_parsing import text_tokens

STREAMS = pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])

ONE_TOKEN = {
    "openai_chat": b'{"content":"',
    "openai_responses": b'"type":"response.output_text.delta"',
    "anthropic_messages": b'"type":"text_delta"',
    "gemini_generate": b'"candidatesTokenCount":',
}


def only_call(sim):
    (call,) = sim.billing_log.calls()
    assert sim.billing_log.open_calls == 0
    return call


@STREAMS
async def test_usage_and_text_equal_the_billing_log(sim, client, stream):
    response = await client.post(sim, stream=stream)
    reported, call = client.reported(response, stream=stream), only_call(sim)
    assert (call.dialect, call.stream, call.outcome, call.fault) == (client.dialect, stream, "complete", "")
    assert reported.prompt == call.prompt_tokens == 6
    assert reported.completion == call.completion_tokens == call.delivered_tokens == text_tokens(reported.text) > 0
    assert sim.billing_log.totals_by_dialect[client.dialect].completion_tokens == reported.completion


async def test_a_stream_has_the_content_of_a_whole_response(client):
    reported = []
    for stream in (False, True):
        async with Simulator(seed=3, completion_tokens=Spread.fixed(20)) as sim:
            reported.append(
                client.reported(await client.post(sim, "completion_tokens=20", stream=stream), stream=stream)
            )
    assert reported[0].finish == reported[1].finish is not None
    assert reported[0].completion == reported[1].completion == 20
    assert len(reported[0].text.split()) == len(reported[1].text.split()) == 20


@STREAMS
async def test_the_same_seed_gives_the_same_bytes(client, stream):
    responses = []
    for _ in range(2):
        async with Simulator(seed=5) as sim:
            responses.append((await client.post(sim, stream=stream)).body)
    assert responses[0] == responses[1]


@STREAMS
async def test_the_first_user_text_requests_a_fault(sim, client, raw, stream):
    body = json.dumps(client.body("", stream=stream)).replace(
        "Hello", "[[simulate completion_tokens=7,usage=twice]] Hi"
    )
    response = await raw(sim, body.encode(), client.url(stream=stream))
    call = only_call(sim)
    assert client.reported(response, stream=stream).completion == call.completion_tokens == 7
    assert call.fault == "usage"
    refused = await raw(sim, body.replace("twice", "thrice").encode(), client.url(stream=stream))
    assert refused.status == 400
    assert "[[simulate" in json.dumps(refused.json, ensure_ascii=False)


@STREAMS
@pytest.mark.parametrize("status", [400, 429, 500, 529])
async def test_an_error_status_has_the_vendors_error_body(sim, client, status, stream):
    response = await client.post(sim, f"status={status},retry_after=2", stream=stream)
    assert response.status == status
    assert response.headers["retry-after"] == "2"
    assert error_of(response.json)["message"]
    call = only_call(sim)
    assert (call.outcome, call.fault, call.prompt_tokens, call.completion_tokens) == ("fault", "status", 0, 0)


def error_of(body):
    return (body[0] if isinstance(body, list) else body)["error"]


@STREAMS
async def test_a_gateway_status_has_an_html_page(sim, client, stream):
    response = await client.post(sim, "status=502", stream=stream)
    assert (response.status, response.headers["content-type"]) == (502, "text/html; charset=utf-8")


@STREAMS
async def test_a_reset_before_the_headers_sends_nothing(sim, client, stream):
    response = await client.post(sim, "reset=headers", stream=stream)
    assert (response.received, response.was_reset) == (b"", True)
    assert (only_call(sim).outcome, only_call(sim).prompt_tokens) == ("fault", 0)


@pytest.mark.parametrize("where", ["body", "chunk"])
@pytest.mark.parametrize("after", [0, 5])
async def test_a_reset_ends_a_stream_after_the_set_tokens(sim, client, after, where):
    response = await client.post(sim, f"reset={where},after_tokens={after},completion_tokens=20", stream=True)
    assert response.was_reset
    assert client.end not in response.content
    call = only_call(sim)
    assert (call.outcome, call.prompt_tokens, call.completion_tokens, call.delivered_tokens) == (
        "fault",
        6,
        after,
        after,
    )


async def test_a_reset_cuts_a_whole_response_in_half(sim, client):
    response = await client.post(sim, "reset=body")
    assert response.was_reset
    assert len(response.content) == int(response.headers["content-length"]) // 2
    assert only_call(sim).completion_tokens > 0 == only_call(sim).delivered_tokens


@STREAMS
@pytest.mark.parametrize("where", ["headers", "body"])
async def test_the_whole_response_follows_a_stall_that_ends(sim, client, where, stream):
    response = await client.post(sim, f"stall={where},stall_seconds=0.01", stream=stream)
    assert text_tokens(client.reported(response, stream=stream).text) == only_call(sim).completion_tokens
    assert (only_call(sim).outcome, only_call(sim).fault) == ("complete", "stall")


async def test_malformed_json_is_half_a_response(sim, client):
    response = await client.post(sim, "body=malformed_json")
    with pytest.raises(json.JSONDecodeError):
        _ = response.json
    assert only_call(sim).outcome == "fault"


@pytest.mark.parametrize("body", ["malformed_json", "malformed_sse"])
async def test_a_malformed_event_stands_between_valid_ones(sim, client, body):
    response = await client.post(sim, f"body={body}", stream=True)
    assert client.end in response.body
    if body == "malformed_json":
        assert client.broken_events(response.body) == 1
    else:
        assert b"\xff\xfe" in response.body
    assert only_call(sim).outcome == "fault"


@STREAMS
async def test_an_empty_body_and_an_html_page_have_status_200(sim, client, stream):
    empty = await client.post(sim, "body=empty", stream=stream)
    page = await client.post(sim, "body=html", stream=stream)
    assert (empty.status, empty.content) == (200, b"")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert (sim.billing_log.totals.fault, sim.billing_log.totals.prompt_tokens) == (2, 0)


@STREAMS
async def test_an_error_body_can_have_status_200(sim, client, stream):
    response = await client.post(sim, "body=error,after_tokens=2", stream=stream)
    assert response.status == 200
    last = client.events(response.body)[-1] if stream else response.json
    assert last.get("type") == "error" or last["error"]["message"]
    call = only_call(sim)
    assert (call.outcome, call.completion_tokens) == ("fault", 2 if stream else 0)


@STREAMS
@pytest.mark.parametrize(
    ("usage", "check"),
    [
        ("zero", lambda value, truth: value == 0),
        ("negative", lambda value, truth: value == -truth - 1),
        ("string", lambda value, truth: value == str(truth)),
        ("nan", lambda value, truth: math.isnan(value)),
        ("overflow", lambda value, truth: value == math.inf),
        ("missing", lambda value, truth: value is None),
        ("twice", lambda value, truth: value == truth),
    ],
)
async def test_wrong_usage_leaves_the_billing_log_exact(sim, client, usage, check, stream):
    reported = client.reported(
        await client.post(sim, f"usage={usage},completion_tokens=9", stream=stream), stream=stream
    )
    call = only_call(sim)
    assert (call.outcome, call.prompt_tokens, call.completion_tokens) == ("complete", 6, 9)
    assert check(reported.prompt, 6)
    assert check(reported.completion, 9)


async def test_a_stream_without_its_end_has_the_whole_text(sim, client):
    response = await client.post(sim, "done=missing,completion_tokens=9", stream=True)
    is_array = response.body.startswith(b"[")
    reported = client.streamed(client.events(response.body + b"]" * is_array))
    assert text_tokens(reported.text) == 9
    assert client.end not in response.body
    assert only_call(sim).outcome == "complete"


@STREAMS
async def test_a_slow_drip_arrives_complete(sim, client, stream):
    response = await client.post(sim, "drip_bytes_per_second=60000,completion_tokens=2", stream=stream)
    assert text_tokens(client.reported(response, stream=stream).text) == 2
    assert (only_call(sim).outcome, only_call(sim).fault) == ("complete", "drip")


@STREAMS
async def test_content_length_can_be_wrong(sim, client, stream):
    long = await client.post(sim, "content_length=long", stream=stream)
    assert len(long.content) + 64 == int(long.headers["content-length"])
    short = await client.post(sim, "content_length=short", stream=stream)
    assert len(short.content) // 2 == int(short.headers["content-length"])
    assert sim.billing_log.totals.fault == 2


@STREAMS
async def test_a_huge_response_ignores_the_token_limit(sim, client, stream):
    response = await client.post(sim, "huge_mb=1", stream=stream)
    reported = client.reported(response, stream=stream)
    assert reported.completion == text_tokens(reported.text) == only_call(sim).completion_tokens == 1024 * 1024 // 4


@STREAMS
async def test_gzip_ignores_accept_encoding(sim, client, stream):
    response = await client.post(sim, "encoding=gzip", stream=stream)
    assert response.headers["content-encoding"] == "gzip"
    plain = gzip.decompress(response.body)
    assert client.end in plain if stream else json.loads(plain)
    assert only_call(sim).outcome == "complete"


@STREAMS
async def test_a_refusal_has_the_dialects_mark(sim, client, stream):
    response = await client.post(sim, "refusal=true,completion_tokens=6", stream=stream)
    mark = {"anthropic_messages": b'"stop_reason":"refusal"', "gemini_generate": b'"finishReason":"SAFETY"'}
    assert mark.get(client.dialect, b'"refusal":"') in response.body
    made = 0 if client.dialect == "gemini_generate" else 6
    assert only_call(sim).completion_tokens == only_call(sim).delivered_tokens == made


async def test_a_disconnect_is_billed_for_the_delivered_tokens(sim, client, connect_with):
    simulate = "stall=body,after_tokens=5,completion_tokens=50"
    reader, writer = await connect_with(sim, client.url(stream=True), client.body(simulate, stream=True))
    for _ in range(5):
        await reader.readuntil(ONE_TOKEN[client.dialect])
    writer.close()
    await sim.billing_log.wait_until(lambda log: log.totals.cancelled == 1)
    call = only_call(sim)
    assert (call.prompt_tokens, call.completion_tokens, call.delivered_tokens) == (6, 5, 5)


async def test_a_stream_reports_its_cost_if_the_dialect_can(client):
    prices = {name: Price(Decimal("2.5"), Decimal("0.0000001")) for name in ("gpt-4.1", "claude-sonnet-4.5")}
    async with Simulator(prices=prices, completion_tokens=Spread.fixed(7)) as sim:
        whole = await client.post(sim)
        streamed = await client.post(sim, stream=True)
    priced = client.dialect != "gemini_generate"
    assert whole.headers.get("x-cost-usd") == ("0.0000150000007" if priced else None)
    assert (b'"cost":0.0000150000007' in streamed.body) == priced
    assert "x-cost-usd" not in streamed.headers


async def test_every_response_has_the_billing_logs_request_id(sim, client):
    response = await client.post(sim)
    name = "request-id" if client.dialect == "anthropic_messages" else "x-request-id"
    assert response.headers[name] == only_call(sim).request_id
