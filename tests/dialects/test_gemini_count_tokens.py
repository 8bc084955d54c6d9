"""Gemini's counting of a prompt: it passes, is seen, and costs nothing."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.dialects.base import UnreadableResponse
from mcpmeter.dialects.gemini_count_tokens import GeminiCountTokens
from mcpmeter.errors import InvalidRequest
from mcpmeter.records import PathParams, Usage

COUNT = GeminiCountTokens()
FLASH = PathParams(model="gemini-2.5-flash")
CONTENTS = b'"contents":[{"parts":[{"text":"Hello"}]}]'
WHOLE = b'{"%s":{"model":"models/gemini-2.5-flash",%s}}'


@pytest.mark.parametrize(
    "body",
    [
        b"{%s}" % CONTENTS,
        b'{"contents":{"parts":[{"text":"Hello"}]}}',
        WHOLE % (b"generateContentRequest", CONTENTS),
        WHOLE % (b"generate_content_request", CONTENTS),
    ],
)
def test_contents_and_whole_requests_are_counted_as_they_came(body):
    asked = COUNT.read_request(body, FLASH)
    assert (asked.model, asked.stream, asked.prompt_tokens_estimate) == ("gemini-2.5-flash", False, 0)
    assert COUNT.forwarded(body, asked, asked.model) == body
    assert COUNT.path_name(asked) == "count_contents"
    assert COUNT.prompt_tokens(body) == COUNT.completion_tokens(b"{}") == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"[]", "a countTokens request"),
        (b"{}", "'contents' is empty"),
        (b'{"contents":[]}', "'contents' is empty"),
        (b'{"generateContentRequest":{}}', "`contents`"),
        (b'{"generateContentRequest":{"contents":[]}}', "'contents' is empty"),
        (b'{"contents":7}', "$.contents"),
        (b"{%s,%s}" % (CONTENTS, CONTENTS), "names 'contents' twice"),
        (b'{"model":"models/gpt-4.1",%s}' % CONTENTS, "names another model"),
        (WHOLE.replace(b"2.5", b"2.0") % (b"generateContentRequest", CONTENTS), "names another model"),
    ],
)
def test_what_has_nothing_to_count_is_refused(body, words):
    with pytest.raises(InvalidRequest) as refused:
        COUNT.read_request(body, FLASH)
    assert words in str(refused.value)


@pytest.mark.parametrize("name", [b"generateContentRequest", b"generate_content_request"])
def test_a_model_that_upstream_knows_by_another_name_is_renamed_inside_a_whole_request_too(name):
    body = WHOLE % (name, CONTENTS)
    renamed = COUNT.forwarded(body, COUNT.read_request(body, FLASH), "other")
    assert renamed == body.replace(b"gemini-2.5-flash", b"other")


def test_a_body_that_names_no_model_stays_as_it_is_under_another_name():
    body = b'{ "contents":[{"parts":[{"text":"Hello"}]}] }'
    assert COUNT.forwarded(body, COUNT.read_request(body, FLASH), "other") == body


@pytest.mark.parametrize("answer", [b'{"totalTokens":7,"promptTokensDetails":[]}', b"{}", b'{"totalTokens":"7"}'])
def test_an_answer_is_free_whatever_it_counted(answer):
    assert COUNT.read_response(answer).usage == Usage(source="reported")


@pytest.mark.parametrize("answer", [b"", b"[]", b"<html>", b'{"detail":"Not Found"}', b'"7"'])
def test_what_counts_nothing_is_no_answer(answer):
    with pytest.raises(UnreadableResponse):
        COUNT.read_response(answer)


def test_an_error_with_a_success_status_is_an_error():
    assert COUNT.read_response(b'{"error":{"code":500}}').is_error
    told = json.loads(COUNT.error_body(InvalidRequest("No."), "call_1"))["error"]
    assert told["status"] == "INVALID_ARGUMENT"


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(body):
    with contextlib.suppress(InvalidRequest):
        COUNT.read_request(body, FLASH)
    with contextlib.suppress(UnreadableResponse):
        COUNT.read_response(body)
