"""A stream on its way to the client: bytes go on as they arrive, and usage is read on the way.

`StreamTee` reads the events. `Pipe` moves bytes from the provider's connection to the client's without waking a task.
`ForwardedStream` runs one stream from its first byte to its last event. Only two things are held back: an event that
is not complete yet, and the stream's own last event, until the call is settled.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Final

from msgspec.structs import replace

from mcpmeter.dialects.base import Dialect, ResponseInfo, merge
from mcpmeter.errors import MeterError
from mcpmeter.http import exchange as http_exchange
from mcpmeter.http.client.interface import Answer
from mcpmeter.http.exchange import DirectResponse, Exchange, Header
from mcpmeter.records import Usage
from mcpmeter.relay.event_template import EventTemplate, event_template

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024
"""A longer event goes on unread, so that one endless line cannot fill the memory."""

KEPT_FOR_ESTIMATES_BYTES: Final = 1024 * 1024
"""How much of a stream is kept to estimate from; beyond it the estimate is scaled by bytes."""

CHUNKS_BETWEEN_TEMPLATES: Final = 16
"""How often a new template is made of the latest chunk; the chunks of some streams have nothing in common."""

BLANK_LINES: Final = (b"\n\n", b"\n\r\n", b"\r\r")
"""The line ends that close an event."""


class StreamTee:
    """Reads a stream's events: takes what the provider sends and returns what goes to the client.

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
        self._info = ResponseInfo()
        self._usage_block = b""
        self._withhold = withhold_usage
        self._bare: Callable[[bytes], bytes] | None = (
            getattr(dialect, "without_null_usage", None) if withhold_usage else None
        )
        self._read_events = dialect.read_events
        self._text_mark: bytes = getattr(dialect, "text_mark", b"")
        self._template: EventTemplate | None = None
        self._next_template_at = 0 if self._text_mark else sys.maxsize
        self._held = b""
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self.total_bytes = 0
        self.chunks = 0
        self.end = b""
        """The stream's own last event, to be sent after the settlement."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the provider's; return the bytes that go on now. After `end` is set nothing more is taken."""
        self.total_bytes += len(data)
        template = self._template
        if template is not None and not self._held and (part := template(data)):
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
        """What the stream has reported so far. Usage that is not final is left out; `counted` has it."""
        info, usage = self._info, self._info.usage
        if usage is not None and usage.source == "partial":
            usage = None
        wrote_nothing = self._has_content is not None and not self._content_seen and bool(info.finish_reason)
        is_empty = info.is_empty or (wrote_nothing and not info.is_refusal and not info.is_error)
        return replace(info, usage=usage, is_empty=is_empty)

    @property
    def counted(self) -> Usage | None:
        """The provider's latest count, final or not. In a stream that broke off, the prompt's count is exact and the
        completion's may lag behind what was delivered."""
        return self._info.usage

    @property
    def is_whole(self) -> bool:
        """Whether the stream reported its end: its last event, a finish reason, usage or an error."""
        info = self._info
        return bool(self.end or info.finish_reason or info.is_error) or self._usage_came_last

    @property
    def _usage_came_last(self) -> bool:
        # Usage in instalments begins long before the end, and some servers send a running count in every chunk.
        return self._joined is merge and any(map(self._dialect.only_usage, whole_events(self._usage_block)))

    def finish(self) -> bytes:
        """The provider has ended the stream: returns the bytes still held, which are read if they can be."""
        rest, self._held = self._held, b""
        return self._take(rest) if rest else b""

    def _take(self, block: bytes) -> bytes:
        received = block
        if self._bare is not None:
            block = self._bare(block)
        info = self._read_events(block)
        if info is not None:
            self._info = self._joined(self._info, info)
            if info.usage is not None or info.bad_usage:
                self._usage_block = block
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
        # Not before some text was seen: until then `has_content` has to look at each event.
        if chunks == 1 and info is None and self._content_seen and self.chunks >= self._next_template_at:
            self._next_template_at = self.chunks + CHUNKS_BETWEEN_TEMPLATES
            self._template = event_template(received, block, self._text_mark) or self._template
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
                # With all that follows in the block: some relays send a [DONE] after another dialect's end.
                self.end = b"".join(events[index:])
                return b"".join(events[:index])
        return block

    def delivered_tokens(self) -> int:
        """Estimate of the completion tokens that went to the client, or the provider's own count if that is higher."""
        estimate = self._dialect.delivered_tokens(self._kept)
        if self._kept_bytes and self.total_bytes > 2 * KEPT_FOR_ESTIMATES_BYTES:
            estimate = estimate * self.total_bytes // self._kept_bytes
        # Zero delivered stays zero, though a provider may count a token before it writes one.
        return max(estimate, self.counted.completion_tokens) if estimate and self.counted else estimate


class Pipe:
    """Moves a plain body from the provider's connection to the client's, in the event loop's own callbacks.

    Waking a task per chunk costs more than all other work on it: docs/decisions/015-a-wire-under-asgi.md.

    States: *unstarted* until the first byte, so that a stream that breaks off before it can still be answered with a
    status; *flowing*; *held* while the client does not read: the provider's connection is not read either, and a timer
    cuts the call if that lasts too long; *done* once the tee holds back the last event. From then on a client that
    disconnects has all of the response, so the connection is no longer watched.
    """

    def __init__(
        self, wire: DirectResponse, response: Answer, tee: StreamTee, cut: Callable[[MeterError], None]
    ) -> None:
        self._wire = wire
        self._response = response
        self._tee = tee
        self._cut = cut
        self._on_first_byte: Callable[[], None] | None = None
        self._held_timer: asyncio.TimerHandle | None = None

    async def run(self, limit_bytes: int, on_first_byte: Callable[[], None]) -> None:
        """Return when the last event is held back or the provider has ended. Raises as `Answer.pipe`."""
        self._on_first_byte = on_first_byte
        self._wire.on_drain = self._resume
        try:
            await self._response.pipe(self._take, limit_bytes)
        finally:
            self._wire.on_drain = None
            self._stop_timer()

    def _take(self, data: bytes) -> bool:
        wire, tee = self._wire, self._tee
        if wire.disconnected:
            return True  # the task is about to be cancelled; these bytes were not delivered
        if self._on_first_byte is not None:
            self._on_first_byte()
            self._on_first_byte = None
            wire.write(tee.feed(data))
        elif part := tee.feed(data):
            wire.write(part)
        if tee.end:
            wire.watch(None)
            return False
        if wire.is_backpressured and self._held_timer is None:
            self._hold()
        return True

    def _hold(self) -> None:
        self._response.hold()
        self._held_timer = asyncio.get_running_loop().call_later(
            http_exchange.SECONDS_FOR_THE_READER, self._cut, http_exchange.reader_stuck()
        )

    def _resume(self) -> None:
        self._stop_timer()
        self._response.go_on()

    def _stop_timer(self) -> None:
        if self._held_timer is not None:
            self._held_timer.cancel()
            self._held_timer = None


class ForwardedStream:
    """One stream that is forwarded to the client: what was delivered of it (`tee`) and when its first byte arrived."""

    def __init__(
        self,
        exchange: Exchange,
        response: Answer,
        tee: StreamTee,
        headers: Iterable[Header],
        elapsed_ns: Callable[[], int],
    ) -> None:
        self.tee = tee
        self.first_chunk_ns = 0
        self._exchange = exchange
        self._response = response
        self._headers = headers
        self._elapsed_ns = elapsed_ns

    async def run(self, limit_bytes: int, cut: Callable[[MeterError], None]) -> bool:
        """Forward all but the last event, which `tee.end` holds. False: the stream broke off before it was complete.

        Raises as `Answer.read`. `cut` is called if the client does not read, and has to cancel this.
        """
        exchange, tee, wire = self._exchange, self.tee, self._exchange.wire
        if wire is not None and self._response.is_plain:
            await Pipe(wire, self._response, tee, cut).run(limit_bytes, lambda: self._start_wire(wire))
        else:
            await self._copy(limit_bytes)
        if tee.end:
            return True
        rest = tee.finish()
        if not tee.is_whole:
            return False
        if rest:
            await exchange.send(rest)
        return True

    def _start_wire(self, wire: DirectResponse) -> None:
        self.first_chunk_ns = self._elapsed_ns()
        self._exchange.started = True
        wire.start(self._response.status, self._headers)

    async def _copy(self, limit_bytes: int) -> None:
        exchange, tee = self._exchange, self.tee
        async with aclosing(self._response.chunks(limit_bytes)) as chunks:
            async for data in chunks:
                if not exchange.started:
                    self.first_chunk_ns = self._elapsed_ns()
                    await exchange.start(self._response.status, self._headers)
                if part := tee.feed(data):
                    await exchange.send(part)
                if tee.end:
                    return


def _end_of_last_event(data: bytes) -> int:
    """Index after the last blank line, which ends an event; 0 if there is none."""
    if data.endswith(BLANK_LINES):
        return len(data)
    # "\n\r\n" ends "\r\n\r\n" too; a position of -1 stays below the width that it is compared with.
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
