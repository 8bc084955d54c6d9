"""The options `--ledger` and `--config` that several commands share, and the ledger they lead to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcpmeter.errors import ConfigInvalid

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


config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="The service's configuration; else $MCPMETER_CONFIG or ./mcpmeter.yaml.",
)


def ledger_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--ledger`; the command gets a location, or None for the one `ledger_at` finds."""
    return click.option(
        "--ledger",
        type=LedgerType(),
        help="The ledger: a file, or postgresql://user@host/database. Default: ledger.path or ledger.url of the "
        "configuration, else $MCPMETER_LEDGER, else ~/.local/state/mcpmeter/ledger.db.",
    )(function)


def ledger_at(option: Location | None, config_path: Path | None) -> Location:
    """The ledger that `--ledger` names, else the one `mcpmeter serve` opens with this configuration.

    Only the section `ledger` is read, which needs no provider's key. Raises click.UsageError for its faults.
    """
    from mcpmeter.config import find_file, load_sections

    if option is not None:
        return option
    with config_faults_as_usage_errors():
        return load_sections(find_file(config_path, os.environ), os.environ, "ledger").ledger.location


@contextlib.contextmanager
def config_faults_as_usage_errors() -> Iterator[None]:
    """Exit code 2 for a faulty configuration: in several of these commands 1 is a finding in the ledger."""
    try:
        yield
    except ConfigInvalid as fault:
        raise click.UsageError(str(fault)) from None


def unix_ns(instant: datetime | None) -> int | None:
    """An instant that was typed (UTC) as Unix ns, held to what a ledger can hold."""
    if instant is None:
        return None
    return max(0, min(int(instant.replace(tzinfo=UTC).timestamp()) * 10**9, _LARGEST_NS))
