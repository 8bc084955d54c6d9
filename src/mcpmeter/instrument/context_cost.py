"""The part of a model's context window that tools use: their definitions, and the content of their results. Pure.

A token is estimated as 4 bytes: a tokenizer's vocabulary would be larger than the rest of the library.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from mcpmeter.instrument.outcomes import field_of

BYTES_PER_TOKEN: Final = 4


class ContextCost(NamedTuple):
    """The size of one result's content."""

    content_bytes: int
    text_tokens: int


def of_result(result: Any) -> ContextCost:
    """The size of a tool result's content as JSON, and the tokens of its text."""
    content = field_of(result, "content", "content") or ()
    blocks = [_plain(block) for block in content]
    text = sum(len(part.encode("utf-8", "replace")) for block in blocks for part in _texts(block))
    return ContextCost(len(msgspec.json.encode(blocks)), _tokens(text))


def definitions(listing: Any) -> Iterator[tuple[str, int]]:
    """(name, tokens) of each tool in a `tools/list` result, by the fields that a model reads."""
    for tool in field_of(listing, "tools", "tools") or ():
        definition = _plain(tool)
        name = definition.get("name")
        if isinstance(name, str):
            read = {field: definition.get(field) for field in ("name", "description", "inputSchema")}
            yield name, _tokens(len(msgspec.json.encode(read)))


def _texts(block: dict[str, Any]) -> Iterator[str]:
    """The text of a block or of its embedded resource."""
    resource = block.get("resource")
    for holder in (block, resource if isinstance(resource, dict) else {}):
        text = holder.get("text")
        if isinstance(text, str):
            yield text


def _plain(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    dump = getattr(value, "model_dump", None)
    return dump(mode="json", by_alias=True, exclude_none=True) if dump is not None else {}


def _tokens(size_bytes: int) -> int:
    return -(-size_bytes // BYTES_PER_TOKEN)
