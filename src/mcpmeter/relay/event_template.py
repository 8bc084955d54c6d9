"""Templates of a stream's events: most chunks differ only in their text and are recognised by the bytes around it.

A recognised chunk says no more than the one the template was made of, so it need not be read: a few comparisons
instead of a JSON parser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from mcpmeter.dialects import sse

EventTemplate = Callable[[bytes], bytes]
"""Takes received bytes. Returns what goes on of them if they are one event that differs from the template's in its text
alone, else nothing."""

PADDING: Final = b'"obfuscation":"'
"""Random padding OpenAI adds so that packet sizes do not reveal the text's length."""

QUOTE, NEWLINE, RETURN = b'"\n\r'
"""As integers: `in` finds an integer in bytes ten times faster than bytes of length one."""


def event_template(received: bytes, sent: bytes, mark: bytes) -> EventTemplate | None:
    """Make a template of an event as received and as sent, with `mark` before its text. None if the block is not one
    JSON event, has no text, or its quotes do not delimit the text."""
    text = _text_after(mark, received)
    if text is None or sent[: text[1]] != received[: text[1]] or not _is_one_event_in_json(received):
        return None
    before, after, sent_after = received[: text[0]], received[text[1] :], sent[text[1] :]
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
        # With a quote or a line end in it, it may be more than a text.
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
            return b""  # the parts overlap
        if not (data.startswith(before) and data.endswith(after)):
            return b""
        return data[:text_ends] + sent_between + data[text_ends + between_bytes :] if is_changed else data

    return part_of


def _text_after(mark: bytes, event: bytes) -> tuple[int, int] | None:
    """The start and end of the text after a mark."""
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
