"""The bound on what frames a body in HTTP/1.1, for client and server: headers, chunk extensions, trailers.

Each side keeps a balance per connection. It adds the bytes it reads and, for each part of a body, subtracts the length
of the part twice and `FREE_BYTES_PER_PART` once: the part is no framing, and it pays for as much framing as it is long.
So many small chunks are no flood, and extensions that outweigh their chunks are one. A balance below zero counts as
zero at the next read, so that a long body does not pay for trailers that come later.
"""

from __future__ import annotations

from typing import Final

MAX_HEADER_BYTES: Final = 64 * 1024
"""For a message's headers, for its trailers, and for the balance above."""

FREE_BYTES_PER_PART: Final = 16
