"""A stream on its way to the client: bytes go on as they arrive, and usage is read on the way.

`StreamTee` reads the events. `Pipe` moves bytes from the provider's connection to the client's without waking a task.
`ForwardedStream` runs one stream from its first byte to its last event. Only two things are held back: an event that
is not complete yet, and the stream's own last event, until the call is settled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Final

from msgspec.structs import replace

from mcpmeter.dialects import sse
from mcpmeter.dialects.base import EventReader, ResponseInfo
from mcpmeter.http.asgi import Header
from mcpmeter.http.client.interface import UpstreamResponse
from mcpmeter.http.exchange import DirectResponse, Exchange
from mcpmeter.http.memory import FREE_BYTES
from mcpmeter.records import Usage
from mcpmeter.relay.body_kind import BOM, ODD_STARTS, is_blank, kind_of
from mcpmeter.relay.drains import Drain
from mcpmeter.relay.event_template import EventTemplate, event_template
from mcpmeter.relay.upstream_errors import Withholding

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024
"""A longer event goes on unread, so that one endless line cannot fill the memory. So does one that does not fit into
the memory that all streams share."""

KEPT_FOR_ESTIMATES_BYTES: Final = 32 * 1024
"""How much of each stream is kept to estimate from; beyond it the estimate is scaled by bytes."""

MAX_KEPT_BYTES: Final = 2 * KEPT_FOR_ESTIMATES_BYTES
"""A longer event is not kept in any form; its estimate is made at once."""

CHUNKS_BETWEEN_TEMPLATES: Final = 16
"""How often a new template is made of the latest chunk; the chunks of some streams have nothing in common."""


class StreamTee:
    """Reads a stream's events: takes what the provider sends and returns what goes to the client."""

    def __init__(
        self, dialect: EventReader, *, withhold_usage: bool, errors: Callable[[], Withholding] | None = None
    ) -> None:
        """`errors` makes what replaces errors that show a credential; rarely, so not before there is one."""
        self._dialect = dialect
        self._errors = errors
        # Bound once: each is used for every chunk.
        self._end_marks = dialect.end_marks
        self._read_events = dialect.read_events
        self._has_content = dialect.has_content
        self._text_mark = dialect.text_mark
        self._withhold = withhold_usage
        self._splitter = sse.EventSplitter()
        self._split = self._splitter.feed
        self._held = self._splitter.held
        self.memory: DirectResponse | None = None
        """Counts what is held of an event above `FREE_BYTES`."""
        self._may_hold_bytes = FREE_BYTES
        self._counted_bytes = 0
        self._content_seen = False
        self._info = ResponseInfo()
        self._usage_block = self._last_event = b""
        self._usage_seen = False
        self._template: EventTemplate | None = None
        self._next_template_at = 0 if self._text_mark else sys.maxsize
        self._kept: list[bytes] = []
        self._kept_bytes: int | None = None
        """Counted from `KEPT_FOR_ESTIMATES_BYTES` in total on; until then everything is kept."""
        self._estimate: int | None = None
        self.total_bytes = 0
        self.chunks = 0
        self.end = b""
        """The stream's own last event, to be sent after the settlement."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the provider's; return the bytes that go on now. After `end` is set nothing more is taken."""
        total_bytes = self.total_bytes = self.total_bytes + len(data)
        template = self._template
        if template is not None and not self._held and (part := template(data)):
            self.chunks += 1
            if total_bytes < KEPT_FOR_ESTIMATES_BYTES:
                self._kept.append(part)
            else:
                self._keep(part)
            return part
        block = self._split(data)
        part = self._take(block) if block else b""
        held_bytes = len(self._held)
        if held_bytes > self._may_hold_bytes:
            if not self.end and not self._keep_event(held_bytes):
                part += self._splitter.take()
                self._drop_event()
        elif block and self._counted_bytes:
            self._drop_event()
        return part

    def feed_all(self, body: bytes) -> bytes:
        """Take a whole stream; return all that goes on of it."""
        sent = self.feed(body)
        return sent + self.end if self.end else sent + self.finish()

    def _keep_event(self, held_bytes: int) -> bool:
        """Count what is held of an event, and what one more read can add. False if it is too much."""
        size = held_bytes + FREE_BYTES - self._counted_bytes
        if held_bytes > MAX_EVENT_BYTES or not (self.memory is None or self.memory.keep_event(size)):
            return False
        self._counted_bytes += size
        self._may_hold_bytes = min(self._counted_bytes, MAX_EVENT_BYTES)
        return True

    def _drop_event(self) -> None:
        if self.memory is not None:
            self.memory.drop_event(self._counted_bytes)
        self._counted_bytes, self._may_hold_bytes = 0, FREE_BYTES

    @property
    def read(self) -> ResponseInfo:
        """What the stream has reported so far. Usage that is not final is left out; `counted` has it."""
        info, usage = self._info, self._info.usage
        if usage is not None and usage.source == "partial":
            usage = None
        wrote_nothing = bool(info.finish_reason) and not self._content_seen
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
        return bool(self.end or info.finish_reason or info.is_error) or self._ends_with_usage

    @property
    def _ends_with_usage(self) -> bool:
        # Usage beside content is no end: some servers send a running count in every chunk.
        return any(map(self._dialect.only_usage, sse.split_events(self._usage_block)))

    def finish(self) -> bytes:
        """The provider has ended the stream: returns the bytes still held, which are read if they can be."""
        rest = self._splitter.take()
        return self._take(rest) if rest else b""

    def _take(self, block: bytes) -> bytes:
        received = block
        for mark in self._end_marks:
            if block.rfind(mark) >= 0:
                block = self._hold_back_end(block)
        if self._withhold:
            block = self._dialect.without_null_usage(block)
        read = block + self._last_event if self.end else block
        info = self._read_events(read)
        if info is not None:
            self._info = self._dialect.merge(self._info, info)
            if info.is_error and self._errors is not None:
                block = self._errors().events(self._dialect, block)
            if info.usage is not None or info.bad_usage:
                self._usage_block = block if len(block) <= MAX_KEPT_BYTES else self._short_usage_event(block)
                if self._withhold:
                    block = self._without_usage_event(block)
        if not self._content_seen:
            self._content_seen = self._has_content(read)
        chunks = block.startswith(b"data:") + block.count(b"\ndata:")
        self.chunks += chunks
        self._keep(block)
        # Not before some text was seen: until then `has_content` has to look at each event.
        if chunks == 1 and info is None and self._content_seen and self.chunks >= self._next_template_at:
            self._next_template_at = self.chunks + CHUNKS_BETWEEN_TEMPLATES
            if len(received) <= MAX_KEPT_BYTES:
                self._template = event_template(received, block, self._text_mark) or self._template
        return block

    def _keep(self, block: bytes) -> None:
        if self.total_bytes < KEPT_FOR_ESTIMATES_BYTES:
            self._kept.append(block)
            return
        if self._kept_bytes is None:
            self._kept_bytes = sum(map(len, self._kept))
        if self._kept_bytes < KEPT_FOR_ESTIMATES_BYTES:
            self._kept.append(block)
            self._kept_bytes += len(block)
            if self._kept_bytes > MAX_KEPT_BYTES:
                self._estimate = self._dialect.delivered_tokens(self._kept)
                self._kept.clear()

    def _short_usage_event(self, block: bytes) -> bytes:
        events = (event for event in sse.split_events(block) if len(event) <= MAX_KEPT_BYTES)
        return next(filter(self._dialect.only_usage, events), b"")

    def _without_usage_event(self, block: bytes) -> bytes:
        """A block without the usage that only the relay requests: alone in an event, or beside the finish reason.

        A running count is in events before these: such a server sends it unasked.
        """
        kept: list[bytes] = []
        for event in sse.split_events(block):
            if self._dialect.only_usage(event):
                continue
            if not self._usage_seen and self._reports_usage(event):
                self._usage_seen = True
                event = self._dialect.without_usage(event)  # noqa: PLW2901
            kept.append(event)
        return b"".join(kept)

    def _reports_usage(self, event: bytes) -> bool:
        # By itself, since it may have arrived in a block with others.
        info = self._read_events(event)
        return info is not None and (info.usage is not None or info.bad_usage)

    def _hold_back_end(self, block: bytes) -> bytes:
        events = sse.split_events(block)
        for index, event in enumerate(events):
            # An event without a mark is no end beside others either: what is read must not depend on the segments.
            if any(mark in event for mark in self._end_marks) and self._dialect.is_end(event):
                # With all that follows in the block: some relays send a [DONE] after another dialect's end. It is not
                # read, since nothing is if it arrives later.
                self._last_event, self.end = event, b"".join(events[index:])
                return b"".join(events[:index])
        return block

    def delivered_tokens(self) -> int:
        """Estimate of the completion tokens that went to the client, or the provider's own count if that is higher."""
        estimate = self._dialect.delivered_tokens(self._kept) if self._estimate is None else self._estimate
        if self._kept_bytes is not None and self._kept_bytes >= KEPT_FOR_ESTIMATES_BYTES:
            estimate = estimate * self.total_bytes // self._kept_bytes
        # Zero delivered stays zero, though a provider may count a token before it writes one.
        return max(estimate, self.counted.completion_tokens) if estimate and self.counted else estimate


class Pipe:
    """Moves a plain body from the provider's connection to the client's, in the event loop's own callbacks.

    Waking a task per chunk costs more than all other work on it: docs/decisions/015-a-wire-under-asgi.md.

    States: *unstarted* until the first byte, so that a stream that breaks off before it can still be answered with a
    status; *flowing*; *held* while the client does not read: the provider's connection is not read either, and the
    server's deadline ends the client's if that lasts too long; *done* once the tee holds back the last event. From then
    on a client that disconnects has all of the response, so the connection is no longer watched.
    """

    def __init__(self, direct: DirectResponse, response: UpstreamResponse, tee: StreamTee) -> None:
        self._direct = direct
        self._response = response
        self._tee = tee
        self._on_first_byte: Callable[[], None] | None = None
        self._drain: Drain | None = None
        self._start = b""
        """The first bytes while they are blank, which begin JSON as well as events."""
        self.other_start = b""
        """The first bytes of a body that is no stream, which ends the pipe."""

    async def run(self, limit_bytes: int, on_first_byte: Callable[[], None]) -> None:
        """Return when the last event is held back or the provider has ended. Raises as `UpstreamResponse.pipe`."""
        self._on_first_byte = on_first_byte
        self._direct.on_drain = self._response.resume
        try:
            await self._response.pipe(self._take, limit_bytes)
        finally:
            self._direct.on_pause = self._direct.on_drain = None

    def read_on(self, drain: Drain) -> None:
        """The client has disconnected: read the rest without writing it."""
        self._drain = drain
        self._direct.on_pause = None
        self._response.resume()

    def _take(self, data: bytes) -> bool:
        direct, tee = self._direct, self._tee
        if direct.disconnected and not self._is_drained():
            return True  # the task is about to be cancelled; these bytes were not delivered
        if self._on_first_byte is not None:
            if self._start or data[0] in ODD_STARTS:
                data = self._start = self._start + data
                if is_blank(data):
                    return True
                if kind_of(data) == "json":
                    self.other_start = data
                    return False
            self._on_first_byte()
            self._on_first_byte = None
            direct.on_pause = self._response.pause
            if direct.is_backpressured:
                self._response.pause()
            direct.write(tee.feed(data.removeprefix(BOM)))
        elif part := tee.feed(data):
            direct.write(part)
        elif not tee.end:
            return True
        if tee.end:
            direct.watch(None)
            return False
        return True

    def _is_drained(self) -> bool:
        drain = self._drain
        if drain is None:
            return False
        drain.note(self._tee.total_bytes)
        return True


class ForwardedStream:
    """One stream that is forwarded to the client: what was delivered of it (`tee`) and when its first byte arrived."""

    def __init__(
        self,
        exchange: Exchange,
        response: UpstreamResponse,
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
        self._pipe: Pipe | None = None
        self._drain: Drain | None = None
        self.other_body = b""
        """The body, if it is JSON and no stream."""

    def read_on(self, drain: Drain) -> None:
        """The client has disconnected: read the rest without sending it."""
        self._drain = drain
        if self._pipe is not None:
            self._pipe.read_on(drain)

    async def run(self, limit_bytes: int) -> bool:
        """Forward all but the last event, which `tee.end` holds. False: the stream broke off before it was complete.

        Raises as `UpstreamResponse.read`.
        """
        exchange, tee, direct = self._exchange, self.tee, self._exchange.direct_response
        tee.memory = direct
        if direct is not None and self._response.is_plain:
            pipe = self._pipe = Pipe(direct, self._response, tee)
            if self._drain is not None:
                pipe.read_on(self._drain)
            await pipe.run(limit_bytes, lambda: self._start_direct(direct))
            if pipe.other_start:
                self.other_body = pipe.other_start + await self._response.read(limit_bytes)
        else:
            await self._copy(limit_bytes)
        if tee.end:
            return True
        if self.other_body:
            return False
        rest = tee.finish()
        if not tee.is_whole:
            return False
        if rest:
            await exchange.send(rest)
        return True

    def _start_direct(self, direct: DirectResponse) -> None:
        self.first_chunk_ns = self._elapsed_ns()
        direct.start(self._response.status, self._headers)

    async def _copy(self, limit_bytes: int) -> None:
        exchange, tee = self._exchange, self.tee
        start, other = b"", list[bytes]()
        async with aclosing(self._response.chunks(limit_bytes)) as chunks:
            async for chunk in chunks:
                data = chunk
                if other:
                    other.append(data)
                    continue
                if not exchange.started:
                    data = start = start + data
                    if is_blank(data):
                        continue
                    if kind_of(data) == "json":
                        other.append(data)
                        continue
                    data = data.removeprefix(BOM)
                    self.first_chunk_ns = self._elapsed_ns()
                    await exchange.start(self._response.status, self._headers)
                if part := tee.feed(data):
                    await exchange.send(part)
                if tee.end:
                    return
                if self._drain is not None:
                    self._drain.note(tee.total_bytes)
        self.other_body = b"".join(other)
