import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.errors import InvalidRequest
from mcpmeter.simulator import Fault
from mcpmeter.simulator.dialects.base import BodyDialect
from mcpmeter.simulator.dialects.openai_chat import ChatRequest
from mcpmeter.simulator.dialects.openai_embeddings import EmbeddingsDialect
from mcpmeter.simulator.request_parsing import text_tokens
from mcpmeter.simulator.vectors import Vectors

read_chat = BodyDialect("openai_chat", ChatRequest).read
read_embeddings = EmbeddingsDialect(Vectors(0)).read


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("äöü€x", 2)])
def test_a_token_is_up_to_four_characters(text, tokens):
    assert text_tokens(text) == tokens


def test_prompt_tokens_include_texts_messages_media_and_tools():
    request = read_chat(
        b'{"model":"m","messages":['
        b'{"role":"system","content":"12345678"},'
        b'{"role":"assistant","content":null,"tool_calls":[]},'
        b'{"role":"user","content":[{"type":"text","text":"1234"},{"type":"image_url","image_url":{"url":"data:"}}]}]}'
    )
    assert request.prompt_tokens() == 3 * 4 + 2 + 1 + 85
    with_tools = read_chat(
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f"}}]}'
    )
    assert with_tools.prompt_tokens() == 4 + 1 + text_tokens('[{"type":"function","function":{"name":"f"}}]')


@pytest.mark.parametrize(
    ("given_input", "tokens"), [(b'"12345"', 2), (b'["1","12345"]', 3), (b"[1,2,3]", 3), (b"[[1,2],[3]]", 3)]
)
def test_embedding_tokens_of_every_form(given_input, tokens):
    assert read_embeddings(b'{"model":"m","input":' + given_input + b"}").given.prompt_tokens() == tokens


@pytest.mark.parametrize("given_input", [b"[]", b'["a",1]', b'[[1],"a",2]', b"{}", b"null"])
def test_invalid_embedding_inputs_are_refused(given_input):
    with pytest.raises(InvalidRequest):
        read_embeddings(b'{"model":"m","input":' + given_input + b"}").given.prompt_tokens()


MESSAGES = b'"messages":[{"role":"user","content":"x"}]'
BAD = [
    b"", b"not json", b"[]", b"null", b"{}", b'{"model":"m"}', b'{"model":"m","messages":[]}', b"\xff\xfe{}",
    b'{"model":"",' + MESSAGES + b"}", b'{"model":1,' + MESSAGES + b"}", b'{"model":"\\ud800",' + MESSAGES + b"}",
    b'{"model":"m","n":0,' + MESSAGES + b"}", b'{"model":"m","max_tokens":0,' + MESSAGES + b"}",
    b'{"model":"m","stream":"yes",' + MESSAGES + b"}", b'{"model":"m","messages":"x"}',
    b"[" * 1_000_000, b'{"a":' * 1_000_000,
]  # fmt: skip


@pytest.mark.parametrize("body", BAD, ids=range(len(BAD)))
def test_invalid_chat_requests_are_refused(body):
    with pytest.raises(InvalidRequest) as refused:
        read_chat(body)
    assert len(refused.value.message) < 300


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(body):
    for read in (read_chat, read_embeddings):
        with pytest.raises(InvalidRequest):
            read(body)


@pytest.mark.parametrize("fault", [b'"status=9"', b"5", b'{"status":503}', b'"nonsense"'])
def test_invalid_requested_faults_are_refused(fault):
    request = read_chat(b'{"model":"m","messages":[{"role":"user"}],"metadata":{"simulate":' + fault + b"}}")
    with pytest.raises(InvalidRequest, match=r"metadata\.simulate"):
        request.requested_fault(b"")


def test_other_metadata_is_ignored():
    request = read_chat(b'{"model":"m","messages":[{"role":"user"}],"metadata":{"user":"7","simulate":""}}')
    assert request.requested_fault(b"") is None


@pytest.mark.parametrize(
    "content",
    [
        "[[simulate status=503]]",
        "Hi [[simulate status=503]] there",
        [{"type": "text", "text": "[[simulate status=503]]"}],
    ],
)
def test_the_first_user_text_requests_a_fault(content):
    messages = [{"role": "system", "content": "[[simulate status=401]]"}, {"role": "user", "content": content}]
    body = json.dumps({"model": "m", "messages": messages}).encode()
    assert read_chat(body).requested_fault(body) == Fault(status=503)
    with_both = json.dumps({"model": "m", "messages": messages, "metadata": {"simulate": "status=500"}}).encode()
    assert read_chat(with_both).requested_fault(with_both) == Fault(status=500)


@pytest.mark.parametrize("text", ["[[simulate ]]", "[[simulate status=503", "[simulate status=503]", "simulate"])
def test_texts_without_a_complete_marker_request_nothing(text):
    messages = [{"role": "user", "content": text}, {"role": "user", "content": "[[simulate status=503]]"}]
    body = json.dumps({"model": "m", "messages": messages}).encode()
    assert read_chat(body).requested_fault(body) is None


def test_the_first_embedding_input_requests_a_fault():
    body = b'{"model":"m","input":["[[simulate status=503]]","[[simulate status=500]]"]}'
    assert read_embeddings(body).requested_fault(body) == Fault(status=503)
