"""Every fault as it looks from outside, and what the books say about it."""

import gzip
import json

import pytest

from mcpmeter.simulator import Fault, Simulator

BOTH = pytest.mark.parametrize("stream", [False, True])


def only_call(sim):
    (call,) = sim.billing_log.calls()
    assert sim.billing_log.open_calls == 0
    return call


@BOTH
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 413, 418, 422, 429, 500, 503, 529, 599])
async def test_a_status_comes_with_the_error_object(sim, post, status, stream):
    answer = await post(f"status={status}", stream=stream)
    assert answer.status == status
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["content-type"] == "application/json"
    call = only_call(sim)
    assert (call.outcome, call.fault, call.prompt_tokens, call.completion_tokens) == ("fault", "status", 0, 0)


@pytest.mark.parametrize("status", [502, 504, 520, 524])
async def test_a_gateways_status_comes_with_a_page(post, status):
    answer = await post(f"status={status}")
    assert answer.status == status
    assert answer.headers["content-type"].startswith("text/html")
    assert b"<html>" in answer.body


async def test_other_statuses_are_answered_too(post):
    assert (await post("status=204")).content == b""
    assert (await post("status=302")).headers["location"]
    assert (await post("status=200")).json == {}


@pytest.mark.parametrize(("given", "header"), [("2", "2"), ("0.5", "0.5"), ("3600", "3600")])
async def test_retry_after_is_told_in_seconds(post, given, header):
    assert (await post(f"status=429,retry_after={given}")).headers["retry-after"] == header


@BOTH
async def test_a_reset_before_the_headers_sends_nothing(sim, post, stream):
    answer = await post("reset=headers", stream=stream)
    assert (answer.received, answer.was_reset) == (b"", True)
    assert (only_call(sim).outcome, only_call(sim).prompt_tokens) == ("fault", 0)


async def test_a_reset_in_the_body_cuts_a_whole_answer_in_half(sim, post):
    answer = await post("reset=body")
    assert answer.was_reset
    assert len(answer.content) == int(answer.headers["content-length"]) // 2
    call = only_call(sim)
    assert call.outcome == "fault"
    assert call.completion_tokens > 0 == call.delivered_tokens


@pytest.mark.parametrize("after", [0, 1, 7])
async def test_a_reset_in_the_body_ends_a_stream_after_so_many_tokens(sim, post, after):
    answer = await post(f"reset=body,after_tokens={after},completion_tokens=20", stream=True)
    assert answer.was_reset
    assert sum(1 for chunk in answer.chunks if chunk["choices"][0]["delta"].get("content")) == after
    call = only_call(sim)
    assert (call.outcome, call.completion_tokens, call.delivered_tokens) == ("fault", after, after)


@BOTH
async def test_a_reset_inside_a_chunk_leaves_the_chunk_unfinished(post, stream):
    answer = await post("reset=chunk", stream=stream)
    assert answer.was_reset
    assert answer.content.rpartition(b"\r\n")[0].endswith(b"\r\n1000")


@BOTH
@pytest.mark.parametrize("where", ["headers", "body"])
async def test_a_stall_that_ends_is_followed_by_the_whole_answer(sim, post, where, stream):
    answer = await post(f"stall={where},stall_seconds=0.01", stream=stream)
    assert answer.status == 200
    assert (answer.events[-1] == b"[DONE]") if stream else answer.json["usage"]
    assert (only_call(sim).outcome, only_call(sim).fault) == ("complete", "stall")


async def test_malformed_json_is_half_an_answer_with_its_right_length(sim, post):
    answer = await post("body=malformed_json")
    assert len(answer.content) == int(answer.headers["content-length"])
    with pytest.raises(json.JSONDecodeError):
        _ = answer.json
    assert only_call(sim).outcome == "fault"


async def test_malformed_json_is_one_broken_event_of_a_stream(post):
    answer = await post("body=malformed_json", stream=True)
    broken = []
    for event in answer.events[:-1]:
        try:
            json.loads(event)
        except json.JSONDecodeError:
            broken.append(event)
    assert len(broken) == 1
    assert answer.events[-1] == b"[DONE]"


@BOTH
async def test_malformed_sse_is_not_what_was_asked_for(sim, post, stream):
    answer = await post("body=malformed_sse", stream=stream)
    assert answer.status == 200
    if stream:
        assert b"\xff\xfe" in answer.body
        assert b"data\n\n" in answer.body
    else:
        assert answer.headers["content-type"] == "application/json"
        assert answer.body.startswith(b"data: {")
    assert only_call(sim).outcome == "fault"


@BOTH
async def test_an_empty_body_has_status_200(sim, post, stream):
    answer = await post("body=empty", stream=stream)
    assert (answer.status, answer.content) == (200, b"")
    assert (only_call(sim).outcome, only_call(sim).prompt_tokens) == ("fault", 0)


@BOTH
async def test_a_page_with_status_200(post, stream):
    answer = await post("body=html", stream=stream)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert b"maintenance" in answer.body


@BOTH
async def test_an_error_object_with_status_200(sim, post, stream):
    answer = await post("body=error", stream=stream)
    assert answer.status == 200
    error = json.loads(answer.events[-1]) if stream else answer.json
    assert error["error"]["type"] == "server_error"
    assert only_call(sim).outcome == "fault"


@BOTH
@pytest.mark.parametrize(
    ("usage", "check"),
    [
        ("zero", lambda value, truth: value == 0),
        ("negative", lambda value, truth: value == -truth - 1),
        ("string", lambda value, truth: value == str(truth)),
        ("nan", lambda value, truth: value != value),
        ("overflow", lambda value, truth: value == float("inf")),
    ],
)
async def test_usage_is_told_wrongly_while_the_books_keep_the_truth(sim, post, usage, check, stream):
    answer = await post(f"usage={usage},completion_tokens=9", stream=stream)
    (told,) = answer.usages if stream else [answer.json["usage"]]
    call = only_call(sim)
    assert (call.outcome, call.prompt_tokens, call.completion_tokens) == ("complete", 6, 9)
    assert check(told["completion_tokens"], 9)
    assert check(told["prompt_tokens"], 6)
    assert check(told["total_tokens"], 15)


@BOTH
async def test_usage_is_missing(sim, post, stream):
    answer = await post("usage=missing", stream=stream)
    assert (answer.usages == []) if stream else "usage" not in answer.json
    assert only_call(sim).completion_tokens > 0


async def test_usage_comes_twice(post):
    assert len((await post("usage=twice", stream=True)).usages) == 2
    assert (await post("usage=twice")).body.count(b'"usage":{') == 2


@pytest.mark.parametrize("asked", [False, True])
async def test_usage_comes_in_the_last_chunk_with_choices(post, asked):
    more = {"stream_options": {"include_usage": asked}, "stream": True}
    answer = await post("usage=with_choices", **more)
    with_usage = [chunk for chunk in answer.chunks if chunk.get("usage")]
    assert len(with_usage) == 1
    assert with_usage[0] == answer.chunks[-1]
    assert with_usage[0]["choices"][0]["finish_reason"] == "stop"


async def test_done_is_missing_and_all_else_is_there(sim, post):
    answer = await post("done=missing", stream=True)
    assert b"[DONE]" not in answer.body
    assert len(answer.usages) == 1
    assert only_call(sim).outcome == "complete"


@BOTH
async def test_a_slow_drip_arrives_whole(sim, post, stream):
    answer = await post("drip_bytes_per_second=40000,completion_tokens=2", stream=stream)
    assert (answer.usages[0] if stream else answer.json["usage"])["completion_tokens"] == 2
    assert (only_call(sim).outcome, only_call(sim).fault) == ("complete", "drip")


@BOTH
async def test_more_is_announced_than_sent(sim, post, stream):
    answer = await post("content_length=long", stream=stream)
    assert len(answer.content) + 64 == int(answer.headers["content-length"])
    assert only_call(sim).outcome == "fault"


@BOTH
async def test_more_is_sent_than_announced(sim, post, stream):
    answer = await post("content_length=short", stream=stream)
    assert len(answer.content) // 2 == int(answer.headers["content-length"])
    assert answer.content.endswith(b"[DONE]\n\n" if stream else b"}}}")
    assert only_call(sim).outcome == "fault"


@BOTH
async def test_a_huge_answer_has_so_many_megabytes_whatever_the_limit(sim, post, stream):
    answer = await post("huge_mb=2", stream=stream, max_tokens=5)
    told = answer.usages[0] if stream else answer.json["usage"]
    assert told["completion_tokens"] == only_call(sim).completion_tokens == 2 * 1024 * 1024 // 4
    assert len(answer.content) > 2 * 1024 * 1024


@BOTH
async def test_gzip_comes_uninvited(sim, post, stream):
    answer = await post("encoding=gzip", stream=stream)
    assert answer.headers["content-encoding"] == "gzip"
    plain = gzip.decompress(answer.body)
    assert plain.endswith(b"[DONE]\n\n") if stream else json.loads(plain)["usage"]
    assert only_call(sim).outcome == "complete"


async def test_faults_of_the_plan_happen_as_often_as_planned_and_repeatably(raw):
    statuses = []
    for _ in range(2):
        async with Simulator(seed=2, faults=[Fault(status=503, probability=0.3)]) as sim:
            body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
            statuses.append([(await raw(sim, body)).status for _ in range(200)])
            assert sim.billing_log.totals.fault == statuses[-1].count(503)
    assert statuses[0] == statuses[1]
    assert 40 <= statuses[0].count(503) <= 80


async def test_a_request_that_asks_for_a_fault_gets_that_one_and_not_the_plans(raw):
    async with Simulator(faults=[Fault(status=503)]) as sim:
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "metadata": {"simulate": "status=418"}}
        assert (await raw(sim, body)).status == 418


async def test_embeddings_fail_as_chat_does(sim, raw):
    body = {"model": "text-embedding-3-small", "input": "x", "dimensions": 2}
    for simulate, status in [("status=503", 503), ("usage=missing", 200)]:
        answer = await raw(sim, body | {"metadata": {"simulate": simulate}}, "/v1/embeddings")
        assert answer.status == status
        assert "usage" not in answer.json
