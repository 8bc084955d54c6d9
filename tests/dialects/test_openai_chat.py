"""The chat dialect: requests, responses and estimates that are its own."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.dialects import openai_chat
from mcpmeter.dialects.base import UnreadableResponse
from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.errors import InvalidRequest

CHAT = OpenAiChat()
MESSAGES = b'"messages":[{"role":"user","content":"Hello"}]'


def refusal(body: bytes) -> str:
    with pytest.raises(InvalidRequest) as refused:
        CHAT.read_request(body)
    return str(refused.value)


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices":"none"}',
        b'{"object":"error","message":"too long"}',
        b'{"choices":[{}]',
    ],
    ids=lambda value: repr(value[:48]),
)
def test_a_body_without_choices_is_unreadable(body):
    with pytest.raises(UnreadableResponse):
        CHAT.read_response(body)


@pytest.mark.parametrize("empty", [b"null", b"false", b"{}", b'""'])
def test_an_empty_error_field_is_no_error(empty):
    assert not CHAT.read_response(b'{"choices":[{"finish_reason":"stop"}],"error":%s}' % empty).is_error


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
def test_a_response_is_empty_or_a_refusal_only_if_it_is(message, is_refusal, is_empty):
    read = CHAT.read_response(b'{"choices":[{"message":%s,"finish_reason":"stop"}]}' % message)
    assert (read.is_refusal, read.is_empty) == (is_refusal, is_empty)
    event = b'data: {"choices":[{"delta":%s,"finish_reason":"stop"}]}\n\n' % message
    assert CHAT.read_events(event).is_refusal == is_refusal
    assert CHAT.has_content(event) != is_empty


def test_several_messages_in_one_choice_are_content():
    body = b'{"choices":[{"messages":[{"content":"12345678"},{"content":"12345678"}],"finish_reason":"stop"}]}'
    assert not CHAT.read_response(body).is_empty
    assert CHAT.completion_tokens(body) == pytest.approx(4, abs=1)


@pytest.mark.parametrize("content", [b'"Hel"', b'""', b"null"])
def test_the_finish_reason_error_is_an_error(content):
    choice = b'{"message":{"content":%s},"finish_reason":"error"}' % content
    read = CHAT.read_response(b'{"choices":[%s],"usage":{"prompt_tokens":3,"completion_tokens":2}}' % choice)
    assert (read.is_error, read.is_empty, read.usage.completion_tokens) == (True, False, 2)


@pytest.mark.parametrize("odd", [b"7", b"[]", b'"x"', b'{"usage":7}', b'{"usage":{"dram_cached_tokens":4}}', b"null"])
def test_an_odd_x_groq_does_not_spoil_the_response(odd):
    read = CHAT.read_response(b'{"choices":[{"message":{"content":""}}],"x_groq":%s}' % odd)
    assert (read.usage, read.bad_usage, read.is_error) == (None, False, False)


def test_several_choices_are_empty_if_each_of_them_is():
    silent, spoken = b'{"message":{"content":""}}', b'{"message":{"content":"Hello"}}'
    assert CHAT.read_response(b'{"choices":[%s,%s]}' % (silent, silent)).is_empty
    assert not CHAT.read_response(b'{"choices":[%s,%s]}' % (silent, spoken)).is_empty
    assert CHAT.read_response(b'{"choices":[]}').is_empty


@pytest.mark.parametrize("body", [b'{"choices":[],"error":{"message":"No."}}', b'{"error":"No."}', b'{"usage":{}}'])
def test_an_error_is_not_an_empty_response(body):
    assert not CHAT.read_response(body).is_empty


@pytest.mark.parametrize("block", [b"", b": comment\n\n", b"data: [DONE]\n\n", b'data: {"choices":7}\n\n'])
def test_events_without_choices_have_no_content(block):
    assert not CHAT.has_content(block)


# Requests ------------------------------------------------------------------------------------------------------------


def test_metered_fields_are_read_and_others_ignored():
    request = CHAT.read_request(
        b'{"model":"gpt-4.1",%s,"stream":true,"stream_options":{"include_usage":true},"new":[1]}' % MESSAGES
    )
    assert (request.model, request.stream, request.usage_requested) == ("gpt-4.1", True, True)
    assert request.prompt_tokens_estimate > 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "`messages`"),
        (b'{"messages":[]}', "'messages' is empty"),
        (b'{"messages":null}', "$.messages"),
        (b'{"messages":"Hello"}', "messages"),
        (b'{"messages":{"role":"user"}}', "messages"),
        (b'{"messages":["Hello"]}', "$.messages[0]"),
        (b'{"messages":[{"content":"Hello"}]}', "`role`"),
        (b'{"messages":[{"role":"user","content":7}]}', "content"),
        (b'{"model":"",%s}' % MESSAGES, "'model' is empty"),
        (b'{"stream":"yes",%s}' % MESSAGES, "$.stream"),
        (b'{"stream_options":true,%s}' % MESSAGES, "$.stream_options"),
        (b'{"stream":false,"stream":true,%s}' % MESSAGES, "'stream' twice"),
    ],
    ids=lambda value: repr(value[:48]),
)
def test_an_invalid_request_is_refused_by_field(body, words):
    assert words in refusal(body)


# What goes upstream --------------------------------------------------------------------------------------------------


def forwarded(body: bytes, model: str | None = None) -> bytes:
    request = CHAT.read_request(body)
    return CHAT.forwarded(body, request, request.model if model is None else model)


ODD = (
    b'{ "model" : "gpt-4.1",\n\t%s , "temperature":1.0e0, "seed":12345678901234567890, "x":{"b":1,"a":2 } }' % MESSAGES
)


@pytest.mark.parametrize(
    "body",
    [
        ODD,
        ODD.replace(b'"x"', b'"stream":true,"stream_options":{"include_usage":true},"x"'),
    ],
)
def test_a_request_that_requests_usage_passes_unchanged(body):
    assert forwarded(body) == body


def test_usage_is_requested_of_a_stream_by_an_insertion():
    body = ODD.replace(b'"x"', b'"stream":true,"x"')
    assert forwarded(body) == b'{"stream_options":{"include_usage":true},' + body[1:]


@pytest.mark.parametrize(
    "options", [b"null", b"{}", b'{"include_usage":false}', b'{"include_usage":null,"include_obfuscation":false}']
)
def test_the_callers_stream_options_are_kept(options):
    body = b'{"model":"m",%s,"stream":true,"stream_options":%s,"n":1.50}' % (MESSAGES, options)
    sent = forwarded(body)
    assert json.loads(sent) == {
        **json.loads(body),
        "stream_options": {**(json.loads(options) or {}), "include_usage": True},
    }
    assert b'"n":1.50' in sent
    assert MESSAGES in sent


def test_renaming_the_model_changes_nothing_else():
    body = ODD.replace(b"gpt-4.1", b"holysheep/gpt-4.1")
    sent = forwarded(body, "gpt-4.1")
    assert json.loads(sent) == json.loads(ODD)
    for value in (b"1.0e0", b"12345678901234567890", b'{"b":1,"a":2 }'):
        assert value in sent


@pytest.mark.parametrize("body", [b"{%s}" % MESSAGES, b'{"model":null,%s}' % MESSAGES])
def test_the_default_model_is_added_if_none_is_named(body):
    assert json.loads(forwarded(body, "deepseek-v3.2")) == {
        "model": "deepseek-v3.2",
        "messages": [{"role": "user", "content": "Hello"}],
    }


# Estimates -----------------------------------------------------------------------------------------------------------


def test_a_prompt_is_estimated_from_its_texts_and_tools():
    plain = CHAT.prompt_tokens(b'{"messages":[{"role":"user","content":"12345678"}]}')
    assert plain == pytest.approx(2 + 1 + 4, abs=1)
    with_tools = b'{"messages":[{"role":"user","content":"12345678"}],"tools":[{"function":{"name":"%s"}}]}' % (
        b"t" * 400
    )
    assert CHAT.prompt_tokens(with_tools) == pytest.approx(plain + 100, abs=2)


@pytest.mark.parametrize(
    ("message", "tokens"),
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
def test_thoughts_are_estimated_once_and_without_part_types(message, tokens):
    choice = message % (b"four" * 100)
    assert CHAT.completion_tokens(b'{"choices":[{"message":%s}]}' % choice) == pytest.approx(tokens, abs=1)
    event = b'data: {"choices":[{"delta":%s}]}\n\n' % choice
    assert CHAT.delivered_tokens([event]) == pytest.approx(tokens, abs=1)


@pytest.mark.parametrize("response", [b"{}", b'{"choices":7}', b'{"choices":[7,{"message":7}]}'])
def test_a_response_without_text_is_estimated_as_nothing(response):
    assert CHAT.completion_tokens(response) == 0


def test_a_picture_in_a_prompt_is_not_priced_by_its_length():
    picture = b"data:image/png;base64," + b"A" * 40_000
    body = b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"%s"}}]}]}' % picture
    assert CHAT.prompt_tokens(body) < 20


def test_only_the_beta_header_goes_upstream():
    assert CHAT.passed_headers == {b"openai-beta"}
    assert CHAT.path_name(CHAT.read_request(b"{%s}" % MESSAGES)) == "chat"


WRONG = st.sampled_from(["null", "0", "-1", "1.5", '"x"', "{}", "[]", "true", "1e400", '"\\u0000"'])
COUNTS = st.sampled_from(["0", "3", "70"])


def objects(**fields: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """JSON objects in which any of the fields may be missing, or be something else."""
    parts = [st.none() | values.map(lambda value, name=name: f'"{name}":{value}') for name, values in fields.items()]
    return st.tuples(*parts).map(lambda given: f"{{{','.join(filter(None, given))}}}")


TEXTS = st.sampled_from(['"hello"', '"a"', '""', "null"])
PARTS = st.sampled_from(['[{"type":"thinking","thinking":[]}]', '[{"type":"text","text":"a"}]', '[{"type":1}]'])
MESSAGE_OBJECTS = objects(content=TEXTS | PARTS | WRONG, refusal=TEXTS, tool_calls=st.sampled_from(["[]", "[{}]"]))
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
CHOICES = st.lists(objects(message=MESSAGE_OBJECTS | WRONG, finish_reason=ENDS), max_size=2)
RESPONSES = objects(
    model=st.sampled_from(['"gpt"', "null", "1"]),
    choices=CHOICES.map(lambda choices: f"[{','.join(choices)}]") | WRONG,
    usage=USAGES | WRONG,
    error=st.sampled_from(["null", "{}", '{"message":"down"}', "false"]),
)
COMMON = '{"choices":[{"message":{"content":"hello","refusal":null},"finish_reason":"stop"}],"model":"gpt","usage":%s}'


def read_or_refused(body: bytes) -> object:
    try:
        return CHAT.read_response(body)
    except UnreadableResponse:
        return "unreadable"


@given((RESPONSES | USAGES.map(COMMON.__mod__)).map(str.encode))
def test_the_common_form_reads_like_the_general_one(body):
    expected = read_or_refused(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_chat, "_read_common", lambda body: None)
        assert read_or_refused(body) == expected


def test_the_common_form_is_read_in_one_decoding(monkeypatch):
    usage = '{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":2}}'
    monkeypatch.setattr(openai_chat, "_decoded", None)
    read = CHAT.read_response((COMMON % usage).encode())
    assert (read.usage.prompt_tokens, read.usage.cached_read_tokens, read.finish_reason) == (9, 2, "stop")
