"""Gemini's embeddings, single and in batches: inputs are counted, vectors pass unread."""

from __future__ import annotations

import json

import pytest

from mcpmeter.dialects.base import UnreadableResponse
from mcpmeter.dialects.gemini import TOKENS_PER_MEDIUM
from mcpmeter.dialects.gemini_embeddings import GeminiBatchEmbed, GeminiEmbed
from mcpmeter.errors import InvalidRequest
from mcpmeter.records import PathParams, Usage

ONE, BATCH = GeminiEmbed(), GeminiBatchEmbed()
MODEL = PathParams(model="gemini-embedding-001")
CONTENT = b'"content":{"parts":[{"text":"12345678"}]}'


def batch_of(*requests: bytes) -> bytes:
    return b'{"requests":[%s]}' % b",".join(requests)


@pytest.mark.parametrize("path_model", ["gemini-embedding-001", "models/gemini-embedding-001"])
def test_the_body_may_repeat_the_paths_model(path_model):
    body = b'{"model":"models/gemini-embedding-001",%s,"outputDimensionality":64}' % CONTENT
    for dialect, sent in ((ONE, body), (BATCH, batch_of(body, body))):
        request = dialect.read_request(sent, PathParams(model=path_model))
        assert (request.model, request.stream) == ("gemini-embedding-001", False)
        assert request.prompt_tokens_estimate > 0
        assert dialect.forwarded(sent, request, request.model) == sent
    assert (ONE.path_name(request), BATCH.path_name(request)) == ("embed_content", "batch_embed_contents")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "`content`"),
        (b'{"content":{}}', "'content' is empty"),
        (b'{"content":"Hello"}', "$.content"),
        (b'{"model":"models/gpt-4.1",%s}' % CONTENT, "names another model than the path"),
        (b'{"model":"",%s}' % CONTENT, "'model' is empty"),
        (b"{%s,%s}" % (CONTENT, CONTENT), "names 'content' twice"),
        (b'{"model":"models/a","model":"models/gemini-embedding-001",%s}' % CONTENT, "names 'model' twice"),
        (b'{"content":{"parts":[{"text":"\\u0000"}]}}', "NUL"),
    ],
)
def test_an_invalid_request_is_refused_alone_and_in_a_batch(body, words):
    with pytest.raises(InvalidRequest) as refused:
        ONE.read_request(body, MODEL)
    assert words in str(refused.value)
    with pytest.raises(InvalidRequest) as refused:
        BATCH.read_request(batch_of(b"{%s}" % CONTENT, body), MODEL)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "`requests`"),
        (b'{"requests":[]}', "'requests' is empty"),
        (b'{"requests":{}}', "$.requests"),
        (b'{"requests":[],"requests":[{%s}]}' % CONTENT, "names 'requests' twice"),
        (b'{"requests":[7]}', "an embedContent request"),
    ],
)
def test_an_invalid_batch_is_refused(body, words):
    with pytest.raises(InvalidRequest) as refused:
        BATCH.read_request(body, MODEL)
    assert words in str(refused.value)


def test_a_batch_names_at_most_one_model():
    named = [b'{"model":"models/%s",%s}' % (name, CONTENT) for name in (b"a", b"b")]
    assert BATCH.read_request(batch_of(named[0], named[0])).model == "a"
    with pytest.raises(InvalidRequest, match="several models"):
        BATCH.read_request(batch_of(*named))


def test_renaming_the_model_changes_nothing_else():
    body = b'{"model":"models/gemini-embedding-001", %s, "new": 1.50}' % CONTENT
    request = ONE.read_request(body, MODEL)
    assert ONE.forwarded(body, request, "other") == b'{"model":"models/other",%s,"new":1.50}' % CONTENT
    sent = batch_of(body, b"{%s}" % CONTENT)
    renamed = BATCH.forwarded(sent, BATCH.read_request(sent, MODEL), "other")
    first, second = json.loads(renamed)["requests"]
    assert (first["model"], first["new"], second) == ("models/other", 1.5, json.loads(b"{%s}" % CONTENT))


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b"{%s}" % CONTENT, 2),
        (batch_of(b"{%s}" % CONTENT, b"{%s}" % CONTENT), 4),
        (b'{"content":{"role":"user","parts":[{"inlineData":{"data":"QUJD"}}]}}', TOKENS_PER_MEDIUM),
        (b"no json at all", 3),
    ],
)
def test_a_prompt_is_estimated_from_the_embedded_contents(body, tokens):
    assert BATCH.prompt_tokens(body) == ONE.prompt_tokens(body) == pytest.approx(tokens, abs=1)


@pytest.mark.parametrize(
    ("response", "usage"),
    [
        (b'{"embedding":{"values":[0.1]}}', None),
        (b'{"embeddings":[{"values":[0.1]}],"usageMetadata":{"promptTokenCount":7,"totalTokenCount":7}}', 7),
        (b'{"embeddings":[],"usageMetadata":{"promptTokenCount":0}}', 0),
        (b'{"embedding":{"values":[]},"usageMetadata":{"promptTokenCount":7,"totalTokenCount":99}}', 7),
    ],
)
def test_only_the_prompt_is_billed(response, usage):
    read = ONE.read_response(response)
    assert read.usage == (None if usage is None else Usage(prompt_tokens=usage, source="reported"))
    assert (read.bad_usage, read.is_empty) == (False, b'"embeddings":[]' in response)


@pytest.mark.parametrize("response", [b'{"embeddings":7}', b'{"candidates":[]}'])
def test_a_body_without_vectors_is_unreadable(response):
    with pytest.raises(UnreadableResponse):
        ONE.read_response(response)


def test_an_error_with_a_success_status_is_an_error():
    assert ONE.read_response(b'{"error":{"code":500,"message":"x","status":"INTERNAL"}}').is_error
