"""The faults of a connection, and their text form (`reset=body,after_bytes=20`)."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Literal, Self

import msgspec
from msgspec import Meta

from mcpmeter.errors import ConfigInvalid

Stage = Literal["accept", "headers", "head", "body", "chunk"]
"""`accept`: once the client is connected. `headers`: before the response headers. `head`: inside them. `body`: after
`after_bytes` of the body. `chunk`: there, inside a chunk of the transfer encoding that stays incomplete."""

MEGABYTE = 1024 * 1024
PIECE_BYTES = 64 * 1024
_NEWLINES = {"crlf": (b"\r\n",), "cr": (b"\r",), "mixed": (b"\n", b"\r\n", b"\r")}
_GZIP_WINDOW = 31


class WireFault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The faults of one connection. Raises `ConfigInvalid` for invalid values."""

    first: Annotated[int, Meta(ge=1)] | None = None
    """Applies only to the first N connections: a later retry succeeds."""

    reset: Stage | None = None
    """A TCP RST."""
    close: Stage | None = None
    """A FIN too early."""
    stall: Stage | None = None
    """Silence until the client disconnects."""
    after_bytes: Annotated[int, Meta(ge=0)] = 0

    drip_bytes_per_second: Annotated[int, Meta(ge=1)] | None = None
    chunk_bytes: Annotated[int, Meta(ge=1)] | None = None
    """Sends the body in chunks of this size, which cut events and numbers."""
    newlines: Literal["crlf", "cr", "mixed"] | None = None
    """The line ends of a stream; `mixed` changes with each event."""
    line_mb: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Adds a text of this many megabytes as the first field of the first object: valid JSON in one line."""
    gzip_bomb_mb: Annotated[int, Meta(ge=1, le=4096)] | None = None
    """Replaces the body with this many megabytes of blanks, compressed to a thousandth."""

    def __post_init__(self) -> None:
        if sum(stage is not None for stage in (self.reset, self.close, self.stall)) > 1:
            raise ConfigInvalid("A connection takes one of reset, close and stall: set only one of them.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `name=value,name=value`. Raises `ConfigInvalid`."""
        pairs = [pair.partition("=") for pair in text.split(",") if pair]
        try:
            return msgspec.convert({name.strip(): value.strip() for name, _, value in pairs}, cls, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigInvalid(
                f"'{text[:80]}' is not a fault of a connection: {str(error)[:160].rstrip('.')}.",
                hint="docs/simulator.md lists them all.",
            ) from None

    @property
    def stage(self) -> Stage | None:
        """The stage at which the connection breaks, if it does."""
        return self.reset or self.close or self.stall

    @property
    def changes_length(self) -> bool:
        """Whether the body's length changes, so that it is sent in chunks."""
        changes = (self.chunk_bytes, self.newlines, self.line_mb, self.gzip_bomb_mb)
        return any(change is not None for change in changes) or self.stage == "chunk"

    def changed(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The body with the faults applied."""
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
    """One kind of newline per event: two kinds next to each other could be parsed as one newline."""
    rest, count = b"", 0
    async for piece in body:
        *events, rest = (rest + piece.replace(b"\r", b"")).split(b"\n\n")
        for event in events:
            yield (event + b"\n\n").replace(b"\n", kinds[count % len(kinds)])
            count += 1
    if rest:
        yield rest.replace(b"\n", kinds[count % len(kinds)])


async def _padded(body: AsyncIterator[bytes], megabytes: int) -> AsyncIterator[bytes]:
    is_padded = False
    async for piece in body:
        before, brace, after = piece.partition(b"{")
        if is_padded or not brace:
            yield piece
            continue
        is_padded = True
        yield before + brace + b'"padding":"'
        for _ in range(megabytes * MEGABYTE // PIECE_BYTES):
            yield b"x" * PIECE_BYTES
        yield b'",' + after


async def _cut(body: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    async for piece in body:
        for start in range(0, len(piece), size):
            yield piece[start : start + size]
