"""The tee on a stream: bytes go on as they come, what they cost is read on the way.

Only two things are held back: an event that is not whole yet (when it may be the usage chunk that only we asked for),
and the stream's own end, until the call is settled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from mcpmeter.dialects.base import Dialect, ResponseInfo, merge
from mcpmeter.records import Usage
from mcpmeter.relay.event_template import EventTemplate, event_template

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024
"""An event longer than this is passed on unread, so that one endless line cannot fill the memory."""

KEPT_FOR_ESTIMATES_BYTES: Final = 1024 * 1024
"""How much of a stream is kept to estimate from; beyond it the estimate is scaled by bytes."""

CHUNKS_BETWEEN_TEMPLATES: Final = 16
"""How often it is looked again what a stream's chunks have in common; some have nothing."""

BLANK_LINES: Final = (b"\n\n", b"\n\r\n", b"\r\r")
"""What an event ends with."""


class StreamTee:
    """Feed it what upstream sends; it returns what goes to the client.

    A dialect may have, besides what every dialect has:
    `end_marks`, of which its last event holds one (`is_end` decides);
    `joined(before, now)`, where a stream tells its usage in instalments: one of source `partial` is not final;
    `without_null_usage(block)`, where being asked for usage changes other events too;
    `has_content(block)`, whether a block holds text or a tool's call, to know an empty answer by;
    `text_mark`, what stands before the text in an event that carries text alone, its opening quote with it.
    """

    def __init__(self, dialect: Dialect, *, withhold_usage: bool) -> None:
        self._dialect = dialect
        self._end_marks: tuple[bytes, ...] = getattr(dialect, "end_marks", (b"[DONE]",))
        self._joined: Callable[[ResponseInfo, ResponseInfo], ResponseInfo] = getattr(dialect, "joined", merge)
        self._has_content: Callable[[bytes], bool] | None = getattr(dialect, "has_content", None)
        self._content_seen = False
        self._told = ResponseInfo()
        self._counted_in = b""
        self._withhold = withhold_usage
        self._bare: Callable[[bytes], bytes] | None = (
            getattr(dialect, "without_null_usage", None) if withhold_usage else None
        )
        self._read_events = dialect.read_events
        self._text_mark: bytes = getattr(dialect, "text_mark", b"")
        self._alike: EventTemplate | None = None
        self._look_at_chunk = 0 if self._text_mark else sys.maxsize
        self._held = b""
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self.total_bytes = 0
        self.chunks = 0
        self.end = b""
        """The stream's own last event, to be sent after the settlement."""

    def feed(self, data: bytes) -> bytes:
        """Take what came; return what may go on now. After `end` is set nothing more is taken."""
        self.total_bytes += len(data)
        alike = self._alike
        if alike is not None and not self._held and (part := alike(data)):
            self.chunks += 1
            self._keep(part)
            return part
        return self._take_other(data)

    def _take_other(self, data: bytes) -> bytes:
        if self._held:
            data = self._held + data
        elif data.endswith(BLANK_LINES):
            return self._take(data)
        cut = _end_of_last_event(data)
        block, self._held = (data, b"") if cut == len(data) else (data[:cut], data[cut:])
        part = self._take(block) if block else b""
        if len(self._held) > MAX_EVENT_BYTES and not self.end:
            part, self._held = part + self._held, b""
        return part

    @property
    def read(self) -> ResponseInfo:
        """What the stream has said by now. Usage that is not final is left out; `counted` has it."""
        told, usage = self._told, self._told.usage
        if usage is not None and usage.source == "partial":
            usage = None
        wrote_nothing = self._has_content is not None and not self._content_seen and bool(told.finish_reason)
        is_empty = told.is_empty or (wrote_nothing and not told.is_refusal and not told.is_error)
        return replace(told, usage=usage, is_empty=is_empty)

    @property
    def counted(self) -> Usage | None:
        """What the provider has counted by now, final or not: in a stream that broke off, the prompt is exact and the
        completion may lag behind what was delivered."""
        return self._told.usage

    @property
    def is_whole(self) -> bool:
        """Whether the stream said how it ended: its last event, a finish reason, usage or an error."""
        told = self._told
        return bool(self.end or told.finish_reason or told.is_error) or self._usage_came_last

    @property
    def _usage_came_last(self) -> bool:
        # In instalments usage comes long before the end, and some servers count on in every chunk.
        return self._joined is merge and any(map(self._dialect.only_usage, whole_events(self._counted_in)))

    def finish(self) -> bytes:
        """Upstream has ended: what is held goes on, read if it can be."""
        rest, self._held = self._held, b""
        return self._take(rest) if rest else b""

    def _take(self, block: bytes) -> bytes:
        came = block
        if self._bare is not None:
            block = self._bare(block)
        read = self._read_events(block)
        if read is not None:
            self._told = self._joined(self._told, read)
            if read.usage is not None or read.bad_usage:
                self._counted_in = block
                if self._withhold:
                    block = self._without_usage_event(block)
        if self._has_content is not None and not self._content_seen:
            self._content_seen = self._has_content(block)
        for mark in self._end_marks:
            if block.rfind(mark) >= 0:
                block = self._hold_back_end(block)
        chunks = block.startswith(b"data:") + block.count(b"\ndata:")
        self.chunks += chunks
        self._keep(block)
        # Before any text was seen, each event has to be asked for one.
        if chunks == 1 and read is None and self._content_seen and self.chunks >= self._look_at_chunk:
            self._look_at_chunk = self.chunks + CHUNKS_BETWEEN_TEMPLATES
            self._alike = event_template(came, block, self._text_mark) or self._alike
        return block

    def _keep(self, block: bytes) -> None:
        if self._kept_bytes < KEPT_FOR_ESTIMATES_BYTES:
            self._kept.append(block)
            self._kept_bytes += len(block)

    def _without_usage_event(self, block: bytes) -> bytes:
        return b"".join(event for event in whole_events(block) if not self._dialect.only_usage(event))

    def _hold_back_end(self, block: bytes) -> bytes:
        events = whole_events(block)
        for index, event in enumerate(events):
            if self._dialect.is_end(event):
                # With what a relay may send behind it in one go, such as a [DONE] after another dialect's end.
                self.end = b"".join(events[index:])
                return b"".join(events[:index])
        return block

    def delivered_tokens(self) -> int:
        """Estimate of the completion tokens that went to the client; the provider's own count where that is higher."""
        estimate = self._dialect.delivered_tokens(self._kept)
        if self._kept_bytes and self.total_bytes > 2 * KEPT_FOR_ESTIMATES_BYTES:
            estimate = estimate * self.total_bytes // self._kept_bytes
        # Nothing delivered is nothing, though a provider may count a token before it writes one.
        return max(estimate, self.counted.completion_tokens) if estimate and self.counted else estimate


def _end_of_last_event(data: bytes) -> int:
    """Index after the last blank line, which ends an event; 0 when there is none."""
    if data.endswith(BLANK_LINES):
        return len(data)
    # "\n\r\n" ends "\r\n\r\n" too; a position of -1 stays below the width of what was looked for.
    ends = (data.rfind(b"\n\n") + 2, data.rfind(b"\n\r\n") + 3, data.rfind(b"\r\r") + 2)
    return max((end for end, width in zip(ends, (2, 3, 2), strict=True) if end >= width), default=0)


def whole_events(block: bytes) -> list[bytes]:
    """Split a block after each blank line, losing no byte."""
    events: list[bytes] = []
    event = b""
    for line in block.splitlines(keepends=True):
        event += line
        if not line.strip(b"\r\n"):
            events.append(event)
            event = b""
    return [*events, event] if event else events
