"""The embeddings dialect: inputs are counted, vectors pass unread."""

from __future__ import annotations

import pytest

from mcpmeter.dialects.base import UnreadableResponse
from mcpmeter.dialects.openai_embeddings import OpenAiEmbeddings
from mcpmeter.errors import InvalidRequest
from mcpmeter.records import Usage, UsageItem

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
    request = EMBEDDINGS.read_request(body)
    assert (request.model, request.stream) == ("text-embedding-3-small", False)
    assert request.prompt_tokens_estimate == EMBEDDINGS.prompt_tokens(body) == pytest.approx(tokens, abs=2)
    assert EMBEDDINGS.forwarded(body, request, request.model) == body
    assert EMBEDDINGS.path_name(request) == "embeddings"


@pytest.mark.parametrize(
    ("body", "words"),
    [
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
    ],
    ids=lambda value: repr(value[:48]),
)
def test_an_invalid_request_is_refused_by_field(body, words):
    with pytest.raises(InvalidRequest) as refused:
        EMBEDDINGS.read_request(body)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":7}',
        b'{"data":null,"usage":{"prompt_tokens":1}}',
    ],
    ids=lambda value: repr(value[:48]),
)
def test_a_body_without_vectors_is_unreadable(body):
    with pytest.raises(UnreadableResponse):
        EMBEDDINGS.read_response(body)


def test_an_error_is_not_an_empty_response():
    read = EMBEDDINGS.read_response(b'{"data":[],"error":{"message":"No."}}')
    assert (read.is_error, read.is_empty) == (True, False)


@pytest.mark.parametrize("vector", [b"[0.5]", b'"AAAAPw=="', b"[NaN]", b"[1e400]", b"null", b"{}"])
def test_vectors_are_not_read(vector):
    body = b'{"data":[{"embedding":%s}],"usage":{"prompt_tokens":3,"total_tokens":3}}' % vector
    assert EMBEDDINGS.read_response(body).usage == Usage(prompt_tokens=3, source="reported")


BAD = (None, True)


def reported(prompt: int, **unknown: int) -> tuple[Usage, bool]:
    items = tuple(UsageItem(path, quantity) for path, quantity in unknown.items())
    return Usage(prompt_tokens=prompt, source="reported", unknown=items), False


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ('{"prompt_tokens":0,"total_tokens":0}', reported(0)),
        ('{"prompt_tokens":8,"total_tokens":8}', reported(8)),
        ('{"prompt_tokens":8,"total_tokens":9}', reported(8, total_tokens=1)),
        ('{"prompt_tokens":8,"completion_tokens":5}', reported(8, completion_tokens=5)),
        ('{"prompt_tokens":0,"total_tokens":9}', reported(0, total_tokens=9)),
        ('{"total_tokens":9}', reported(9)),
        ('{"completion_tokens":9}', BAD),
        ('{"prompt_tokens":null}', BAD),
        ('{"prompt_tokens":8,"total_tokens":-1}', reported(8, total_tokens=1)),  # a total is a check only
    ],
)
def test_usage_is_all_prompt_or_not_at_all(usage, expected):
    read = EMBEDDINGS.read_response(f'{{"data":[{{}}],"usage":{usage}}}'.encode())
    assert (read.usage, read.bad_usage) == expected
