"""The client: where a call goes out, and where connections are made."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from typing import Final

from mcpmeter.errors import Overloaded, UpstreamUnreachable
from mcpmeter.http.client.connection import Connection
from mcpmeter.http.client.interface import Timeouts
from mcpmeter.http.client.pool import Pool
from mcpmeter.http.client.response import Http1Response
from mcpmeter.http.client.target import Origin, Target

MAX_TARGETS: Final = 1024
MAX_CACHED_URL_LENGTH: Final = 512
"""Some providers have the model in the path, and that comes from clients: it must not fill our memory."""


class Http1Client:
    """`upstream.UpstreamClient` for one event loop. Connections are kept and used again, the last used first."""

    def __init__(self, timeouts: Timeouts, *, max_connections: int = 512, tls: ssl.SSLContext | None = None) -> None:
        self._timeouts = timeouts
        self._tls = tls
        self._targets: dict[str, Target] = {}
        self._max_connections = max_connections
        self._pool = Pool(max_connections)

    async def post(
        self, provider: str, url: str, headers: Mapping[str, str], body: bytes, timeouts: Timeouts | None = None
    ) -> Http1Response:
        """POST and wait for the answer's head. Raises UpstreamUnreachable, UpstreamTimedOut, UpstreamDisconnected, …"""
        times = timeouts or self._timeouts
        target = self._targets.get(url) or self._new_target(url)
        head = target.request_head(headers, len(body))
        origin = target.origin
        connection = self._pool.idle(origin) or await self._connect(provider, origin, times.connect_seconds)
        try:
            connection.send(provider, head, body, times.total_seconds)
            await connection.wait(times.first_byte_seconds, "sent nothing in time")
        except BaseException:
            connection.close()
            raise
        return Http1Response(connection, provider, times.idle_seconds)

    def _new_target(self, url: str) -> Target:
        target = Target.of(url)
        if len(url) <= MAX_CACHED_URL_LENGTH:
            if len(self._targets) >= MAX_TARGETS:
                self._targets.clear()
            self._targets[url] = target
        return target

    async def _connect(self, provider: str, origin: Origin, seconds: float) -> Connection:
        try:
            async with asyncio.timeout(seconds):
                freed = await self._pool.place(origin)
        except TimeoutError as fault:
            raise Overloaded(
                f"{provider} was not called: all {self._max_connections} connections were in use for {seconds:g} s.",
                hint="Retry, or raise relay.timeouts.max_connections.",
            ) from fault
        if freed is not None:
            return freed
        connection = Connection(self._pool, origin)
        try:
            async with asyncio.timeout(seconds):
                await self._open(connection)
        except BaseException as fault:
            connection.discard()
            if not isinstance(fault, OSError | ValueError):  # TimeoutError and TLS errors, UnicodeError
                raise
            raise UpstreamUnreachable(
                f"{provider} cannot be reached ({_reason(fault)}).",
                hint="Check its base_url and the network, then retry.",
            ) from fault
        return connection

    async def _open(self, connection: Connection) -> None:
        host, port, is_tls = connection.origin
        await asyncio.get_running_loop().create_connection(
            lambda: connection,
            host,
            port,
            ssl=self._tls_context() if is_tls else None,
            server_hostname=host if is_tls else None,
        )
        self._pool.refuse_if_closed()

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    async def close(self) -> None:
        """Close all connections. Calls on their way end with ServiceFault."""
        await self._pool.close()


def _reason(fault: Exception) -> str:
    match fault:
        case ssl.SSLCertVerificationError():
            return f"TLS failed: {fault.verify_message.rstrip('.')}"
        case ssl.SSLError():
            return "TLS failed"
        case socket.gaierror() | UnicodeError():
            return "its name does not resolve"
        case TimeoutError():
            return "no connection in time"
        case ConnectionRefusedError():
            return "connection refused"
    return "no connection"
