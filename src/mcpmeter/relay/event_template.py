"""What the chunks of a stream have in common: mostly all but the text. Such a one is known by what stands around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from mcpmeter.dialects import sse

EventTemplate = Callable[[bytes], bytes]
"""Given what came: what goes on of it, if it is an event that differs from the known one in its text alone, so that it
says no more than that one did. Empty where it is another."""

PADDING: Final = b'"obfuscation":"'
"""Letters by chance, by which OpenAI hides from who listens how long a text is."""

QUOTE, NEWLINE, RETURN = b'"\n\r'
"""As numbers: a byte is found in bytes ten times sooner than bytes are."""


def event_template(came: bytes, sent: bytes, mark: bytes) -> EventTemplate | None:
    """Of an event as it came and as it goes on, `mark` before its text. None where the block is not one event in JSON,
    carries no text, or the text cannot be told from the rest by its quotes."""
    text = _text_after(mark, came)
    if text is None or sent[: text[1]] != came[: text[1]] or not _is_one_event_in_json(came):
        return None
    before, after, sent_after = came[: text[0]], came[text[1] :], sent[text[1] :]
    padding, sent_padding = _text_after(PADDING, after), _text_after(PADDING, sent_after)
    if padding is None or sent_padding is None:
        return _plain(before, after, sent_after)
    letters = after[padding[0] : padding[1]]
    if letters and not letters.isalnum():
        return None
    between, sent_between = after[: padding[0]], sent_after[: sent_padding[0]]
    last, sent_last = after[padding[1] :], sent_after[sent_padding[1] :]
    return _padded(before, between, last, sent_between) if sent_last == last else None


def _plain(before: bytes, after: bytes, sent_after: bytes) -> EventTemplate:
    text_at, text_ends = len(before), -len(after)
    is_changed = sent_after != after

    def part_of(data: bytes) -> bytes:
        text = data[text_at:text_ends]
        # With a quote or a line's end in it, it might be more than a text.
        if not text or QUOTE in text or NEWLINE in text or RETURN in text:
            return b""
        if not (data.startswith(before) and data.endswith(after)):
            return b""
        return data[:text_ends] + sent_after if is_changed else data

    return part_of


def _padded(before: bytes, between: bytes, after: bytes, sent_between: bytes) -> EventTemplate:
    text_at, padding_ends, between_bytes = len(before), -len(after), len(between)
    is_changed = sent_between != between

    def part_of(data: bytes) -> bytes:
        text_ends = data.find(b'"', text_at)
        if text_ends < 0 or not data.startswith(between, text_ends):
            return b""
        text, padding = data[text_at:text_ends], data[text_ends + between_bytes : padding_ends]
        if NEWLINE in text or RETURN in text or (padding and not padding.isalnum()):
            return b""
        if text_ends + between_bytes - padding_ends > len(data):
            return b""  # two parts of it overlap
        if not (data.startswith(before) and data.endswith(after)):
            return b""
        return data[:text_ends] + sent_between + data[text_ends + between_bytes :] if is_changed else data

    return part_of


def _text_after(mark: bytes, event: bytes) -> tuple[int, int] | None:
    """Where the text after a mark begins and ends."""
    begins = event.find(mark) + len(mark)
    ends = event.find(b'"', begins)
    if begins < len(mark) or ends < 0 or event[ends - 1 : ends] == b"\\":
        return None
    return begins, ends


def _is_one_event_in_json(block: bytes) -> bool:
    lines = block.splitlines()
    payloads = sse.payloads(block)
    if len(payloads) != 1 or lines.count(b"") != 1 or lines[-1]:
        return False
    try:
        return isinstance(msgspec.json.decode(payloads[0]), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
