"""Any bytes as a stream in any pieces: the same bytes go on and the same usage is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.dialects.cases import STREAMING, assert_fits
from tests.fuzz.dialect_checks import JSON_WORDS
from tests.fuzz.fuzz_anthropic import WORDS as ANTHROPIC_WORDS
from tests.fuzz.fuzz_gemini import WORDS as GEMINI_WORDS
from tests.fuzz.fuzz_openai import WORDS as OPENAI_WORDS
from tests.fuzz.harness import Target, pieces, segmentations

from mcpmeter.dialects import sse
from mcpmeter.dialects.base import StreamingDialect
from mcpmeter.relay.stream import StreamTee


class Outcome(NamedTuple):
    """What one stream came to."""

    passed: bytes
    ended: bool
    usage: Any
    counted: Any
    model: str
    finish_reason: str
    is_empty: bool
    is_refusal: bool
    is_error: bool
    bad_usage: bool
    delivered_tokens: int


def outcome_of(dialect: StreamingDialect, parts: Sequence[bytes], *, withhold: bool) -> tuple[Outcome, StreamTee]:
    """Feed a stream as the relay does: up to its own last event."""
    tee = StreamTee(dialect, withhold_usage=withhold)
    passed: list[bytes] = []
    for part in parts:
        passed.append(tee.feed(part))
        if tee.end:
            break
    else:
        passed.append(tee.finish())
    read = tee.read
    outcome = Outcome(
        b"".join(passed),
        bool(tee.end),
        read.usage,
        tee.counted,
        read.model,
        read.finish_reason,
        read.is_empty,
        read.is_refusal,
        read.is_error,
        read.bad_usage,
        tee.delivered_tokens(),
    )
    return outcome, tee


def check(data: bytes) -> None:
    check_splitter(data)
    for dialect in STREAMING.values():
        for withhold in (False, True):
            check_stream(dialect, data, withhold=withhold)


def check_splitter(data: bytes) -> None:
    """Blocks join to the input under any segmentation, and end where an event does."""
    for parts in segmentations(data):
        splitter = sse.EventSplitter()
        blocks = [splitter.feed(part) for part in parts]
        assert all(block == b"" or block.endswith(sse.BLANK_LINES) for block in blocks)
        assert b"".join(blocks) + splitter.take() == data
    assert b"".join(sse.split_events(data)) == data


def check_stream(dialect: StreamingDialect, data: bytes, *, withhold: bool) -> None:
    whole, tee = outcome_of(dialect, [data], withhold=withhold)
    if not withhold:
        assert data.startswith(whole.passed + tee.end)
        assert tee.end or whole.passed == data
    for usage in (whole.usage, whole.counted):
        if usage is not None:
            assert_fits(usage)
    assert whole.delivered_tokens >= 0
    for parts in (sse.split_events(data), *segmentations(data)):
        cut, _tee = outcome_of(dialect, parts, withhold=withhold)
        assert cut == whole, f"{type(dialect).__name__}, withhold={withhold}: {cut} is not {whole}"


def cost(data: bytes) -> None:
    for dialect in STREAMING.values():
        for parts in (pieces(data), sse.split_events(data)):
            outcome_of(dialect, parts, withhold=True)


WORDS = (*JSON_WORDS, *OPENAI_WORDS, *ANTHROPIC_WORDS, *GEMINI_WORDS)
TARGET = Target("stream_reader", check, cost, WORDS, ("golden/*/*.sse",), grown_bytes=64 * 1024)
