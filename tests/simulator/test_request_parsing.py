import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.errors import InvalidRequest
from mcpmeter.simulator import Fault
from mcpmeter.simulator.dialects.openai_chat import OpenAiChat
from mcpmeter.simulator.dialects.openai_embeddings import OpenAiEmbeddings
from mcpmeter.simulator.request_parsing import text_tokens
from mcpmeter.simulator.vectors import Vectors

read_chat = OpenAiChat().read
read_embeddings = OpenAiEmbeddings(Vectors(0)).read


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("äöü€x", 2)])
def test_a_token_is_four_characters_begun(text, tokens):
    assert text_tokens(text) == tokens


def test_prompt_tokens_count_texts_messages_media_and_tools():
    ask = read_chat(
        b'{"model":"m","messages":['
        b'{"role":"system","content":"12345678"},'
        b'{"role":"assistant","content":null,"tool_calls":[]},'
        b'{"role":"user","content":[{"type":"text","text":"1234"},{"type":"image_url","image_url":{"url":"data:"}}]}]}'
    )
    assert ask.prompt_tokens() == 3 * 4 + 2 + 1 + 85
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
def test_embedding_inputs_that_make_no_sense_are_refused(given_input):
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
def test_a_body_that_is_no_chat_request_is_refused(body):
    with pytest.raises(InvalidRequest) as refused:
        read_chat(body)
    assert len(refused.value.message) < 300


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body):
    for read in (read_chat, read_embeddings):
        with pytest.raises(InvalidRequest):
            read(body)


@pytest.mark.parametrize("wish", [b'"status=9"', b"5", b'{"status":503}', b'"nonsense"'])
def test_a_wish_that_cannot_be_simulated_is_refused(wish):
    ask = read_chat(b'{"model":"m","messages":[{"role":"user"}],"metadata":{"simulate":' + wish + b"}}")
    with pytest.raises(InvalidRequest, match=r"metadata\.simulate"):
        ask.wished_fault(b"")


def test_other_metadata_is_nobodys_business():
    ask = read_chat(b'{"model":"m","messages":[{"role":"user"}],"metadata":{"user":"7","simulate":""}}')
    assert ask.wished_fault(b"") is None


@pytest.mark.parametrize(
    "content",
    [
        "[[simulate status=503]]",
        "Hi [[simulate status=503]] there",
        [{"type": "text", "text": "[[simulate status=503]]"}],
    ],
)
def test_the_first_user_text_may_ask_for_a_fault(content):
    messages = [{"role": "system", "content": "[[simulate status=401]]"}, {"role": "user", "content": content}]
    body = json.dumps({"model": "m", "messages": messages}).encode()
    assert read_chat(body).wished_fault(body) == Fault(status=503)
    with_both = json.dumps({"model": "m", "messages": messages, "metadata": {"simulate": "status=500"}}).encode()
    assert read_chat(with_both).wished_fault(with_both) == Fault(status=500)


@pytest.mark.parametrize("text", ["[[simulate ]]", "[[simulate status=503", "[simulate status=503]", "simulate"])
def test_a_text_that_only_looks_like_a_wish_is_none(text):
    messages = [{"role": "user", "content": text}, {"role": "user", "content": "[[simulate status=503]]"}]
    body = json.dumps({"model": "m", "messages": messages}).encode()
    assert read_chat(body).wished_fault(body) is None


def test_embeddings_ask_by_their_first_text():
    body = b'{"model":"m","input":["[[simulate status=503]]","[[simulate status=500]]"]}'
    assert read_embeddings(body).wished_fault(body) == Fault(status=503)
