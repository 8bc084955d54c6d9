"""The responses dialect on requests as callers should and should not send them, and on answers that are odd."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.dialects.base import UnreadableResponse
from mcpmeter.dialects.json_body import MAX_MODEL_NAME_LENGTH
from mcpmeter.dialects.openai_responses import OpenAiResponses
from mcpmeter.dialects.tokens import MAX_TOKENS
from mcpmeter.errors import InvalidRequest, LedgerUnavailable, UpstreamDisconnected
from mcpmeter.records import Usage

GOLDEN = Path(__file__).parents[1] / "golden" / "openai_responses"
RESPONSES = OpenAiResponses()
INPUT = b'"input":"Hello"'


def event(kind: str, rest: str) -> bytes:
    return f'event: {kind}\ndata: {{"type":"{kind}",{rest}}}\n\n'.encode()


# Requests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"gpt-4.1","input":"Hello","stream":true,"background":true,"store":false,"new":[1]}',
        b'{"model":"gpt-4.1","input":[{"role":"user","content":"Hello"}],"stream":true}',
        b'{"model":"gpt-4.1","input":[{"type":"function_call_output","call_id":"c","output":"7"}],"stream":true}',
        b'{"model":"gpt-4.1","prompt":{"id":"pmpt_1"},"stream":true}',
        b'{"model":"gpt-4.1","previous_response_id":"resp_1","input":[],"stream":true}',
        b'{"model":"gpt-4.1","conversation":"conv_1","input":null,"stream":true}',
    ],
)
def test_what_is_metered_is_read_and_nothing_else_is_judged(body):
    asked = RESPONSES.read_request(body)
    assert (asked.model, asked.stream) == ("gpt-4.1", True)
    assert asked.prompt_tokens_estimate > 0
    assert RESPONSES.path_name(asked) == "responses"
    assert RESPONSES.forwarded(body, asked, "gpt-4.1") == body


def test_nothing_is_asked_for_that_would_have_to_be_withheld():
    asked = RESPONSES.read_request(b'{%s,"stream":true}' % INPUT)
    assert asked.usage_requested
    assert not RESPONSES.only_usage((GOLDEN / "stream_all_at_once.sse").read_bytes())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"[]", "not for a response"),
        (b"{}", "'input' is empty"),
        (b'{"input":""}', "'input' is empty"),
        (b'{"input":[]}', "'input' is empty"),
        (b'{"input":null,"previous_response_id":null}', "'input' is empty"),
        (b'{"input":7}', "$.input"),
        (b'{"input":{"role":"user"}}', "$.input"),
        (b'{"messages":[{"role":"user","content":"Hello"}]}', "'input' is empty"),
        (b'{"model":7,%s}' % INPUT, "$.model"),
        (b'{"model":" ",%s}' % INPUT, "'model' is empty"),
        (b'{"model":"%s",%s}' % (b"m" * (MAX_MODEL_NAME_LENGTH + 1), INPUT), "'model' is longer"),
        (b'{"stream":"yes",%s}' % INPUT, "$.stream"),
        (b'{"x":"\xff",%s}' % INPUT, "not valid UTF-8"),
        (b'{"x":"\\ud800",%s}' % INPUT, "not valid JSON"),
        (b'{"x":"\\u0000",%s}' % INPUT, "NUL"),
        (b'{"x":' * 1_000_000, "nested too deep"),
        (b'{"model":"a","model":"b",%s}' % INPUT, "'model' twice"),
        (b'{"stream":false,"str\\u0065am":true,%s}' % INPUT, "'stream' twice"),
        (b"{%s,%s}" % (INPUT, INPUT), "'input' twice"),
    ],
    ids=lambda value: repr(value[:48]),
)
def test_a_bad_request_is_refused_in_a_sentence_that_repeats_none_of_it(body, words):
    with pytest.raises(InvalidRequest) as refused:
        RESPONSES.read_request(body)
    assert words in str(refused.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(["model", "input", "stream", "prompt", "tools", "instructions", "background"])


@given(st.binary(max_size=200) | st.dictionaries(names | st.text(max_size=5), json_values, max_size=6))
def test_any_body_is_a_request_or_refused(value):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    with contextlib.suppress(InvalidRequest):
        asked = RESPONSES.read_request(body)
        assert RESPONSES.read_request(RESPONSES.forwarded(body, asked, asked.model or "other")).model
        assert RESPONSES.prompt_tokens(body) > 0


def test_another_model_is_named_and_no_other_value_is_touched():
    body = b'{"model":"openai/gpt-4.1",%s,"temperature":1.0e0,"seed":12345678901234567890}' % INPUT
    sent = RESPONSES.forwarded(body, RESPONSES.read_request(body), "gpt-4.1")
    assert sent == body.replace(b"openai/gpt-4.1", b"gpt-4.1")


# Answers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"{}",
        b'{"output":null}',
        b'{"status":"completed"}',
        b'{"choices":[]}',
        b"{" * 200_000,
    ],
    ids=lambda value: repr(value[:48]),
)
def test_what_is_no_response_is_not_taken_for_one(body):
    with pytest.raises(UnreadableResponse):
        RESPONSES.read_response(body)


NONE = (None, False)
BAD = (None, True)


def reported(prompt: int, completion: int, **details: int) -> tuple[Usage, bool]:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, source="reported", **details), False


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ("null", NONE),
        ("{}", NONE),
        ('{"input_tokens":0,"output_tokens":0}', reported(0, 0)),
        ('{"input_tokens":5,"output_tokens":2}', reported(5, 2)),
        ('{"input_tokens":5,"total_tokens":7}', reported(5, 2)),
        ('{"input_tokens":5}', BAD),
        ('{"output_tokens":5}', BAD),
        ('{"prompt_tokens":5,"completion_tokens":2}', BAD),
        ('{"input_tokens":-1,"output_tokens":2}', BAD),
        ('{"input_tokens":1.5,"output_tokens":2}', BAD),
        ('{"input_tokens":1e400,"output_tokens":2}', BAD),
        ('{"input_tokens":NaN,"output_tokens":2}', BAD),
        ('{"input_tokens":"5","output_tokens":2}', BAD),
        ('{"input_tokens":true,"output_tokens":2}', BAD),
        (f'{{"input_tokens":{MAX_TOKENS + 1},"output_tokens":2}}', BAD),
        ("[]", BAD),
        ("7", BAD),
        (
            '{"input_tokens":5,"output_tokens":2,"input_tokens_details":{"cached_tokens":9,"cache_write_tokens":9}}',
            reported(5, 2, cached_read_tokens=5),
        ),
        (
            '{"input_tokens":5,"output_tokens":2,"output_tokens_details":{"reasoning_tokens":9}}',
            reported(5, 2, reasoning_tokens=2),
        ),
        ('{"input_tokens":5,"output_tokens":2,"input_tokens_details":7,"output_tokens_details":[]}', reported(5, 2)),
    ],
)
def test_totals_are_taken_as_they_are_or_not_at_all_in_answers_and_events(usage, expected):
    response = f'{{"status":"completed","output":[],"usage":{usage}}}'
    for read in (
        RESPONSES.read_response(response.encode()),
        RESPONSES.read_events(event("response.completed", f'"response":{response}')),
    ):
        assert (read.usage, read.bad_usage) == expected


@pytest.mark.parametrize(
    ("fields", "finish_reason"),
    [
        ('"status":"completed"', "completed"),
        ('"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}', "max_output_tokens"),
        ('"status":"incomplete","incomplete_details":{"reason":null}', "incomplete"),
        ('"status":"incomplete","incomplete_details":null', "incomplete"),
        ('"status":"incomplete","incomplete_details":"why"', "incomplete"),
        ('"status":"cancelled"', "cancelled"),
        ('"status":"queued"', ""),
        ('"status":"in_progress"', ""),
        ('"status":"a\\nb"', "a?b"),
        ('"status":null', ""),
        ('"model":"m"', ""),
    ],
)
def test_why_an_answer_ended_is_its_status_or_the_reason_that_it_is_incomplete(fields, finish_reason):
    assert RESPONSES.read_response(f'{{{fields},"output":[]}}'.encode()).finish_reason == finish_reason


@pytest.mark.parametrize(
    ("output", "is_empty"),
    [
        ("[]", True),
        ('[{"type":"reasoning","summary":[]}]', True),
        ('[{"type":"message","content":[]}]', True),
        ('[{"type":"message","content":[{"type":"output_text","text":""}]}]', True),
        ('[{"type":"message","content":[{"type":"output_text","text":"Hi"}]}]', False),
        ('[{"type":"message","content":[{"type":"refusal","refusal":"No."}]}]', False),
        ('[{"type":"message","content":[{"type":"something_new"}]}]', False),
        ('[{"type":"message","content":"Hi"}]', False),
        ('[{"type":"function_call","name":"f","arguments":""}]', False),
        ('[{"type":"web_search_call"},{"type":"message","content":[]}]', False),
        ('[{"type":"something_new"}]', False),
        ("[7]", False),
        ("7", False),
    ],
)
def test_an_answer_is_called_empty_only_where_it_is(output, is_empty):
    done = f'{{"status":"completed","output":{output}}}'
    assert RESPONSES.read_response(done.encode()).is_empty == is_empty
    assert not RESPONSES.read_response(done.replace("completed", "in_progress").encode()).is_empty
    assert not RESPONSES.read_response(done.replace("completed", "failed").encode()).is_empty


@pytest.mark.parametrize(
    ("block", "has_content"),
    [
        (event("response.output_text.delta", '"delta":"Hi"'), True),
        (event("response.output_text.delta", '"delta":""'), False),
        (event("response.refusal.delta", '"delta":"No."'), True),
        (event("response.function_call_arguments.delta", '"delta":"{"'), True),
        (event("response.reasoning_summary_text.delta", '"delta":"Hm."'), False),
        (event("response.reasoning_text.delta", '"delta":"Hm."'), False),
        (event("response.audio.delta", '"delta":"UklGRg=="'), False),
        (event("response.output_item.added", '"item":{"type":"function_call","name":"f"}'), True),
        (event("response.output_item.added", '"item":{"type":"message","content":[]}'), False),
        (event("response.output_item.done", '"item":{"type":"reasoning"}'), False),
        (event("response.created", '"response":{"status":"in_progress","output":[]}'), False),
        (event("response.completed", '"response":{"output":[{"type":"web_search_call"}]}'), True),
        (b"data: <html>\n\n", False),
        (b"data: 7\n\n", False),
    ],
)
def test_content_is_text_or_a_tools_call_and_not_what_a_model_thinks(block, has_content):
    assert RESPONSES.has_content(block) == has_content


@pytest.mark.parametrize(
    ("payload", "is_end"),
    [
        (b'{"type":"response.completed","response":{}}', True),
        (b'{"type":"response.incomplete"}', True),
        (b'{"type":"response.failed","response":{}}', True),
        (b"[DONE]", True),
        (b'{"type":"response.created","response":{}}', False),
        (b'{"type":"error","message":"No."}', False),
        (b'{"type":"response.output_text.delta","delta":"response.completed"}', False),
        (b'{"type":7}', False),
        (b"<html>", False),
    ],
)
def test_the_end_is_the_event_that_carries_the_whole_answer(payload, is_end):
    assert RESPONSES.is_end(b"data: " + payload + b"\n\n") == is_end


@given(st.binary(max_size=100) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_event_breaks_the_reading(payload):
    block = b'event: "response" "error"\ndata: ' + payload + b"\n\n"
    RESPONSES.read_events(block)
    RESPONSES.has_content(block)
    RESPONSES.is_end(block)
    assert RESPONSES.delivered_tokens([block]) >= 0
    assert RESPONSES.completion_tokens(payload) >= 0


# Estimates -----------------------------------------------------------------------------------------------------------


def test_a_prompt_is_estimated_from_its_texts_and_tools_without_its_pictures():
    plain = RESPONSES.prompt_tokens(b'{"input":"12345678"}')
    assert plain == pytest.approx(2 + 4, abs=1)
    told = b'{"input":"12345678","instructions":"%s","tools":[{"name":"%s"}]}' % (b"i" * 400, b"t" * 400)
    assert RESPONSES.prompt_tokens(told) == pytest.approx(plain + 200, abs=2)
    picture = b'{"type":"input_image","image_url":"data:image/png;base64,%s"}' % (b"A" * 40_000)
    shown = b'{"input":[{"role":"user","content":[{"type":"input_text","text":"12345678"},%s]}]}' % picture
    assert RESPONSES.prompt_tokens(shown) < plain + 20


@pytest.mark.parametrize(
    "name", ["answer.json", "answer_tool_call.json", "answer_refusal.json", "answer_truncated.json"]
)
def test_an_answer_is_estimated_near_what_was_billed(name):
    body = (GOLDEN / name).read_bytes()
    billed = RESPONSES.read_response(body).usage.completion_tokens
    assert billed / 2 <= RESPONSES.completion_tokens(body) <= billed * 2


def test_pictures_and_ciphers_in_an_answer_are_no_text():
    assert RESPONSES.completion_tokens((GOLDEN / "answer_image.json").read_bytes()) == 0
    assert RESPONSES.completion_tokens((GOLDEN / "answer_reasoning.json").read_bytes()) < 12


def test_what_was_delivered_is_estimated_from_the_deltas_alone():
    blocks = [(GOLDEN / "stream_truncated.sse").read_bytes()]
    assert RESPONSES.delivered_tokens(blocks) == pytest.approx(len("Once upon a ti") / 4, abs=1)
    assert RESPONSES.delivered_tokens([event("response.audio.delta", f'"delta":"{"A" * 4000}"')]) == 0


# Errors --------------------------------------------------------------------------------------------------------------


def test_an_error_has_openais_shape_an_id_and_a_sentence():
    error = json.loads(RESPONSES.error_body(LedgerUnavailable("The disk is full.", hint="Make room."), "call_1"))[
        "error"
    ]
    assert (error["message"], error["code"]) == ("The disk is full. Make room.", "ledger_unavailable")
    assert error["call_id"] == "call_1"


def test_an_error_inside_a_stream_is_an_error_event():
    name, data, *rest = RESPONSES.error_event(UpstreamDisconnected("It ended."), "call_1").split(b"\n")
    assert (name, rest) == (b"event: error", [b"", b""])
    told = json.loads(data.removeprefix(b"data: "))
    assert (told["type"], told["error"]["code"]) == ("error", "upstream_broke")
    assert RESPONSES.read_events(data + b"\n\n").is_error
