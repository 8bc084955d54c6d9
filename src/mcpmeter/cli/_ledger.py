"""The option `--ledger` that several commands share: a file, or the address of a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mcpmeter.ledger.location import Location


_LARGEST_NS = 2**63 - 1


class LedgerType(click.ParamType[Any]):
    """A ledger's location. What is wrong with one is said without repeating it: it may hold a password."""

    name = "ledger"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        """The location that a text names."""
        from mcpmeter.ledger.location import location_of

        return location_of(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """As the help shows it."""
        return "PATH|URL"


def ledger_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--ledger`; the command gets a location, or None for the default."""
    return click.option(
        "--ledger",
        type=LedgerType(),
        help="The ledger: a file, or postgresql://user@host/database. "
        "Default: $MCPMETER_LEDGER, or ~/.local/state/mcpmeter/ledger.db.",
    )(function)


def ledger_at(option: Location | None) -> Location:
    """The ledger that the option names, or the default."""
    from mcpmeter.ledger.location import default_location

    return option or default_location()


def unix_ns(instant: datetime | None) -> int | None:
    """An instant that was typed (UTC) as Unix ns, held to what a ledger can hold."""
    if instant is None:
        return None
    return max(0, min(int(instant.replace(tzinfo=UTC).timestamp()) * 10**9, _LARGEST_NS))
