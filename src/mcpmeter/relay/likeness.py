"""What the chunks of a stream have in common: all but the text, mostly. Such a chunk is known by its two ends alone."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from mcpmeter.relay.dialects.openai import events_of


class Likeness(NamedTuple):
    """What stands before and after the text of an event; one with another text says no more than that one did."""

    before: bytes
    text_at: int
    """The length of `before`, which the quote ends that opens the text."""
    after: bytes
    """From the quote that closes the text to the blank line."""
    after_bytes: int
    sent_after: bytes
    """What of `after` goes on to the client; the same object where it is all of it."""


def likeness_of(came: bytes, sent: bytes, mark: bytes) -> Likeness | None:
    """Of an event as it came and as it goes on, `mark` before its text. None where the block is not one event in JSON,
    carries no text, or the text cannot be told from the rest by its quotes."""
    text_at = came.find(mark) + len(mark)
    text_ends = came.find(b'"', text_at)
    if text_at < len(mark) or text_ends < 0 or came[text_ends - 1 : text_ends] == b"\\":
        return None
    if sent[:text_ends] != came[:text_ends] or not _is_one_event_in_json(came):
        return None
    after, sent_after = came[text_ends:], sent[text_ends:]
    return Likeness(came[:text_at], text_at, after, len(after), after if sent_after == after else sent_after)


def _is_one_event_in_json(block: bytes) -> bool:
    lines = block.splitlines()
    payloads = events_of(block)
    if len(payloads) != 1 or lines.count(b"") != 1 or lines[-1]:
        return False
    try:
        return isinstance(msgspec.json.decode(payloads[0]), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
