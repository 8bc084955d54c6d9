"""The generateContent dialect: its responses, usage, stream, requests, estimates and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mcpmeter import errors
from mcpmeter.dialects import gemini
from mcpmeter.dialects.base import UnreadableResponse
from mcpmeter.dialects.gemini_generate import GeminiGenerate, GeminiGenerateArray
from mcpmeter.dialects.json_body import MAX_MODEL_NAME_LENGTH
from mcpmeter.dialects.sse import split_events
from mcpmeter.errors import InvalidRequest
from mcpmeter.records import PathParams, Usage
from mcpmeter.relay.stream import StreamTee

GOLDEN = Path(__file__).parents[1] / "golden" / "gemini_generate"
GENERATE = GeminiGenerate()
ARRAY = GeminiGenerateArray()
CONTENTS = b'"contents":[{"role":"user","parts":[{"text":"Hello"}]}]'
FLASH = PathParams(model="gemini-2.5-flash")


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def pass_through(pieces: list[bytes]) -> tuple[bytes, StreamTee]:
    tee = StreamTee(GENERATE, withhold_usage=False)
    return b"".join(map(tee.feed, pieces)) + tee.finish(), tee


# Responses -----------------------------------------------------------------------------------------------------------


def test_an_arrays_count_is_final_unless_it_ends_in_an_error():
    assert GENERATE.read_response(golden("answer_array.json")).usage.source == "reported"
    assert GENERATE.read_response(golden("answer_array_error.json")).usage.source == "partial"


@pytest.mark.parametrize(
    "body",
    [
        b"[7]",
        b"[{}]",
        b'{"candidates":"none"}',
        b'{"candidates":{"finishReason":7}}',
        b'{"promptFeedback":{}}',
        b'{"choices":[{}]}',
        b'{"candidates":[{}]',
    ],
    ids=lambda value: repr(value[:48]),
)
def test_a_body_without_candidates_is_unreadable(body):
    with pytest.raises(UnreadableResponse):
        GENERATE.read_response(body)


def test_an_unspecified_reason_is_none():
    body = b'{"candidates":[{"finishReason":"FINISH_REASON_UNSPECIFIED"}],"promptFeedback":{}}'
    assert GENERATE.read_response(body).finish_reason == ""


def test_a_blocked_prompt_is_a_refusal():
    read = GENERATE.read_response(b'{"promptFeedback":{"blockReason":"OTHER"}}')
    assert (read.is_refusal, read.finish_reason, read.is_empty) == (True, "OTHER", False)


def test_an_array_whose_last_count_is_invalid_has_no_usage():
    first = b'{"candidates":[{}],"usageMetadata":{"promptTokenCount":5,"candidatesTokenCount":1}}'
    last = b'{"candidates":[{"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":-5}}'
    read = GENERATE.read_response(b"[%s,%s]" % (first, last))
    assert (read.usage, read.bad_usage) == (None, True)


@pytest.mark.parametrize(
    ("part", "is_empty"),
    [
        ('{"text":"a"}', False),
        ('{"text":""}', True),
        ('{"text":null}', True),
        ('{"text":"a","thought":true}', True),
        ('{"text":"a","thought":false}', False),
        ('{"text":"","thoughtSignature":"A=="}', True),
        ('{"functionCall":{"name":"f"}}', False),
        ('{"inlineData":{"mimeType":"image/png","data":"A=="}}', False),
        ('{"executableCode":{"code":"1"}}', False),
        ("{}", True),
    ],
)
def test_a_response_without_text_or_call_is_empty(part, is_empty):
    body = f'{{"candidates":[{{"content":{{"parts":[{part}]}},"finishReason":"STOP"}}]}}'.encode()
    assert GENERATE.read_response(body).is_empty is is_empty
    assert pass_through([b"data: " + body + b"\n\n"])[1].read.is_empty is is_empty


# Usage ---------------------------------------------------------------------------------------------------------------


def read(text: str) -> tuple[Usage | None, bool]:
    counts, bad = gemini.counts_of(msgspec.Raw(text.encode()))
    return gemini.usage_of(counts), bad


def reported(prompt: int, completion: int, **details: int) -> tuple[Usage, bool]:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, source="reported", **details), False


NONE = (None, False)
BAD = (None, True)
AUDIO = {"audio_tokens": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", NONE),
        ("null", NONE),
        ("{}", NONE),
        ('{"trafficType":"ON_DEMAND"}', NONE),
        ('{"promptTokenCount":0,"candidatesTokenCount":0,"totalTokenCount":0}', reported(0, 0)),
        ('{"promptTokenCount":5,"candidatesTokenCount":0}', reported(5, 0)),
        ('{"promptTokenCount":5,"totalTokenCount":5}', reported(5, 0)),
        ('{"promptTokenCount":5}', reported(5, 0)),
        ('{"promptTokenCount":5,"totalTokenCount":7}', reported(5, 2)),
        ('{"promptTokenCount":5,"totalTokenCount":3}', reported(5, 0)),
        ('{"promptTokenCount":5,"thoughtsTokenCount":9}', reported(5, 9, reasoning_tokens=9)),
        (
            '{"promptTokenCount":5,"thoughtsTokenCount":9,"totalTokenCount":16}',
            reported(5, 11, reasoning_tokens=9),
        ),
        (
            '{"promptTokenCount":5,"candidatesTokenCount":2,"thoughtsTokenCount":9}',
            reported(5, 11, reasoning_tokens=9),
        ),
        ('{"candidatesTokenCount":5}', BAD),
        ('{"totalTokenCount":5}', BAD),
        ('{"thoughtsTokenCount":5}', BAD),
        ('{"promptTokenCount":null,"candidatesTokenCount":5}', BAD),
        ('{"promptTokenCount":1,"candidatesTokenCount":-5}', BAD),
        ('{"promptTokenCount":1,"thoughtsTokenCount":-5}', BAD),
        ('{"promptTokenCount":1,', BAD),
    ],
)
def test_totals_are_read_as_reported_or_not_at_all(text, expected):
    assert read(text) == expected


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ('"cachedContentTokenCount":4', {"cached_read_tokens": 4}),
        ('"cachedContentTokenCount":0', {}),
        ('"cachedContentTokenCount":99', {"cached_read_tokens": 10}),
        ('"cachedContentTokenCount":null', {}),
        ('"promptTokensDetails":[{"modality":"TEXT","tokenCount":9},{"modality":"AUDIO"}]', {}),
        ('"promptTokensDetails":[{"modality":"AUDIO"}]', {}),
        ('"promptTokensDetails":{},"candidatesTokensDetails":[]', {}),
        ('"promptTokensDetails":null,"candidatesTokensDetails":null', {}),
    ],
)
def test_details_of_text_are_within_the_totals(details, expected):
    assert read(f'{{"promptTokenCount":10,"candidatesTokenCount":5,{details}}}') == reported(10, 5, **expected)


@pytest.mark.parametrize(
    ("details", "name"),
    [
        ('"cachedContentTokenCount":-1', "cachedContentTokenCount"),
        ('"cachedContentTokenCount":"4"', "cachedContentTokenCount"),
        (
            '"promptTokensDetails":[{"modality":"AUDIO","tokenCount":-3}]',
            "promptTokensDetails[AUDIO].tokenCount",
        ),
        ('"candidatesTokensDetails":7', "candidatesTokensDetails"),
    ],
)
def test_a_detail_that_is_no_count_is_an_unknown_item(details, name):
    (usage, bad) = read(f'{{"promptTokenCount":10,"candidatesTokenCount":5,{details}}}')
    assert (usage.prompt_tokens, usage.completion_tokens, bad) == (10, 5, False)
    assert [item.item for item in usage.unknown] == [name]


# Streams -------------------------------------------------------------------------------------------------------------


def test_a_broken_stream_has_counted_tokens_but_is_not_final():
    _out, tee = pass_through([golden("stream_broken.sse")])
    assert tee.counted == Usage(prompt_tokens=8, completion_tokens=3, source="partial")
    assert (tee.read.usage, tee.is_whole) == (None, False)
    assert tee.delivered_tokens() == 3


@pytest.mark.parametrize(
    ("counts", "usage", "bad"),
    [
        (['{"promptTokenCount":-1}', '{"promptTokenCount":5,"candidatesTokenCount":7}'], (5, 7), False),
        (['{"promptTokenCount":5,"candidatesTokenCount":7}', '{"promptTokenCount":"5"}'], None, True),
        (['{"promptTokenCount":5,"candidatesTokenCount":9}', '{"promptTokenCount":5}'], (5, 9), False),
        (['{"promptTokenCount":9,"totalTokenCount":9}', '{"promptTokenCount":5,"totalTokenCount":12}'], (9, 3), False),
        (['{"promptTokenCount":5,"candidatesTokenCount":7}', "null"], None, False),
        (['{"promptTokenCount":NaN}', "null"], None, True),
    ],
)
def test_a_streams_last_count_is_final_and_none_falls(counts, usage, bad):
    first, last = counts
    _out, tee = pass_through(
        [
            b'data: {"candidates":[{}],"usageMetadata":%s}\n\n' % first.encode(),
            b'data: {"candidates":[{"finishReason":"STOP"}],"usageMetadata":%s}\n\n' % last.encode(),
        ]
    )
    read = tee.read
    assert (read.usage and (read.usage.prompt_tokens, read.usage.completion_tokens), read.bad_usage) == (usage, bad)


def test_a_call_with_an_argument_named_error_is_no_error():
    assert b'"error"' in golden("stream_function_call.sse")
    assert not pass_through([golden("stream_function_call.sse")])[1].read.is_error


# Requests ------------------------------------------------------------------------------------------------------------


def refusal(body: bytes, path: PathParams = FLASH) -> str:
    with pytest.raises(InvalidRequest) as refused:
        GENERATE.read_request(body, path)
    return str(refused.value)


@pytest.mark.parametrize(
    ("dialect", "stream", "path"),
    [(GENERATE, False, "generate"), (GENERATE, True, "generate_stream"), (ARRAY, True, "generate_array")],
)
def test_model_and_streaming_are_taken_from_the_path(dialect, stream, path):
    request = dialect.read_request(
        b'{%s,"stream":true,"new":[1]}' % CONTENTS, PathParams(model="gemini-2.5-flash", stream=stream)
    )
    assert (request.model, dialect.path_name(request)) == ("gemini-2.5-flash", path)
    assert request.stream is (path == "generate_stream")
    assert request.prompt_tokens_estimate > 0


@pytest.mark.parametrize(
    ("named", "body_model", "model"),
    [
        ("gemini-2.5-flash", None, "gemini-2.5-flash"),
        ("models/gemini-2.5-flash", None, "gemini-2.5-flash"),
        ("gemini-2.5-flash", "models/gemini-2.5-flash", "gemini-2.5-flash"),
        ("gemini-2.5-flash", "gemini-2.5-flash", "gemini-2.5-flash"),
        ("", "models/gemini-2.5-flash", "gemini-2.5-flash"),
        ("", None, ""),
    ],
)
def test_a_model_has_one_name_however_it_is_written(named, body_model, model):
    body = json.dumps({"model": body_model, "contents": [{"parts": []}]}).encode()
    assert GENERATE.read_request(body, PathParams(model=named)).model == model


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "`contents`"),
        (b'{"contents":[]}', "'contents' is empty"),
        (b'{"contents":{}}', "'contents' is empty"),
        (b'{"contents":null}', "$.contents"),
        (b'{"contents":"Hello"}', "$.contents"),
        (b'{"contents":["Hello"]}', "$.contents[0]"),
        (b'{"model":"models/",%s}' % CONTENTS, "'model' is empty"),
        (b'{"model":"models/gemini-2.5-pro",%s}' % CONTENTS, "another model than the path"),
    ],
    ids=lambda value: repr(value[:48]),
)
def test_an_invalid_request_is_refused_by_field(body, words):
    assert words in refusal(body)


@pytest.mark.parametrize(
    ("model", "words"),
    [(" ", "empty"), ("models/", ""), ("m" * (MAX_MODEL_NAME_LENGTH + 1), "longer"), ("a\nb", "control characters")],
)
def test_an_unusable_model_in_the_path_is_refused(model, words):
    body = b"{%s}" % CONTENTS
    if words:
        assert words in refusal(body, PathParams(model=model))
    else:
        assert GENERATE.read_request(body, PathParams(model=model)).model == ""


def test_one_content_may_stand_for_a_list_of_one():
    assert GENERATE.read_request(b'{"contents":{"parts":{"text":"Hello"}}}', FLASH).model == "gemini-2.5-flash"


def test_a_request_without_a_model_passes_unchanged():
    body = b'{ %s ,\n\t"generationConfig":{"temperature":1.0e0}, "x":{"b":1,"a":2 } }' % CONTENTS
    for named in ("gemini-2.5-flash", "gemini/gemini-2.5-flash"):
        assert (
            GENERATE.forwarded(body, GENERATE.read_request(body, PathParams(model=named)), "gemini-2.5-flash") == body
        )


def test_a_body_that_repeats_the_paths_model_is_renamed():
    body = b'{"model":"gemini/gemini-2.5-flash",%s,"generationConfig":{"temperature":1.0e0}}' % CONTENTS
    request = GENERATE.read_request(body, PathParams(model="gemini/gemini-2.5-flash"))
    sent = GENERATE.forwarded(body, request, "gemini-2.5-flash")
    assert json.loads(sent) == {**json.loads(body), "model": "models/gemini-2.5-flash"}
    assert b"1.0e0" in sent


def test_no_header_with_a_key_goes_upstream():
    assert not GENERATE.passed_headers & {b"x-goog-api-key", b"authorization", b"cookie"}


# Estimates -----------------------------------------------------------------------------------------------------------


def prompt(**fields: Any) -> int:
    return GENERATE.prompt_tokens(json.dumps(fields).encode())


def test_a_prompt_is_estimated_from_all_its_texts():
    contents = [{"role": "user", "parts": [{"text": "12345678"}]}]
    assert prompt(contents=contents) == pytest.approx(2 + 1 + 4, abs=1)
    for name in ("systemInstruction", "system_instruction"):
        assert prompt(contents=contents, **{name: {"parts": [{"text": "s" * 400}]}}) == pytest.approx(107, abs=2)
    tools = [{"functionDeclarations": [{"name": "t", "description": "d" * 400}]}]
    assert prompt(contents=contents, tools=tools) == pytest.approx(107, abs=2)


@pytest.mark.parametrize("name", ["inlineData", "inline_data"])
def test_an_image_is_not_text_however_long_its_base64_is(name):
    part = {name: {"mimeType": "image/png", "data": "iVBO" * 100_000}}
    assert 258 <= prompt(contents=[{"parts": [part]}]) <= 270


def test_an_array_is_estimated_as_the_sum_of_its_events():
    assert GENERATE.completion_tokens(golden("answer_array.json")) == GENERATE.completion_tokens(golden("answer.json"))


@pytest.mark.parametrize("response", [b"{}", b"[7]", b'{"candidates":7}', b'{"candidates":[7,{"content":7}]}'])
def test_a_response_without_text_is_estimated_as_nothing(response):
    assert GENERATE.completion_tokens(response) == 0


def test_delivered_tokens_are_estimated_from_all_events():
    blocks = split_events(golden("stream_vertex.sse"))
    assert GENERATE.delivered_tokens(blocks) == 2
    assert GENERATE.delivered_tokens([]) == 0


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidRequest, "INVALID_ARGUMENT"),
        (errors.BodyTooLarge, "INVALID_ARGUMENT"),
        (errors.NotAuthenticated, "UNAUTHENTICATED"),
        (errors.BudgetExhausted, "RESOURCE_EXHAUSTED"),
        (errors.NotAllowed, "PERMISSION_DENIED"),
        (errors.RouteNotFound, "NOT_FOUND"),
        (errors.RateLimited, "RESOURCE_EXHAUSTED"),
        (errors.UpstreamFault, "UNAVAILABLE"),
        (errors.ServiceFault, "INTERNAL"),
        (errors.Draining, "UNAVAILABLE"),
        (errors.UpstreamTimedOut, "DEADLINE_EXCEEDED"),
    ],
)
def test_an_error_has_googles_shape_and_our_ids(error, status):
    body = GENERATE.error_body(error("It happened.", hint="Do this."), "call_1")
    described = json.loads(body)["error"]
    (info,) = described.pop("details")
    assert described == {"code": error.http_status, "message": "It happened. Do this.", "status": status}
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert (info["reason"], info["domain"]) == (error.id.upper(), "mcpmeter")
    assert info["metadata"] == {"code": error.id, "call_id": "call_1"}
    assert ARRAY.error_body(error("It happened.", hint="Do this."), "call_1") == b"[" + body + b"]"
