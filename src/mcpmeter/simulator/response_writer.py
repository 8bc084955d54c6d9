"""Sends a response and applies the faults of its transfer: gzip, slow drip, wrong length, reset."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping

from starlette.responses import Response

from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.server import SimulatorRequest
from mcpmeter.simulator.vendors.base import PlainResponse

PIECE_BYTES = 64 * 1024
DRIPS_PER_SECOND = 20
_GZIP_WINDOW = 31


class ResponseWriter:
    """Sends one response in pieces."""

    def __init__(self, request: SimulatorRequest, fault: Fault) -> None:
        self._send = request.send
        self._connection = request.connection
        self._drip_bytes = _drip_bytes(fault)
        self._gzip = zlib.compressobj(wbits=_GZIP_WINDOW) if fault.encoding == "gzip" else None

    async def start(self, content_type: str, headers: Mapping[str, str], *, content_length: int | None = None) -> None:
        """Send the headers; without a length the body is chunked."""
        fields = {**headers, "Content-Type": content_type}
        if self._gzip is not None:
            fields["Content-Encoding"] = "gzip"
        elif content_length is not None:
            fields["Content-Length"] = str(content_length)
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})

    async def send(self, data: bytes) -> None:
        """Send part of the body, at the fault's pace."""
        if self._gzip is not None:
            data = self._gzip.compress(data) + self._gzip.flush(zlib.Z_SYNC_FLUSH)
        if self._drip_bytes:
            await self._drip(data, self._drip_bytes)
        else:
            for start in range(0, len(data), PIECE_BYTES):
                await self._write(data[start : start + PIECE_BYTES])

    def send_unframed(self, data: bytes) -> None:
        """Send bytes past the HTTP framing, such as those beyond the announced length."""
        self._connection.transport.write(data)

    async def end(self) -> None:
        """Send the end of the body."""
        rest = b"" if self._gzip is None else self._gzip.flush()
        await self._send({"type": "http.response.body", "body": rest, "more_body": False})

    async def close(self) -> None:
        """Close the connection without the end of the body. Does not return: the lost connection cancels the task."""
        await self._connection.close()

    async def reset(self, *, inside_chunk: bool = False) -> None:
        """Reset the connection, optionally inside an unfinished chunk. Does not return, as `close`."""
        if inside_chunk:
            self.send_unframed(b'1000\r\ndata: {"id":"chatcm')
        await self._connection.reset()

    async def _drip(self, data: bytes, size: int) -> None:
        for start in range(0, len(data), size):
            await self._write(data[start : start + size])
            await asyncio.sleep(1 / DRIPS_PER_SECOND)

    async def _write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})


async def respond(request: SimulatorRequest, response: PlainResponse, headers: Mapping[str, str]) -> None:
    """Send a whole response."""
    fields = {**headers, "Content-Type": response.content_type}
    await Response(response.body, response.status, fields)(request.scope, request.receive, request.send)


def _drip_bytes(fault: Fault) -> int:
    return max(1, fault.drip_bytes_per_second // DRIPS_PER_SECOND) if fault.drip_bytes_per_second else 0
