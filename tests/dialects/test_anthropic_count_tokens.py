"""Anthropic's count_tokens: it passes, is counted as a call, and costs nothing."""

from __future__ import annotations

import pytest

from mcpmeter.dialects.anthropic_count_tokens import AnthropicCountTokens
from mcpmeter.dialects.base import ResponseInfo, UnreadableResponse
from mcpmeter.records import Usage

COUNT = AnthropicCountTokens()
MESSAGES = b'"messages":[{"role":"user","content":"Hello"}],"max_tokens":16'


def test_counting_tokens_reports_zero_usage():
    request = COUNT.read_request(b'{"model":"claude-sonnet-4.5",%s}' % MESSAGES)
    assert (request.stream, request.prompt_tokens_estimate, COUNT.path_name(request)) == (False, 0, "count_tokens")
    read = COUNT.read_response(b'{"input_tokens":2095,"context_management":null}')
    assert read == ResponseInfo(usage=Usage(source="reported"))
    assert COUNT.prompt_tokens(b"{}") == COUNT.completion_tokens(b"{}") == 0


def test_an_error_instead_of_a_count_is_an_error():
    assert COUNT.read_response(b'{"type":"error","error":{"type":"api_error","message":"No."}}').is_error


@pytest.mark.parametrize(
    "body", [b"{}", b'{"input_tokens":-1}', b'{"input_tokens":"7"}', b'{"error":null}', b'{"content":[]}']
)
def test_a_body_without_a_count_is_unreadable(body):
    with pytest.raises(UnreadableResponse):
        COUNT.read_response(body)
