"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html

A blank line ends an event. Lines end with LF, CRLF or CR. Every function is linear in the bytes it receives.
"""

from __future__ import annotations

from typing import Final

BLANK_LINES: Final = (b"\n\n", b"\n\r\n", b"\r\r")
"""How the end of a line and the blank line after it can look; LF CR LF also ends CRLF CRLF."""

MAX_BLANK_LINE_BYTES: Final = 3
_LINE_ENDS: Final = (b"\n", b"\r\n", b"\r")
_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")


class EventSplitter:
    """Collects the parts of a stream and releases them in blocks of whole events.

    A long event arrives in many parts. They are appended to one buffer, and each part is searched once: only the seam,
    the last bytes of the buffer and the first of the part, is searched again. So the cost stays linear.
    """

    def __init__(self) -> None:
        self.held = bytearray()
        """The beginning of an event whose end has not arrived. Always the same object; read only."""

    def feed(self, data: bytes) -> bytes:
        """Return all bytes up to the end of the last whole event; empty if no event has ended."""
        held = self.held
        if held:
            if b"\n" not in data and b"\r" not in data:  # no line of the event ends here, so the event does not either
                held += data
                return b""
        elif data.endswith(BLANK_LINES):
            return data
        end = _end_of_last_event(data)
        if not end and held:
            overlap = MAX_BLANK_LINE_BYTES - 1
            before = bytes(held[-overlap:])
            end = max(0, _end_of_last_event(before + data[:overlap]) - len(before))
        if not end:
            held += data
            return b""
        block = self.take() + data[:end] if held else data[:end]
        held += data[end:]
        return block

    def take(self) -> bytes:
        """Return what is held although its event has not ended."""
        data = bytes(self.held)
        self.held.clear()
        return data


def _end_of_last_event(data: bytes) -> int:
    """Index after the last blank line; 0 if there is none."""
    if data.endswith(BLANK_LINES):
        return len(data)
    ends = (at + len(mark) for mark in BLANK_LINES if (at := data.rfind(mark)) >= 0)
    return max(ends, default=0)


def split_events(block: bytes) -> list[bytes]:
    """Split a block after each blank line. Joining the events gives the block again."""
    events: list[bytes] = []
    start = end = 0
    for line in block.splitlines(keepends=True):
        end += len(line)
        if line in _LINE_ENDS:
            events.append(block[start:end])
            start = end
    if start < end:
        events.append(block[start:])
    return events


def payloads(block: bytes) -> list[bytes]:
    """The data of each event in a block of whole events. An event may spread its data over several lines."""
    found: list[bytes] = []
    data: list[bytes] = []
    for line in block.splitlines():
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif not line and data:
            found.append(b"\n".join(data))
            data = []
    if data:
        found.append(b"\n".join(data))
    return found


def lines_outside_events(block: bytes) -> bytes:
    """The lines that are no field of an event."""
    return b"\n".join(line for line in block.splitlines() if not line.startswith(_FIELDS))
