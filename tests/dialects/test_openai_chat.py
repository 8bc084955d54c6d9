"""The chat dialect on bodies as providers send them, and on requests as callers should and should not."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.dialects import openai_chat
from mcpmeter.dialects.base import UnreadableResponse
from mcpmeter.dialects.json_body import MAX_MODEL_NAME_LENGTH
from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.errors import InvalidRequest, LedgerUnavailable, UpstreamDisconnected

GOLDEN = Path(__file__).parents[1] / "golden" / "openai_chat"
EXPECTED: dict[str, dict[str, Any]] = json.loads((GOLDEN / "expected.json").read_text())
CHAT = OpenAiChat()
MESSAGES = b'"messages":[{"role":"user","content":"Hello"}]'


def refusal(body: bytes) -> str:
    with pytest.raises(InvalidRequest) as refused:
        CHAT.read_request(body)
    return str(refused.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"<html>",
        b"[]",
        b'"text"',
        b"null",
        b"{}",
        b'{"choices":"none"}',
        b'{"choices":[{"finish_reason":7}]}',
        b'{"object":"error","message":"too long"}',
        b'{"choices":[{}]',
        b"{" * 200_000,
        b'{"choices":[{}],"model":"\xff"}',
    ],
    ids=lambda value: repr(value[:48]),
)
def test_what_is_no_chat_completion_is_not_taken_for_one(body):
    with pytest.raises(UnreadableResponse):
        CHAT.read_response(body)


def test_an_answer_that_only_python_would_parse_is_still_metered():
    choice = b'{"message":{"content":"\\ud83d"},"logprobs":NaN}'
    body = b'{"choices":[%s],"usage":{"prompt_tokens":3,"completion_tokens":2}}' % choice
    assert CHAT.read_response(body).usage.completion_tokens == 2
    assert CHAT.completion_tokens(body) == 1


@pytest.mark.parametrize("empty", [b"null", b"false", b"{}", b'""'])
def test_an_empty_error_field_is_no_error(empty):
    assert not CHAT.read_response(b'{"choices":[{"finish_reason":"stop"}],"error":%s}' % empty).is_error


def test_a_providers_words_are_bounded_and_printable_before_they_reach_a_row():
    body = json.dumps({"choices": [{"finish_reason": "st\nop\0"}], "model": "m" * 10_000}).encode()
    read = CHAT.read_response(body)
    assert (read.finish_reason, len(read.model)) == ("st?op?", 256)


@pytest.mark.parametrize(
    ("message", "is_refusal", "is_empty"),
    [
        (b'{"content":"Hello"}', False, False),
        (b'{"content":" "}', False, False),
        (b'{"content":[{"type":"text","text":"Hello"}]}', False, False),
        (b'{"content":null,"tool_calls":[{"id":"call_1"}]}', False, False),
        (b'{"content":null,"function_call":{"name":"f"}}', False, False),
        (b'{"content":null,"audio":{"id":"audio_1"}}', False, False),
        (b'{"content":"","images":[{"image_url":{}}]}', False, False),
        (b'{"content":null,"refusal":"No."}', True, False),
        (b'{"content":null,"refusal":null,"tool_calls":[]}', False, True),
        (b'{"content":"","refusal":""}', False, True),
        (b'{"content":[],"reasoning_content":"Hm."}', False, True),
        (b'{"content":[{"type":"thinking","thinking":[{"type":"text","text":"Hm."}]}]}', False, True),
        (b'{"content":[{"type":"thinking","thinking":[]},{"type":"text","text":"4"}]}', False, False),
        (b'{"content":[{"type":"of tomorrow"}]}', False, False),
        (b'{"content":[{"type":7}]}', False, False),
        (b"{}", False, True),
        (b"null", False, True),
        (b"7", False, False),
        (b'{"content":7}', False, False),
    ],
)
def test_an_answer_is_called_empty_or_a_refusal_only_where_it_is(message, is_refusal, is_empty):
    read = CHAT.read_response(b'{"choices":[{"message":%s,"finish_reason":"stop"}]}' % message)
    assert (read.is_refusal, read.is_empty) == (is_refusal, is_empty)
    event = b'data: {"choices":[{"delta":%s,"finish_reason":"stop"}]}\n\n' % message
    assert CHAT.read_events(event).is_refusal == is_refusal
    assert CHAT.has_content(event) != is_empty


def test_messages_in_place_of_one_message_are_neither_called_empty_nor_left_out_of_an_estimate():
    body = b'{"choices":[{"messages":[{"content":"12345678"},{"content":"12345678"}],"finish_reason":"stop"}]}'
    assert not CHAT.read_response(body).is_empty
    assert CHAT.completion_tokens(body) == pytest.approx(4, abs=1)


@pytest.mark.parametrize("content", [b'"Hel"', b'""', b"null"])
def test_an_answer_that_broke_off_is_an_error_whatever_it_holds(content):
    choice = b'{"message":{"content":%s},"finish_reason":"error"}' % content
    read = CHAT.read_response(b'{"choices":[%s],"usage":{"prompt_tokens":3,"completion_tokens":2}}' % choice)
    assert (read.is_error, read.is_empty, read.usage.completion_tokens) == (True, False, 2)


@pytest.mark.parametrize("odd", [b"7", b"[]", b'"x"', b'{"usage":7}', b'{"usage":{"dram_cached_tokens":4}}', b"null"])
def test_what_groq_tells_beside_the_answer_does_not_spoil_it(odd):
    read = CHAT.read_response(b'{"choices":[{"message":{"content":""}}],"x_groq":%s}' % odd)
    assert (read.usage, read.bad_usage, read.is_error) == (None, False, False)


def test_an_answer_of_several_choices_is_empty_if_all_of_them_are():
    silent, spoken = b'{"message":{"content":""}}', b'{"message":{"content":"Hello"}}'
    assert CHAT.read_response(b'{"choices":[%s,%s]}' % (silent, silent)).is_empty
    assert not CHAT.read_response(b'{"choices":[%s,%s]}' % (silent, spoken)).is_empty
    assert CHAT.read_response(b'{"choices":[]}').is_empty


@pytest.mark.parametrize("body", [b'{"choices":[],"error":{"message":"No."}}', b'{"error":"No."}', b'{"usage":{}}'])
def test_an_error_is_no_empty_answer(body):
    assert not CHAT.read_response(body).is_empty


@pytest.mark.parametrize("block", [b"", b": comment\n\n", b"data: [DONE]\n\n", b'data: {"choices":7}\n\n'])
def test_events_without_choices_have_no_content(block):
    assert not CHAT.has_content(block)


# Requests -------------------------------------------------------------------------------------------------------------


def test_what_is_metered_is_read_and_nothing_else_is_judged():
    asked = CHAT.read_request(
        b'{"model":"gpt-4.1",%s,"stream":true,"stream_options":{"include_usage":true},"new":[1]}' % MESSAGES
    )
    assert (asked.model, asked.stream, asked.usage_requested) == ("gpt-4.1", True, True)
    assert asked.prompt_tokens_estimate > 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "not a chat completion"),
        (b"1", "not a chat completion"),
        (b"{}", "`messages`"),
        (b'{"messages":[]}', "'messages' is empty"),
        (b'{"messages":null}', "$.messages"),
        (b'{"messages":"Hello"}', "messages"),
        (b'{"messages":{"role":"user"}}', "messages"),
        (b'{"messages":["Hello"]}', "$.messages[0]"),
        (b'{"messages":[{"content":"Hello"}]}', "`role`"),
        (b'{"messages":[{"role":"user","content":7}]}', "content"),
        (b'{"model":7,%s}' % MESSAGES, "$.model"),
        (b'{"model":"",%s}' % MESSAGES, "'model' is empty"),
        (b'{"model":" ",%s}' % MESSAGES, "'model' is empty"),
        (b'{"model":"%s",%s}' % (b"m" * (MAX_MODEL_NAME_LENGTH + 1), MESSAGES), "'model' is longer"),
        (b'{"model":"a\\nb",%s}' % MESSAGES, "control characters"),
        (b'{"stream":"yes",%s}' % MESSAGES, "$.stream"),
        (b'{"stream_options":true,%s}' % MESSAGES, "$.stream_options"),
        (b'\xef\xbb\xbf{"model":"m",%s}' % MESSAGES, "not valid JSON"),
        (b'{"x":"\xff",%s}' % MESSAGES, "not valid UTF-8"),
        (b'{"x":"\xed\xa0\x80",%s}' % MESSAGES, "not valid UTF-8"),
        (b'{"x":"\\ud800",%s}' % MESSAGES, "not valid JSON"),
        (b'{"x":["\\udc00\\ud800"],%s}' % MESSAGES, "not valid JSON"),
        (b'{"x":"\\u0000",%s}' % MESSAGES, "NUL"),
        (b'{"a\\u0000":1,%s}' % MESSAGES, "NUL"),
        (b'{"x":"\0",%s}' % MESSAGES, "not valid JSON"),
        (b'{"x":' * 1_000_000, "nested too deep"),
        (b"[" * 1_000_000, "chat completion"),
        (b'{"messages":' + b"[" * 1_000_000, ""),
        (b'{"model":"a","model":"b",%s}' % MESSAGES, "'model' twice"),
        (b'{"model":"a","mod\\u0065l":"b",%s}' % MESSAGES, "'model' twice"),
        (b'{"stream":false,"stream":true,%s}' % MESSAGES, "'stream' twice"),
        (b"{%s,%s}" % (MESSAGES, MESSAGES), "'messages' twice"),
    ],
    ids=lambda value: repr(value[:48]),
)
def test_a_bad_request_is_refused_in_a_sentence_that_repeats_none_of_it(body, words):
    assert words in refusal(body)


def test_names_that_only_occur_deeper_down_are_not_taken_for_repeated():
    body = b'{"model":"m",%s,"tools":[{"model":{"model":1,"stream":2}}],"stream":true}' % MESSAGES
    assert CHAT.read_request(body).model == "m"


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_a_request_or_refused(body):
    with contextlib.suppress(InvalidRequest):
        assert CHAT.read_request(body).prompt_tokens_estimate > 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(["model", "messages", "stream", "stream_options", "tools", "metadata"]) | st.text(max_size=5),
        json_values,
        max_size=6,
    )
)
def test_any_object_is_a_request_or_refused(value):
    body = json.dumps(value).encode()
    with contextlib.suppress(InvalidRequest):
        asked = CHAT.read_request(body)
        assert CHAT.read_request(CHAT.forwarded(body, asked, asked.model or "other")).model


# What goes upstream ---------------------------------------------------------------------------------------------------


def forwarded(body: bytes, model: str | None = None) -> bytes:
    asked = CHAT.read_request(body)
    return CHAT.forwarded(body, asked, asked.model if model is None else model)


ODD = (
    b'{ "model" : "gpt-4.1",\n\t%s , "temperature":1.0e0, "seed":12345678901234567890, "x":{"b":1,"a":2 } }' % MESSAGES
)


@pytest.mark.parametrize(
    "body",
    [
        ODD,
        ODD.replace(b'"x"', b'"stream":true,"stream_options":{"include_usage":true},"x"'),
        ODD.replace(b"1.0e0", b"NaN1"),
    ],
)
def test_a_request_that_asks_for_its_usage_goes_on_byte_for_byte(body):
    if b"NaN1" in body:
        assert "not valid JSON" in refusal(body)
    else:
        assert forwarded(body) == body


def test_a_stream_is_asked_for_its_usage_by_an_insertion_alone():
    body = ODD.replace(b'"x"', b'"stream":true,"x"')
    assert forwarded(body) == b'{"stream_options":{"include_usage":true},' + body[1:]


@pytest.mark.parametrize(
    "told", [b"null", b"{}", b'{"include_usage":false}', b'{"include_usage":null,"include_obfuscation":false}']
)
def test_stream_options_of_the_caller_are_kept_beside_the_usage(told):
    body = b'{"model":"m",%s,"stream":true,"stream_options":%s,"n":1.50}' % (MESSAGES, told)
    sent = forwarded(body)
    assert json.loads(sent) == {
        **json.loads(body),
        "stream_options": {**(json.loads(told) or {}), "include_usage": True},
    }
    assert b'"n":1.50' in sent
    assert MESSAGES in sent


def test_a_prefixed_model_goes_on_under_the_providers_own_name_and_nothing_else_changes():
    body = ODD.replace(b"gpt-4.1", b"holysheep/gpt-4.1")
    sent = forwarded(body, "gpt-4.1")
    assert json.loads(sent) == json.loads(ODD)
    for value in (b"1.0e0", b"12345678901234567890", b'{"b":1,"a":2 }'):
        assert value in sent


@pytest.mark.parametrize("body", [b"{%s}" % MESSAGES, b'{"model":null,%s}' % MESSAGES])
def test_the_default_model_is_named_where_the_caller_named_none(body):
    assert json.loads(forwarded(body, "deepseek-v3.2")) == {
        "model": "deepseek-v3.2",
        "messages": [{"role": "user", "content": "Hello"}],
    }


# Estimates ------------------------------------------------------------------------------------------------------------


def test_a_prompt_is_estimated_from_its_texts_and_tools():
    plain = CHAT.prompt_tokens(b'{"messages":[{"role":"user","content":"12345678"}]}')
    assert plain == pytest.approx(2 + 1 + 4, abs=1)
    with_tools = b'{"messages":[{"role":"user","content":"12345678"}],"tools":[{"function":{"name":"%s"}}]}' % (
        b"t" * 400
    )
    assert CHAT.prompt_tokens(with_tools) == pytest.approx(plain + 100, abs=2)


@pytest.mark.parametrize("name", ["answer.json", "answer_tool_calls.json", "answer_refusal.json", "answer_n2.json"])
def test_an_answer_is_estimated_near_what_was_billed(name):
    billed = EXPECTED[name]["usage"]["completion_tokens"]
    assert billed / 2 <= CHAT.completion_tokens((GOLDEN / name).read_bytes()) <= billed * 2


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        (b'{"content":"","reasoning":"%s"}', 100),
        (b'{"content":"","reasoning_content":"%s"}', 100),
        (b'{"reasoning":"%s","reasoning_content":"the same again"}', 4),
        (b'{"content":[{"type":"thinking","thinking":[{"type":"text","text":"%s"}]}]}', 100),
        (b'{"content":[{"type":"thinking","thinking":"%s"}]}', 100),
        (b'{"content":[{"type":"text","text":"%s"},7]}', 100),
        (b'{"content":[{"type":"thinking","thinking":[{"type":"text","text":7}]}],"refusal":"%s"}', 100),
        (b'{"content":[{"type":"image_url","image_url":{"url":"%s"}}]}', 0),
    ],
)
def test_what_was_thought_is_estimated_too_and_once_and_without_what_its_parts_are_called(said, tokens):
    choice = said % (b"four" * 100)
    assert CHAT.completion_tokens(b'{"choices":[{"message":%s}]}' % choice) == pytest.approx(tokens, abs=1)
    event = b'data: {"choices":[{"delta":%s}]}\n\n' % choice
    assert CHAT.delivered_tokens([event]) == pytest.approx(tokens, abs=1)


@pytest.mark.parametrize(
    "answer", [b"", b"{}", b"[]", b'{"choices":7}', b'{"choices":[7,{"message":7}]}', b"{" * 100_000]
)
def test_what_holds_no_text_is_estimated_as_nothing(answer):
    assert CHAT.completion_tokens(answer) == 0


def test_a_picture_in_a_prompt_is_not_priced_by_its_letters():
    picture = b"data:image/png;base64," + b"A" * 40_000
    body = b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"%s"}}]}]}' % picture
    assert CHAT.prompt_tokens(body) < 20


# Errors ---------------------------------------------------------------------------------------------------------------


def test_no_header_that_names_an_account_or_carries_a_key_goes_upstream():
    assert CHAT.passed_headers == {b"openai-beta"}
    assert CHAT.path_name(CHAT.read_request(b"{%s}" % MESSAGES)) == "chat"


def test_an_error_has_openais_shape_an_id_and_a_sentence():
    error = json.loads(CHAT.error_body(LedgerUnavailable("The disk is full.", hint="Make room."), "call_1"))["error"]
    assert error == {
        "message": "The disk is full. Make room.",
        "type": "api_error",
        "param": None,
        "code": "ledger_unavailable",
        "call_id": "call_1",
    }


def test_an_error_inside_a_stream_is_one_event_of_the_same_shape():
    event = CHAT.error_event(UpstreamDisconnected("It ended."), "call_1")
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert json.loads(event[6:])["error"]["code"] == "upstream_broke"


WRONG = st.sampled_from(["null", "0", "-1", "1.5", '"x"', "{}", "[]", "true", "1e400", '"\\u0000"'])
COUNTS = st.sampled_from(["0", "3", "70"])


def objects(**fields: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """JSON objects in which any of the fields may be missing, or be something else."""
    parts = [st.none() | values.map(lambda value, name=name: f'"{name}":{value}') for name, values in fields.items()]
    return st.tuples(*parts).map(lambda told: f"{{{','.join(filter(None, told))}}}")


TEXTS = st.sampled_from(['"hello"', '"a"', '""', "null"])
PARTS = st.sampled_from(['[{"type":"thinking","thinking":[]}]', '[{"type":"text","text":"a"}]', '[{"type":1}]'])
SAID = objects(content=TEXTS | PARTS | WRONG, refusal=TEXTS, tool_calls=st.sampled_from(["[]", "[{}]"]))
USAGES = objects(
    prompt_tokens=COUNTS | WRONG,
    completion_tokens=COUNTS | WRONG,
    total_tokens=COUNTS | WRONG,
    prompt_tokens_details=objects(cached_tokens=COUNTS | WRONG, audio_tokens=COUNTS) | WRONG,
    completion_tokens_details=objects(reasoning_tokens=COUNTS | WRONG, audio_tokens=COUNTS) | WRONG,
    prompt_cache_hit_tokens=COUNTS | WRONG,
    num_cached_tokens=COUNTS | WRONG,
    cached_tokens=COUNTS | WRONG,
    prompt_audio_seconds=COUNTS | WRONG,
    cost=st.sampled_from(["0.001", '"0.2"', '{"total_cost":3}', "null", "-1"]),
)
ENDS = st.sampled_from(['"stop"', '"error"', "null", "1"])
CHOICES = st.lists(objects(message=SAID | WRONG, finish_reason=ENDS), max_size=2)
ANSWERS = objects(
    model=st.sampled_from(['"gpt"', "null", "1"]),
    choices=CHOICES.map(lambda choices: f"[{','.join(choices)}]") | WRONG,
    usage=USAGES | WRONG,
    error=st.sampled_from(["null", "{}", '{"message":"down"}', "false"]),
)
USUAL = '{"choices":[{"message":{"content":"hello","refusal":null},"finish_reason":"stop"}],"model":"gpt","usage":%s}'


def read_or_refused(body: bytes) -> object:
    try:
        return CHAT.read_response(body)
    except UnreadableResponse:
        return "no answer"


@given((ANSWERS | USAGES.map(USUAL.__mod__)).map(str.encode))
def test_an_answer_read_in_one_decoding_says_what_it_says_piece_by_piece(body):
    told = read_or_refused(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_chat, "_read_common", lambda body: None)
        assert read_or_refused(body) == told


def test_an_answer_as_most_are_is_read_in_one_decoding(monkeypatch):
    usage = '{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":2}}'
    monkeypatch.setattr(openai_chat, "_decoded", None)
    read = CHAT.read_response((USUAL % usage).encode())
    assert (read.usage.prompt_tokens, read.usage.cached_read_tokens, read.finish_reason) == (9, 2, "stop")
