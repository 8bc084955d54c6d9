"""Read rows directly from the pages of an SQLite file, for rows that its damaged tree no longer reaches. Pure.

The format is SQLite's (https://sqlite.org/fileformat2.html): a leaf page of a table is a list of cells, each a rowid
and a record; a record that does not fit continues in a chain of overflow pages.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

Value = int | float | str | bytes | None
ReadPage = Callable[[int], bytes]
"""Returns the page of a number, from 1; empty if the file has none."""

LEAF: Final = 0x0D
_FILE_HEADER: Final = 100
_MAX_COLUMNS: Final = 200
_INTEGER_BYTES: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


class InvalidPage(Exception):
    """These bytes are not a row."""


def free_pages(read: ReadPage) -> set[int]:
    """Pages whose content was deleted, as far as their chain is intact."""
    header = read(1)
    trunk = int.from_bytes(header[32:36], "big")
    free: set[int] = set()
    while trunk and trunk not in free and (page := read(trunk)):
        free.add(trunk)
        following, leaves = struct.unpack_from(">II", page)
        if leaves > len(page) // 4 - 2:
            break
        free.update(struct.unpack_from(f">{leaves}I", page, 8))
        trunk = following
    return free


def rows_of_page(number: int, read: ReadPage, usable: int) -> Iterator[list[Value] | None]:
    """The records of a leaf page, None for each unreadable one; nothing for any other page."""
    page = read(number)
    start = _FILE_HEADER if number == 1 else 0
    if len(page) < usable or page[start] != LEAF:
        return
    cells = int.from_bytes(page[start + 3 : start + 5], "big")
    for cell in range(cells):
        at = start + 8 + 2 * cell
        try:
            yield _record(_payload(page, int.from_bytes(page[at : at + 2], "big"), read, usable))
        except (InvalidPage, IndexError, struct.error, UnicodeDecodeError):
            yield None


def _payload(page: bytes, at: int, read: ReadPage, usable: int) -> bytes:
    size, at = _varint(page, at)
    _rowid, at = _varint(page, at)
    if not 0 < size < 2**31:
        raise InvalidPage
    here = _bytes_here(size, usable)
    payload = page[at : at + here]
    following = int.from_bytes(page[at + here : at + here + 4], "big") if here < size else 0
    seen: set[int] = set()
    while len(payload) < size:
        overflow = b"" if following in seen else read(following)
        if len(overflow) < usable:
            raise InvalidPage
        seen.add(following)
        payload += overflow[4 : 4 + min(usable - 4, size - len(payload))]
        following = int.from_bytes(overflow[:4], "big")
    return payload


def _bytes_here(size: int, usable: int) -> int:
    """How many bytes of a record are on the leaf page itself."""
    maximum, least = usable - 35, (usable - 12) * 32 // 255 - 23
    if size <= maximum:
        return size
    fitting = least + (size - least) % (usable - 4)
    return fitting if fitting <= maximum else least


def _record(payload: bytes) -> list[Value]:
    header_end, at = _varint(payload, 0)
    if header_end > len(payload):
        raise InvalidPage
    kinds: list[int] = []
    while at < header_end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    if at != header_end or len(kinds) > _MAX_COLUMNS:
        raise InvalidPage
    values: list[Value] = []
    for kind in kinds:
        value, at = _value(payload, at, kind)
        values.append(value)
    if at != len(payload):
        raise InvalidPage
    return values


def _value(payload: bytes, at: int, kind: int) -> tuple[Value, int]:
    if kind in (0, 8, 9):
        return (None if kind == 0 else kind - 8), at
    if kind in (10, 11):
        raise InvalidPage
    size = _INTEGER_BYTES.get(kind) or (8 if kind == 7 else (kind - 12) // 2)
    data = payload[at : at + size]
    if len(data) < size:
        raise InvalidPage
    if kind < 7:
        return int.from_bytes(data, "big", signed=True), at + size
    if kind == 7:
        return struct.unpack(">d", data)[0], at + size
    return (data.decode() if kind % 2 else data), at + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(8):
        byte = data[at + index]
        value = (value << 7) | (byte & 0x7F)
        if byte < 0x80:
            return value, at + index + 1
    return (value << 8) | data[at + 8], at + 9
