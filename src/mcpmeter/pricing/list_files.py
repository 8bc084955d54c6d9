"""Reading the TOML files of prices, and refusals of them that name file, line and what to write instead."""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from difflib import get_close_matches
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

import msgspec

from mcpmeter.errors import ConfigInvalid

FORMAT_HINT: Final = "The format is described in the README.md beside the built-in lists."
PRICE_HINT: Final = 'Write prices in quotes, in US dollars per million tokens: prompt = "2.50".'
PRICE_PATTERN: Final = r"^[0-9]{1,9}(\.[0-9]{1,18})?$"

_ENTRY_HEADER: Final = re.compile(r"\s*\[\[\s*price\s*\]\]")
_PLACE: Final = re.compile(r" - at `\$\.(?:price\[(?P<index>[0-9]+)\]\.?)?(?P<key>[a-z_]+)?")
_UNKNOWN_KEY: Final = re.compile(r"unknown field `(?P<key>[^`]*)`")


def read_text(file: Traversable | Path) -> str:
    """A file's text. Raises ConfigInvalid."""
    try:
        return file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "not UTF-8"
        raise ConfigInvalid(f"The price list {file} cannot be read: {reason}.", hint=FORMAT_HINT) from None


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """TOML; `origin` is its name in errors. Raises ConfigInvalid."""
    try:
        # Decimal, so that an unquoted price is recognised and never becomes a binary fraction.
        return tomllib.loads(text, parse_float=Decimal)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as fault:
        raise ConfigInvalid(f"{origin}: {fault}.", hint=FORMAT_HINT) from None


class Format(msgspec.Struct, frozen=True):
    """The keys of one kind of file, for refusals."""

    file_keys: tuple[str, ...]
    entry_keys: tuple[str, ...]
    price_keys: frozenset[str]

    def refusal(self, fault: str, text: str, origin: str) -> ConfigInvalid:
        """The error for a `msgspec.ValidationError` of a file."""
        place = _PLACE.search(fault)
        index = int(place["index"]) if place and place["index"] else None
        unknown = _UNKNOWN_KEY.search(fault)
        if unknown is not None:
            return self.unknown_key(unknown["key"], index, text, origin)
        key = place["key"] if place else None
        hint = PRICE_HINT if key in self.price_keys else FORMAT_HINT
        return ConfigInvalid(f"{_where(text, origin, index, key)}: {_reworded(fault, key)}", hint=hint)

    def unknown_key(self, key: str, index: int | None, text: str, origin: str) -> ConfigInvalid:
        """The error for a key that the format does not have."""
        near = get_close_matches(key, self.file_keys if index is None else self.entry_keys, n=1)
        what = f"unknown key '{key}'" + (f", did you mean '{near[0]}'?" if near else ".")
        return ConfigInvalid(f"{_where(text, origin, index, key)}: {what}", hint=FORMAT_HINT)


def line_of(text: str, index: int | None, key: str | None) -> int:
    """The line of a key in the entry of this index, else the entry's first line. tomllib keeps no positions."""
    lines = text.splitlines()
    headers = [number for number, line in enumerate(lines) if _ENTRY_HEADER.match(line)]
    start = 0 if index is None or index >= len(headers) else headers[index]
    stop = next((header for header in headers if header > start), len(lines))
    for number in range(start, stop):
        if key is not None and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", lines[number]):
            return number + 1
    return start + 1


def _where(text: str, origin: str, index: int | None, key: str | None) -> str:
    entry = f", entry {index + 1}" if index is not None else ""
    return f"{origin}, line {line_of(text, index, key)}{entry}"


def _reworded(fault: str, key: str | None) -> str:
    text = fault.partition(" - at `")[0].replace("Object missing required field", "missing key").replace("`", "'")
    return (f"'{key}': " if key else "") + f"{text[0].lower()}{text[1:]}."
