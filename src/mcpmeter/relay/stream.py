"""The tee on a stream: bytes go on as they come, what they cost is read on the way.

Only two things are held back: an event that is not whole yet (when it may be the usage chunk that only we asked for),
and the stream's own end, until the call is settled.
"""

from __future__ import annotations

import sys
from typing import Final

from msgspec.structs import replace

from mcpmeter.dialects import sse
from mcpmeter.dialects.base import EventReader, ResponseInfo
from mcpmeter.records import Usage
from mcpmeter.relay.event_template import EventTemplate, event_template

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024
"""An event longer than this is passed on unread, so that one endless line cannot fill the memory."""

KEPT_FOR_ESTIMATES_BYTES: Final = 1024 * 1024
"""How much of a stream is kept to estimate from; beyond it the estimate is scaled by bytes."""

CHUNKS_BETWEEN_TEMPLATES: Final = 16
"""How often it is looked again what a stream's chunks have in common; some have nothing."""


class StreamTee:
    """Takes the parts of an upstream's stream; returns the bytes that go on to the client."""

    def __init__(self, dialect: EventReader, *, withhold_usage: bool) -> None:
        self._dialect = dialect
        # Bound once: each is used for every chunk.
        self._end_marks = dialect.end_marks
        self._read_events = dialect.read_events
        self._has_content = dialect.has_content
        self._text_mark = dialect.text_mark
        self._withhold = withhold_usage
        self._splitter = sse.EventSplitter()
        self._split = self._splitter.feed
        self._held = self._splitter.held
        self._content_seen = False
        self._info = ResponseInfo()
        self._counted_in = b""
        self._template: EventTemplate | None = None
        self._next_template_at = 0 if self._text_mark else sys.maxsize
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self.total_bytes = 0
        self.chunks = 0
        self.end = b""
        """The stream's own last event, to be sent after the settlement."""

    def feed(self, data: bytes) -> bytes:
        """Take a part; return what may go on now. After `end` is set, nothing more is taken."""
        self.total_bytes += len(data)
        template = self._template
        if template is not None and not self._held and (part := template(data)):
            self.chunks += 1
            self._keep(part)
            return part
        block = self._split(data)
        part = self._take(block) if block else b""
        if len(self._held) > MAX_EVENT_BYTES and not self.end:
            part += self._splitter.take()
        return part

    @property
    def read(self) -> ResponseInfo:
        """What the stream has said by now. Usage that is not final is left out; `counted` has it."""
        info, usage = self._info, self._info.usage
        if usage is not None and usage.source == "partial":
            usage = None
        wrote_nothing = bool(info.finish_reason) and not self._content_seen
        is_empty = info.is_empty or (wrote_nothing and not info.is_refusal and not info.is_error)
        return replace(info, usage=usage, is_empty=is_empty)

    @property
    def counted(self) -> Usage | None:
        """What the provider has counted by now, final or not: in a stream that broke off, the prompt is exact and the
        completion may lag behind what was delivered."""
        return self._info.usage

    @property
    def is_whole(self) -> bool:
        """Whether the stream said how it ended: its last event, a finish reason, usage or an error."""
        info = self._info
        if self.end or info.finish_reason or info.is_error:
            return True
        # Usage beside content says nothing: some servers count in every chunk.
        return any(map(self._dialect.only_usage, sse.split_events(self._counted_in)))

    def finish(self) -> bytes:
        """Upstream has ended: what is held goes on, read if it can be."""
        rest = self._splitter.take()
        return self._take(rest) if rest else b""

    def _take(self, block: bytes) -> bytes:
        received = block
        if self._withhold:
            block = self._dialect.without_null_usage(block)
        info = self._read_events(block)
        if info is not None:
            self._info = self._dialect.merge(self._info, info)
            if info.usage is not None or info.bad_usage:
                self._counted_in = block
                if self._withhold:
                    block = self._without_usage_event(block)
        if not self._content_seen:
            self._content_seen = self._has_content(block)
        for mark in self._end_marks:
            if block.rfind(mark) >= 0:
                block = self._hold_back_end(block)
        chunks = block.startswith(b"data:") + block.count(b"\ndata:")
        self.chunks += chunks
        self._keep(block)
        # Until text has been seen, each event must be checked for it.
        if chunks == 1 and info is None and self._content_seen and self.chunks >= self._next_template_at:
            self._next_template_at = self.chunks + CHUNKS_BETWEEN_TEMPLATES
            self._template = event_template(received, block, self._text_mark) or self._template
        return block

    def _keep(self, block: bytes) -> None:
        if self._kept_bytes < KEPT_FOR_ESTIMATES_BYTES:
            self._kept.append(block)
            self._kept_bytes += len(block)

    def _without_usage_event(self, block: bytes) -> bytes:
        return b"".join(event for event in sse.split_events(block) if not self._dialect.only_usage(event))

    def _hold_back_end(self, block: bytes) -> bytes:
        events = sse.split_events(block)
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
