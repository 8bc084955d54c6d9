"""Chunks known by their two ends: whatever stands between these, the tee says and sends what it would by reading."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from mcpmeter.dialects.anthropic_messages import AnthropicMessages
from mcpmeter.dialects.gemini_generate import GeminiGenerate
from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.relay import stream
from mcpmeter.relay.event_template import event_template
from mcpmeter.relay.stream import StreamTee


class ReadingChat(OpenAiChat):
    text_mark = b""


class ReadingMessages(AnthropicMessages):
    text_mark = b""


class ReadingGemini(GeminiGenerate):
    text_mark = b""


CHAT = b'data: {"model":"m","choices":[{"delta":{"content":"%s"},"finish_reason":null}],"usage":null}\n\n'
PADDED = (
    b'data: {"model":"m","choices":[{"delta":{"content":"%s"},"finish_reason":null}],'
    b'"usage":null,"obfuscation":"%s"}\n\n'
)
MESSAGES = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"%s"}}\n\n'
GEMINI = b'data: {"candidates": [{"content": {"parts": [{"text": "%s"}]}}],"modelVersion": "m"}\r\n\r\n'
ALL = [
    (OpenAiChat(), ReadingChat(), CHAT),
    (AnthropicMessages(), ReadingMessages(), MESSAGES),
    (GeminiGenerate(), ReadingGemini(), GEMINI),
]
WORDS = st.sampled_from([b" word", b"usage", b"message_stop", b"[DONE]", b"error", b"\xe4\xbd\xa0", b"\xff"])
BREAKS = st.sampled_from(
    [
        b'"',
        b'\\"',
        b"\\",
        b"\\n",
        b"\n",
        b"\r",
        b"\n\n",
        b"\n\ndata: [DONE]\n\n",
        b'","finish_reason":"stop","x":"',
        b'"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2},"x":[{"y":{"z":"',
        b'"}}\n\nevent: message_stop\ndata: {"type":"message_stop","text":{"text":"',
        b'"}]},"finishReason": "STOP"}],"x":[{"y":{"z":[{"text": "',
    ]
)
TEXTS = st.lists(WORDS | BREAKS | st.binary(max_size=4), max_size=3).map(b"".join)


def told(tee: StreamTee, pieces: list[bytes]) -> tuple[object, ...]:
    out = b""
    for piece in pieces:
        out += tee.feed(piece)
        if tee.end:
            break
    out += tee.finish()
    # The model's name may be read sooner where each event is, and is told again with the end of the answer.
    read = structs.replace(tee.read, model="")
    return out, tee.end, read, tee.counted, tee.is_whole, tee.chunks, tee.total_bytes, tee.delivered_tokens()


@pytest.mark.parametrize(("dialect", "reading", "event"), ALL)
@given(texts=st.lists(WORDS | TEXTS, max_size=8), cuts=st.sets(st.integers(1, 900), max_size=4), withhold=st.booleans())
def test_a_stream_is_read_and_sent_as_it_would_be_event_by_event(dialect, reading, event, texts, cuts, withhold):
    pieces = [event % text for text in [b"a", b"b", *texts]]
    data = b"".join(pieces)
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for given_pieces in (pieces, [data[a:b] for a, b in pairwise(edges)]):
        by_likeness = told(StreamTee(dialect, withhold_usage=withhold), given_pieces)
        assert by_likeness == told(StreamTee(reading, withhold_usage=withhold), given_pieces)


@given(
    texts=st.lists(st.tuples(WORDS | TEXTS, st.sampled_from([b"aB3", b""]) | TEXTS), max_size=8),
    withhold=st.booleans(),
)
def test_a_stream_with_padding_is_read_and_sent_as_it_would_be_event_by_event(texts, withhold):
    pieces = [PADDED % both for both in [(b"a", b"c3"), (b"b", b"d"), *texts]]
    by_likeness = told(StreamTee(OpenAiChat(), withhold_usage=withhold), pieces)
    assert by_likeness == told(StreamTee(ReadingChat(), withhold_usage=withhold), pieces)


@pytest.mark.parametrize(("dialect", "_reading", "event"), ALL)
def test_chunks_that_differ_in_their_text_alone_are_not_read(monkeypatch, dialect, _reading, event):
    tee = StreamTee(dialect, withhold_usage=True)
    tee.feed(event % b"a")
    tee.feed(event % b"b")
    monkeypatch.setattr(tee, "_read_events", None)
    sent = (event % b" and more").replace(b',"usage":null', b"")
    assert tee.feed(event % b" and more") == sent
    assert tee.chunks == 3


@pytest.mark.parametrize("withhold", [True, False])
def test_nor_are_chunks_that_differ_in_their_padding_too(monkeypatch, withhold):
    tee = StreamTee(OpenAiChat(), withhold_usage=withhold)
    tee.feed(PADDED % (b"a", b"c3"))
    monkeypatch.setattr(tee, "_read_events", None)
    came = PADDED % (b" and more", b"dEf45")
    assert tee.feed(came) == (came.replace(b',"usage":null', b"") if withhold else came)


def test_a_stream_whose_chunks_change_is_looked_at_again():
    tee = StreamTee(OpenAiChat(), withhold_usage=False)
    for number in range(stream.CHUNKS_BETWEEN_TEMPLATES * 3):
        tee.feed(b'data: {"created":%d,"choices":[{"delta":{"content":"a"}}]}\n\n' % (number // 20))
    assert tee._template(b'data: {"created":2,"choices":[{"delta":{"content":"b"}}]}\n\n')


def test_what_goes_on_of_it_is_known_too():
    came = b'data: {"choices":[{"delta":{"content":"a"}}],"usage":null}\n\n'
    sent = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    alike, unchanged = event_template(came, sent, b'"content":"'), event_template(came, came, b'"content":"')
    another = came.replace(b'"a"', b'"another"')
    assert alike is not None
    assert alike(another) == sent.replace(b'"a"', b'"another"')
    assert unchanged is not None
    assert unchanged(another) is another


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\n\n",
        b'data: {"content":"a"}\n\ndata: {"content":"b"}\n\n',
        b'data: {"content":"a"}\n\n\n',
        b'data: {"content":"a"}\n',
        b'data: {"content":"a',
        b'data: {"content":"a\\"b"}\n\n',
        b'data: {"content":"a"usage":null}\n\n',
        b'data: "content":"a"\n\n',
        b'data: {"content":1}\n\n',
        b': {"content":"a"}\n\n',
        b'data: {"content":"a",\n\ndata: "b":1}\n\n',
        b'data: {"content":"a","obfuscation":"\\n"}\n\n',
    ],
)
def test_what_is_not_one_event_with_a_text_is_like_no_other(block):
    assert event_template(block, block, b'"content":"') is None


def test_an_event_of_which_something_before_its_text_is_held_back_is_like_no_other():
    came = b'data: {"a":{"usage":null},"content":"a"}\n\n'
    assert event_template(came, came.replace(b'"usage":null', b""), b'"content":"') is None
