"""Event templates: the tee reports and sends the same with them as by reading every event."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.dialects.anthropic_messages import AnthropicMessages
from mcpmeter.dialects.base import ResponseInfo
from mcpmeter.dialects.gemini_generate import GeminiGenerate
from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.relay import stream
from mcpmeter.relay.event_template import event_template
from mcpmeter.relay.stream import StreamTee


class CountedReads:
    """A dialect that counts the blocks it has to read."""

    def __init__(self, dialect: Any) -> None:
        self._dialect = dialect
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dialect, name)

    def read_events(self, block: bytes) -> Any:
        self.reads += 1
        return self._dialect.read_events(block)


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


def outcome(tee: StreamTee, pieces: list[bytes]) -> tuple[object, ...]:
    out = b""
    for piece in pieces:
        out += tee.feed(piece)
        if tee.end:
            break
    out += tee.finish()
    # Reading each event may find the model's name earlier; the last events repeat it. What dialects add is their own.
    read = [getattr(tee.read, name) for name in ResponseInfo.__struct_fields__ if name != "model"]
    return out, tee.end, read, tee.counted, tee.is_whole, tee.chunks, tee.total_bytes, tee.delivered_tokens()


@pytest.mark.parametrize(("dialect", "reading", "event"), ALL)
@given(texts=st.lists(WORDS | TEXTS, max_size=8), cuts=st.sets(st.integers(1, 900), max_size=4), withhold=st.booleans())
def test_templates_change_neither_bytes_nor_what_is_read(dialect, reading, event, texts, cuts, withhold):
    pieces = [event % text for text in [b"a", b"b", *texts]]
    data = b"".join(pieces)
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for given_pieces in (pieces, [data[a:b] for a, b in pairwise(edges)]):
        by_template = outcome(StreamTee(dialect, withhold_usage=withhold), given_pieces)
        assert by_template == outcome(StreamTee(reading, withhold_usage=withhold), given_pieces)


@given(
    texts=st.lists(st.tuples(WORDS | TEXTS, st.sampled_from([b"aB3", b""]) | TEXTS), max_size=8),
    withhold=st.booleans(),
)
def test_padding_changes_neither_bytes_nor_what_is_read(texts, withhold):
    pieces = [PADDED % both for both in [(b"a", b"c3"), (b"b", b"d"), *texts]]
    by_template = outcome(StreamTee(OpenAiChat(), withhold_usage=withhold), pieces)
    assert by_template == outcome(StreamTee(ReadingChat(), withhold_usage=withhold), pieces)


@pytest.mark.parametrize(("dialect", "_reading", "event"), ALL)
def test_chunks_that_differ_only_in_text_are_not_read(dialect, _reading, event):
    counted = CountedReads(dialect)
    tee = StreamTee(counted, withhold_usage=True)
    tee.feed(event % b"a")
    tee.feed(event % b"b")
    reads = counted.reads
    assert tee.feed(event % b" and more") == (event % b" and more").replace(b',"usage":null', b"")
    assert (tee.chunks, counted.reads) == (3, reads)


@pytest.mark.parametrize("withhold", [True, False])
def test_chunks_that_differ_in_text_and_padding_are_not_read(withhold):
    counted = CountedReads(OpenAiChat())
    tee = StreamTee(counted, withhold_usage=withhold)
    tee.feed(PADDED % (b"a", b"c3"))
    received = PADDED % (b" and more", b"dEf45")
    assert tee.feed(received) == (received.replace(b',"usage":null', b"") if withhold else received)
    assert counted.reads == 1


def test_a_new_template_is_made_after_chunks_change():
    counted = CountedReads(OpenAiChat())
    tee = StreamTee(counted, withhold_usage=False)
    for number in range(stream.CHUNKS_BETWEEN_TEMPLATES * 3):
        tee.feed(b'data: {"created":%d,"choices":[{"delta":{"content":"a"}}]}\n\n' % (number // 20))
    reads = counted.reads
    tee.feed(b'data: {"created":2,"choices":[{"delta":{"content":"b"}}]}\n\n')
    assert counted.reads == reads


def test_a_template_leaves_out_what_is_withheld():
    received = b'data: {"choices":[{"delta":{"content":"a"}}],"usage":null}\n\n'
    sent = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    template, unchanged = (
        event_template(received, sent, b'"content":"'),
        event_template(received, received, b'"content":"'),
    )
    another = received.replace(b'"a"', b'"another"')
    assert template is not None
    assert template(another) == sent.replace(b'"a"', b'"another"')
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
def test_a_block_that_is_not_one_text_event_makes_no_template(block):
    assert event_template(block, block, b'"content":"') is None


def test_withholding_before_the_text_makes_no_template():
    received = b'data: {"a":{"usage":null},"content":"a"}\n\n'
    assert event_template(received, received.replace(b'"usage":null', b""), b'"content":"') is None
