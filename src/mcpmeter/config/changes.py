"""What a reload changes, by the names of settings, for the audit. Pure.

Only values of harmless kinds are shown: numbers, switches, and texts of the settings in `SHOWN_TEXTS`. Of all others,
secrets, hashes, addresses and paths among them, only the name is given, so a new setting discloses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Final

from pydantic import BaseModel

from mcpmeter.config.settings import Settings

SHOWN_TEXTS: Final = frozenset(
    (
        "aliases", "allowed_hosts", "code", "default_model", "default_provider", "header", "host", "key", "model",
        "models", "name", "period", "project", "projects", "role", "start", "synchronous", "team", "time_zone",
        "upstreams", "values",
    )
)  # fmt: skip

_ABSENT: Final = object()


def changes_between(old: Settings, new: Settings) -> dict[str, object]:
    """The settings that differ, by dotted name: `[before, after]`, or `changed`, `added`, `removed`."""
    return dict(_section("", old, new))


def _section(path: str, old: BaseModel, new: BaseModel) -> Iterator[tuple[str, object]]:
    for name in type(new).model_fields:
        yield from _value(f"{path}.{name}".lstrip("."), name, getattr(old, name, _ABSENT), getattr(new, name))


def _value(path: str, name: str, old: object, new: object) -> Iterator[tuple[str, object]]:
    if old == new:
        return
    if isinstance(old, BaseModel) and isinstance(new, BaseModel):
        yield from _section(path, old, new)
    elif _is_named(old) and _is_named(new):
        yield from _named(path, name, _by_name(old), _by_name(new))
    elif isinstance(old, BaseModel) or isinstance(new, BaseModel):
        yield path, "removed" if new in (None, _ABSENT) else "added" if old in (None, _ABSENT) else "changed"
        yield from _shown_fields(path, old, new)
    elif _is_shown(name, old) and _is_shown(name, new):
        yield path, [_plain(old), _plain(new)]
    else:
        yield path, "changed"


def _named(path: str, name: str, old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key in [*old, *(key for key in new if key not in old)]:
        yield from _value(f"{path}.{key}", name, old.get(key, _ABSENT), new.get(key, _ABSENT))


def _shown_fields(path: str, old: object, new: object) -> Iterator[tuple[str, object]]:
    """The given settings of a section that was added or removed, as far as they are shown."""
    given = new if isinstance(new, BaseModel) else old
    for name in type(given).model_fields if isinstance(given, BaseModel) else ():
        value = getattr(given, name)
        if (
            name != "name"
            and isinstance(given, BaseModel)
            and name in given.model_fields_set
            and _is_shown(name, value)
        ):
            yield f"{path}.{name}", [None, _plain(value)] if given is new else [_plain(value), None]


def _is_named(value: object) -> bool:
    """Whether a value is a mapping, or a list of sections, which are compared by name or position."""
    if isinstance(value, tuple):
        return all(isinstance(item, BaseModel) for item in value)
    return isinstance(value, Mapping)


def _by_name(value: object) -> dict[str, object]:
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    named: dict[str, object] = {}
    for position, item in enumerate(value if isinstance(value, tuple) else ()):
        name = str(getattr(item, "name", position))
        named[name if name not in named else f"{name}#{position}"] = item
    return named


def _is_shown(name: str, value: object) -> bool:
    if value is None or value is _ABSENT or isinstance(value, bool | int | float | Decimal | datetime):
        return True
    if isinstance(value, tuple):
        return all(_is_shown(name, item) for item in value)
    return name in SHOWN_TEXTS and isinstance(value, str)


def _plain(value: object) -> object:
    if value is _ABSENT:
        return None
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return f"{value:f}" if isinstance(value, Decimal) else value
