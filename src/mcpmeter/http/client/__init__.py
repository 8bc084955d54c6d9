"""The client to providers: HTTP/1.1 on httptools (Node's parser), one protocol object a connection, pooled.

Written because it is the metering path and was measured: see docs/decisions/012-upstream-client.md. It does what a
relay needs and no more: POST, keep-alive, chunked and length-delimited answers, TLS by the standard library. No
redirects, cookies or proxies: a key goes only to the address that local configuration names.
"""

from mcpmeter.http.client.client import MAX_TARGETS, Http1Client
from mcpmeter.http.client.connection import BUFFERED_BYTES, Connection
from mcpmeter.http.client.pool import Pool
from mcpmeter.http.client.response import Http1Response
from mcpmeter.http.client.target import MAX_CACHED_HEAD_LENGTH, Origin, Target
from mcpmeter.http.framing import FREE_BYTES_PER_PART, MAX_HEADER_BYTES

__all__ = [
    "BUFFERED_BYTES",
    "FREE_BYTES_PER_PART",
    "MAX_CACHED_HEAD_LENGTH",
    "MAX_HEADER_BYTES",
    "MAX_TARGETS",
    "Connection",
    "Http1Client",
    "Http1Response",
    "Origin",
    "Pool",
    "Target",
]
