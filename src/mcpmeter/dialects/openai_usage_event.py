"""The usage that `stream_options.include_usage` adds beside the finish reason, where a server sends it there.

OpenAI sends it alone in an event; others put it into the last event with a choice.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from mcpmeter.dialects import json_body, sse

_KEY: Final = re.compile(rb'\s*(,?)\s*"(?:[^"\\]|\\.)*"\s*:\s*')
_COMMA: Final = re.compile(rb"\s*,?")


class _Choice(msgspec.Struct, frozen=True, gc=False):
    finish_reason: msgspec.Raw = json_body.ABSENT


_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_choices_decoder = msgspec.json.Decoder(list[_Choice])


def without_usage(event: bytes) -> bytes:
    """An event without its usage if it ends a choice; every other byte stays."""
    payloads = sse.payloads(event)
    if len(payloads) != 1:
        return event
    try:
        fields = _fields_decoder.decode(payloads[0])
    except json_body.UNREADABLE:
        return event
    choices = json_body.decode_field(_choices_decoder, fields.get("choices", json_body.ABSENT), [])
    if not any(not json_body.is_blank(choice.finish_reason) for choice in choices):
        return event
    return event.replace(payloads[0], _without_field(payloads[0], fields, "usage"))


def _without_field(payload: bytes, fields: dict[str, msgspec.Raw], name: str) -> bytes:
    """An object without one of its own fields, which objects in it may have too."""
    begins = payload.index(b"{") + 1
    for key, raw in fields.items():
        found = _KEY.match(payload, begins)
        if found is None or not payload.startswith(bytes(raw), found.end()):
            return payload  # a repeated key
        ends = found.end() + len(raw)
        if key == name:
            comma = _COMMA.match(payload, ends) if not found[1] else None
            return payload[:begins] + payload[comma.end() if comma else ends :]
        begins = ends
    return payload
