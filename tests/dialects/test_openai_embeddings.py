"""The embeddings dialect: what is embedded is counted, what comes back is passed on unread."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.dialects.base import UnreadableResponse
from mcpmeter.dialects.json_body import MAX_MODEL_NAME_LENGTH
from mcpmeter.dialects.openai_embeddings import OpenAiEmbeddings
from mcpmeter.dialects.tokens import MAX_TOKENS
from mcpmeter.errors import InvalidRequest, LedgerUnavailable, UpstreamDisconnected
from mcpmeter.records import Usage

EMBEDDINGS = OpenAiEmbeddings()
INPUT = b'"input":"Hello"'


@pytest.mark.parametrize(
    ("given_input", "tokens"),
    [
        (b'"12345678"', 2),
        (b'["12345678","12345678"]', 4),
        (b"[15496,11,995]", 3),
        (b"[[15496,11,995],[1]]", 4),
    ],
)
def test_every_form_of_input_is_counted(given_input, tokens):
    body = b'{"model":"text-embedding-3-small","input":%s,"encoding_format":"base64","new":[1]}' % given_input
    asked = EMBEDDINGS.read_request(body)
    assert (asked.model, asked.stream) == ("text-embedding-3-small", False)
    assert asked.prompt_tokens_estimate == EMBEDDINGS.prompt_tokens(body) == pytest.approx(tokens, abs=2)
    assert EMBEDDINGS.forwarded(body, asked, asked.model) == body
    assert EMBEDDINGS.path_name(asked) == "embeddings"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"[]", "not for embeddings"),
        (b"{}", "`input`"),
        (b'{"input":""}', "'input' is empty"),
        (b'{"input":[]}', "'input' is empty"),
        (b'{"input":null}', "$.input"),
        (b'{"input":7}', "$.input"),
        (b'{"input":{"text":"Hello"}}', "$.input"),
        (b'{"input":[{"text":"Hello"}]}', "$.input[0]"),
        (b'{"input":[-1]}', "$.input[0]"),
        (b'{"input":[1.5]}', "$.input[0]"),
        (b'{"input":[["a"]]}', "$.input[0][0]"),
        (b'{"model":7,%s}' % INPUT, "$.model"),
        (b'{"model":"",%s}' % INPUT, "'model' is empty"),
        (b'{"model":"%s",%s}' % (b"m" * (MAX_MODEL_NAME_LENGTH + 1), INPUT), "'model' is longer"),
        (b'{"x":"\xff",%s}' % INPUT, "not valid UTF-8"),
        (b'{"input":"\\u0000"}', "NUL"),
        (b'{"input":"\\ud800"}', "not valid JSON"),
        (b'{"input":' + b"[" * 1_000_000, ""),
        (b'{"model":"a","model":"b",%s}' % INPUT, "'model' twice"),
        (b"{%s,%s}" % (INPUT, INPUT), "'input' twice"),
    ],
    ids=lambda value: repr(value[:48]),
)
def test_a_bad_request_is_refused_in_a_sentence_that_repeats_none_of_it(body, words):
    with pytest.raises(InvalidRequest) as refused:
        EMBEDDINGS.read_request(body)
    assert words in str(refused.value)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@given(st.binary(max_size=200) | st.dictionaries(st.sampled_from(["model", "input", "user"]), values, max_size=3))
def test_any_body_is_a_request_or_refused(value):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    with contextlib.suppress(InvalidRequest):
        asked = EMBEDDINGS.read_request(body)
        assert asked.prompt_tokens_estimate > 0
        assert EMBEDDINGS.read_request(EMBEDDINGS.forwarded(body, asked, asked.model or "other")).model


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"{}",
        b'{"data":7}',
        b'{"data":null,"usage":{"prompt_tokens":1}}',
        b"{" * 200_000,
    ],
    ids=lambda value: repr(value[:48]),
)
def test_what_holds_no_list_of_vectors_is_no_answer(body):
    with pytest.raises(UnreadableResponse):
        EMBEDDINGS.read_response(body)


def test_an_error_is_no_empty_answer():
    read = EMBEDDINGS.read_response(b'{"data":[],"error":{"message":"No."}}')
    assert (read.is_error, read.is_empty) == (True, False)


@pytest.mark.parametrize("vector", [b"[0.5]", b'"AAAAPw=="', b"[NaN]", b"[1e400]", b"null", b"{}"])
def test_vectors_are_passed_on_whatever_they_are(vector):
    body = b'{"data":[{"embedding":%s}],"usage":{"prompt_tokens":3,"total_tokens":3}}' % vector
    assert EMBEDDINGS.read_response(body).usage == Usage(prompt_tokens=3, source="reported")


NONE = (None, False)
BAD = (None, True)


def reported(prompt: int) -> tuple[Usage, bool]:
    return Usage(prompt_tokens=prompt, source="reported"), False


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ("null", NONE),
        ("{}", NONE),
        ('{"prompt_tokens":0,"total_tokens":0}', reported(0)),
        ('{"prompt_tokens":8,"total_tokens":8}', reported(8)),
        ('{"prompt_tokens":8,"total_tokens":9}', reported(8)),
        ('{"prompt_tokens":8,"completion_tokens":5}', reported(8)),
        ('{"prompt_tokens":0,"total_tokens":9}', reported(0)),
        ('{"total_tokens":9}', reported(9)),
        ('{"completion_tokens":9}', BAD),
        ('{"prompt_tokens":null}', BAD),
        ('{"prompt_tokens":-8}', BAD),
        ('{"prompt_tokens":1.5}', BAD),
        ('{"prompt_tokens":1e400}', BAD),
        ('{"prompt_tokens":NaN}', BAD),
        ('{"prompt_tokens":"8"}', BAD),
        ('{"prompt_tokens":true}', BAD),
        (f'{{"prompt_tokens":{MAX_TOKENS + 1}}}', BAD),
        ('{"prompt_tokens":8,"total_tokens":-1}', BAD),
        ("[7]", BAD),
        ("7", BAD),
    ],
)
def test_usage_is_all_prompt_or_not_at_all(usage, expected):
    read = EMBEDDINGS.read_response(f'{{"data":[{{}}],"usage":{usage}}}'.encode())
    assert (read.usage, read.bad_usage) == expected


def test_an_error_has_openais_shape_and_an_id():
    error = json.loads(EMBEDDINGS.error_body(LedgerUnavailable("The disk is full."), "call_1"))["error"]
    assert (error["code"], error["call_id"]) == ("ledger_unavailable", "call_1")
    event = EMBEDDINGS.error_event(UpstreamDisconnected("It ended."), "call_1")
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "upstream_broke"
