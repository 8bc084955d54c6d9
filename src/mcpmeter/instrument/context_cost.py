"""What tools cost a model's window: their definitions before they are called, their content after. Pure.

Tokens are bytes by four: a tokenizer's vocabulary would weigh more than all the rest of the library.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from mcpmeter.instrument.endings import field_of

BYTES_PER_TOKEN: Final = 4


class ContextCost(NamedTuple):
    """Of one result's content."""

    content_bytes: int
    text_tokens: int


def of_result(result: Any) -> ContextCost:
    """The size of a tool result's content as JSON, and of the text in it."""
    content = field_of(result, "content", "content") or ()
    blocks = [_plain(block) for block in content]
    text = sum(len(part.encode("utf-8", "replace")) for block in blocks for part in _texts(block))
    return ContextCost(len(msgspec.json.encode(blocks)), _tokens(text))


def definitions(listing: Any) -> Iterator[tuple[str, int]]:
    """(name, tokens) of each tool of a `tools/list` result: what a model reads of it."""
    for tool in field_of(listing, "tools", "tools") or ():
        whole = _plain(tool)
        name = whole.get("name")
        if isinstance(name, str):
            read = {field: whole.get(field) for field in ("name", "description", "inputSchema")}
            yield name, _tokens(len(msgspec.json.encode(read)))


def _texts(block: dict[str, Any]) -> Iterator[str]:
    """The text of a block, or of the resource that is embedded in it."""
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
