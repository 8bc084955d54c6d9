"""What every dialect does with invalid and hostile bodies."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.cases import BILLED, CASES, MODEL, STREAMING, Case, assert_fits

from mcpmeter.dialects.base import StreamingDialect, UnreadableResponse
from mcpmeter.dialects.json_body import MAX_MODEL_NAME_LENGTH
from mcpmeter.dialects.tokens import MAX_TOKENS
from mcpmeter.errors import InvalidRequest, UpstreamDisconnected
from mcpmeter.relay.stream import StreamTee

every_dialect = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
billed_dialects = pytest.mark.parametrize("case", [CASES[name] for name in BILLED], ids=BILLED)
streaming_dialects = pytest.mark.parametrize("dialect", STREAMING.values(), ids=STREAMING)


def refusal(case: Case, body: bytes) -> str:
    with pytest.raises(InvalidRequest) as refused:
        case.dialect.read_request(body, MODEL)
    return str(refused.value)


# Requests ------------------------------------------------------------------------------------------------------------


@every_dialect
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "The request is not "),
        (b"1", "The request is not "),
        (b"[" * 1_000_000, "The request is not "),
    ],
    ids=lambda value: repr(value[:48]),
)
def test_a_body_that_is_not_an_object_is_refused(case, body, words):
    assert words in refusal(case, body)


@every_dialect
@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (b'"x":"\xff"', "not valid UTF-8"),
        (b'"x":"\xed\xa0\x80"', "not valid UTF-8"),
        (b'"x":"\\ud800"', "not valid JSON"),
        (b'"x":["\\udc00\\ud800"]', "not valid JSON"),
        (b'"x":"\\u0000"', "NUL"),
        (b'"a\\u0000":1', "NUL"),
        (b'"x":"\0"', "not valid JSON"),
        (b'"x":NaN', "not valid JSON"),
        (b'"x":' + b"[" * 1_000_000, "nested too deep"),
    ],
    ids=lambda value: repr(value[:48]),
)
def test_bad_text_is_refused_even_in_unread_fields(case, extra, words):
    assert words in refusal(case, case.body(extra))
    assert "not valid JSON" in refusal(case, b"\xef\xbb\xbf" + case.body())


@every_dialect
def test_a_metered_field_may_be_named_only_once(case):
    for name, value in case.request.items():
        assert f"'{name}' twice" in refusal(case, case.body(f'"{name}":{json.dumps(value)}'.encode()))


@pytest.mark.parametrize("name", [name for name in CASES if name != "batch_embed_contents"])
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (b'"model":7', "$.model"),
        (b'"model":" "', "'model' is empty"),
        (b'"model":"%s"' % (b"m" * (MAX_MODEL_NAME_LENGTH + 1)), "'model' is longer"),
        (b'"model":"a\\nb"', "control characters"),
        (b'"model":"m","model":"m"', "'model' twice"),
        (b'"model":"m","mod\\u0065l":"b"', "'model' twice"),
    ],
    ids=lambda value: repr(value[:48]),
)
def test_an_unusable_model_is_refused(name, model, words):
    assert words in refusal(CASES[name], CASES[name].body(model))


def test_names_deeper_down_are_not_repeated_names():
    body = CASES["chat"].body(b'"model":"m","tools":[{"model":{"model":1,"stream":2}}],"stream":true')
    assert CASES["chat"].dialect.read_request(body).model == "m"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
NAMES = ["model", "stream", "stream_options", "tools", "metadata", "system", "prompt", "usage", "error", "choices"]
NAMES += ["output", "data", "candidates", "embedding", "usageMetadata", "totalTokens", "input_tokens", "parts"]
NAMES += sorted({name for case in CASES.values() for name in case.request})
bodies = (
    st.binary(max_size=200)
    | st.text(max_size=100).map(str.encode)
    | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), json_values, max_size=6).map(
        lambda value: json.dumps(value).encode()
    )
)


@every_dialect
@given(body=bodies)
def test_any_body_is_read_or_refused(case, body):
    dialect = case.dialect
    with contextlib.suppress(InvalidRequest):
        request = dialect.read_request(body, MODEL)
        upstream = dialect.forwarded(body, request, request.model or "other")
        assert dialect.read_request(upstream, MODEL).model
        assert dialect.prompt_tokens(body) >= 0
    with contextlib.suppress(UnreadableResponse):
        dialect.read_response(body)
    assert dialect.completion_tokens(body) >= 0


# Responses -----------------------------------------------------------------------------------------------------------


@every_dialect
@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"<html>", b"[]", b'"text"', b"null", b'{"x":1}', b"{" * 200_000, b"[" * 200_000, b'{"x":"\xff"}'],
    ids=lambda value: repr(value[:48]),
)
def test_a_body_that_is_no_response_is_unreadable(case, body):
    with pytest.raises(UnreadableResponse):
        case.dialect.read_response(body)
    assert case.dialect.completion_tokens(body) == 0


@billed_dialects
def test_a_response_that_only_python_parses_is_metered(case):
    body = case.response % (case.usage % 3)
    info = case.dialect.read_response(b'{"x":NaN,"y":"\\ud83d",' + body.encode()[1:])
    assert info.usage.prompt_tokens == 3


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("chat", {"choices": [{"finish_reason": "e\nd\0"}], "model": "m" * 10_000}),
        ("responses", {"output": [], "status": "e\nd\0", "model": "m" * 10_000}),
        ("messages", {"content": [], "stop_reason": "e\nd\0", "model": "m" * 10_000}),
        ("generate", {"candidates": [{"finishReason": "e\nd\0"}], "modelVersion": "m" * 10_000}),
    ],
)
def test_a_providers_text_is_bounded_and_printable(name, body):
    info = CASES[name].dialect.read_response(json.dumps(body).encode())
    assert (info.finish_reason, len(info.model)) == ("e?d?", 256)


INVALID = ["-1", "1.5", "1e400", "NaN", "Infinity", '"12"', "true", "[]", str(MAX_TOKENS + 1), "9" * 5000]


@billed_dialects
def test_an_invalid_count_is_bad_usage(case):
    for usage in (*(case.usage % count for count in INVALID), "[7]", "7", '"many"', "true"):
        info = case.dialect.read_response((case.response % usage).encode())
        assert (usage, info.usage, info.bad_usage) == (usage, None, True)


@billed_dialects
def test_absent_usage_is_not_bad_usage(case):
    for usage in ("null", "{}"):
        info = case.dialect.read_response((case.response % usage).encode())
        assert (info.usage, info.bad_usage) == (None, False)


counts = st.none() | st.booleans() | st.integers(-5) | st.floats() | st.text(max_size=5) | st.lists(st.integers())
DETAILS = ["cached_tokens", "cache_write_tokens", "audio_tokens", "reasoning_tokens", "thinking_tokens"]
details = st.dictionaries(st.sampled_from(DETAILS), counts | st.integers(0, 50)) | st.lists(
    st.fixed_dictionaries({"modality": st.just("AUDIO"), "tokenCount": counts}), max_size=3
)


def usages(case: Case) -> st.SearchStrategy[str]:
    return st.dictionaries(st.sampled_from(case.usage_fields), counts | st.integers(0, 50) | details).map(json.dumps)


@billed_dialects
@given(data=st.data())
def test_any_usage_fits_a_row_and_its_details_fit_its_totals(case, data):
    info = case.dialect.read_response((case.response % data.draw(usages(case))).encode())
    if info.usage is not None:
        assert_fits(info.usage)


STREAMED_USAGE = {
    "messages": '{"type":"message_delta","delta":{"stop_reason":%s},"usage":%s}',
    "generate": '{"candidates":[{"finishReason":%s}],"usageMetadata":%s}',
}


@pytest.mark.parametrize("name", STREAMED_USAGE)
@given(data=st.data())
def test_streamed_usage_is_final_only_after_a_finish_reason(name, data):
    tee = StreamTee(STREAMING[name], withhold_usage=False)
    reasons = st.sampled_from(["null", '"STOP"'])
    for reason, usage in data.draw(st.lists(st.tuples(reasons, usages(CASES[name])), max_size=4)):
        tee.feed(b"data: %s\n\n" % (STREAMED_USAGE[name] % (reason, usage)).encode())
    if tee.read.usage is not None:
        assert_fits(tee.read.usage)
        assert tee.read.finish_reason


# Streams -------------------------------------------------------------------------------------------------------------

MARKS = [b"\n", b"\n\n", b"\r\n", b"\r", b"data: ", b"[DONE]", b'"usage":', b'"response":', b'"message_', b'"error"']
MARKS += [b"message_stop", b'{"usageMetadata":', b'"type":']


@streaming_dialects
@given(pieces=st.lists(st.binary(max_size=60) | st.sampled_from(MARKS)))
def test_any_bytes_pass_until_the_streams_own_end(dialect, pieces):
    tee = StreamTee(dialect, withhold_usage=False)
    out = b""
    for piece in pieces:
        out += tee.feed(piece)
        if tee.end:
            break
    data = b"".join(pieces)
    assert data.startswith(out)
    assert tee.end or out + tee.finish() + tee.end == data


@streaming_dialects
@given(payload=st.binary(max_size=100) | json_values.map(lambda value: json.dumps(value).encode()) | bodies)
def test_any_event_can_be_read(dialect: StreamingDialect, payload):
    block = b'event: "response" "error" message_stop "content_block "parts"\ndata: ' + payload + b"\n\n"
    dialect.read_events(block)
    dialect.has_content(block)
    dialect.only_usage(block)
    dialect.is_end(block)
    assert dialect.delivered_tokens([block]) >= 0


@streaming_dialects
def test_an_error_event_reads_as_one_error(dialect):
    event = dialect.error_event(UpstreamDisconnected("It\nended."), "call_1")
    tee = StreamTee(dialect, withhold_usage=True)
    assert tee.feed(event) + tee.end == event
    assert (tee.read.is_error, tee.chunks) == (True, 1)
