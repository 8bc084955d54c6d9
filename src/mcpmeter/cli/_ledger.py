"""The option `--ledger` that several commands share: a file, or the address of a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mcpmeter.ledger.location import Location


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
