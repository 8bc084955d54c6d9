"""The sections about clients: how long they may take, and how much of the service they may hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mcpmeter.config.fields import Bytes, Seconds, Section, Whole, setting

Count = Annotated[Whole, Field(ge=1, le=1_048_576)]
Memory = Annotated[Bytes, Field(ge=1_048_576)]


class ServerTimeoutSettings(Section):
    """How long a client may take for each phase of a connection, in seconds; [Limits](limits.md) has the reasons."""

    headers_seconds: Seconds = setting(
        30.0, help="From a new connection to its first request, and for the headers of each request.", example=10.0
    )
    idle_seconds: Seconds = setting(75.0, help="Between two requests on a connection.", example=620.0)
    body_seconds: Seconds = setting(60.0, help="For a whole request body.", example=120.0)
    response_seconds: Seconds = setting(
        60.0,
        help="Without reading anything of a response. A client that reads slowly has a second more per 16 KiB.",
        example=30.0,
    )


class ServerLimitSettings(Section):
    """How much clients may hold at once. Above it a request gets status 503 or 429 with Retry-After.

    [Limits](limits.md) says how the defaults are derived from the process's file descriptors and memory.
    """

    connections: Count | None = setting(
        None, help="Connections of clients; default: derived from file descriptors and memory.", example=4096
    )
    connections_per_address: Count | None = setting(
        None, help="Connections of one IP address (IPv6: one /64); default: half of `connections`.", example=100
    )
    concurrent_calls: Count | None = setting(
        None, help="Calls in progress; default: as many as there are connections to providers.", example=1000
    )
    concurrent_calls_per_key: Count | None = setting(
        None, help="Calls in progress with one key; default: no limit beyond `concurrent_calls`.", example=50
    )
    memory_bytes: Memory = setting(
        268_435_456, help="Request bodies and responses held in memory, in bytes.", example=1_073_741_824
    )
    mcp_sessions_per_key: Count = setting(1000, help="Open MCP sessions of one key.", example=100)
