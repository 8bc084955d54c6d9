"""Whether a body is a stream of events or JSON, by its first bytes: for Content-Types that are missing or wrong."""

from __future__ import annotations

from typing import Final, Literal

from mcpmeter.http.client.interface import UpstreamResponse

Kind = Literal["events", "json", ""]
"""Empty: not decided, or neither."""

BOM: Final = b"\xef\xbb\xbf"
JSON_STARTS: Final = b"{["
ODD_STARTS: Final = b"{[ \t\r\n\xef"
"""First bytes that no event begins with, except after blanks."""

MAX_START_BYTES: Final = 512
"""A body that is not decided by so many bytes is what its Content-Type says."""

_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")


def kind_of(start: bytes) -> Kind:
    """The kind of a body that starts like this."""
    text = start[:MAX_START_BYTES].removeprefix(BOM).lstrip()
    if text.startswith(_FIELDS):
        return "events"
    return "json" if text[:1] and text[0] in JSON_STARTS else ""


async def is_events(response: UpstreamResponse) -> bool:
    """Whether the response to a request for a stream is one, whatever its Content-Type. Raises as `read`."""
    if not response.is_plain:
        return False
    start = b""
    while _is_undecided(start):
        more = await response.peek(len(start) + 1)
        if len(more) == len(start):
            break
        start = more
    return kind_of(start) == "events"


def relabel(response: UpstreamResponse, content_type: str) -> None:
    """Give a response the Content-Type of what it is."""
    response.headers = {**response.headers, "content-type": content_type}


def _is_undecided(start: bytes) -> bool:
    if len(start) >= MAX_START_BYTES or kind_of(start):
        return False
    text = start.removeprefix(BOM).lstrip()
    return any(beginning.startswith(text) for beginning in (BOM, *_FIELDS))
