"""The client to providers behind a small interface, so that a faster one can take its place.

Connections are pooled. Redirects are not followed, cookies not kept, proxies of the environment not used: a key goes
only to the address that local configuration names.
"""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import aiohttp
from yarl import URL

from mcpmeter.errors import (
    MeterError,
    UpstreamAnsweredGarbage,
    UpstreamAnswerTooLarge,
    UpstreamBroke,
    UpstreamFault,
    UpstreamTimedOut,
    UpstreamUnreachable,
)

SECONDS_TO_SEE_THE_END: Final = 1.0
"""How long a finished stream's connection may take to show its end before it is closed instead of reused."""

WRITTEN_AT_ONCE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds, each with its own error: to connect, to the answer's head, between chunks, and for the whole call."""

    connect_seconds: float = 5.0
    first_byte_seconds: float = 120.0
    idle_seconds: float = 60.0
    total_seconds: float = 600.0


class Answer(Protocol):
    """A provider's answer whose head has arrived."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name; a repeated header's values are joined."""

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body. Raises UpstreamAnswerTooLarge, UpstreamBroke, UpstreamTimedOut."""

    def chunks(self, limit_bytes: int) -> AsyncGenerator[bytes, None]:
        """The body as it comes. Raises as `read`."""

    def finish(self) -> None:
        """Nothing more is wanted of an answer that was complete: its connection may be reused."""

    def abort(self) -> None:
        """Close the connection now, so that the provider stops working. Harmless after the end."""


class UpstreamClient(Protocol):
    """Sends calls to providers."""

    async def post(self, provider: str, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """POST and wait for the answer's head. Raises UpstreamUnreachable, UpstreamTimedOut, UpstreamBroke, …"""

    async def close(self) -> None:
        """Close all connections."""


class AiohttpClient:
    """The client on aiohttp. Use it inside one event loop."""

    def __init__(self, timeouts: Timeouts, *, max_connections: int = 512) -> None:
        self._timeouts = timeouts
        self._ending: set[asyncio.Task[None]] = set()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=max_connections, ttl_dns_cache=30),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_seconds),
        )
        self._urls: dict[str, URL] = {}

    async def post(self, provider: str, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """POST and wait for the answer's head."""
        deadline = asyncio.get_running_loop().time() + self._timeouts.total_seconds
        # Large ones go out in parts, so that writing one does not hold up the loop.
        data = io.BytesIO(body) if len(body) > WRITTEN_AT_ONCE_BYTES else body
        try:
            async with asyncio.timeout(self._timeouts.first_byte_seconds):
                response = await self._session.post(self._url(url), data=data, headers=headers, allow_redirects=False)
        except Exception as fault:
            raise _mapped(fault, provider, f"within {self._timeouts.first_byte_seconds:g} s") from fault
        return _AiohttpAnswer(response, provider, self._timeouts, deadline, self._ending)

    def _url(self, text: str) -> URL:
        # Parsing takes longer than any other step of ours; the set of addresses comes from configuration.
        url = self._urls.get(text)
        if url is None:
            url = self._urls[text] = URL(text, encoded=True)
        return url

    async def close(self) -> None:
        """Close all connections."""
        for task in self._ending:
            task.cancel()
        await self._session.close()


class _AiohttpAnswer:
    def __init__(
        self,
        response: aiohttp.ClientResponse,
        provider: str,
        timeouts: Timeouts,
        deadline: float,
        ending: set[asyncio.Task[None]],
    ) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = _joined(response.headers)
        self._response = response
        self._provider = provider
        self._timeouts = timeouts
        self._deadline = deadline
        self._ending = ending
        self._finished = False

    async def read(self, limit_bytes: int) -> bytes:
        parts = [part async for part in self.chunks(limit_bytes)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def chunks(self, limit_bytes: int) -> AsyncGenerator[bytes, None]:
        inflate = self._inflater(limit_bytes)
        total = 0
        while data := await self._next_part():
            if inflate is not None:
                data = inflate.feed(data)
            total += len(data)
            if total > limit_bytes:
                raise self._too_large(limit_bytes)
            if data:
                yield data
        if inflate is not None:
            inflate.finish()

    async def _next_part(self) -> bytes:
        # Only the provider is timed, never the client that takes its time to read what was handed on before.
        patience = min(self._deadline, asyncio.get_running_loop().time() + self._timeouts.idle_seconds)
        try:
            async with asyncio.timeout_at(patience):
                return await self._response.content.readany()
        except Exception as fault:
            raise _mapped(fault, self._provider, "between two parts of its answer") from fault

    def _inflater(self, limit_bytes: int) -> _Inflate | None:
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding in ("identity", ""):
            return None
        if encoding not in ("gzip", "deflate"):
            raise UpstreamAnsweredGarbage(
                f"{self._provider} sent its answer in an encoding that was not asked for and cannot be read.",
                hint="It has to honour 'Accept-Encoding: identity'.",
            )
        return _Inflate(self._provider, limit_bytes)

    def _too_large(self, limit_bytes: int) -> UpstreamAnswerTooLarge:
        return UpstreamAnswerTooLarge(
            f"The answer of {self._provider} passes {limit_bytes} bytes.",
            hint="Raise relay.max_answer_bytes if such answers are wanted.",
        )

    def finish(self) -> None:
        self._finished = True
        if self._response.content.at_eof():
            self._response.release()
            return
        task = asyncio.get_running_loop().create_task(self._see_the_end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _see_the_end(self) -> None:
        try:
            async with asyncio.timeout(SECONDS_TO_SEE_THE_END):
                if not await self._response.content.readany():
                    self._response.release()
        except (TimeoutError, aiohttp.ClientError, OSError):
            pass  # closing is the answer to all of them
        finally:
            self._response.close()

    def abort(self) -> None:
        if not self._finished:
            self._response.close()


class _Inflate:
    """Bounded inflating: 64 KiB of gzip can hold 64 MiB, and only `limit_bytes` of them are made."""

    def __init__(self, provider: str, limit_bytes: int) -> None:
        self._provider = provider
        self._limit_bytes = limit_bytes
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def feed(self, data: bytes) -> bytes:
        try:
            plain = self._inflater.decompress(data, self._limit_bytes + 1)
        except zlib.error:
            raise UpstreamAnsweredGarbage(
                f"{self._provider} sent an answer that does not unpack.", hint="Try again; it is the provider's fault."
            ) from None
        return plain

    def finish(self) -> None:
        """The body has ended. Raises UpstreamBroke when there should be more."""
        if not self._inflater.eof:
            raise UpstreamBroke(f"{self._provider} closed the connection before its answer ended.", hint="Retry.")


def _joined(headers: Mapping[str, str]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in headers.items():
        lower = name.lower()
        joined[lower] = f"{joined[lower]}, {value}" if lower in joined else value
    return joined


def _mapped(fault: Exception, provider: str, when: str) -> MeterError:
    """The tree's error for what the client library raises. Texts name the provider, never its address or a header."""
    if isinstance(fault, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return UpstreamUnreachable(
            f"{provider} cannot be reached ({_reason(fault)}).", hint="Check its base_url and the network, then retry."
        )
    if isinstance(fault, TimeoutError):
        return UpstreamTimedOut(f"{provider} sent nothing {when}.", hint="Retry, or raise relay.timeouts.")
    if isinstance(fault, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | OSError):
        return UpstreamBroke(f"{provider} closed the connection before its answer ended.", hint="Retry.")
    if isinstance(fault, aiohttp.ClientResponseError):
        return UpstreamAnsweredGarbage(f"{provider} answered something that is not HTTP.", hint="Check its base_url.")
    if isinstance(fault, aiohttp.ClientError):
        return UpstreamFault(f"The call to {provider} failed ({type(fault).__name__}).", hint="Retry.")
    raise fault


def _reason(fault: aiohttp.ClientError | TimeoutError) -> str:
    if isinstance(fault, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return "TLS failed"
    if isinstance(fault, aiohttp.ClientConnectorDNSError):
        return "its name does not resolve"
    if isinstance(fault, ConnectionRefusedError) or isinstance(
        getattr(fault, "os_error", None), ConnectionRefusedError
    ):
        return "connection refused"
    return "no connection in time" if isinstance(fault, TimeoutError) else "no connection"
