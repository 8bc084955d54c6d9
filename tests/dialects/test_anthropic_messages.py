"""The messages dialect on bodies as Anthropic and relays send them, and on requests good and bad."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter import errors
from mcpmeter.dialects.anthropic_count_tokens import AnthropicCountTokens
from mcpmeter.dialects.anthropic_messages import AnthropicMessages
from mcpmeter.dialects.base import ResponseInfo, UnreadableResponse
from mcpmeter.dialects.json_body import MAX_MODEL_NAME_LENGTH
from mcpmeter.dialects.sse import split_events
from mcpmeter.dialects.tokens import MAX_TOKENS
from mcpmeter.errors import InvalidRequest, MeterError
from mcpmeter.records import Usage
from mcpmeter.relay.stream import StreamTee

GOLDEN = Path(__file__).parents[1] / "golden" / "anthropic_messages"
EXPECTED: dict[str, dict[str, Any]] = json.loads((GOLDEN / "expected.json").read_text())
STREAMS = [name for name in EXPECTED if name.endswith(".sse")]
MESSAGES = AnthropicMessages()
COUNT = AnthropicCountTokens()
LEAST = b'"messages":[{"role":"user","content":"Hello"}],"max_tokens":16'
FIELDS = ("prompt_tokens", "completion_tokens", "cached_read_tokens", "cache_write_tokens", "reasoning_tokens")


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def told(read: ResponseInfo) -> dict[str, Any]:
    usage = read.usage
    if usage is not None:
        assert usage.source == "reported"
    return {
        "usage": None if usage is None else {name: getattr(usage, name) for name in (*FIELDS, "audio_tokens")},
        "model": read.model,
        "finish_reason": read.finish_reason,
        "is_error": read.is_error,
        "is_refusal": read.is_refusal,
        "is_empty": read.is_empty,
    }


def pass_through(pieces: list[bytes]) -> tuple[bytes, StreamTee]:
    tee = StreamTee(MESSAGES, withhold_usage=False)
    out = b""
    for piece in pieces:
        out += tee.feed(piece)
        if tee.end:
            break
    return out + tee.finish() + tee.end, tee


def check(name: str, pieces: list[bytes]) -> None:
    out, tee = pass_through(pieces)
    assert out == b"".join(pieces)
    assert {**told(tee.read), "is_whole": tee.is_whole} == EXPECTED[name]


# Answers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.endswith(".json")])
def test_an_answer_says_what_anthropic_billed(name):
    assert told(MESSAGES.read_response(golden(name))) == EXPECTED[name]


@pytest.mark.parametrize("name", [file.name for file in GOLDEN.iterdir()])
def test_every_golden_body_has_its_expectation(name):
    assert name == "expected.json" or name in EXPECTED


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
        b'{"content":"none"}',
        b'{"content":[7]}',
        b'{"content":[],"stop_reason":7}',
        b'{"type":"message"}',
        b'{"choices":[{}]}',
        b'{"content":[{}]',
        b"{" * 200_000,
        b'{"content":[],"model":"\xff"}',
    ],
    ids=lambda value: repr(value[:48]),
)
def test_what_is_no_message_is_not_taken_for_one(body):
    with pytest.raises(UnreadableResponse):
        MESSAGES.read_response(body)


def test_an_answer_that_only_python_would_parse_is_still_metered():
    block = b'{"type":"text","text":"\\ud83d","score":NaN}'
    body = b'{"content":[%s],"usage":{"input_tokens":3,"output_tokens":2}}' % block
    assert MESSAGES.read_response(body).usage == Usage(prompt_tokens=3, completion_tokens=2, source="reported")
    assert MESSAGES.completion_tokens(body) == 1


def test_a_providers_words_are_bounded_and_printable_before_they_reach_a_row():
    read = MESSAGES.read_response(json.dumps({"content": [], "stop_reason": "e\nd\0", "model": "m" * 10_000}).encode())
    assert (read.finish_reason, len(read.model)) == ("e?d?", 256)


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
        ("null", NONE),
        ("{}", NONE),
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
        ('{"input_tokens":-1,"output_tokens":5}', BAD),
        ('{"input_tokens":1,"output_tokens":-5}', BAD),
        ('{"input_tokens":1.5,"output_tokens":5}', BAD),
        ('{"input_tokens":1.0,"output_tokens":5}', BAD),
        ('{"input_tokens":1e400,"output_tokens":5}', BAD),
        ('{"input_tokens":NaN,"output_tokens":5}', BAD),
        ('{"input_tokens":Infinity,"output_tokens":5}', BAD),
        ('{"input_tokens":"12","output_tokens":5}', BAD),
        ('{"input_tokens":true,"output_tokens":5}', BAD),
        ('{"input_tokens":[],"output_tokens":5}', BAD),
        (f'{{"input_tokens":{MAX_TOKENS + 1},"output_tokens":5}}', BAD),
        (f'{{"input_tokens":{10**30},"output_tokens":5}}', BAD),
        ("[]", BAD),
        ("7", BAD),
        ('"many"', BAD),
        ("true", BAD),
    ],
)
def test_totals_are_taken_as_they_are_or_not_at_all(text, expected):
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
        ('{"thinking_tokens":-1}', 0),
        ('{"thinking_tokens":"4"}', 0),
        ('{"thinking_tokens":1.5}', 0),
    ],
)
def test_thinking_never_passes_the_total_nor_spoils_it(details, thinking):
    text = f'{{"input_tokens":1,"output_tokens":7,"output_tokens_details":{details}}}'
    assert usage_of(text) == reported(1, 7, reasoning_tokens=thinking)


numbers = st.none() | st.booleans() | st.integers(-5) | st.floats() | st.text(max_size=5) | st.lists(st.integers())
usages = st.dictionaries(
    st.sampled_from(
        [
            "input_tokens",
            "output_tokens",
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
            "output_tokens_details",
        ]
    ),
    numbers | st.integers(0, 50) | st.dictionaries(st.just("thinking_tokens"), numbers),
)


def assert_fits(usage: Usage) -> None:
    assert 0 <= usage.prompt_tokens <= 3 * MAX_TOKENS
    assert 0 <= usage.completion_tokens <= MAX_TOKENS
    assert 0 <= usage.cached_read_tokens + usage.cache_write_tokens <= usage.prompt_tokens
    assert 0 <= usage.reasoning_tokens <= usage.completion_tokens


@given(usages)
def test_whatever_is_reported_fits_a_row_and_its_parts_fit_their_totals(value):
    usage, _bad = usage_of(json.dumps(value))
    if usage is not None:
        assert_fits(usage)


@given(st.lists(st.tuples(usages, st.sampled_from([None, "end_turn"])), max_size=4))
def test_whatever_a_stream_reports_fits_a_row_and_is_final_only_once_the_model_has_stopped(instalments):
    events = [
        b"data: %s\n\n" % json.dumps({"type": "message_delta", "delta": {"stop_reason": stop}, "usage": usage}).encode()
        for usage, stop in instalments
    ]
    _out, tee = pass_through(events)
    if tee.read.usage is not None:
        assert_fits(tee.read.usage)
        assert tee.read.finish_reason


# Streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_cut_in_two_at_any_byte_gives_the_same_bytes_and_usage(name):
    data = golden(name)
    for place in range(len(data)):
        check(name, [data[:place], data[place:]])


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_comes_byte_by_byte_gives_the_same_bytes_and_usage(name):
    check(name, [bytes((byte,)) for byte in golden(name)])


@given(st.sampled_from(STREAMS), st.sets(st.integers(1, 2000), max_size=30))
def test_a_stream_cut_anywhere_gives_the_same_bytes_and_usage(name, places):
    data = golden(name)
    edges = [0, *sorted(place for place in places if place < len(data)), len(data)]
    check(name, [data[a:b] for a, b in itertools.pairwise(edges)])


@pytest.mark.parametrize("name", ["stream.sse", "stream_crlf.sse", "stream_pretty.sse", "stream_refusal.sse"])
def test_the_last_event_waits_for_the_settlement(name):
    events = split_events(golden(name))
    tee = StreamTee(MESSAGES, withhold_usage=False)
    assert tee.feed(golden(name)) == b"".join(events[:-1])
    assert tee.end == events[-1]


def test_an_end_is_known_by_its_type_and_not_by_words_in_a_text():
    text = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"message_stop"}}\n\n'
    assert not MESSAGES.is_end(text)
    assert MESSAGES.is_end(b'event: message_stop\ndata: {"type":"message_stop","metrics":{"count":1}}\n\n')


def test_a_stream_that_breaks_off_has_counted_its_prompt_but_no_usage_to_bill_by():
    _out, tee = pass_through([golden("stream_broken.sse")])
    assert tee.counted == Usage(prompt_tokens=25, completion_tokens=1, source="partial")
    assert (tee.read.usage, tee.is_whole) == (None, False)
    assert tee.delivered_tokens() == MESSAGES.completion_tokens(b'{"content":[{"type":"text","text":"Hello"}]}')


def test_nothing_delivered_counts_as_nothing_though_a_first_token_was_announced():
    events = split_events(golden("stream_error_midway.sse"))
    _out, tee = pass_through([events[0], events[-1]])
    assert tee.counted.completion_tokens == 1
    assert tee.delivered_tokens() == 0


@pytest.mark.parametrize(
    ("usages_told", "usage", "bad"),
    [
        (['{"input_tokens":-1,"output_tokens":1}', '{"output_tokens":7}'], None, True),
        (['{"input_tokens":5,"output_tokens":1}', '{"output_tokens":-7}'], None, True),
        (['{"input_tokens":5,"output_tokens":1}', '{"output_tokens":"7"}'], None, True),
        (['{"input_tokens":NaN,"output_tokens":1}', '{"input_tokens":5,"output_tokens":7}'], (5, 7), False),
        (['{"input_tokens":5,"output_tokens":1}', '{"input_tokens":0,"output_tokens":0}'], (0, 0), False),
        (['{"input_tokens":5,"output_tokens":9}', '{"input_tokens":null,"output_tokens":7}'], (5, 7), False),
    ],
)
def test_instalments_that_cannot_be_spoil_the_usage_and_later_good_ones_mend_it(usages_told, usage, bad):
    first, last = usages_told
    _out, tee = pass_through(
        [
            b'data: {"type":"message_start","message":{"usage":%s}}\n\n' % first.encode(),
            b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":%s}\n\n' % last.encode(),
        ]
    )
    read = tee.read
    assert (read.usage and (read.usage.prompt_tokens, read.usage.completion_tokens), read.bad_usage) == (usage, bad)


def test_an_instalment_that_cannot_be_is_forgotten_once_a_final_one_is_told():
    start = b'data: {"type":"message_start","message":{"usage":{"input_tokens":5,"output_tokens":1}}}\n\n'
    bad = b'data: {"type":"message_delta","delta":{},"usage":{"output_tokens":-1}}\n\n'
    final = b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":7}}\n\n'
    read = pass_through([start, bad, final])[1].read
    assert (read.usage.prompt_tokens, read.usage.completion_tokens, read.bad_usage) == (5, 7, False)


def test_a_stream_whose_first_usage_cannot_be_is_no_whole_one_for_it():
    _out, tee = pass_through([b'data: {"type":"message_start","message":{"usage":{"input_tokens":-1}}}\n\n'])
    assert tee.read.bad_usage
    assert not tee.is_whole


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"\n\n", b"\r\n", b"data: ", b"message_stop", b'"message_'])))
def test_whatever_upstream_sends_goes_on(pieces):
    out, tee = pass_through(pieces)
    assert tee.end or out == b"".join(pieces)


# Requests -------------------------------------------------------------------------------------------------------------


def refusal(body: bytes) -> str:
    with pytest.raises(InvalidRequest) as refused:
        MESSAGES.read_request(body)
    with pytest.raises(InvalidRequest):
        COUNT.read_request(body)
    return str(refused.value)


def test_what_is_metered_is_read_and_nothing_else_is_judged():
    asked = MESSAGES.read_request(b'{"model":"claude-sonnet-4.5",%s,"stream":true,"new":[1]}' % LEAST)
    assert (asked.model, asked.stream, MESSAGES.path_name(asked)) == ("claude-sonnet-4.5", True, "messages")
    assert asked.prompt_tokens_estimate > 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "not a message"),
        (b"{}", "`messages`"),
        (b'{"messages":[]}', "'messages' is empty"),
        (b'{"messages":null}', "$.messages"),
        (b'{"messages":"Hello"}', "messages"),
        (b'{"messages":["Hello"]}', "$.messages[0]"),
        (b'{"messages":[{"content":"Hello"}]}', "`role`"),
        (b'{"messages":[{"role":"user"}]}', "`content`"),
        (b'{"messages":[{"role":"user","content":7}]}', "content"),
        (b'{"model":7,%s}' % LEAST, "$.model"),
        (b'{"model":"",%s}' % LEAST, "'model' is empty"),
        (b'{"model":"%s",%s}' % (b"m" * (MAX_MODEL_NAME_LENGTH + 1), LEAST), "'model' is longer"),
        (b'{"model":"a\\nb",%s}' % LEAST, "control characters"),
        (b'{"stream":"yes",%s}' % LEAST, "$.stream"),
        (b'{"x":"\xff",%s}' % LEAST, "not valid UTF-8"),
        (b'{"x":"\\ud800",%s}' % LEAST, "not valid JSON"),
        (b'{"x":"\\u0000",%s}' % LEAST, "NUL"),
        (b'{"x":' * 1_000_000, "nested too deep"),
        (b'{"model":"a","mod\\u0065l":"b",%s}' % LEAST, "'model' twice"),
        (b'{"stream":false,"stream":true,%s}' % LEAST, "'stream' twice"),
        (b"{%s,%s}" % (LEAST, LEAST), "'messages' twice"),
    ],
    ids=lambda value: repr(value[:48]),
)
def test_a_bad_request_is_refused_in_a_sentence_that_repeats_none_of_it(body, words):
    assert words in refusal(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.binary(max_size=200)
    | st.dictionaries(
        st.sampled_from(["model", "messages", "stream", "system", "tools"]) | st.text(max_size=5), json_values
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_are_a_request_or_refused(body):
    with contextlib.suppress(InvalidRequest):
        asked = MESSAGES.read_request(body)
        assert MESSAGES.read_request(MESSAGES.forwarded(body, asked, asked.model or "other")).model
        assert MESSAGES.prompt_tokens(body) >= 0


ODD = b'{ "model" : "claude-sonnet-4.5",\n\t%s , "stream":true,"temperature":1.0e0, "x":{"b":1,"a":2 } }' % LEAST


def test_a_request_goes_on_byte_for_byte_streamed_or_not():
    for body in (ODD, ODD.replace(b"true", b"false")):
        assert MESSAGES.forwarded(body, MESSAGES.read_request(body), "claude-sonnet-4.5") == body


@pytest.mark.parametrize("dialect", [MESSAGES, COUNT])
def test_a_prefixed_model_goes_on_under_the_providers_own_name_and_nothing_else_changes(dialect):
    body = ODD.replace(b"claude-sonnet-4.5", b"anthropic/claude-sonnet-4.5")
    sent = dialect.forwarded(body, dialect.read_request(body), "claude-sonnet-4.5")
    assert json.loads(sent) == json.loads(ODD)
    for value in (b"1.0e0", b'{"b":1,"a":2 }'):
        assert value in sent


@pytest.mark.parametrize("body", [b"{%s}" % LEAST, b'{"model":null,%s}' % LEAST])
def test_the_default_model_is_named_where_the_caller_named_none(body):
    sent = MESSAGES.forwarded(body, MESSAGES.read_request(body), "deepseek-v3.2")
    assert json.loads(sent) == {**json.loads(body), "model": "deepseek-v3.2"}


@pytest.mark.parametrize("dialect", [MESSAGES, COUNT])
def test_the_headers_that_go_upstream_are_the_protocols_own(dialect):
    assert dialect.passed_headers == {b"anthropic-version", b"anthropic-beta"}


# Estimates ------------------------------------------------------------------------------------------------------------


def prompt(**fields: Any) -> int:
    return MESSAGES.prompt_tokens(json.dumps({"messages": [], **fields}).encode())


def test_a_prompt_is_estimated_from_its_system_its_messages_and_its_tools():
    user = {"role": "user", "content": "12345678"}
    assert prompt(messages=[user]) == pytest.approx(2 + 1 + 4, abs=1)
    assert prompt(messages=[user], system="s" * 400) == pytest.approx(107, abs=2)
    assert prompt(messages=[user], system=[{"type": "text", "text": "s" * 400}]) == pytest.approx(108, abs=2)
    assert prompt(messages=[user], tools=[{"name": "t", "description": "d" * 400}]) == pytest.approx(107, abs=2)


@pytest.mark.parametrize("kind", ["image", "document"])
def test_an_image_is_no_text_however_long_its_base64_is(kind):
    source = {"type": "base64", "media_type": "image/png", "data": "iVBO" * 100_000}
    estimate = prompt(messages=[{"role": "user", "content": [{"type": kind, "source": source}]}])
    assert 1600 <= estimate <= 1620


def test_a_document_of_plain_text_is_text():
    source = {"type": "text", "media_type": "text/plain", "data": "word" * 1000}
    estimate = prompt(messages=[{"role": "user", "content": [{"type": "document", "source": source}]}])
    assert estimate == pytest.approx(1010, abs=10)


@pytest.mark.parametrize("name", ["answer.json", "answer_tool_use.json", "answer_thinking.json", "answer_cached.json"])
def test_an_answer_is_estimated_near_what_was_billed(name):
    billed = EXPECTED[name]["usage"]["completion_tokens"]
    assert billed / 4 <= MESSAGES.completion_tokens(golden(name)) <= billed * 2


@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b'{"content":7}', b'{"content":[7,{"text":7}]}', b"{" * 100_000])
def test_what_holds_no_text_is_estimated_as_nothing(answer):
    assert MESSAGES.completion_tokens(answer) == 0


@pytest.mark.parametrize("name", ["stream.sse", "stream_tool_use.sse", "stream_thinking.sse"])
def test_what_was_delivered_is_estimated_from_what_the_model_wrote_alone(name):
    events = split_events(golden(name))
    estimate = MESSAGES.delivered_tokens(events)
    assert 0 < estimate <= EXPECTED[name]["usage"]["completion_tokens"]
    assert MESSAGES.delivered_tokens([event for event in events if b"_delta" not in event]) <= estimate


# Errors ---------------------------------------------------------------------------------------------------------------


def subclasses(kind: type[MeterError]) -> list[type[MeterError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in subclasses(child))]


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
def test_an_error_has_anthropics_shape_its_type_by_status_and_our_ids(dialect, error, kind):
    assert json.loads(dialect.error_body(error("It happened.", hint="Do this."), "call_1")) == {
        "type": "error",
        "error": {"type": kind, "message": "It happened. Do this.", "code": error.id, "call_id": "call_1"},
        "request_id": "call_1",
    }


@pytest.mark.parametrize("error", subclasses(MeterError), ids=lambda kind: kind.__name__)
def test_an_error_inside_a_stream_is_one_event_that_reads_as_an_error(error):
    event = MESSAGES.error_event(error("It\nended."), "call_1")
    assert event == COUNT.error_event(error("It\nended."), "call_1")
    assert event.startswith(b"event: error\ndata: {")
    assert split_events(event) == [event]
    assert MESSAGES.read_events(event).is_error


# Counting tokens ------------------------------------------------------------------------------------------------------


def test_counting_tokens_costs_nothing_and_says_so():
    asked = COUNT.read_request(b'{"model":"claude-sonnet-4.5",%s}' % LEAST)
    assert (asked.stream, asked.prompt_tokens_estimate, COUNT.path_name(asked)) == (False, 0, "count_tokens")
    read = COUNT.read_response(b'{"input_tokens":2095,"context_management":null}')
    assert read == ResponseInfo(usage=Usage(source="reported"))
    assert COUNT.prompt_tokens(b"{}") == COUNT.completion_tokens(b"{}") == 0


def test_an_error_instead_of_a_count_is_an_error():
    assert COUNT.read_response(golden("answer_error.json")).is_error


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"input_tokens":-1}', b'{"input_tokens":"7"}', b'{"error":null}', b'{"content":[]}']
)
def test_what_is_no_count_is_not_taken_for_one(body):
    with pytest.raises(UnreadableResponse):
        COUNT.read_response(body)
