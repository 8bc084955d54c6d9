"""The messages dialect: usage in parts, its stream, requests, estimates and errors that are its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mcpmeter import errors
from mcpmeter.dialects.anthropic_count_tokens import AnthropicCountTokens
from mcpmeter.dialects.anthropic_messages import AnthropicMessages
from mcpmeter.dialects.base import UnreadableResponse
from mcpmeter.dialects.sse import split_events
from mcpmeter.errors import InvalidRequest
from mcpmeter.records import Usage
from mcpmeter.relay.stream import StreamTee

GOLDEN = Path(__file__).parents[1] / "golden" / "anthropic_messages"
EXPECTED: dict[str, dict[str, Any]] = json.loads((GOLDEN / "expected.json").read_text())
MESSAGES = AnthropicMessages()
COUNT = AnthropicCountTokens()
LEAST = b'"messages":[{"role":"user","content":"Hello"}],"max_tokens":16'


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def pass_through(pieces: list[bytes]) -> tuple[bytes, StreamTee]:
    tee = StreamTee(MESSAGES, withhold_usage=False)
    out = b""
    for piece in pieces:
        out += tee.feed(piece)
        if tee.end:
            break
    return out + tee.finish() + tee.end, tee


# Responses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"content":"none"}',
        b'{"type":"message"}',
        b'{"choices":[{}]}',
        b'{"content":[{}]',
    ],
    ids=lambda value: repr(value[:48]),
)
def test_a_body_without_content_is_unreadable(body):
    with pytest.raises(UnreadableResponse):
        MESSAGES.read_response(body)


def usage_of(text: str) -> tuple[Usage | None, bool]:
    read = MESSAGES.read_response(b'{"content":[{"type":"text","text":"a"}],"usage":%s}' % text.encode())
    return read.usage, read.bad_usage


def reported(prompt: int, completion: int, **details: int) -> tuple[Usage, bool]:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, source="reported", **details), False


NONE = (None, False)
BAD = (None, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"input_tokens":0,"output_tokens":0}', reported(0, 0)),
        ('{"input_tokens":5,"output_tokens":0}', reported(5, 0)),
        (
            '{"input_tokens":0,"output_tokens":7,"cache_read_input_tokens":5}',
            reported(5, 7, cached_read_tokens=5),
        ),
        (
            '{"input_tokens":1,"output_tokens":7,"cache_read_input_tokens":5,"cache_creation_input_tokens":3}',
            reported(9, 7, cached_read_tokens=5, cache_write_tokens=3),
        ),
        ('{"input_tokens":1,"output_tokens":7,"cache_read_input_tokens":null}', reported(1, 7)),
        ('{"input_tokens":1,"output_tokens":7,"cache_read_input_tokens":-5}', BAD),
        ('{"input_tokens":1,"output_tokens":7,"cache_creation_input_tokens":"3"}', BAD),
        ('{"input_tokens":5}', BAD),
        ('{"output_tokens":5}', BAD),
        ('{"service_tier":"standard"}', BAD),
        ('{"prompt_tokens":1,"completion_tokens":2}', BAD),
        ('{"input_tokens":null,"output_tokens":5}', BAD),
    ],
)
def test_totals_are_read_as_reported_or_not_at_all(text, expected):
    assert usage_of(text) == expected


@pytest.mark.parametrize(
    ("details", "thinking"),
    [
        ('{"thinking_tokens":4}', 4),
        ('{"thinking_tokens":0}', 0),
        ('{"thinking_tokens":99}', 7),
        ("{}", 0),
        ("null", 0),
        ("[]", 0),
        ('{"thinking_tokens":4.0}', 4),
    ],
)
def test_thinking_stays_within_the_total_and_never_spoils_it(details, thinking):
    text = f'{{"input_tokens":1,"output_tokens":7,"output_tokens_details":{details}}}'
    assert usage_of(text) == reported(1, 7, reasoning_tokens=thinking)


@pytest.mark.parametrize("thinking", ["-1", '"4"', "1.5"])
def test_thinking_that_is_no_count_is_an_unknown_item(thinking):
    text = f'{{"input_tokens":1,"output_tokens":7,"output_tokens_details":{{"thinking_tokens":{thinking}}}}}'
    (usage, bad) = usage_of(text)
    assert (usage.completion_tokens, usage.reasoning_tokens, bad) == (7, 0, False)
    assert [item.item for item in usage.unknown] == ["output_tokens_details.thinking_tokens"]


# Streams -------------------------------------------------------------------------------------------------------------


def test_the_end_is_known_by_its_type_not_by_a_text():
    text = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"message_stop"}}\n\n'
    assert not MESSAGES.is_end(text)
    assert MESSAGES.is_end(b'event: message_stop\ndata: {"type":"message_stop","metrics":{"count":1}}\n\n')


def test_a_broken_stream_has_counted_its_prompt_but_is_not_final():
    _out, tee = pass_through([golden("stream_broken.sse")])
    assert tee.counted == Usage(prompt_tokens=25, completion_tokens=1, source="partial")
    assert (tee.read.usage, tee.is_whole) == (None, False)
    assert tee.delivered_tokens() == MESSAGES.completion_tokens(b'{"content":[{"type":"text","text":"Hello"}]}')


def test_nothing_delivered_is_nothing_though_one_is_announced():
    events = split_events(golden("stream_error_midway.sse"))
    _out, tee = pass_through([events[0], events[-1]])
    assert tee.counted.completion_tokens == 1
    assert tee.delivered_tokens() == 0


@pytest.mark.parametrize(
    ("reported_usages", "usage", "bad"),
    [
        (['{"input_tokens":-1,"output_tokens":1}', '{"output_tokens":7}'], None, True),
        (['{"input_tokens":5,"output_tokens":1}', '{"output_tokens":-7}'], None, True),
        (['{"input_tokens":5,"output_tokens":1}', '{"output_tokens":"7"}'], None, True),
        (['{"input_tokens":NaN,"output_tokens":1}', '{"input_tokens":5,"output_tokens":7}'], (5, 7), False),
        (['{"input_tokens":5,"output_tokens":1}', '{"input_tokens":0,"output_tokens":0}'], (5, 0), False),
        (['{"input_tokens":5,"output_tokens":9}', '{"input_tokens":0,"output_tokens":0}'], (5, 9), False),
        (['{"input_tokens":5,"output_tokens":9}', '{"input_tokens":null,"output_tokens":7}'], (5, 9), False),
    ],
)
def test_an_invalid_part_spoils_the_usage_until_a_valid_one(reported_usages, usage, bad):
    first, last = reported_usages
    _out, tee = pass_through(
        [
            b'data: {"type":"message_start","message":{"usage":%s}}\n\n' % first.encode(),
            b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":%s}\n\n' % last.encode(),
        ]
    )
    read = tee.read
    assert (read.usage and (read.usage.prompt_tokens, read.usage.completion_tokens), read.bad_usage) == (usage, bad)


def test_an_invalid_part_is_forgotten_after_a_final_one():
    start = b'data: {"type":"message_start","message":{"usage":{"input_tokens":5,"output_tokens":1}}}\n\n'
    bad = b'data: {"type":"message_delta","delta":{},"usage":{"output_tokens":-1}}\n\n'
    final = b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":7}}\n\n'
    read = pass_through([start, bad, final])[1].read
    assert (read.usage.prompt_tokens, read.usage.completion_tokens, read.bad_usage) == (5, 7, False)


def test_invalid_usage_does_not_complete_a_stream():
    _out, tee = pass_through([b'data: {"type":"message_start","message":{"usage":{"input_tokens":-1}}}\n\n'])
    assert tee.read.bad_usage
    assert not tee.is_whole


# Requests ------------------------------------------------------------------------------------------------------------


def refusal(body: bytes) -> str:
    with pytest.raises(InvalidRequest) as refused:
        MESSAGES.read_request(body)
    with pytest.raises(InvalidRequest):
        COUNT.read_request(body)
    return str(refused.value)


def test_metered_fields_are_read_and_others_ignored():
    request = MESSAGES.read_request(b'{"model":"claude-sonnet-4.5",%s,"stream":true,"new":[1]}' % LEAST)
    assert (request.model, request.stream, MESSAGES.path_name(request)) == ("claude-sonnet-4.5", True, "messages")
    assert request.prompt_tokens_estimate > 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "`messages`"),
        (b'{"messages":[]}', "'messages' is empty"),
        (b'{"messages":null}', "$.messages"),
        (b'{"messages":"Hello"}', "messages"),
        (b'{"messages":["Hello"]}', "$.messages[0]"),
        (b'{"messages":[{"content":"Hello"}]}', "`role`"),
        (b'{"messages":[{"role":"user"}]}', "`content`"),
        (b'{"messages":[{"role":"user","content":7}]}', "content"),
        (b'{"stream":"yes",%s}' % LEAST, "$.stream"),
        (b'{"stream":false,"stream":true,%s}' % LEAST, "'stream' twice"),
    ],
    ids=lambda value: repr(value[:48]),
)
def test_an_invalid_request_is_refused_by_field(body, words):
    assert words in refusal(body)


ODD = b'{ "model" : "claude-sonnet-4.5",\n\t%s , "stream":true,"temperature":1.0e0, "x":{"b":1,"a":2 } }' % LEAST


def test_a_request_passes_unchanged_streamed_or_not():
    for body in (ODD, ODD.replace(b"true", b"false")):
        assert MESSAGES.forwarded(body, MESSAGES.read_request(body), "claude-sonnet-4.5") == body


@pytest.mark.parametrize("dialect", [MESSAGES, COUNT])
def test_renaming_the_model_changes_nothing_else(dialect):
    body = ODD.replace(b"claude-sonnet-4.5", b"anthropic/claude-sonnet-4.5")
    sent = dialect.forwarded(body, dialect.read_request(body), "claude-sonnet-4.5")
    assert json.loads(sent) == json.loads(ODD)
    for value in (b"1.0e0", b'{"b":1,"a":2 }'):
        assert value in sent


@pytest.mark.parametrize("body", [b"{%s}" % LEAST, b'{"model":null,%s}' % LEAST])
def test_the_default_model_is_added_if_none_is_named(body):
    sent = MESSAGES.forwarded(body, MESSAGES.read_request(body), "deepseek-v3.2")
    assert json.loads(sent) == {**json.loads(body), "model": "deepseek-v3.2"}


@pytest.mark.parametrize("dialect", [MESSAGES, COUNT])
def test_only_the_protocols_own_headers_go_upstream(dialect):
    assert dialect.passed_headers == {b"anthropic-version", b"anthropic-beta"}


# Estimates -----------------------------------------------------------------------------------------------------------


def prompt(**fields: Any) -> int:
    return MESSAGES.prompt_tokens(json.dumps({"messages": [], **fields}).encode())


def test_a_prompt_is_estimated_from_system_messages_and_tools():
    user = {"role": "user", "content": "12345678"}
    assert prompt(messages=[user]) == pytest.approx(2 + 1 + 4, abs=1)
    assert prompt(messages=[user], system="s" * 400) == pytest.approx(107, abs=2)
    assert prompt(messages=[user], system=[{"type": "text", "text": "s" * 400}]) == pytest.approx(108, abs=2)
    assert prompt(messages=[user], tools=[{"name": "t", "description": "d" * 400}]) == pytest.approx(107, abs=2)


@pytest.mark.parametrize("kind", ["image", "document"])
def test_an_image_is_not_text_however_long_its_base64_is(kind):
    source = {"type": "base64", "media_type": "image/png", "data": "iVBO" * 100_000}
    estimate = prompt(messages=[{"role": "user", "content": [{"type": kind, "source": source}]}])
    assert 1600 <= estimate <= 1620


def test_a_document_of_plain_text_is_text():
    source = {"type": "text", "media_type": "text/plain", "data": "word" * 1000}
    estimate = prompt(messages=[{"role": "user", "content": [{"type": "document", "source": source}]}])
    assert estimate == pytest.approx(1010, abs=10)


@pytest.mark.parametrize("response", [b"{}", b'{"content":7}', b'{"content":[7,{"text":7}]}'])
def test_a_response_without_text_is_estimated_as_nothing(response):
    assert MESSAGES.completion_tokens(response) == 0


@pytest.mark.parametrize("name", ["stream.sse", "stream_tool_use.sse", "stream_thinking.sse"])
def test_delivered_tokens_are_estimated_from_deltas_alone(name):
    events = split_events(golden(name))
    estimate = MESSAGES.delivered_tokens(events)
    assert 0 < estimate <= EXPECTED[name]["usage"]["completion_tokens"]
    assert MESSAGES.delivered_tokens([event for event in events if b"_delta" not in event]) <= estimate


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InvalidRequest, "invalid_request_error"),
        (errors.MethodNotAllowed, "invalid_request_error"),
        (errors.NotAuthenticated, "authentication_error"),
        (errors.BudgetExhausted, "billing_error"),
        (errors.NotAllowed, "permission_error"),
        (errors.RouteNotFound, "not_found_error"),
        (errors.BodyTooLarge, "request_too_large"),
        (errors.RateLimited, "rate_limit_error"),
        (errors.UpstreamRateLimited, "rate_limit_error"),
        (errors.UpstreamFault, "api_error"),
        (errors.ServiceFault, "api_error"),
        (errors.Draining, "overloaded_error"),
        (errors.UpstreamTimedOut, "timeout_error"),
    ],
)
@pytest.mark.parametrize("dialect", [MESSAGES, COUNT])
def test_an_error_has_anthropics_shape_and_our_ids(dialect, error, kind):
    assert json.loads(dialect.error_body(error("It happened.", hint="Do this."), "call_1")) == {
        "type": "error",
        "error": {"type": kind, "message": "It happened. Do this.", "code": error.id, "call_id": "call_1"},
        "request_id": "call_1",
    }
