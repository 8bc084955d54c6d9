"""Whether a body is a stream of events or JSON, by its first bytes: for Content-Types that are missing or wrong."""

from __future__ import annotations

import re
from typing import Final, Literal

from mcpmeter.http.client.interface import UpstreamResponse

Kind = Literal["events", "json", ""]
"""Empty: not decided, or neither."""

BOM: Final = b"\xef\xbb\xbf"
ODD_STARTS: Final = b"{[ \t\r\n\xef"
"""First bytes that no event begins with, except after blanks."""

MAX_START_BYTES: Final = 512
"""A body that is not decided by so many bytes is what its Content-Type says."""

_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
_START: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*+(?:(?P<events>data:|event:|id:|retry:|:)|(?P<json>[{\[]))")
_BLANK: Final = re.compile(rb"\s*+|\xef(?:\xbb(?:\xbf\s*+)?)?")
_KEEP_ALIVE: Final = re.compile(rb"(?:\xef\xbb\xbf)?(?:\s|:[^\r\n]*+)*+")
_DONE: Final = re.compile(rb"\s+data: ?\[DONE\]\s*+\Z")
_MAX_DONE_BYTES: Final = 64


def kind_of(start: bytes) -> Kind:
    """The kind of a body that starts like this."""
    found = _START.match(start)
    if found is None:
        return ""
    return "events" if found["events"] else "json"


def is_blank(start: bytes) -> bool:
    """Whether a body that starts like this can still be of any kind: servers send blanks while a model thinks."""
    return len(start) < MAX_START_BYTES and _BLANK.fullmatch(start) is not None


def json_alone(body: bytes) -> bytes:
    """JSON without what some servers put around it as if it were an event: comments before it, `[DONE]` after it."""
    begin = _KEEP_ALIVE.match(body)
    end = _DONE.search(body, max(0, len(body) - _MAX_DONE_BYTES))
    return body[begin.end() if begin else 0 : end.start() if end else len(body)]


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
