"""Small instances of JSON schemas, for structured output and the arguments of tool calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

MAX_DEPTH = 8
MAX_PROPERTIES = 64


def instance_of(schema: Any, words: Callable[[], str]) -> Any:
    """A value that fits a JSON schema's common keywords: type, properties, items, enum, const, anyOf, $ref, minimum.

    `words` makes the strings. Below 8 levels the value is null, so that a recursive schema ends.
    """
    return _value(schema, schema if isinstance(schema, Mapping) else {}, words, 0)


def _value(schema: Any, root: Mapping[str, Any], words: Callable[[], str], depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return None
    if "const" in schema:
        return schema["const"]
    if _has_items(schema.get("enum")):
        return schema["enum"][0]
    if isinstance(schema.get("$ref"), str):
        return _value(_resolve(schema["$ref"], root), root, words, depth + 1)
    for keyword in ("anyOf", "oneOf", "allOf"):
        if _has_items(schema.get(keyword)):
            return _value(schema[keyword][0], root, words, depth + 1)
    return _typed(schema, root, words, depth)


def _typed(schema: Mapping[str, Any], root: Mapping[str, Any], words: Callable[[], str], depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else None)
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    # Gemini writes OBJECT, all others object.
    match kind.lower() if isinstance(kind, str) else kind:
        case "object":
            properties = schema.get("properties")
            kept = list(properties.items())[:MAX_PROPERTIES] if isinstance(properties, Mapping) else []
            return {name: _value(inner, root, words, depth + 1) for name, inner in kept}
        case "array":
            return [_value(schema.get("items"), root, words, depth + 1)] if "items" in schema else []
        case "string":
            return words()
        case "integer" | "number":
            minimum = schema.get("minimum")
            return minimum if isinstance(minimum, int | float) and not isinstance(minimum, bool) else 1
        case "boolean":
            return True
        case _:
            return None


def _has_items(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    target: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        if not isinstance(target, Mapping):
            return None
        target = target.get(step.replace("~1", "/").replace("~0", "~")) if step else target
    return target
