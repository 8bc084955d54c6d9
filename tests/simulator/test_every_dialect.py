"""What holds in every dialect alike: exact books, the same text in both shapes, faults, and clients that leave."""

import gzip
import json
import math
from decimal import Decimal

import pytest

from mcpmeter.simulator import Price, Simulator, Spread
from mcpmeter.simulator.request_parsing import text_tokens

STREAMS = pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])

MADE_A_TOKEN = {
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
async def test_usage_text_and_books_agree(sim, speaker, stream):
    answer = await speaker.ask(sim, stream=stream)
    told, call = speaker.told(answer, stream=stream), only_call(sim)
    assert (call.dialect, call.stream, call.outcome, call.fault) == (speaker.dialect, stream, "complete", "")
    assert told.prompt == call.prompt_tokens == 6
    assert told.completion == call.completion_tokens == call.delivered_tokens == text_tokens(told.text) > 0
    assert sim.billing_log.totals_by_dialect[speaker.dialect].completion_tokens == told.completion


async def test_a_stream_says_what_the_whole_answer_says(speaker):
    told = []
    for stream in (False, True):
        async with Simulator(seed=3, completion_tokens=Spread.fixed(20)) as sim:
            told.append(speaker.told(await speaker.ask(sim, "completion_tokens=20", stream=stream), stream=stream))
    assert told[0].finish == told[1].finish is not None
    assert told[0].completion == told[1].completion == 20
    assert len(told[0].text.split()) == len(told[1].text.split()) == 20


@STREAMS
async def test_the_same_seed_gives_the_same_bytes(speaker, stream):
    answers = []
    for _ in range(2):
        async with Simulator(seed=5) as sim:
            answers.append((await speaker.ask(sim, stream=stream)).body)
    assert answers[0] == answers[1]


@STREAMS
async def test_the_first_user_text_may_ask_for_a_fault(sim, speaker, raw, stream):
    body = json.dumps(speaker.body("", stream=stream)).replace(
        "Hello", "[[simulate completion_tokens=7,usage=twice]] Hi"
    )
    answer = await raw(sim, body.encode(), speaker.url(stream=stream))
    call = only_call(sim)
    assert speaker.told(answer, stream=stream).completion == call.completion_tokens == 7
    assert call.fault == "usage"
    refused = await raw(sim, body.replace("twice", "thrice").encode(), speaker.url(stream=stream))
    assert refused.status == 400
    assert "[[simulate" in json.dumps(refused.json, ensure_ascii=False)


@STREAMS
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 503, 529])
async def test_a_status_comes_with_the_vendors_error(sim, speaker, status, stream):
    answer = await speaker.ask(sim, f"status={status},retry_after=2", stream=stream)
    assert answer.status == status
    assert answer.headers["retry-after"] == "2"
    assert error_of(answer.json)["message"]
    call = only_call(sim)
    assert (call.outcome, call.fault, call.prompt_tokens, call.completion_tokens) == ("fault", "status", 0, 0)


def error_of(body):
    return (body[0] if isinstance(body, list) else body)["error"]


@STREAMS
async def test_a_gateways_status_comes_with_a_page(sim, speaker, stream):
    answer = await speaker.ask(sim, "status=502", stream=stream)
    assert (answer.status, answer.headers["content-type"]) == (502, "text/html; charset=utf-8")


@STREAMS
async def test_a_reset_before_the_headers_sends_nothing(sim, speaker, stream):
    answer = await speaker.ask(sim, "reset=headers", stream=stream)
    assert (answer.received, answer.was_reset) == (b"", True)
    assert (only_call(sim).outcome, only_call(sim).prompt_tokens) == ("fault", 0)


@pytest.mark.parametrize("where", ["body", "chunk"])
@pytest.mark.parametrize("after", [0, 5])
async def test_a_reset_ends_a_stream_after_so_many_tokens(sim, speaker, after, where):
    answer = await speaker.ask(sim, f"reset={where},after_tokens={after},completion_tokens=20", stream=True)
    assert answer.was_reset
    assert speaker.end not in answer.content
    call = only_call(sim)
    assert (call.outcome, call.prompt_tokens, call.completion_tokens, call.delivered_tokens) == (
        "fault",
        6,
        after,
        after,
    )


async def test_a_reset_cuts_a_whole_answer_in_half(sim, speaker):
    answer = await speaker.ask(sim, "reset=body")
    assert answer.was_reset
    assert len(answer.content) == int(answer.headers["content-length"]) // 2
    assert only_call(sim).completion_tokens > 0 == only_call(sim).delivered_tokens


@STREAMS
@pytest.mark.parametrize("where", ["headers", "body"])
async def test_a_stall_that_ends_is_followed_by_the_whole_answer(sim, speaker, where, stream):
    answer = await speaker.ask(sim, f"stall={where},stall_seconds=0.01", stream=stream)
    assert text_tokens(speaker.told(answer, stream=stream).text) == only_call(sim).completion_tokens
    assert (only_call(sim).outcome, only_call(sim).fault) == ("complete", "stall")


async def test_malformed_json_is_half_an_answer(sim, speaker):
    answer = await speaker.ask(sim, "body=malformed_json")
    with pytest.raises(json.JSONDecodeError):
        _ = answer.json
    assert only_call(sim).outcome == "fault"


@pytest.mark.parametrize("body", ["malformed_json", "malformed_sse"])
async def test_a_malformed_event_stands_between_good_ones(sim, speaker, body):
    answer = await speaker.ask(sim, f"body={body}", stream=True)
    assert speaker.end in answer.body
    if body == "malformed_json":
        assert speaker.broken_events(answer.body) == 1
    else:
        assert b"\xff\xfe" in answer.body
    assert only_call(sim).outcome == "fault"


@STREAMS
async def test_an_empty_body_and_a_page_have_status_200(sim, speaker, stream):
    empty = await speaker.ask(sim, "body=empty", stream=stream)
    page = await speaker.ask(sim, "body=html", stream=stream)
    assert (empty.status, empty.content) == (200, b"")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert (sim.billing_log.totals.fault, sim.billing_log.totals.prompt_tokens) == (2, 0)


@STREAMS
async def test_an_error_object_comes_with_status_200(sim, speaker, stream):
    answer = await speaker.ask(sim, "body=error,after_tokens=2", stream=stream)
    assert answer.status == 200
    last = speaker.events(answer.body)[-1] if stream else answer.json
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
async def test_usage_is_told_wrongly_while_the_books_keep_the_truth(sim, speaker, usage, check, stream):
    told = speaker.told(await speaker.ask(sim, f"usage={usage},completion_tokens=9", stream=stream), stream=stream)
    call = only_call(sim)
    assert (call.outcome, call.prompt_tokens, call.completion_tokens) == ("complete", 6, 9)
    assert check(told.prompt, 6)
    assert check(told.completion, 9)


async def test_a_stream_without_its_end_has_all_of_the_text(sim, speaker):
    answer = await speaker.ask(sim, "done=missing,completion_tokens=9", stream=True)
    is_array = answer.body.startswith(b"[")
    told = speaker.streamed(speaker.events(answer.body + b"]" * is_array))
    assert text_tokens(told.text) == 9
    assert speaker.end not in answer.body
    assert only_call(sim).outcome == "complete"


@STREAMS
async def test_a_slow_drip_arrives_whole(sim, speaker, stream):
    answer = await speaker.ask(sim, "drip_bytes_per_second=60000,completion_tokens=2", stream=stream)
    assert text_tokens(speaker.told(answer, stream=stream).text) == 2
    assert (only_call(sim).outcome, only_call(sim).fault) == ("complete", "drip")


@STREAMS
async def test_a_wrong_length_is_announced(sim, speaker, stream):
    long = await speaker.ask(sim, "content_length=long", stream=stream)
    assert len(long.content) + 64 == int(long.headers["content-length"])
    short = await speaker.ask(sim, "content_length=short", stream=stream)
    assert len(short.content) // 2 == int(short.headers["content-length"])
    assert sim.billing_log.totals.fault == 2


@STREAMS
async def test_a_huge_answer_has_so_many_megabytes_whatever_the_limit(sim, speaker, stream):
    answer = await speaker.ask(sim, "huge_mb=1", stream=stream)
    told = speaker.told(answer, stream=stream)
    assert told.completion == text_tokens(told.text) == only_call(sim).completion_tokens == 1024 * 1024 // 4


@STREAMS
async def test_gzip_comes_uninvited(sim, speaker, stream):
    answer = await speaker.ask(sim, "encoding=gzip", stream=stream)
    assert answer.headers["content-encoding"] == "gzip"
    plain = gzip.decompress(answer.body)
    assert speaker.end in plain if stream else json.loads(plain)
    assert only_call(sim).outcome == "complete"


@STREAMS
async def test_a_refusal_is_marked_as_the_dialect_does(sim, speaker, stream):
    answer = await speaker.ask(sim, "refusal=true,completion_tokens=6", stream=stream)
    mark = {"anthropic_messages": b'"stop_reason":"refusal"', "gemini_generate": b'"finishReason":"SAFETY"'}
    assert mark.get(speaker.dialect, b'"refusal":"') in answer.body
    made = 0 if speaker.dialect == "gemini_generate" else 6
    assert only_call(sim).completion_tokens == only_call(sim).delivered_tokens == made


async def test_a_client_that_leaves_is_billed_what_it_got(sim, speaker, connect_with):
    simulate = "stall=body,after_tokens=5,completion_tokens=50"
    reader, writer = await connect_with(sim, speaker.url(stream=True), speaker.body(simulate, stream=True))
    for _ in range(5):
        await reader.readuntil(MADE_A_TOKEN[speaker.dialect])
    writer.close()
    await sim.billing_log.wait_until(lambda log: log.totals.cancelled == 1)
    call = only_call(sim)
    assert (call.prompt_tokens, call.completion_tokens, call.delivered_tokens) == (6, 5, 5)


async def test_a_stream_tells_its_cost_where_the_dialect_has_room(speaker):
    prices = {name: Price(Decimal("2.5"), Decimal("0.0000001")) for name in ("gpt-4.1", "claude-sonnet-4.5")}
    async with Simulator(prices=prices, completion_tokens=Spread.fixed(7)) as sim:
        whole = await speaker.ask(sim)
        streamed = await speaker.ask(sim, stream=True)
    priced = speaker.dialect != "gemini_generate"
    assert whole.headers.get("x-cost-usd") == ("0.0000150000007" if priced else None)
    assert (b'"cost":0.0000150000007' in streamed.body) == priced
    assert "x-cost-usd" not in streamed.headers


async def test_every_call_carries_the_id_in_the_books(sim, speaker):
    answer = await speaker.ask(sim)
    name = "request-id" if speaker.dialect == "anthropic_messages" else "x-request-id"
    assert answer.headers[name] == only_call(sim).request_id
