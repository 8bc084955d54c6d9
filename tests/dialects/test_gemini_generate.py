"""The generateContent dialect on bodies as Google and relays send them, and on requests good and bad."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter import errors
from mcpmeter.dialects.base import ResponseInfo, UnreadableResponse
from mcpmeter.dialects.gemini import read_usage
from mcpmeter.dialects.gemini_generate import GeminiGenerate, GeminiGenerateArray
from mcpmeter.dialects.json_body import MAX_MODEL_NAME_LENGTH
from mcpmeter.dialects.sse import split_events
from mcpmeter.dialects.tokens import MAX_TOKENS
from mcpmeter.errors import InvalidRequest, MeterError
from mcpmeter.records import PathParams, Usage
from mcpmeter.relay.stream import StreamTee

GOLDEN = Path(__file__).parents[1] / "golden" / "gemini_generate"
EXPECTED: dict[str, dict[str, Any]] = json.loads((GOLDEN / "expected.json").read_text())
STREAMS = [name for name in EXPECTED if name.endswith(".sse")]
GENERATE = GeminiGenerate()
ARRAY = GeminiGenerateArray()
CONTENTS = b'"contents":[{"role":"user","parts":[{"text":"Hello"}]}]'
FLASH = PathParams(model="gemini-2.5-flash")
FIELDS = tuple(EXPECTED["answer.json"]["usage"])


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def told(read: ResponseInfo) -> dict[str, Any]:
    usage = read.usage
    return {
        "usage": None if usage is None else {name: getattr(usage, name) for name in FIELDS},
        "model": read.model,
        "finish_reason": read.finish_reason,
        "is_error": read.is_error,
        "is_refusal": read.is_refusal,
        "is_empty": read.is_empty,
    }


def pass_through(pieces: list[bytes]) -> tuple[bytes, StreamTee]:
    tee = StreamTee(GENERATE, withhold_usage=False)
    return b"".join(map(tee.feed, pieces)) + tee.finish(), tee


def check(name: str, pieces: list[bytes]) -> None:
    out, tee = pass_through(pieces)
    assert out == b"".join(pieces)
    assert tee.end == b""
    assert {**told(tee.read), "is_whole": tee.is_whole} == EXPECTED[name]


# Answers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.endswith(".json")])
def test_an_answer_says_what_google_billed(name):
    assert told(GENERATE.read_response(golden(name))) == EXPECTED[name]


@pytest.mark.parametrize("name", [file.name for file in GOLDEN.iterdir()])
def test_every_golden_body_has_its_expectation(name):
    assert name == "expected.json" or name in EXPECTED


def test_the_count_of_a_whole_array_is_final_and_of_one_that_ends_in_an_error_is_not():
    assert GENERATE.read_response(golden("answer_array.json")).usage.source == "reported"
    assert GENERATE.read_response(golden("answer_array_error.json")).usage.source == "partial"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"<html>",
        b"[]",
        b"[7]",
        b"[{}]",
        b'"text"',
        b"null",
        b"{}",
        b'{"candidates":"none"}',
        b'{"candidates":[{"finishReason":7}]}',
        b'{"candidates":[{"content":{"parts":[7]}}]}',
        b'{"promptFeedback":{}}',
        b'{"choices":[{}]}',
        b'{"candidates":[{}]',
        b"{" * 200_000,
        b"[" * 200_000,
        b'{"candidates":[],"modelVersion":"\xff"}',
    ],
    ids=lambda value: repr(value[:48]),
)
def test_what_is_no_answer_is_not_taken_for_one(body):
    with pytest.raises(UnreadableResponse):
        GENERATE.read_response(body)


def test_an_answer_that_only_python_would_parse_is_still_metered():
    candidate = b'{"content":{"parts":[{"text":"\\ud83d"}]},"avgLogprobs":NaN}'
    body = b'{"candidates":[%s],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":2}}' % candidate
    assert GENERATE.read_response(body).usage.completion_tokens == 2
    assert GENERATE.completion_tokens(body) == 1


def test_a_providers_words_are_bounded_and_printable_before_they_reach_a_row():
    body = json.dumps({"candidates": [{"finishReason": "ST\nOP\0"}], "modelVersion": "m" * 10_000}).encode()
    read = GENERATE.read_response(body)
    assert (read.finish_reason, len(read.model)) == ("ST?OP?", 256)


def test_a_reason_that_is_not_specified_is_none():
    body = b'{"candidates":[{"finishReason":"FINISH_REASON_UNSPECIFIED"}],"promptFeedback":{}}'
    assert GENERATE.read_response(body).finish_reason == ""


def test_a_blocked_prompt_is_a_refusal_whatever_blocked_it():
    read = GENERATE.read_response(b'{"promptFeedback":{"blockReason":"OTHER"}}')
    assert (read.is_refusal, read.finish_reason, read.is_empty) == (True, "OTHER", False)


def test_an_array_whose_last_count_cannot_be_has_none():
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
def test_an_answer_is_empty_that_holds_neither_text_nor_a_call(part, is_empty):
    body = f'{{"candidates":[{{"content":{{"parts":[{part}]}},"finishReason":"STOP"}}]}}'.encode()
    assert GENERATE.read_response(body).is_empty is is_empty
    assert pass_through([b"data: " + body + b"\n\n"])[1].read.is_empty is is_empty


# Usage ----------------------------------------------------------------------------------------------------------------


def read(text: str) -> tuple[Usage | None, bool]:
    return read_usage(msgspec.Raw(text.encode()))


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
        ('{"promptTokenCount":5,"toolUsePromptTokenCount":30,"candidatesTokenCount":2}', reported(35, 2)),
        ('{"promptTokenCount":5,"toolUsePromptTokenCount":30,"totalTokenCount":37}', reported(35, 2)),
        ('{"candidatesTokenCount":5}', BAD),
        ('{"totalTokenCount":5}', BAD),
        ('{"thoughtsTokenCount":5}', BAD),
        ('{"promptTokenCount":null,"candidatesTokenCount":5}', BAD),
        ('{"promptTokenCount":-1,"candidatesTokenCount":5}', BAD),
        ('{"promptTokenCount":1,"candidatesTokenCount":-5}', BAD),
        ('{"promptTokenCount":1,"thoughtsTokenCount":-5}', BAD),
        ('{"promptTokenCount":1.5,"candidatesTokenCount":5}', BAD),
        ('{"promptTokenCount":1.0,"candidatesTokenCount":5}', BAD),
        ('{"promptTokenCount":1e400,"candidatesTokenCount":5}', BAD),
        ('{"promptTokenCount":NaN,"candidatesTokenCount":5}', BAD),
        ('{"promptTokenCount":Infinity,"candidatesTokenCount":5}', BAD),
        ('{"promptTokenCount":"12","candidatesTokenCount":5}', BAD),
        ('{"promptTokenCount":true,"candidatesTokenCount":5}', BAD),
        ('{"promptTokenCount":[],"candidatesTokenCount":5}', BAD),
        (f'{{"promptTokenCount":{MAX_TOKENS + 1},"candidatesTokenCount":5}}', BAD),
        (f'{{"promptTokenCount":{10**30},"candidatesTokenCount":5}}', BAD),
        (f'{{"promptTokenCount":{"9" * 5000},"candidatesTokenCount":5}}', BAD),
        ("[]", BAD),
        ("7", BAD),
        ('"many"', BAD),
        ("true", BAD),
        ('{"promptTokenCount":1,', BAD),
    ],
)
def test_totals_are_taken_as_they_are_or_not_at_all(text, expected):
    assert read(text) == expected


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ('"cachedContentTokenCount":4', {"cached_read_tokens": 4}),
        ('"cachedContentTokenCount":0', {}),
        ('"cachedContentTokenCount":99', {"cached_read_tokens": 10}),
        ('"cachedContentTokenCount":-1', {}),
        ('"cachedContentTokenCount":"4"', {}),
        ('"cachedContentTokenCount":null', {}),
        ('"promptTokensDetails":[{"modality":"TEXT","tokenCount":9},{"modality":"AUDIO"}]', {}),
        ('"promptTokensDetails":[{"modality":"TEXT","tokenCount":9},{"modality":"AUDIO","tokenCount":1}]', AUDIO),
        ('"promptTokensDetails":[{"modality":"AUDIO","tokenCount":99}]', {"audio_tokens": 10}),
        ('"candidatesTokensDetails":[{"modality":"AUDIO","tokenCount":3}]', {"audio_tokens": 3}),
        ('"candidatesTokensDetails":[{"modality":"AUDIO","tokenCount":99}]', {"audio_tokens": 5}),
        ('"toolUsePromptTokensDetails":[{"modality":"AUDIO","tokenCount":2}]', {"audio_tokens": 2}),
        ('"promptTokensDetails":[{"modality":"AUDIO"}]', {}),
        ('"promptTokensDetails":[{"modality":"AUDIO","tokenCount":-3}]', {}),
        ('"promptTokensDetails":[{"modality":7,"tokenCount":3}]', {}),
        ('"promptTokensDetails":{},"candidatesTokensDetails":7', {}),
        ('"promptTokensDetails":null,"candidatesTokensDetails":null', {}),
    ],
)
def test_details_never_pass_the_totals_nor_spoil_them(details, expected):
    assert read(f'{{"promptTokenCount":10,"candidatesTokenCount":5,{details}}}') == reported(10, 5, **expected)


numbers = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=1)
)
modalities = st.lists(st.fixed_dictionaries({"modality": st.just("AUDIO"), "tokenCount": numbers}), max_size=3)
usages = st.dictionaries(
    st.sampled_from(
        [
            "promptTokenCount",
            "candidatesTokenCount",
            "thoughtsTokenCount",
            "toolUsePromptTokenCount",
            "totalTokenCount",
            "cachedContentTokenCount",
            "promptTokensDetails",
            "candidatesTokensDetails",
        ]
    ),
    numbers | st.integers(0, 50) | modalities,
)


def assert_fits(usage: Usage) -> None:
    assert 0 <= usage.prompt_tokens <= 2 * MAX_TOKENS
    assert 0 <= usage.completion_tokens <= 2 * MAX_TOKENS
    assert 0 <= usage.cached_read_tokens <= usage.prompt_tokens
    assert 0 <= usage.reasoning_tokens <= usage.completion_tokens
    assert 0 <= usage.audio_tokens <= usage.prompt_tokens + usage.completion_tokens


@given(usages)
def test_whatever_is_reported_fits_a_row_and_its_parts_fit_their_totals(value):
    usage, _bad = read(json.dumps(value))
    if usage is not None:
        assert_fits(usage)


# Streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_cut_in_two_at_any_byte_gives_the_same_bytes_and_usage(name):
    data = golden(name)
    for place in range(len(data)):
        check(name, [data[:place], data[place:]])


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_comes_byte_by_byte_gives_the_same_bytes_and_usage(name):
    check(name, [bytes((byte,)) for byte in golden(name)])


@given(st.sampled_from(STREAMS), st.sets(st.integers(1, 1200), max_size=30))
def test_a_stream_cut_anywhere_gives_the_same_bytes_and_usage(name, places):
    data = golden(name)
    edges = [0, *sorted(place for place in places if place < len(data)), len(data)]
    check(name, [data[a:b] for a, b in itertools.pairwise(edges)])


def test_a_stream_that_breaks_off_has_counted_its_tokens_so_far_but_no_usage_to_bill_by():
    _out, tee = pass_through([golden("stream_broken.sse")])
    assert tee.counted == Usage(prompt_tokens=8, completion_tokens=3, source="partial")
    assert (tee.read.usage, tee.is_whole) == (None, False)
    assert tee.delivered_tokens() == 3


@pytest.mark.parametrize(
    ("counts", "usage", "bad"),
    [
        (['{"promptTokenCount":-1}', '{"promptTokenCount":5,"candidatesTokenCount":7}'], (5, 7), False),
        (['{"promptTokenCount":5,"candidatesTokenCount":7}', '{"promptTokenCount":"5"}'], None, True),
        (['{"promptTokenCount":5,"candidatesTokenCount":9}', '{"promptTokenCount":5}'], (5, 0), False),
        (['{"promptTokenCount":9,"totalTokenCount":9}', '{"promptTokenCount":5,"totalTokenCount":12}'], (5, 7), False),
        (['{"promptTokenCount":5,"candidatesTokenCount":7}', "null"], None, False),
        (['{"promptTokenCount":NaN}', "null"], None, True),
    ],
)
def test_the_last_count_of_a_stream_counts_alone(counts, usage, bad):
    first, last = counts
    _out, tee = pass_through(
        [
            b'data: {"candidates":[{}],"usageMetadata":%s}\n\n' % first.encode(),
            b'data: {"candidates":[{"finishReason":"STOP"}],"usageMetadata":%s}\n\n' % last.encode(),
        ]
    )
    read = tee.read
    assert (read.usage and (read.usage.prompt_tokens, read.usage.completion_tokens), read.bad_usage) == (usage, bad)


@given(st.lists(st.tuples(usages, st.sampled_from([None, "STOP"])), max_size=4))
def test_whatever_a_stream_reports_fits_a_row_and_is_final_only_once_the_model_has_stopped(events):
    lines = [{"candidates": [{"finishReason": reason}], "usageMetadata": usage} for usage, reason in events]
    _out, tee = pass_through([b"data: %s\r\n\r\n" % json.dumps(line).encode() for line in lines])
    if tee.read.usage is not None:
        assert_fits(tee.read.usage)
        assert tee.read.finish_reason


@given(
    st.lists(st.binary(max_size=60) | st.sampled_from([b"\n\n", b"\r\n", b"data: ", b'"error"', b'{"usageMetadata":']))
)
def test_whatever_upstream_sends_goes_on(pieces):
    assert pass_through(pieces)[0] == b"".join(pieces)


def test_a_call_whose_arguments_are_named_like_errors_is_none():
    assert b'"error"' in golden("stream_function_call.sse")
    assert not pass_through([golden("stream_function_call.sse")])[1].read.is_error


# Requests -------------------------------------------------------------------------------------------------------------


def refusal(body: bytes, named: PathParams = FLASH) -> str:
    with pytest.raises(InvalidRequest) as refused:
        GENERATE.read_request(body, named)
    return str(refused.value)


@pytest.mark.parametrize(
    ("dialect", "stream", "path"),
    [(GENERATE, False, "generate"), (GENERATE, True, "generate_stream"), (ARRAY, True, "generate_array")],
)
def test_model_and_streaming_are_taken_from_the_path(dialect, stream, path):
    asked = dialect.read_request(
        b'{%s,"stream":true,"new":[1]}' % CONTENTS, PathParams(model="gemini-2.5-flash", stream=stream)
    )
    assert (asked.model, dialect.path_name(asked)) == ("gemini-2.5-flash", path)
    assert asked.stream is (path == "generate_stream")
    assert asked.prompt_tokens_estimate > 0


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
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "not a generateContent request"),
        (b"{}", "`contents`"),
        (b'{"contents":[]}', "'contents' is empty"),
        (b'{"contents":{}}', "'contents' is empty"),
        (b'{"contents":null}', "$.contents"),
        (b'{"contents":"Hello"}', "$.contents"),
        (b'{"contents":["Hello"]}', "$.contents[0]"),
        (b'{"model":7,%s}' % CONTENTS, "$.model"),
        (b'{"model":"models/",%s}' % CONTENTS, "'model' is empty"),
        (b'{"model":"models/gemini-2.5-pro",%s}' % CONTENTS, "another model than the path"),
        (b'{"x":"\xff",%s}' % CONTENTS, "not valid UTF-8"),
        (b'{"x":"\\ud800",%s}' % CONTENTS, "not valid JSON"),
        (b'{"x":"\\u0000",%s}' % CONTENTS, "NUL"),
        (b'{"x":' * 1_000_000, "nested too deep"),
        (b"{%s,%s}" % (CONTENTS, CONTENTS), "'contents' twice"),
        (b'{"model":"gemini-2.5-flash","mod\\u0065l":"b",%s}' % CONTENTS, "'model' twice"),
    ],
    ids=lambda value: repr(value[:48]),
)
def test_a_bad_request_is_refused_in_a_sentence_that_repeats_none_of_it(body, words):
    assert words in refusal(body)


@pytest.mark.parametrize(
    ("model", "words"),
    [(" ", "empty"), ("models/", ""), ("m" * (MAX_MODEL_NAME_LENGTH + 1), "longer"), ("a\nb", "control characters")],
)
def test_a_path_without_a_usable_model_is_refused_unless_it_names_none(model, words):
    body = b"{%s}" % CONTENTS
    if words:
        assert words in refusal(body, PathParams(model=model))
    else:
        assert GENERATE.read_request(body, PathParams(model=model)).model == ""


def test_one_content_may_stand_for_a_list_of_one():
    assert GENERATE.read_request(b'{"contents":{"parts":{"text":"Hello"}}}', FLASH).model == "gemini-2.5-flash"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.binary(max_size=200)
    | st.dictionaries(
        st.sampled_from(["model", "contents", "systemInstruction", "tools"]) | st.text(max_size=5), json_values
    ).map(lambda value: json.dumps(value).encode()),
    st.text(max_size=10),
)
def test_any_bytes_are_a_request_or_refused(body, model):
    with contextlib.suppress(InvalidRequest):
        asked = GENERATE.read_request(body, PathParams(model=model))
        forwarded = GENERATE.forwarded(body, asked, "other")
        assert GENERATE.read_request(forwarded, PathParams(model="other")).model == "other"
        assert GENERATE.prompt_tokens(body) >= 0


def test_a_request_goes_on_byte_for_byte_whatever_the_model_is_called_upstream():
    body = b'{ %s ,\n\t"generationConfig":{"temperature":1.0e0}, "x":{"b":1,"a":2 } }' % CONTENTS
    for named in ("gemini-2.5-flash", "gemini/gemini-2.5-flash"):
        assert (
            GENERATE.forwarded(body, GENERATE.read_request(body, PathParams(model=named)), "gemini-2.5-flash") == body
        )


def test_a_body_that_repeats_the_paths_model_is_renamed_with_it():
    body = b'{"model":"gemini/gemini-2.5-flash",%s,"generationConfig":{"temperature":1.0e0}}' % CONTENTS
    asked = GENERATE.read_request(body, PathParams(model="gemini/gemini-2.5-flash"))
    sent = GENERATE.forwarded(body, asked, "gemini-2.5-flash")
    assert json.loads(sent) == {**json.loads(body), "model": "models/gemini-2.5-flash"}
    assert b"1.0e0" in sent


def test_no_header_that_holds_a_key_goes_upstream():
    assert not GENERATE.passed_headers & {b"x-goog-api-key", b"authorization", b"cookie"}


# Estimates ------------------------------------------------------------------------------------------------------------


def prompt(**fields: Any) -> int:
    return GENERATE.prompt_tokens(json.dumps(fields).encode())


def test_a_prompt_is_estimated_from_its_instruction_its_contents_and_its_tools():
    contents = [{"role": "user", "parts": [{"text": "12345678"}]}]
    assert prompt(contents=contents) == pytest.approx(2 + 1 + 4, abs=1)
    for name in ("systemInstruction", "system_instruction"):
        assert prompt(contents=contents, **{name: {"parts": [{"text": "s" * 400}]}}) == pytest.approx(107, abs=2)
    tools = [{"functionDeclarations": [{"name": "t", "description": "d" * 400}]}]
    assert prompt(contents=contents, tools=tools) == pytest.approx(107, abs=2)


@pytest.mark.parametrize("name", ["inlineData", "inline_data"])
def test_an_image_is_no_text_however_long_its_base64_is(name):
    part = {name: {"mimeType": "image/png", "data": "iVBO" * 100_000}}
    assert 258 <= prompt(contents=[{"parts": [part]}]) <= 270


@pytest.mark.parametrize("name", ["answer.json", "answer_function_call.json", "answer_two_candidates.json"])
def test_an_answer_is_estimated_near_what_was_billed(name):
    expected = EXPECTED[name]["usage"]
    billed = expected["completion_tokens"] - expected["reasoning_tokens"]
    assert billed / 2 <= GENERATE.completion_tokens(golden(name)) <= billed * 2


def test_an_array_is_estimated_as_the_sum_of_its_events():
    assert GENERATE.completion_tokens(golden("answer_array.json")) == GENERATE.completion_tokens(golden("answer.json"))


@pytest.mark.parametrize(
    "answer", [b"", b"{}", b"[]", b"[7]", b'{"candidates":7}', b'{"candidates":[7,{"content":7}]}', b"{" * 100_000]
)
def test_what_holds_no_text_is_estimated_as_nothing(answer):
    assert GENERATE.completion_tokens(answer) == 0


def test_what_was_delivered_is_estimated_from_the_texts_of_all_events():
    blocks = split_events(golden("stream_vertex.sse"))
    assert GENERATE.delivered_tokens(blocks) == 2
    assert GENERATE.delivered_tokens([]) == 0


# Errors ---------------------------------------------------------------------------------------------------------------


def subclasses(kind: type[MeterError]) -> list[type[MeterError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in subclasses(child))]


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
def test_an_error_has_googles_shape_its_canonical_code_and_our_ids(error, status):
    body = GENERATE.error_body(error("It happened.", hint="Do this."), "call_1")
    told = json.loads(body)["error"]
    (info,) = told.pop("details")
    assert told == {"code": error.http_status, "message": "It happened. Do this.", "status": status}
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert (info["reason"], info["domain"]) == (error.id.upper(), "mcpmeter")
    assert info["metadata"] == {"code": error.id, "call_id": "call_1"}
    assert ARRAY.error_body(error("It happened.", hint="Do this."), "call_1") == b"[" + body + b"]"


@pytest.mark.parametrize("error", subclasses(MeterError), ids=lambda kind: kind.__name__)
def test_an_error_inside_a_stream_is_one_event_that_reads_as_an_error(error):
    event = GENERATE.error_event(error("It\nended."), "call_1")
    assert event.startswith(b'data: {"error":')
    assert split_events(event) == [event]
    assert GENERATE.read_events(event).is_error
