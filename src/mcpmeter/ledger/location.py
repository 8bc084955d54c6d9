"""Where a ledger is: an SQLite file, or the URL of a PostgreSQL database, which may contain a password."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from mcpmeter.errors import LedgerNotUsable

SCHEMES: Final = ("postgresql", "postgres")


class PostgresUrl:
    """A URL `postgresql://user:password@host:port/database`. Its text form has no password."""

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        self._url = url

    def reveal(self) -> str:
        """The whole URL, for libpq only."""
        return self._url

    def __str__(self) -> str:
        # The query is left out too, because libpq accepts a password there.
        parts = urlsplit(self._url)
        userinfo, at, hosts = parts.netloc.rpartition("@")
        return f"{SCHEMES[0]}://{userinfo.partition(':')[0]}{at}{hosts}{parts.path}"

    def __repr__(self) -> str:
        return f"PostgresUrl({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PostgresUrl) and other._url == self._url

    def __hash__(self) -> int:
        return hash(self._url)


Location = Path | PostgresUrl


def location_of(text: str | Location) -> Location:
    """A location as a user writes it: a path, or a URL that begins with `postgresql://`.

    Raises `LedgerNotUsable` for any other URL.
    """
    if not isinstance(text, str):
        return text
    scheme, separator, _ = text.partition("://")
    if not separator:
        return Path(text).expanduser()
    if scheme not in SCHEMES:
        raise LedgerNotUsable(
            "A ledger's address begins with postgresql://, and this one does not.",
            hint="Name a file, or postgresql://user@host:5432/database.",
        )
    return PostgresUrl(text)


def default_location() -> Location:
    """`$MCPMETER_LEDGER`, a path or a URL; else `mcpmeter/ledger.db` in `$XDG_STATE_HOME` or `~/.local/state`."""
    if named := os.environ.get("MCPMETER_LEDGER"):
        return location_of(named)
    return state_folder() / "ledger.db"


def state_folder() -> Path:
    """`mcpmeter` in `$XDG_STATE_HOME`, or in `~/.local/state`."""
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "mcpmeter"
