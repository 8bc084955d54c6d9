"""The client to upstream servers: HTTP/1.1 on httptools, one protocol object per connection, pooled.

Owns connections, the pool, deadlines, decompression and bounds on responses. Sends POST with keep-alive, reads
length-delimited and chunked responses, TLS by the standard library. No redirects, cookies or proxies: a key goes only
to the address that the configuration names. Measured: docs/decisions/012-upstream-client.md.

Invariants: a connection has one request at a time and holds one slot of the pool; it is reused only after a response
that ended as HTTP requires; every wait has a deadline with an error of its own.
"""

from mcpmeter.http.client.client import MAX_TARGETS, Http1Client, Http1Response
from mcpmeter.http.client.connection import MAX_BUFFERED_BYTES, Connection
from mcpmeter.http.client.pool import Pool
from mcpmeter.http.client.target import MAX_CACHED_HEADERS_LENGTH, Origin, Target

__all__ = [
    "MAX_BUFFERED_BYTES",
    "MAX_CACHED_HEADERS_LENGTH",
    "MAX_TARGETS",
    "Connection",
    "Http1Client",
    "Http1Response",
    "Origin",
    "Pool",
    "Target",
]
