"""Gemini's embeddings: one content and batches of them; what is embedded is counted, vectors pass unread."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.dialects.base import UnreadableResponse
from mcpmeter.dialects.gemini import TOKENS_PER_MEDIUM
from mcpmeter.dialects.gemini_embeddings import GeminiBatchEmbed, GeminiEmbed
from mcpmeter.errors import InvalidRequest, LedgerUnavailable
from mcpmeter.records import PathParams, Usage

ONE, BATCH = GeminiEmbed(), GeminiBatchEmbed()
MODEL = PathParams(model="gemini-embedding-001")
CONTENT = b'"content":{"parts":[{"text":"12345678"}]}'


def batch_of(*requests: bytes) -> bytes:
    return b'{"requests":[%s]}' % b",".join(requests)


@pytest.mark.parametrize("path_model", ["gemini-embedding-001", "models/gemini-embedding-001"])
def test_the_paths_model_is_meant_and_may_be_repeated(path_model):
    body = b'{"model":"models/gemini-embedding-001",%s,"outputDimensionality":64}' % CONTENT
    for dialect, sent in ((ONE, body), (BATCH, batch_of(body, body))):
        asked = dialect.read_request(sent, PathParams(model=path_model))
        assert (asked.model, asked.stream) == ("gemini-embedding-001", False)
        assert asked.prompt_tokens_estimate > 0
        assert dialect.forwarded(sent, asked, asked.model) == sent
    assert (ONE.path_name(asked), BATCH.path_name(asked)) == ("embed_content", "batch_embed_contents")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"[]", "an embedContent request"),
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
def test_what_cannot_be_embedded_is_refused_alone_and_in_a_batch(body, words):
    with pytest.raises(InvalidRequest) as refused:
        ONE.read_request(body, MODEL)
    assert words in str(refused.value)
    if body.startswith(b"{"):
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
def test_what_is_no_batch_is_refused(body, words):
    with pytest.raises(InvalidRequest) as refused:
        BATCH.read_request(body, MODEL)
    assert words in str(refused.value)


def test_a_batch_without_a_model_in_the_path_may_name_one_only():
    named = [b'{"model":"models/%s",%s}' % (name, CONTENT) for name in (b"a", b"b")]
    assert BATCH.read_request(batch_of(named[0], named[0])).model == "a"
    with pytest.raises(InvalidRequest, match="several models"):
        BATCH.read_request(batch_of(*named))


def test_a_model_that_upstream_knows_by_another_name_is_renamed_wherever_it_stands_and_nothing_else():
    body = b'{"model":"models/gemini-embedding-001", %s, "new": 1.50}' % CONTENT
    asked = ONE.read_request(body, MODEL)
    assert ONE.forwarded(body, asked, "other") == b'{"model":"models/other",%s,"new":1.50}' % CONTENT
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
def test_a_prompt_is_estimated_from_what_is_embedded(body, tokens):
    assert BATCH.prompt_tokens(body) == ONE.prompt_tokens(body) == pytest.approx(tokens, abs=1)


@pytest.mark.parametrize(
    ("answer", "usage", "bad"),
    [
        (b'{"embedding":{"values":[0.1]}}', None, False),
        (b'{"embeddings":[{"values":[0.1]}],"usageMetadata":{"promptTokenCount":7,"totalTokenCount":7}}', 7, False),
        (b'{"embeddings":[],"usageMetadata":{"promptTokenCount":0}}', 0, False),
        (b'{"embedding":{"values":[]},"usageMetadata":{"promptTokenCount":7,"totalTokenCount":99}}', 7, False),
        (b'{"embedding":{"values":[]},"usageMetadata":{"promptTokenCount":-1}}', None, True),
        (b'{"embedding":{"values":[]},"usageMetadata":{"promptTokenCount":NaN}}', None, True),
        (b'{"embedding":{"values":[]},"usageMetadata":{"promptTokenCount":1e400}}', None, True),
    ],
)
def test_an_answer_is_billed_by_its_prompt_alone(answer, usage, bad):
    read = ONE.read_response(answer)
    assert read.usage == (None if usage is None else Usage(prompt_tokens=usage, source="reported"))
    assert (read.bad_usage, read.is_empty) == (bad, b'"embeddings":[]' in answer)


@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b"<html>", b'{"embeddings":7}', b'{"candidates":[]}'])
def test_what_holds_no_vectors_is_no_answer(answer):
    with pytest.raises(UnreadableResponse):
        ONE.read_response(answer)


def test_an_error_with_a_success_status_is_an_error():
    assert ONE.read_response(b'{"error":{"code":500,"message":"x","status":"INTERNAL"}}').is_error


def test_errors_of_ours_are_in_googles_words():
    told = json.loads(ONE.error_body(LedgerUnavailable("It cannot be written down."), "call_1"))["error"]
    assert (told["code"], told["status"]) == (503, "UNAVAILABLE")
    assert told["details"][0]["metadata"] == {"code": "ledger_unavailable", "call_id": "call_1"}


@given(st.binary(max_size=200) | st.builds(lambda inner: b'{"requests":[' + inner + b"]}", st.binary(max_size=60)))
def test_whatever_comes_is_read_or_refused(body):
    for dialect in (ONE, BATCH):
        with contextlib.suppress(InvalidRequest):
            dialect.read_request(body, MODEL)
        with contextlib.suppress(UnreadableResponse):
            dialect.read_response(body)
        assert dialect.prompt_tokens(body) >= 0
