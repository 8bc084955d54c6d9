"""The answer's way out to the connection, and what faults do to it: gzip, slow drip, a wrong length, a reset."""

from __future__ import annotations

import asyncio
import socket
import struct
import zlib
from collections.abc import Mapping

from aiohttp import web

from mcpmeter.simulator.faults import Fault

PIECE_BYTES = 64 * 1024
DRIPS_PER_SECOND = 20
_GZIP_WINDOW = 31
_LINGER_NOT_AT_ALL = struct.pack("ii", 1, 0)
_SECONDS_FOR_SENT_BYTES = 0.02


class Wire:
    """Sends one answer piece by piece. Every method raises `ConnectionResetError` if the client is gone."""

    def __init__(self, request: web.BaseRequest, fault: Fault) -> None:
        self._request = request
        self._drip_bytes = _drip_bytes(fault)
        self._gzip = zlib.compressobj(wbits=_GZIP_WINDOW) if fault.encoding == "gzip" else None
        self._response = web.StreamResponse()

    async def start(self, content_type: str, headers: Mapping[str, str], *, content_length: int | None = None) -> None:
        """Send the headers; without a length the body goes out in chunks."""
        self._response.headers.update(headers)
        self._response.headers["Content-Type"] = content_type
        if self._gzip is not None:
            self._response.headers["Content-Encoding"] = "gzip"
            content_length = None
        self._response.content_length = content_length
        if content_length is None and self._request.version >= (1, 1):
            self._response.enable_chunked_encoding()
        await self._response.prepare(self._request)

    async def send(self, data: bytes) -> None:
        """Send some of the body, as slowly as the fault wants."""
        if self._gzip is not None:
            data = self._gzip.compress(data) + self._gzip.flush(zlib.Z_SYNC_FLUSH)
        if self._drip_bytes:
            await self._drip(data, self._drip_bytes)
        elif len(data) <= PIECE_BYTES:
            await self._response.write(data)
        else:
            for start in range(0, len(data), PIECE_BYTES):
                await self._response.write(data[start : start + PIECE_BYTES])

    def send_unannounced(self, data: bytes) -> None:
        """Send bytes beyond the announced length."""
        self._transport().write(data)

    async def end(self, *, close: bool = False) -> web.StreamResponse:
        """Send the end of the body; `close` ends the connection too."""
        if self._gzip is not None:
            await self._response.write(self._gzip.flush())
        if close:
            self._response.force_close()
        await self._response.write_eof()
        return self._response

    async def reset(self, *, inside_chunk: bool = False) -> None:
        """End the connection with RST, after the first bytes of a chunk that never ends if wanted. Does not return."""
        if inside_chunk:
            self.send_unannounced(b'1000\r\ndata: {"id":"chatcm')
        await reset_connection(self._request)

    async def _drip(self, data: bytes, size: int) -> None:
        for start in range(0, len(data), size):
            await self._response.write(data[start : start + size])
            await asyncio.sleep(1 / DRIPS_PER_SECOND)

    def _transport(self) -> asyncio.Transport:
        if self._request.transport is None:
            raise ConnectionResetError("The client is gone.")
        return self._request.transport


async def reset_connection(request: web.BaseRequest) -> None:
    """Send RST to the client. Does not return: the lost connection cancels the task that calls this."""
    # An RST overtakes what the loop or the kernel has not sent yet, so these bytes get a moment.
    await asyncio.sleep(_SECONDS_FOR_SENT_BYTES)
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("The client is gone.")
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT_AT_ALL)
    transport.abort()
    await until_client_leaves()


async def until_client_leaves() -> None:
    """Wait for ever; a closed connection cancels the task that waits."""
    await asyncio.get_running_loop().create_future()


def _drip_bytes(fault: Fault) -> int:
    return max(1, fault.drip_bytes_per_second // DRIPS_PER_SECOND) if fault.drip_bytes_per_second else 0
