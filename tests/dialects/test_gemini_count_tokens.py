"""Gemini's countTokens: it passes, is counted as a call, and costs nothing."""

from __future__ import annotations

import pytest

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
def test_contents_and_whole_requests_pass_unchanged(body):
    request = COUNT.read_request(body, FLASH)
    assert (request.model, request.stream, request.prompt_tokens_estimate) == ("gemini-2.5-flash", False, 0)
    assert COUNT.forwarded(body, request, request.model) == body
    assert COUNT.path_name(request) == "count_contents"
    assert COUNT.prompt_tokens(body) == COUNT.completion_tokens(b"{}") == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "'contents' is empty"),
        (b'{"contents":[]}', "'contents' is empty"),
        (b'{"generateContentRequest":{}}', "`contents`"),
        (b'{"generateContentRequest":{"contents":[]}}', "'contents' is empty"),
        (b'{"contents":7}', "$.contents"),
        (b'{"model":"models/gpt-4.1",%s}' % CONTENTS, "names another model"),
        (WHOLE.replace(b"2.5", b"2.0") % (b"generateContentRequest", CONTENTS), "names another model"),
    ],
)
def test_an_invalid_request_is_refused_by_field(body, words):
    with pytest.raises(InvalidRequest) as refused:
        COUNT.read_request(body, FLASH)
    assert words in str(refused.value)


@pytest.mark.parametrize("name", [b"generateContentRequest", b"generate_content_request"])
def test_a_model_is_renamed_inside_a_whole_request(name):
    body = WHOLE % (name, CONTENTS)
    renamed = COUNT.forwarded(body, COUNT.read_request(body, FLASH), "other")
    assert renamed == body.replace(b"gemini-2.5-flash", b"other")


def test_a_body_without_a_model_passes_unchanged():
    body = b'{ "contents":[{"parts":[{"text":"Hello"}]}] }'
    assert COUNT.forwarded(body, COUNT.read_request(body, FLASH), "other") == body


@pytest.mark.parametrize("response", [b'{"totalTokens":7,"promptTokensDetails":[]}', b"{}", b'{"totalTokens":"7"}'])
def test_a_count_is_free_whatever_it_is(response):
    assert COUNT.read_response(response).usage == Usage(source="reported")


@pytest.mark.parametrize("response", [b'{"detail":"Not Found"}', b'{"contents":[]}'])
def test_a_body_without_a_count_is_unreadable(response):
    with pytest.raises(UnreadableResponse):
        COUNT.read_response(response)


def test_an_error_with_a_success_status_is_an_error():
    assert COUNT.read_response(b'{"error":{"code":500}}').is_error
