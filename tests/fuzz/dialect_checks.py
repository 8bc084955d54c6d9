"""What holds for every dialect, whatever bytes a client or a provider sends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from tests.dialects.cases import assert_fits
from tests.fuzz.harness import Run

from mcpmeter.dialects import json_body, sse
from mcpmeter.dialects.base import Dialect, ResponseInfo, StreamingDialect, UnreadableResponse
from mcpmeter.dialects.json_body import MAX_NAME_LENGTH
from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.errors import InvalidRequest
from mcpmeter.money import usd_to_nanousd
from mcpmeter.records import NO_PATH_PARAMS, PathParams

OTHER_MODEL = "another-model"
PATHS = (NO_PATH_PARAMS, PathParams(model="m"), PathParams(model="models/gemini-2.5-flash", stream=True))
NESTED = ("generateContentRequest", "generate_content_request")

JSON_WORDS = tuple(
    word.encode()
    for word in (
        '{"a":1},', "[[[[", "]", "}", "{", ",", ":", '"', "null", "true", "false", "{}", "[]", '""', "0", "1", "-1",
        "1e9", '"\\u006dodel":"x",', '"model":"m",', '"model":', '"stream":true,', '"error":{"message":"x"},',
        '"error":null,', '"n":2,', '"type":"text",', '"text":"a",', '"content":"a",', '"usage":null',
        ',"usage":null}', '"usage":{},', "data: ", "data:", "event: ", "id: 1\n", ": ping\n\n", "\n\n", "\r\n\r\n",
        "\r\r", "data: [DONE]\n\n", "[DONE]",
    )
)  # fmt: skip


def checks_of(dialects: Sequence[Dialect]) -> Run:
    """Give each input to each function of these dialects, as each kind of message."""

    def check(data: bytes) -> None:
        for dialect in dialects:
            for path in PATHS:
                check_request(dialect, data, path)
            check_response(dialect, data)
            if isinstance(dialect, StreamingDialect):
                check_block(dialect, data)

    return check


def check_request(dialect: Dialect, body: bytes, path: PathParams) -> None:
    """A request is read or refused as invalid, and forwarded as it is."""
    try:
        request = dialect.read_request(body, path)
    except InvalidRequest as error:
        check_refusal(dialect, error)
        return
    with contextlib.suppress(RecursionError):
        names = [name for name, _value in json.loads(body, object_pairs_hook=list, parse_float=str, parse_int=str)]
        assert max(names.count("model"), names.count("stream")) <= 1
    assert request.model.isprintable()
    assert len(request.model) <= json_body.MAX_MODEL_NAME_LENGTH
    for count in (request.prompt_tokens_estimate, request.max_prompt_tokens, request.max_completion_tokens):
        assert count is None or (type(count) is int and count >= 0)
    assert dialect.prompt_tokens(body) >= 0
    assert dialect.path_name(request)
    same = dialect.forwarded(body, request, request.model)
    other = dialect.forwarded(body, request, OTHER_MODEL)
    if not (request.stream and not request.usage_requested):
        assert same == body
    for forwarded, model in ((same, request.model), (other, OTHER_MODEL)):
        again = dialect.read_request(forwarded, PathParams(model=model if path.model else "", stream=path.stream))
        assert (again.stream, again.max_completion_tokens) == (request.stream, request.max_completion_tokens)
        assert again.usage_requested or not request.stream
        with contextlib.suppress(RecursionError):
            assert_only_model_differs(_values(body), _values(forwarded))


def check_refusal(dialect: Dialect, error: InvalidRequest) -> None:
    """A refusal is written in the dialect's own shape, as a body and as one event."""
    json.loads(dialect.error_body(error, "call_1"))
    assert len(sse.payloads(dialect.error_event(error, "call_1"))) == 1


def _values(body: bytes) -> Any:
    """JSON in which each number keeps its text."""
    return json.loads(body, parse_float=str, parse_int=str)


def assert_only_model_differs(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name in before.keys() | after.keys():
        if name == "model":
            assert after[name] in (before.get(name), OTHER_MODEL, "models/" + OTHER_MODEL)
        elif name == "stream_options":
            assert after[name] in (before.get(name), {**(before.get(name) or {}), "include_usage": True})
        elif name in NESTED and before[name]:
            assert_only_model_differs(before[name], after[name])
        elif name == "requests" and before[name] != after[name]:
            for one, other in zip(before[name], after[name], strict=True):
                assert_only_model_differs(one, other)
        else:
            assert before[name] == after[name]


def check_response(dialect: Dialect, body: bytes) -> None:
    """A response is read or unreadable, and its numbers fit."""
    try:
        info = dialect.read_response(body)
    except UnreadableResponse:
        return
    check_info(info)
    assert dialect.completion_tokens(body) >= 0


def check_info(info: ResponseInfo | None) -> None:
    """Counts fit a row, texts are short and printable, money is an amount or none."""
    if info is None:
        return
    if info.usage is not None:
        assert_fits(info.usage)
    for text in (info.model, info.finish_reason):
        assert text.isprintable()
        assert len(text) <= MAX_NAME_LENGTH
    assert (usd_to_nanousd(info.reported_usd) or 0) >= 0


def check_block(dialect: StreamingDialect, block: bytes) -> None:
    """A block of events is read without an error, and loses nothing but null usage."""
    check_info(dialect.read_events(block))
    dialect.has_content(block)
    dialect.is_end(block)
    dialect.only_usage(block)
    assert dialect.delivered_tokens([block]) >= 0
    before, after = sse.payloads(block), sse.payloads(dialect.without_null_usage(block))
    assert len(before) == len(after)
    for payload, kept in zip(before, after, strict=True):
        if payload != kept:
            assert isinstance(dialect, OpenAiChat)
            _assert_only_null_usage_differs(payload, kept)


def _assert_only_null_usage_differs(payload: bytes, kept: bytes) -> None:
    try:
        event = json.loads(payload)
    except (ValueError, RecursionError):
        return
    assert event.pop("usage", None) is None
    assert json.loads(kept) == event or "usage" in json.loads(kept)
