"""What a connection can do to an answer on its way, and the text that asks for it (`reset=body,after_bytes=20`)."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Literal, Self

import msgspec
from msgspec import Meta

from mcpmeter.errors import ConfigInvalid

Stage = Literal["accept", "headers", "head", "body", "chunk"]
"""When the client has connected; when the upstream has answered, before the head; inside the head; after `after_bytes`
of the body; there, inside a chunk of the transfer encoding that is announced and never comes whole."""

MEGABYTE = 1024 * 1024
PIECE_BYTES = 64 * 1024
_NEWLINES = {"crlf": (b"\r\n",), "cr": (b"\r",), "mixed": (b"\n", b"\r\n", b"\r")}
_GZIP_WINDOW = 31


class WireFault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What happens to one connection. Raises `ConfigInvalid` for what makes no sense."""

    first: Annotated[int, Meta(ge=1)] | None = None
    """Only the first so many connections: a retry then succeeds."""

    reset: Stage | None = None
    """A real RST."""
    close: Stage | None = None
    """An orderly end, too early."""
    stall: Stage | None = None
    """Silence until the client leaves."""
    after_bytes: Annotated[int, Meta(ge=0)] = 0

    drip_bytes_per_second: Annotated[int, Meta(ge=1)] | None = None
    chunk_bytes: Annotated[int, Meta(ge=1)] | None = None
    """The body in chunks of just so many bytes, each sent for itself: every event and every number in it is cut."""
    newlines: Literal["crlf", "cr", "mixed"] | None = None
    """How a stream's lines end; `mixed` changes from event to event."""
    line_mb: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """A text of so many megabytes, as the first field of the first object: valid JSON, all of it in one line."""
    gzip_bomb_mb: Annotated[int, Meta(ge=1, le=4096)] | None = None
    """Instead of the body, so many megabytes of blanks, packed to a thousandth."""

    def __post_init__(self) -> None:
        if sum(stage is not None for stage in (self.reset, self.close, self.stall)) > 1:
            raise ConfigInvalid("A connection is reset, closed or stalled: one of them.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name=value,name=value`. Raises `ConfigInvalid`."""
        pairs = [pair.partition("=") for pair in text.split(",") if pair]
        try:
            return msgspec.convert({name.strip(): value.strip() for name, _, value in pairs}, cls, strict=False)
        except msgspec.ValidationError as wrong:
            raise ConfigInvalid(
                f"'{text[:80]}' is no fault of a connection: {str(wrong)[:160].rstrip('.')}.",
                hint="docs/simulator.md lists them all.",
            ) from None

    @property
    def stage(self) -> Stage | None:
        """Where the connection breaks; None where it does not."""
        return self.reset or self.close or self.stall

    @property
    def changes_length(self) -> bool:
        """Whether the body is no longer as long as it was announced, so that it has to go in chunks."""
        changes = (self.chunk_bytes, self.newlines, self.line_mb, self.gzip_bomb_mb)
        return any(change is not None for change in changes) or self.stage == "chunk"

    def changed(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The body's bytes as they shall go out."""
        if self.gzip_bomb_mb is not None:
            return _each(_bomb(self.gzip_bomb_mb))
        if self.newlines is not None:
            body = _with_newlines(body, _NEWLINES[self.newlines])
        if self.line_mb is not None:
            body = _padded(body, self.line_mb)
        return _cut(body, self.chunk_bytes) if self.chunk_bytes is not None else body


NO_WIRE_FAULT = WireFault()


async def _each(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _bomb(megabytes: int) -> Iterator[bytes]:
    packer = zlib.compressobj(9, wbits=_GZIP_WINDOW)
    blanks = b" " * MEGABYTE
    for _ in range(megabytes):
        if packed := packer.compress(blanks):
            yield packed
    yield packer.flush()


async def _with_newlines(body: AsyncIterator[bytes], kinds: tuple[bytes, ...]) -> AsyncIterator[bytes]:
    """Whole events, one kind of newline in each: two kinds beside each other could be read as one newline."""
    rest, count = b"", 0
    async for piece in body:
        *events, rest = (rest + piece.replace(b"\r", b"")).split(b"\n\n")
        for event in events:
            yield (event + b"\n\n").replace(b"\n", kinds[count % len(kinds)])
            count += 1
    if rest:
        yield rest.replace(b"\n", kinds[count % len(kinds)])


async def _padded(body: AsyncIterator[bytes], megabytes: int) -> AsyncIterator[bytes]:
    is_done = False
    async for piece in body:
        before, brace, after = piece.partition(b"{")
        if is_done or not brace:
            yield piece
            continue
        is_done = True
        yield before + brace + b'"padding":"'
        for _ in range(megabytes * MEGABYTE // PIECE_BYTES):
            yield b"x" * PIECE_BYTES
        yield b'",' + after


async def _cut(body: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    async for piece in body:
        for start in range(0, len(piece), size):
            yield piece[start : start + size]
